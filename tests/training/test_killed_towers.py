"""A run of another tower that SIGKILL ends is resumed, and ends with the same bits.

That every tower's run goes on with the same bits is tested within one process, beside each tower.
"""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.runs import command, finish, make_data, read_metrics, start, wait_until

pytestmark = pytest.mark.slow

STEPS = {"num_steps": 8, "log_every_steps": 1, "checkpointing__every_steps": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def test_killed_run_ends_bit_identical(data, tmp_path):
    settings = {
        "model__pretrained": "random:convnext_tiny-random",
        "model__mask_start_layer": -1,
        **STEPS,
    }
    finish(start(command(data, tmp_path / "reference", **settings)))

    killed = tmp_path / "killed"
    process = start(command(data, killed, **settings))
    wait_until(lambda: (killed / "checkpoints/3").exists(), process)
    process.kill()
    process.communicate()
    assert not (killed / "tuned.safetensors").exists()
    output = finish(start(command(data, killed, **settings)))
    assert "resuming from the checkpoint of step " in output

    ours, theirs = (
        ocp.StandardCheckpointer().restore(folder / "checkpoints/8/state")
        for folder in (killed, tmp_path / "reference")
    )
    assert len(jax.tree.leaves(ours)) > 3 * 10
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    losses = [[x["loss"] for x in read_metrics(f)] for f in (killed, tmp_path / "reference")]
    assert losses[0] == losses[1] and len(losses[0]) == 8
