"""Generators opened from what others wrote, and given back."""

import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from maft_jax.convert import generators_official, generators_transformers, rules
from maft_jax.convert.generators import open_generator
from maft_jax.models.generators.decoder_layers import DecoderLayer
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.maskformer import MaskFormerConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.generators.text_interaction import TextConfig
from tests.convert.official_checkpoint import as_pth, official_tensors
from tests.golden_files import GOLDEN

RESNET = ResNetConfig((1, 2, 1, 1), (32, 32, 64, 64), (8, 8, 16, 16), (8,))
SWIN = SwinConfig(8, (2, 1, 1, 2), (1, 1, 2, 2), 3)
PIXEL_DECODER, DECODER = PixelDecoderConfig(32, 64, 2, 16), DecoderConfig(32, 5, 3, 24)
GENERATORS = {
    "mask2former": Mask2FormerConfig(RESNET, PIXEL_DECODER, DECODER, 4),
    "swin": Mask2FormerConfig(SWIN, PIXEL_DECODER, DECODER, 4),
    "maskformer": MaskFormerConfig(4, RESNET, 32, 64, DECODER),
    "maskformer-swin": MaskFormerConfig(4, SWIN, 32, 64, DECODER),
    "maskformer-same-width": MaskFormerConfig(
        4, ResNetConfig((1,) * 4, (32,) * 4, (8,) * 4, (8,)), 32, 64, DECODER
    ),
    "freeseg": Mask2FormerConfig(
        ResNetConfig((1, 1, 2, 3), (16, 24, 32, 64), (4, 8, 8, 16), (4, 4, 8)),
        PixelDecoderConfig(32, 32, 2, 16),
        DECODER,
        text=TextConfig(12, 16, 24, 8),
    ),
}


@functools.cache
def random_parameters(name: str) -> dict:
    shapes = jax.eval_shape(functools.partial(GENERATORS[name].init, jax.random.key(0)))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def official(name: str) -> dict[str, np.ndarray]:
    return rules.to_foreign(random_parameters(name), generators_official.rules_of(GENERATORS[name]))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param("mask2former", generators_transformers, marks=pytest.mark.slow),
        pytest.param("swin", generators_transformers, marks=pytest.mark.slow),
        pytest.param("maskformer", generators_transformers, marks=pytest.mark.slow),
        ("maskformer-swin", generators_transformers),
        pytest.param("maskformer-same-width", generators_transformers, marks=pytest.mark.slow),
        pytest.param("mask2former", generators_official, marks=pytest.mark.slow),
        ("swin", generators_official),
        ("maskformer-swin", generators_official),
        pytest.param("maskformer", generators_official, marks=pytest.mark.slow),
        ("freeseg", generators_official),
    ],
)
def test_every_parameter_goes_there_and_back(name, layout):
    config, parameters = GENERATORS[name], random_parameters(name)
    table = layout.rules_of(config)
    foreign = rules.in_memory(rules.to_foreign(parameters, table))
    back = rules.stored_as_ours(foreign, parameters, table, layout.IGNORED, source=name)
    jax.tree.map(np.testing.assert_array_equal, rules.materialised(back), parameters)


def test_the_architecture_follows_from_the_shapes_of_an_official_checkpoint(tmp_path):
    name = "freeseg"
    tensors = {key: torch.from_numpy(value) for key, value in official(name).items()}
    tensors["criterion.empty_weight"] = torch.ones(5)
    torch.save({"model": tensors, "iteration": 7}, tmp_path / "model.pth")
    opened = open_generator(tmp_path / "model.pth")
    assert opened.config == GENERATORS[name]
    assert opened.layout == "official"
    assert opened.preparation.align_corners
    jax.tree.map(np.testing.assert_array_equal, opened.parameters(), dict(random_parameters(name)))


