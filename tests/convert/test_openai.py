"""OpenAI's layout in and out: the same architecture, the same numbers, the same function."""

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from maft_jax.benchmarks.pytorch.openai_clip import random_clip
from maft_jax.convert.openai import to_openai
from maft_jax.models.clip import CLIP_SIZES, ClipConfig, random_parameters
from maft_jax.models.text.clip_text import TextConfig, TextTransformer
from maft_jax.models.towers.clip_vit import VisionConfig, VisionTransformer
from maft_jax.runtime import tree_rules
from maft_jax.runtime.tree_rules import fingerprint
from tests.in_memory_weights import from_openai, infer_config

SIZES = {
    "patch 16": (
        {"vision_width": 128, "vision_layers": 2, "patch_size": 16, "image_size": 64},
        {"text_width": 64, "text_layers": 1, "embed_dim": 32, "context_length": 12},
    ),
    "patch 32, image no multiple": (
        {"vision_width": 64, "vision_layers": 1, "patch_size": 32, "image_size": 110},
        {"text_width": 128, "text_layers": 2, "embed_dim": 48, "context_length": 7},
    ),
    "patch 14, many layers": (
        {"vision_width": 64, "vision_layers": 12, "patch_size": 14, "image_size": 45},
        {"text_width": 192, "text_layers": 1, "embed_dim": 200, "context_length": 77},
    ),
}


def state_dict(name: str) -> dict[str, np.ndarray]:
    vision, text = SIZES[name]
    clip = random_clip(3, **vision, **text, vocab_size=100)
    return {key: value.detach().numpy() for key, value in clip.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "patch 16",
            ClipConfig(VisionConfig(128, 2, 16, 64, 32), TextConfig(64, 1, 100, 12, 32)),
        ),
        (
            "patch 32, image no multiple",
            ClipConfig(VisionConfig(64, 1, 32, 96, 48), TextConfig(128, 2, 100, 7, 48)),
        ),
        (
            "patch 14, many layers",
            ClipConfig(VisionConfig(64, 12, 14, 42, 200), TextConfig(192, 1, 100, 77, 200)),
        ),
    ],
)
def test_architecture_is_read_off_the_tensors(name, expected):
    assert infer_config(state_dict(name), source="test") == expected
    assert from_openai(state_dict(name), source="test")[0] == expected


@pytest.mark.parametrize("name", SIZES)
def test_round_trip_is_identical_bit_for_bit(name):
    tensors = state_dict(name)
    back = to_openai(from_openai(tensors, source="test")[1])
    assert set(back) == set(tensors)
    for key, tensor in tensors.items():
        assert back[key].dtype == np.float32 and back[key].flags.c_contiguous, key
        assert back[key].shape == tensor.shape and back[key].tobytes() == tensor.tobytes(), key


def test_every_published_size_has_openais_names_and_shapes():
    parameters = jax.eval_shape(lambda: random_parameters(CLIP_SIZES["ViT-B-16"]))
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), parameters)
    shapes = {name: value.shape for name, value in to_openai(zeros).items()}
    assert len(shapes) == 302
    assert shapes["visual.conv1.weight"] == (768, 3, 16, 16)
    assert shapes["visual.positional_embedding"] == (197, 768)
    assert shapes["visual.transformer.resblocks.11.attn.in_proj_weight"] == (2304, 768)
    assert shapes["transformer.resblocks.0.mlp.c_fc.weight"] == (2048, 512)
    assert shapes["token_embedding.weight"] == (49408, 512)
    assert shapes["text_projection"] == (512, 512) and shapes["logit_scale"] == ()


