"""Whole generators against transformers, with tiny random models that it saves itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maft_jax.convert.generators import open_generator
from maft_jax.models.generators.image_preparation import normalised
from maft_jax.proposals.mask2former_family import FamilyNetwork

pytestmark = pytest.mark.slow

SWIN = {"embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [32, 32, 64, 64],
    "depths": [1, 2, 1, 1],
    "layer_type": "bottleneck",
}


def backbone(kind):
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = transformers.SwinConfig if kind == "swin" else transformers.ResNetConfig
    return config(out_features=stages, **(SWIN if kind == "swin" else RESNET))


def mask2former(kind):
    import transformers

    config = transformers.Mask2FormerConfig(
        backbone_config=backbone(kind),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        encoder_layers=2,
        decoder_layers=6,
        num_attention_heads=4,
        dim_feedforward=40,
        num_queries=7,
        num_labels=3,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def maskformer(kind):
    import transformers

    decoder = transformers.DetrConfig(
        d_model=32,
        decoder_layers=3,
        decoder_ffn_dim=48,
        decoder_attention_heads=4,
        num_queries=7,
        encoder_attention_heads=4,
    )
    config = transformers.MaskFormerConfig(
        backbone_config=backbone(kind),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=3,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def randomise(model):
    """Nothing is zero or one, as fresh norms and offsets are; variances are positive."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            elif tensor.ndim > 1:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            else:
                tensor.add_(0.2 * noise)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("new_names", [False, True])
@pytest.mark.parametrize("kind", ["swin", "resnet"])
@pytest.mark.parametrize("make", [mask2former, maskformer])
def test_predictions_are_those_of_transformers(tmp_path, make, kind, new_names):
    model = make(kind).eval()
    randomise(model)
    model.save_pretrained(tmp_path, save_original_format=not new_names)
    image = np.random.default_rng(1).integers(0, 255, (2, 96, 160, 3), np.uint8)
    sizes = jnp.array([[96, 160], [90, 131]])
    pixels = np.moveaxis(np.asarray(normalised(jax.device_put(image), sizes)), -1, 1).copy()
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy(pixels))
    opened = open_generator(tmp_path)
    parameters = {"network": opened.parameters(), "text": None}
    masks, classes = jax.jit(FamilyNetwork(opened.config))(parameters, jax.device_put(image), sizes)
    for one, theirs in (
        (masks, expected.masks_queries_logits),
        (classes, expected.class_queries_logits),
    ):
        theirs = theirs.numpy()
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(one / scale, theirs / scale, rtol=0, atol=2e-5)