@pytest.mark.parametrize("name", ["maskformer-swin", "maskformer-same-width"])
def test_a_maskformer_follows_from_its_official_checkpoint(name, tmp_path):
    """Also with the names of its first version, without the part that they lacked."""
    tensors = official(name)
    older = {key.replace("pixel_decoder.", ""): tensor for key, tensor in tensors.items()}
    for number, one in enumerate((tensors, older)):
        safetensors.numpy.save_file(one, tmp_path / f"{number}.safetensors")
        opened = open_generator(tmp_path / f"{number}.safetensors")
        assert opened.config == GENERATORS[name]
        assert not opened.preparation.align_corners


def test_an_official_layer_of_maskformer_computes_what_pytorchs_of_the_same_names_does():
    torch.manual_seed(0)
    theirs = torch.nn.TransformerDecoderLayer(32, 8, 24, batch_first=True).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    prefix = "sem_seg_head.predictor.transformer.decoder.layers.0."
    tensors = {prefix + key: value.numpy() for key, value in theirs.state_dict().items()}
    rng = np.random.default_rng(0)
    x, memory = (rng.normal(size=(1, n, 32)).astype(np.float32) for n in (5, 12))
    layer = DecoderLayer(8, 24, np.float32, self_first=True)
    arguments = x, np.zeros((5, 32), np.float32), memory, np.zeros((12, 32), np.float32)
    expected = jax.eval_shape(layer.init, jax.random.key(0), *arguments)["params"]
    table = generators_official.rules_of(GENERATORS["maskformer-swin"])
    table = [rule for rule in table if rule.ours.startswith("decoder/layers_{}")]
    ours = rules.stored_as_ours(
        rules.in_memory(tensors), {"decoder": {"layers_0": expected}}, table, source="torch"
    )
    parameters = rules.materialised(ours)["decoder"]["layers_0"]
    found = jax.jit(layer.apply)({"params": parameters}, *arguments)
    with torch.no_grad():
        reference = theirs(torch.from_numpy(x), torch.from_numpy(memory))
    np.testing.assert_allclose(found, reference, rtol=0, atol=2e-5)


def test_the_sizes_of_a_swin_follow_from_an_official_checkpoint(tmp_path):
    index = np.zeros((9, 9), np.int64)  # which official files hold, too
    buffer = {"backbone.layers.0.blocks.1.attn.relative_position_index": index}
    safetensors.numpy.save_file(official("swin") | buffer, tmp_path / "swin.safetensors")
    opened = open_generator(tmp_path / "swin.safetensors")
    assert opened.config == GENERATORS["swin"]
    assert not opened.preparation.align_corners
    jax.tree.map(
        np.testing.assert_array_equal, opened.parameters(), dict(random_parameters("swin"))
    )


@pytest.mark.slow
def test_an_official_swin_computes_what_timms_of_the_same_names_does():
    """timm numbers a stage's merging with the stage behind it, and has no norms of the maps."""
    import timm.models.swin_transformer as timm

    sizes = {"embed_dim": 8, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 2}
    torch.manual_seed(0)
    theirs = timm.SwinTransformer(img_size=64, num_classes=0, **sizes).eval()
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        tensor.copy_(tensor + 0.3 * torch.randn(tensor.shape))
        stage = re.match(r"layers\.(\d)\.downsample", name)
        if stage:
            name = name.replace(stage[0], f"layers.{int(stage[1]) - 1}.downsample")
        tensors[f"backbone.{name}"] = tensor.numpy()
    del tensors["backbone.norm.weight"], tensors["backbone.norm.bias"]
    config = SwinConfig(8, sizes["depths"], sizes["num_heads"], 2)
    norms = {}
    for stage, width in enumerate(config.widths):
        norms[f"backbone.norm{stage}.weight"] = np.ones(width, np.float32)
        norms[f"backbone.norm{stage}.bias"] = np.zeros(width, np.float32)
    module = config.make_module(np.float32)
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    table = generators_official.rules_of(GENERATORS["swin"])
    table = [rule for rule in table if rule.ours.startswith("backbone/")]
    ours = rules.stored_as_ours(
        rules.in_memory(tensors | norms), {"backbone": expected}, table, source="timm"
    )
    maps = jax.jit(module.apply)({"params": rules.materialised(ours)["backbone"]}, image)
    x = theirs.patch_embed(torch.from_numpy(image).permute(0, 3, 1, 2))
    for layer, found in zip(theirs.layers, maps, strict=True):
        x = layer(x)
        normal = torch.nn.functional.layer_norm(x, x.shape[-1:])
        np.testing.assert_allclose(found, normal.detach(), rtol=0, atol=2e-5)