HUGGING_FACE_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def hugging_face_to_openai(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of transformers' CLIPModel in OpenAI's layout, written out by hand."""
    text, vision = "text_model.", "vision_model."
    openai = {
        "logit_scale": tensors["logit_scale"],
        "visual.class_embedding": tensors[vision + "embeddings.class_embedding"],
        "visual.conv1.weight": tensors[vision + "embeddings.patch_embedding.weight"],
        "visual.positional_embedding": tensors[vision + "embeddings.position_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T,
        "token_embedding.weight": tensors[text + "embeddings.token_embedding.weight"],
        "positional_embedding": tensors[text + "embeddings.position_embedding.weight"],
        "text_projection": tensors["text_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        openai[f"visual.ln_pre.{kind}"] = tensors[f"{vision}pre_layrnorm.{kind}"]
        openai[f"visual.ln_post.{kind}"] = tensors[f"{vision}post_layernorm.{kind}"]
        openai[f"ln_final.{kind}"] = tensors[f"{text}final_layer_norm.{kind}"]
        for tower, prefix, layers in ((vision, "visual.", 3), (text, "", 2)):
            for layer in range(layers):
                ours = f"{prefix}transformer.resblocks.{layer}."
                theirs = f"{tower}encoder.layers.{layer}."
                for name, other in HUGGING_FACE_BLOCK.items():
                    openai[f"{ours}{name}.{kind}"] = tensors[f"{theirs}{other}.{kind}"]
                openai[f"{ours}attn.in_proj_{kind}"] = np.concatenate(
                    [tensors[f"{theirs}self_attn.{x}_proj.{kind}"] for x in "qkv"]
                )
    return openai


def test_converted_weights_compute_what_transformers_computes():
    config = CLIPConfig(
        text_config={
            "vocab_size": 99,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "max_position_embeddings": 13,
            "hidden_act": "quick_gelu",
            "eos_token_id": 98,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "hidden_act": "quick_gelu",
        },
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
    ours, parameters = from_openai(hugging_face_to_openai(tensors), source="transformers")

    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    tokens = rng.integers(1, 97, (2, 13)).astype(np.int32)
    tokens[0, 5], tokens[0, 6:], tokens[1, 12] = 98, 0, 98
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        image = model.visual_projection(model.vision_model(pixels).pooler_output)
        text = model.text_model(torch.from_numpy(tokens).long()).pooler_output
        text = model.text_projection(text)
    for features, tower, name, inputs in (
        (image, VisionTransformer(ours.vision), "visual", images),
        (text, TextTransformer(ours.text), "text", tokens),
    ):
        expected = torch.nn.functional.normalize(features, dim=-1).numpy()
        result = jax.jit(tower.apply)({"params": parameters[name]}, inputs)
        np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0, err_msg=name)
        assert np.abs(expected[0] - expected[1]).max() > 0.05, "the inputs matter"


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


BLOCK = "visual.transformer.resblocks.1."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, f"{BLOCK}ln_2.bias"), rf"1 missing: {BLOCK}ln_2\.bias"),
        (lambda t: without(t, "logit_scale"), "1 missing: logit_scale"),
        (
            lambda t: without(t, "visual.proj"),
            r"tensor 'visual\.proj' of 2 dimensions; it is absent",
        ),
        (
            lambda t: t | {"visual.ln_extra.weight": np.ones(3)},
            r"1 unknown: visual\.ln_extra\.weight",
        ),
        (lambda t: t | {"text_model.x": np.ones(3)}, r"1 unknown: text_model\.x"),
        *(
            (lambda t, n=name: t | {n: t[n].T}, rf"1 of wrong shape: {name} \({rows}, {columns}\)")
            for name, rows, columns in (
                (f"{BLOCK}mlp.c_fc.weight", 128, 512),
                (f"{BLOCK}mlp.c_proj.weight", 512, 128),
                (f"{BLOCK}attn.in_proj_weight", 128, 384),
            )
        ),
        (
            lambda t: t | {"visual.proj": t["visual.proj"].T},
            r"wrong shape: .*visual\.proj \(32, 128\)",
        ),
        (
            lambda t: t | {"visual.positional_embedding": np.ones((16, 128), np.float32)},
            r"wrong shape: visual\.positional_embedding \(16, 128\)",
        ),
        (
            lambda t: t | {"visual.layer1.0.conv1.weight": np.ones((4, 4, 1, 1))},
            r"a CLIP with a ResNet image tower; expected a ViT",
        ),
        (
            lambda t: {"vision_model.embeddings.class_embedding": np.ones(4)},
            r"expected a tensor 'visual\.conv1\.weight' .* has 1 tensors, such as \['vision_model",
        ),
        (lambda t: {}, "The file has 0 tensors"),
        (
            lambda t: t | {"visual.conv1.weight": np.ones((80, 3, 16, 16))},
            "image tower of width 80; expected a multiple of 64",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=rf"^clip\.pt: .*{message}"):
        from_openai(change(state_dict("patch 16")), source="clip.pt")


def test_sizes_that_openai_stores_beside_the_weights_are_ignored():
    tensors = state_dict("patch 16")
    sizes = {"input_resolution": 64, "context_length": 12, "vocab_size": 100}
    sizes = {name: np.int64(value) for name, value in sizes.items()}
    assert fingerprint(from_openai(tensors | sizes, source="test")[1]) == fingerprint(
        from_openai(tensors, source="test")[1]
    )


def test_fingerprint_knows_names_shapes_and_values_but_not_their_order():
    _, parameters = from_openai(state_dict("patch 16"), source="test")
    original = fingerprint(parameters)
    leaves = tree_rules.flatten(parameters)
    assert fingerprint(tree_rules.unflatten(dict(reversed(leaves.items())))) == original
    seen = {original}
    for path in ("visual/proj", "text/blocks_0/mlp/c_fc/bias", "logit_scale"):
        changed = np.array(leaves[path])
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
        seen.add(fingerprint(tree_rules.unflatten(leaves | {path: changed})))
    reshaped = leaves["visual/proj"].reshape(32, 128)  # the same bytes
    seen.add(fingerprint(tree_rules.unflatten(leaves | {"visual/proj": reshaped})))
    renamed = {path.replace("ln_pre", "ln_prf"): leaf for path, leaf in leaves.items()}
    seen.add(fingerprint(tree_rules.unflatten(renamed)))
    assert len(seen) == 6
