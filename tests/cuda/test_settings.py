"""Small steps with other towers, settings and cards: all compile, and attend through cuDNN."""

from collections import Counter

import pytest

from maft_jax.training.step_setup import make_step_setup
from tests.cuda.gpu_programs import (
    BACKWARD,
    FORWARD,
    compile_program,
    gpu_mesh,
    lower_training,
)
from tests.cuda.small_towers import LAYERS, START, calls_of_step, small_step

pytestmark = pytest.mark.cuda

BATCH_SIZE = 4


def compile_small(tower: str = "ViT-B-16", mesh=None, **changes):
    config, clip = small_step(tower, BATCH_SIZE, **changes)
    return compile_program(lower_training(config, clip, mesh or gpu_mesh()))


@pytest.mark.parametrize("tower", ["ViT-B-32", "ViT-L-14", "ViT-L-14-336"])
def test_towers(tower):
    assert compile_small(tower).cudnn_calls == calls_of_step()


@pytest.mark.parametrize(
    ("tower", "start", "in_student", "in_teacher"),
    [
        ("convnext_large_d_320", 0, 0, 0),
        ("siglip2-base-patch16-512", 0, LAYERS, LAYERS),  # its head pools without a kernel
        ("tipsv2_b14", START, LAYERS - 1, LAYERS - 1),  # one sequence has patches and proposals
        ("EVA02-L-14-336", START, START + 2 * (LAYERS - 1 - START), LAYERS - 1),
    ],
)
def test_other_kinds_of_towers(tower, start, in_student, in_teacher):
    calls = compile_small(tower, model__mask_start_layer=start).cudnn_calls
    assert calls == Counter({FORWARD: 2 * in_student + in_teacher, BACKWARD: in_student})


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({"model__scan_blocks": False}, {"forward_passes": 1}),
        ({"model__remat": True}, {}),
        ({"model__scan_blocks": False, "model__remat": True}, {}),
        ({"optimizer__accumulation_steps": 2}, {"parts": 2}),
        ({"loss__distillation_weight": 0.0}, {"whole": False, "teacher": False}),
        ({"loss__cached_teacher": True, "data__augment": False}, {"teacher": False}),
    ],
)
def test_settings(changes, calls):
    assert compile_small(**changes).cudnn_calls == calls_of_step(**calls)


def test_float32_attends_by_xla():
    assert not compile_small(model__compute_dtype="float32").cudnn_calls


def test_cards_older_than_ampere_attend_by_xla():
    """A V100 or a T4."""
    mesh = gpu_mesh("t4")
    assert mesh.devices.flat[0].compute_capability == "7.5"
    assert not compile_small("ViT-B-32", mesh).cudnn_calls
    config, clip = small_step("ViT-B-32", BATCH_SIZE, model__attention="cudnn")
    with pytest.raises(ValueError, match=r"8\.0 or more \(Ampere\), got 7\.5"):
        make_step_setup(config, clip.vision, mesh)