def test_names_of_older_official_files_are_known(tmp_path):
    older = {
        name.replace("query_feat", "static_query").replace("pixel_decoder.", ""): value
        for name, value in official("mask2former").items()
    }
    safetensors.numpy.save_file(older, tmp_path / "old.safetensors")
    opened = open_generator(tmp_path / "old.safetensors")
    assert opened.config == GENERATORS["mask2former"]
    assert not opened.preparation.align_corners


def test_the_generator_of_an_official_maft_checkpoint_is_read(tmp_path):
    """The whole tree that the official code writes, with CLIP's towers and an unused copy."""
    tensors = official_tensors()
    torch.save(as_pth(tensors), tmp_path / "maft.pth")
    opened = open_generator(tmp_path / "maft.pth")
    config = opened.config
    assert config.backbone.stem_widths == (8, 8, 16)
    assert (config.decoder.layers, config.decoder.queries, config.decoder.width) == (10, 100, 64)
    assert config.text == TextConfig(64, 128, 96, 8)
    assert (config.pixel_decoder.layers, config.pixel_decoder.mlp_width) == (6, 1024)
    assert config.describe().startswith("FreeSeg (text of width 64): DeepLab ResNet-50")
    read = rules.materialised(opened.leaves)
    gamma = tensors["sem_seg_head.interaction.gamma"]
    np.testing.assert_array_equal(read["interaction"]["gamma"], gamma.astype(np.float32))
    theirs = {name for name in tensors if name.startswith(("backbone.", "sem_seg_head."))}
    back = rules.stored_as_foreign(opened.leaves, generators_official.rules_of(config))
    assert back.keys() == theirs | {"clip_adapter.non_object_embedding"}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor.read(), tensors[name], err_msg=name)


def test_pickles_of_detectron2_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x02}.")
    with pytest.raises(ValueError, match=r"not read\. Where you trust it, .*torch\.save"):
        open_generator(tmp_path / "model.pkl")


def test_other_files_are_refused_with_what_was_expected(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"no generator: 1 tensors, such as \['a'\]; expected"):
        open_generator(tmp_path / "a.safetensors")


def test_missing_and_unknown_tensors_are_listed(tmp_path):
    tensors = official("mask2former")
    del tensors["sem_seg_head.predictor.decoder_norm.bias"]
    tensors["backbone.extra"] = np.ones(1, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"1 unknown: backbone.extra; 1 missing: .*norm.bias"):
        open_generator(tmp_path / "a.safetensors")


def transformers_folder(folder, **settings):
    name = "generators/mask2former_tiny_resnet"
    shutil.copy(GOLDEN / f"{name}.safetensors", folder / "model.safetensors")
    stated = json.loads((GOLDEN / f"{name}.config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "detr"}, "model_type: expected one of"),
        ({"pre_norm": True}, "pre_norm: expected False, since nothing else is implemented"),
        ({"backbone_config": None}, "backbone_config: expected an object"),
        ({"backbone_config": {"model_type": "dinat"}}, "model_type: expected swin or resnet"),
        ({"num_queries": "many"}, "num_queries: expected an integer from 1 to 65536"),
        ({"decoder_layers": 10**6}, "decoder_layers: expected an integer from 1 to 200"),
        ({"num_attention_heads": 3}, "width 64 with 3 heads; expected heads of an even width"),
    ],
)
def test_settings_that_are_not_implemented_are_refused_by_name(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        open_generator(transformers_folder(tmp_path, **settings))
