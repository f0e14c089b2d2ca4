"""The recipe of configs/coco.py at full size: what its step takes and exchanges on GPUs.

Pinned with jaxlib 0.10.2. The compiler schedules anew in every version of jaxlib, so memory may
move by 2 %; collectives and calls follow from the program and may not move at all.
"""

import pytest

from maft_jax.planning.gpu_cards import CARDS
from tests.cuda.gpu_programs import (
    BACKWARD,
    FORWARD,
    coco_config,
    compile_program,
    gpu_mesh,
    lower_training,
)

pytestmark = pytest.mark.cuda

IMAGES_PER_DEVICE = 16
GRADIENTS = 56_850_432
"""Bytes of 28.4 million numbers: LayerNorms in float32, what products read in bfloat16."""


@pytest.mark.parametrize(
    ("card", "devices", "gigabytes"), [("h100", 8, 5.253), ("a100-80", 1, 5.256)]
)
def test_memory_collectives_and_attention(card, devices, gigabytes):
    config, clip = coco_config(IMAGES_PER_DEVICE * devices)
    program = compile_program(lower_training(config, clip, gpu_mesh(card, devices)))
    assert program.peak_bytes == pytest.approx(gigabytes * 1e9, rel=0.02)
    assert program.peak_bytes < CARDS[card].hbm_bytes
    # 8 layers of the trunk; whole images and patches in 3 masked ones; 11 of the teacher. A loop
    # runs the student's once more on its way back.
    assert program.cudnn_calls == {FORWARD: 2 * (8 + 2 * 3) + 11, BACKWARD: 8 + 2 * 3}
    # Gradients once, five sums, and which examples are finite: nothing gathers weights.
    if devices == 1:
        assert not program.collective_bytes
    else:
        assert set(program.collective_bytes) == {"all-reduce", "all-gather"}
        assert program.collective_bytes["all-reduce"] == GRADIENTS + 20
        assert program.collective_bytes["all-gather"] == config.batch_size
