"""FC-CLIP's generator on its tower's maps, against the official code, from one checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.convert import fcclip, rules
from maft_jax.convert.generators import open_generator
from maft_jax.models.generators.fcclip import FcClipConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.preprocess import normalised
from maft_jax.models.text_classifier import embed_classes
from maft_jax.models.towers.convnext import ConvNext
from maft_jax.weights import open_weights
from tests.fcclip_files import (
    checkpoint_tensors,
    class_names,
    maft_plus_tensors,
    write_checkpoint,
)
from tests.golden_files import golden

pytestmark = pytest.mark.slow

NCHW = (0, 2, 3, 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("fcclip") / "fcclip.pth")


@pytest.fixture(scope="module")
def clip(checkpoint):
    return open_weights(checkpoint, needs_text=True)


@pytest.fixture(scope="module")
def computed(checkpoint, clip):
    """Maps of the tower, and of the generator mask features, a level and all predictions."""
    opened, arrays = open_generator(checkpoint), golden("fcclip/expected")
    image = normalised(jax.device_put(arrays["image_uint8"])[None])
    image = jnp.pad(image, ((0, 0), (0, 10), (0, 10), (0, 0)))
    rows = jax.device_put(arrays["text_features"][:-1])
    which = np.repeat(np.arange(7), arrays["names_per_class"])
    most = arrays["names_per_class"].max()
    text = jnp.stack([rows[np.resize(np.flatnonzero(which == i), most)] for i in range(7)])
    network = opened.config.make_module()

    @jax.jit
    def run(visual, parameters, image, text):
        tower = ConvNext(clip.config.vision)
        maps = tower.apply({"params": visual}, image, method="feature_maps")[1:]
        read = network.apply(
            {"params": parameters}, maps, method=lambda module, maps: module.pixel_decoder(maps)
        )
        return maps, read, network.apply({"params": parameters}, maps, text, every_layer=True)

    visual = clip.parameters()["visual"]
    return jax.device_get(run(visual, opened.parameters(), image, text)), arrays


def assert_close(ours, expected, tolerance):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_maps_and_masks_are_the_official_ones(computed):
    (maps, (mask_features, levels), predictions), arrays = computed
    assert_close(maps[3], arrays["res5"].transpose(NCHW), 1e-5)
    expected = arrays["mask_features_every_8th_channel"].transpose(NCHW)
    assert_close(mask_features[..., ::8], expected, 1e-5)
    assert_close(levels[0], arrays["pixel_decoder_scale_0"].transpose(NCHW), 1e-5)
    assert_close(predictions.mask_logits[-1], arrays["pred_masks"], 1e-5)


def test_every_layer_classifies_queries_as_the_official_code_does(computed):
    (*_, predictions), arrays = computed
    assert_close(predictions.class_embeddings, arrays["class_embeddings_per_layer"], 1e-5)
    assert_close(predictions.class_logits, arrays["class_logits_per_layer"], 5e-5)
    assert predictions.class_logits.shape == (10, 1, 20, 8)


def test_text_rows_are_made_by_the_towers_own_text_tower(clip):
    names = [name for names in class_names() for name in names]
    rows = embed_classes(clip.config.text, clip.parameters()["text"], names, PROMPT_TEMPLATES)
    assert_close(rows, golden("fcclip/expected")["text_features"][:-1], 5e-5)


def test_every_tensor_of_a_checkpoint_is_read_or_ignored_for_a_reason(checkpoint, clip):
    tensors = checkpoint_tensors()
    assert clip.format_name == "fcclip"
    read_as_clip = {name for name in tensors if name not in clip.ignored}
    assert read_as_clip == {name for name in tensors if name.startswith("backbone.")}
    opened = open_generator(checkpoint)
    back = rules.to_foreign(opened.parameters(), fcclip.GENERATOR_RULES)
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])
    left = tensors.keys() - back.keys() - read_as_clip
    assert left == {"criterion.empty_weight"}


def test_tensor_that_nobody_knows_is_refused(tmp_path):
    tensors = checkpoint_tensors() | {"sem_seg_head.predictor.adapter.weight": np.zeros(3)}
    path = write_checkpoint(tmp_path / "other.pth", tensors)
    with pytest.raises(ValueError, match=r"1 unknown: sem_seg_head\.predictor\.adapter\.weight"):
        open_generator(path)


@pytest.mark.parametrize("shape", [(), (0,), (10,), (4, 4)])
def test_transfer_of_no_width_that_heads_share_is_refused(tmp_path, shape):
    name = "cdt.cross_atten.MLP.bias"
    tensors = maft_plus_tensors() | {name: np.zeros(shape, np.float16)}
    file = write_checkpoint(tmp_path / "maft_plus.pth", tensors)
    with pytest.raises(ValueError, match=f"maft_plus.pth: {name}: expected one dimension"):
        fcclip.read_modules(file)


def test_published_generator_has_parts_that_fit_together():
    shapes = jax.eval_shape(lambda: FcClipConfig().init(jax.random.key(0)))
    assert shapes["class_head"]["class_embed"]["layers_2"]["kernel"].shape == (256, 768)
    assert shapes["pixel_decoder"]["input_proj_0"]["conv"]["kernel"].shape == (1, 1, 1536, 256)
    with pytest.raises(ValueError, match="expected the same"):
        FcClipConfig(pixel_decoder=PixelDecoderConfig(64, 64), decoder=DecoderConfig(32))


def test_tuned_tower_goes_into_a_copy_of_the_checkpoint(checkpoint, clip, tmp_path):
    tuned = jax.tree.map(lambda x: x + np.float32(0.5), clip.parameters()["visual"])
    fcclip.write_into(checkpoint, tmp_path / "ours.pth", clip.config.vision, tuned)
    ours = open_weights(tmp_path / "ours.pth")
    jax.tree.map(
        lambda there, here: np.testing.assert_allclose(there, here, rtol=2**-10),
        ours.parameters()["visual"],
        tuned,
    )
    before, after = (
        torch.load(path, weights_only=True) for path in (checkpoint, tmp_path / "ours.pth")
    )
    assert after["iteration"] == 7
    for name, value in before["model"].items():
        is_tower = name.startswith("backbone.clip_model.visual.")
        assert torch.equal(value, after["model"][name]) is not is_tower
    shorter = tuned | {"stages_2": {k: x for k, x in tuned["stages_2"].items() if k != "blocks_2"}}
    with pytest.raises(ValueError, match=r"not in both: .*stages\.2\.blocks\.2\..* as many blocks"):
        fcclip.write_into(checkpoint, tmp_path / "no.pth", clip.config.vision, shorter)
    assert not (tmp_path / "no.pth").exists()
