"""Corrupt or foreign weights: refused by name, or accepted where that is right; nothing written."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from maft_jax.convert.formats import read_weights, write_weights
from maft_jax.weights import open_weights, path_of
from tests.convert import library_models

CASES = {
    "openai": library_models.openai,
    "open_clip": lambda: library_models.open_clip(custom_text=True),
    "transformers": library_models.transformers_clip,
}
NAMES = {
    "openai": {
        "bias": "visual.transformer.resblocks.1.ln_2.bias",
        "matrix": "visual.transformer.resblocks.1.mlp.c_fc.weight",
        "square": "transformer.resblocks.0.attn.in_proj_weight",
    },
    "open_clip": {
        "bias": "visual.transformer.resblocks.1.ln_2.bias",
        "matrix": "text.transformer.resblocks.0.mlp.c_proj.weight",
        "square": "text.text_projection",
    },
    "transformers": {
        "bias": "vision_model.encoder.layers.1.self_attn.k_proj.bias",
        "matrix": "text_model.encoder.layers.0.mlp.fc1.weight",
        "square": "visual_projection.weight",
    },
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Name, a folder as the library saved it, the file in it, and its tensors."""
    folder = tmp_path_factory.mktemp(request.param)
    library = CASES[request.param]()
    saved = library.save(folder)
    (file,) = [f for f in folder.iterdir() if f.suffix in (".pt", ".bin", ".safetensors")]
    return request.param, saved, file, library.tensors()


@pytest.fixture
def saved(case):
    """Saves changed tensors in place of the library's, and puts these back afterwards."""
    _, path, file, _ = case
    original = file.read_bytes()

    def save(tensors):
        if file.suffix == ".safetensors":
            safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
        else:
            torch.save(tensors, file)
        return path

    yield save
    file.write_bytes(original)


def convert(source, folder):
    """To OpenAI's names, through which every architecture of these tests can go."""
    destination = folder / "destination.safetensors"
    write_weights(read_weights(source), destination, "open_clip")


def assert_refused(source, tmp_path, message):
    with pytest.raises(ValueError, match=message) as refusal:
        convert(source, tmp_path)
    assert str(source) in str(refusal.value)
    assert os.listdir(tmp_path) == []


def test_missing_tensor(case, saved, tmp_path):
    name = NAMES[case[0]]["bias"]
    tensors = {key: value for key, value in case[3].items() if key != name}
    assert_refused(saved(tensors), tmp_path, rf"1 missing: {name}$")


def test_tensor_that_no_rule_knows(case, saved, tmp_path):
    tensors = case[3] | {"prompt.embedding": torch.ones(3)}
    assert_refused(saved(tensors), tmp_path, r"1 unknown: prompt\.embedding$")


def test_layer_beyond_a_gap(case, saved, tmp_path):
    name = NAMES[case[0]]["matrix"].replace(".0.", ".7.").replace(".1.", ".7.")
    tensors = case[3] | {name: torch.ones(3, 3)}
    expected = "missing|unknown|open_clip_config.json beside it is of another model"
    assert_refused(saved(tensors), tmp_path, expected)


@pytest.mark.parametrize("kind", ["matrix", "square"])
def test_transposed_matrix(case, saved, tmp_path, kind):
    name = NAMES[case[0]][kind]
    turned = case[3][name].T.contiguous()
    assert turned.shape[0] != turned.shape[1]
    rows, columns = turned.shape
    expected = rf"of wrong shape: {name} \({rows}, {columns}\) instead of \({columns}, {rows}\)"
    assert_refused(saved(case[3] | {name: turned}), tmp_path, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_dtype_that_float32_does_not_hold(case, saved, tmp_path, dtype):
    name = NAMES[case[0]]["bias"]
    tensors = case[3] | {name: case[3][name].to(dtype)}
    found = str(dtype).removeprefix("torch.")
    expected = rf"1 of wrong dtype: {name} {found} \(expected one of float32, float16, bfloat16\)"
    assert_refused(saved(tensors), tmp_path, expected)


@pytest.mark.parametrize("kept", [0, 5, 700, -1])
def test_file_that_ends_early(case, saved, tmp_path, kept):
    _, path, file, _ = case
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"corrupt|neither safetensors nor a PyTorch file"):
        convert(path, tmp_path)
    assert os.listdir(tmp_path) == []


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "pytorch_model.bin"])
def test_pickle_that_executes(tmp_path, name, zipped):
    source, marker = tmp_path / "source", tmp_path / "executed"
    source.mkdir()
    content = library_models.openai().tensors() | {"bomb": Bomb(marker)}
    torch.save(content, source / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"{name}.* refers to posix\.system"):
        convert(source, tmp_path)
    assert os.listdir(tmp_path) == ["source"]


def test_file_that_becomes_shorter_while_it_is_converted(transformers_folder, tmp_path):
    original = transformers_folder / "model.safetensors"
    file = shutil.copy(original, tmp_path)
    shutil.copy(transformers_folder / "config.json", tmp_path)
    weights = read_weights(tmp_path)
    pathlib.Path(file).write_bytes(original.read_bytes()[:300_000])
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=f"{file}: it became shorter while tensor"):
        write_weights(weights, tmp_path / "out" / "x.safetensors", "open_clip")
    assert os.listdir(tmp_path / "out") == []


