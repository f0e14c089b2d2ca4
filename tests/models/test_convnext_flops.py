"""What a ConvNeXt's step costs: by formula, against literal numbers and the compiler's count."""

import numpy as np
import pytest

from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.towers.convnext import ConvNextConfig
from tests.tower_steps import lowered_step


def test_formula_by_literal_numbers():
    vision = ConvNextConfig((1, 2, 1, 1), (2, 4, 6, 8), 12)
    stem = 2 * 48 * 2 * 256
    stages = 256 * (98 * 2 + 16 * 4)
    stages += 64 * 8 * 2 * 4 + 2 * 64 * (98 * 4 + 16 * 16)
    stages += 16 * 8 * 4 * 6 + 16 * (98 * 6 + 16 * 36)
    stages += 4 * 8 * 6 * 8 + 4 * (98 * 8 + 16 * 64)
    masking = MaskingSpec(0, 64)
    assert vision.step_flops(masking, 100) == 4 * stages + 3 * stem
    assert vision.step_flops(masking, 100, teacher=False) == 3 * stages + 2 * stem


def test_forward_of_the_published_large_tower():
    """timm's table has 34.4 billion multiply-adds at 224 pixels, head and norms left out here."""
    vision = CLIP_SIZES["convnext_large_d"].vision
    without, with_teacher = (
        vision.step_flops(MaskingSpec(0, 224), 100, teacher=teacher) for teacher in (False, True)
    )
    np.testing.assert_allclose((with_teacher - without) / 2e9, 34.4, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [True, False], ids=["teacher", "cached"])
def test_compiler_counts_within_15_percent_of_the_formula(teacher):
    """The widths of convnext_large with fewer blocks, of which all are alike."""
    vision = ConvNextConfig((1, 1, 3, 1), (192, 384, 768, 1536), 768, "mlp")
    counted = lowered_step(vision, 320, teacher).cost_analysis()["flops"]
    formula = vision.step_flops(MaskingSpec(0, 320), 100, teacher=teacher)
    assert abs(counted / formula - 1) < 0.15
