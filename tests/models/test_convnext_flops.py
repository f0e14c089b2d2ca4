"""What a ConvNeXt's step costs: by formula, against literal numbers and the compiler's count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.config.sections import LossConfig, MeshConfig, OptimizerConfig
from maft_jax.models.array_types import Batch
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.encoder import EncoderSettings, MaskingSpec
from maft_jax.models.towers.convnext import ConvNextConfig
from maft_jax.runtime import sharding
from maft_jax.state import optimizer
from maft_jax.state.train_state import init_train_state
from maft_jax.training import train_step
from maft_jax.training.clip_objective import ClipObjective


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


def lowered_step(vision, image_size, teacher):
    """Of one image, from shapes alone."""
    devices = jax.devices()[:1]
    mesh = sharding.make_mesh(MeshConfig(), devices)
    visual = jax.eval_shape(lambda: vision.init(jax.random.key(0)))
    encoder = vision.make_encoder(EncoderSettings(MaskingSpec(0, image_size), mesh))
    spec = ClipObjective(encoder, LossConfig(), (image_size, image_size))
    tx = optimizer.make_optimizer(OptimizerConfig(), 1000)
    state = jax.eval_shape(lambda v: init_train_state(v, vision.default_trainable, tx), visual)

    def shape(*dimensions, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((1, *dimensions), dtype)

    batch = Batch(
        image=shape(image_size, image_size, 3, dtype=jnp.uint8),
        label_map=shape(image_size, image_size),
        present_classes=shape(24),
        proposals=shape(100, image_size // 4, image_size // 4, dtype=jnp.uint8),
        proposal_valid=shape(100, dtype=bool),
        teacher_probabilities=None if teacher else shape(171, dtype=jnp.float32),
    )
    text = jax.ShapeDtypeStruct((171, vision.embed_dim), jnp.float32)
    return train_step.make_train_step(spec, tx, mesh, state, visual).lower(
        state, visual, text, batch
    )


@pytest.mark.parametrize(
    "teacher", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["teacher", "cached"]
)
def test_compiler_counts_within_15_percent_of_the_formula(teacher):
    """The widths of convnext_large with fewer blocks, of which all are alike."""
    vision = ConvNextConfig((1, 1, 3, 1), (192, 384, 768, 1536), 768, "mlp")
    counted = lowered_step(vision, 320, teacher).cost_analysis()["flops"]
    formula = vision.step_flops(MaskingSpec(0, 320), 100, teacher=teacher)
    assert abs(counted / formula - 1) < 0.15
