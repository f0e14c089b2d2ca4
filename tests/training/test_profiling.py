"""A trace of a few steps, as TensorBoard's profile plugin reads it."""

import pytest
from etils import epath

from maft_jax.training.profiling import StepProfile
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import make_data, small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("sample"))


def traces_in(workdir):
    return list(workdir.glob("profile/plugins/profile/*/*.xplane.pb"))


@pytest.mark.slow
def test_run_leaves_a_trace_of_named_steps_where_tensorboard_looks(data, tmp_path, caplog):
    caplog.set_level("INFO", "maft_jax")
    train_and_evaluate(small_config(data, num_steps=8, profile_at_step=2), tmp_path)
    [trace] = traces_in(tmp_path)
    content = trace.read_bytes()
    assert content.count(b"step_num") >= 1 and b"train" in content
    assert "profile of steps 2 to 6:" in caplog.text


@pytest.mark.slow
def test_trace_ends_with_training(data, tmp_path, caplog):
    caplog.set_level("INFO", "maft_jax")
    train_and_evaluate(small_config(data, num_steps=4, profile_at_step=3), tmp_path)
    assert len(traces_in(tmp_path)) == 1
    assert "profile of steps 3 to 4:" in caplog.text


def test_trace_is_written_when_training_fails_in_its_middle(tmp_path):
    with (
        pytest.raises(RuntimeError, match="diverged"),
        StepProfile(epath.Path(tmp_path), 1) as profile,
        profile.before(1),
    ):
        raise RuntimeError("diverged")
    assert len(traces_in(tmp_path)) == 1


def test_no_trace_unless_asked_for(tmp_path):
    with StepProfile(epath.Path(tmp_path), 0) as profile:
        for step in (1, 2):
            with profile.before(step):
                pass
            profile.after(step, step == 2, None)
    assert not traces_in(tmp_path)