def test_another_patch_size_and_grid_are_legitimate(tmp_path):
    model = library_models.open_clip(
        vision_options={"patch_size": 8, "image_size": 40}, quick_gelu=True
    )
    vision = read_weights(model.save(tmp_path)).config.vision
    assert (vision.patch_size, vision.image_size) == (8, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision_options": {"ls_init_value": 0.1}}, r"LayerScale.*resblocks\.0\.ls_1\.gamma"),
        ({"vision_options": {"attentional_pool": True}}, "attentional pooling"),
        ({"vision_options": {"no_ln_pre": True}}, r"without ln_pre.*'visual\.ln_pre\.weight'"),
        ({"vision_options": {"pool_type": "avg"}}, "vision_cfg has pool_type='avg'"),
        (
            {"vision_options": {"pool_type": "avg", "final_ln_after_pool": True}},
            "vision_cfg has (pool_type='avg'|final_ln_after_pool=True)",
        ),
        ({"vision_options": {"norm_kwargs": {"eps": 1e-6}}}, "has norm_kwargs={'eps': 1e-06}"),
        ({"vision_options": {"qk_norm": True}}, r"custom blocks.*attn\.ln_q"),
        ({"text_options": {"proj_bias": True}}, r"text projection with bias"),
        ({"text_options": {"proj_type": "none"}}, r"without text projection"),
        ({"text_options": {"no_causal_mask": True}}, "text_cfg has no_causal_mask=True"),
        ({"text_options": {"pool_type": "last"}}, "text_cfg has pool_type='last'"),
        ({"text_options": {"embed_cls": True}}, r"a class token in the text tower \(CoCa\)"),
        ({"text_options": {"hf_tokenizer_name": "xlm"}}, "text_cfg has hf_tokenizer_name='xlm'"),
        ({"init_logit_bias": -10.0}, r"a bias of the logits \(SigLIP\)"),
    ],
)
def test_what_open_clip_can_do_and_we_cannot(tmp_path, options, message):
    path = library_models.open_clip(custom_text=True, **options).save(tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: .*{message}"):
        read_weights(path)


def without_settings(tmp_path, **options):
    library_models.open_clip(**options).save(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    return tmp_path / "open_clip_pytorch_model.bin"


def test_activation_that_nothing_tells_must_be_stated(tmp_path):
    path = without_settings(tmp_path, custom_text=True)
    with pytest.raises(ValueError, match=r"tensors do not tell the activation .*state it"):
        read_weights(path)
    assert read_weights(path, activation="gelu").config.text.activation == "gelu"
    with pytest.raises(ValueError, match=r"activation: expected one of .* got 'relu'"):
        read_weights(path, activation="relu")


def test_openais_layout_is_quick_gelu_unless_settings_or_caller_say_otherwise(tmp_path):
    path = without_settings(tmp_path)
    assert read_weights(path).config.vision.activation == "quick_gelu"
    assert read_weights(path, activation="gelu").config.vision.activation == "gelu"
    settings = {"vision_cfg": {}, "text_cfg": {"heads": 1}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    assert read_weights(path).config.vision.activation == "gelu"
    assert read_weights(path, activation="quick_gelu").config.text.activation == "quick_gelu"


def test_width_of_a_published_tower_tells_its_heads_but_not_its_activation(tmp_path):
    path = without_settings(tmp_path, vision_width=1280, head_width=80)
    with pytest.raises(ValueError, match=r"width 1280, which OpenAI never published.*activation"):
        read_weights(path)
    assert read_weights(path, activation="gelu").config.vision.heads == 16
    chosen = read_weights(path, activation="gelu", head_width=64).config.vision
    assert chosen.heads == 20


def test_heads_of_an_unknown_width_must_be_stated(tmp_path):
    path = without_settings(tmp_path, vision_width=96, head_width=48)
    with pytest.raises(ValueError, match=r"image tower of width 96; expected a multiple of 64"):
        read_weights(path)
    assert read_weights(path, head_width=48, activation="gelu").config.vision.heads == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"width": 64}}, "another model: vision_cfg says width=64, the tensors 128"),
        ({"text_cfg": {"heads": 7}}, "heads=7; expected a divisor of the text tower's width, 64"),
        ({"vision_cfg": {"new_option": 3}}, "vision_cfg has new_option=3, which cannot be"),
        ({"vision_cfg": None}, "expected model_cfg with vision_cfg and text_cfg"),
    ],
)
def test_settings_of_open_clip_that_do_not_fit(tmp_path, change, message):
    library_models.open_clip().save(tmp_path)
    file = tmp_path / "open_clip_config.json"
    settings = json.loads(file.read_text())
    for part, values in change.items():
        model = settings["model_cfg"]
        model[part] = values and model[part] | values
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"open_clip_config\.json.*{message}"):
        read_weights(tmp_path)


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    return library_models.transformers_clip().save(tmp_path_factory.mktemp("transformers"))


@pytest.fixture
def settings_file(transformers_folder):
    file = transformers_folder / "config.json"
    original = file.read_text()
    yield file
    file.write_text(original)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_config", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06; expected 1e-05"),
        ("vision_config", {"hidden_act": "relu"}, "hidden_act is 'relu'; expected one of"),
        ("vision_config", {"num_attention_heads": 3}, "heads 3 does not divide hidden_size 128"),
        ("vision_config", {"num_channels": 1}, "num_channels is 1; expected 3"),
        ("vision_config", {"image_size": [48, 32]}, r"image_size is \[48, 32\]; expected one pos"),
        ("text_config", {"eos_token_id": 5}, "eos_token_id 5 and vocab_size 60"),
        ("text_config", {"eos_token_id": 49407}, "eos_token_id 49407 and vocab_size 60"),
        ("vision_config", {"num_hidden_layers": 3}, r"missing: vision_model\.encoder\.layers\.2"),
        ("vision_config", {"hidden_size": 256}, "of wrong shape: vision_model"),
        (None, {"model_type": "siglip"}, "model_type 'siglip'; expected 'clip'"),
        (None, {"vision_config": 3}, "vision_config is 3; expected an object"),
    ],
)
def test_settings_of_transformers_that_do_not_fit(
    transformers_folder, settings_file, part, change, message
):
    settings = json.loads(settings_file.read_text())
    (settings if part is None else settings[part]).update(change)
    settings_file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"^{transformers_folder}: .*{message}"):
        read_weights(transformers_folder)


def test_settings_that_are_no_json_or_absent(transformers_folder, settings_file):
    settings_file.write_text("{")
    with pytest.raises(ValueError, match=f"{settings_file}: not readable as JSON"):
        read_weights(transformers_folder)
    settings_file.unlink()
    with pytest.raises(ValueError, match=r"without config\.json beside them"):
        read_weights(transformers_folder)


def test_end_of_text_of_old_settings_is_the_largest_id(transformers_folder, settings_file):
    expected = read_weights(transformers_folder).config
    settings = json.loads(settings_file.read_text())
    settings["text_config"]["eos_token_id"] = 2
    settings_file.write_text(json.dumps(settings))
    assert read_weights(transformers_folder).config == expected


def test_stored_position_ids_are_ignored_with_a_reason(transformers_folder, tmp_path):
    tensors = safetensors.torch.load_file(transformers_folder / "model.safetensors")
    ids = "text_model.embeddings.position_ids"
    safetensors.torch.save_file(
        tensors | {ids: torch.arange(9)[None]}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text((transformers_folder / "config.json").read_text())
    weights = read_weights(tmp_path / "model.safetensors")  # the file, settings beside it
    assert list(weights.ignored) == [ids] and "0, 1, 2" in weights.ignored[ids]


def test_index_that_disagrees_with_its_shards(tmp_path):
    library_models.transformers_clip(shards=True).save(tmp_path)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    for change, message in (
        ({"logit_scale": None}, r"1 not in the index \['logit_scale'\]"),
        ({"extra": shards[0]}, r"1 tensors absent from their shard \['extra'\]"),
        ({"extra": "../../etc/passwd"}, "is not a file beside it"),
        ({"extra": "gone.safetensors"}, r"gone\.safetensors: no such file"),
    ):
        changed = {k: v for k, v in (index["weight_map"] | change).items() if v is not None}
        file.write_text(json.dumps(index | {"weight_map": changed}))
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path)


def test_image_tower_alone_is_refused_where_text_is_needed(tmp_path):
    path = library_models.transformers_vision().save(tmp_path / "vision")
    with pytest.raises(ValueError, match=r"vision: an image tower without a text tower"):
        open_weights(path, needs_text=True)
    weights = open_weights(path)
    config, parameters = weights.config, weights.parameters()
    assert config.text is None and list(parameters) == ["visual"]
    for name in ("openai", "open_clip"):
        with pytest.raises(ValueError, match=r"cannot be written in the format .* no text tower"):
            write_weights(read_weights(path), tmp_path / "x.safetensors", name)
    assert os.listdir(tmp_path) == ["vision"]


def test_folder_with_nothing_that_we_know(tmp_path):
    (tmp_path / "readme.md").write_text("")
    with pytest.raises(ValueError, match=r"a folder; expected a file of CLIP weights .* or a fold"):
        read_weights(tmp_path)


def test_weights_of_something_else(tmp_path):
    np.savez(tmp_path / "other.npz", encoder=np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"expected CLIP weights in .* such as \['encoder'\]"):
        read_weights(tmp_path / "other.npz")


def test_names_of_built_in_weights_and_homes_lead_to_files(monkeypatch, tmp_path):
    """So that what opens the file itself, as `--inspect` does, finds it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/clip.pt") == str(tmp_path / "clip.pt")
    assert path_of("built-in:shapes_world").endswith("shapes_world/clip.safetensors")
