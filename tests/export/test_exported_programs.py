"""Exported programs in runtimes that know nothing of us: onnxruntime, and JAX alone."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import sentencepiece
import transformers
from PIL import Image

import maft_jax
from maft_jax.export import exporting, formats, onnx_program
from maft_jax.export.exporting import Export, export_clip, make_programs
from maft_jax.export.formats import FORMATS
from maft_jax.export.programs import image_program, label_program, text_program
from maft_jax.export.verification import DifferentProgram, verify
from maft_jax.models.mask_reader import Modules, TowerReader
from maft_jax.models.pixel_labels import label_pixels
from maft_jax.models.preprocess import normalised
from maft_jax.models.text.sentencepiece_tokenizer import TokenizerFile
from maft_jax.models.text.siglip_text import SigLipTextConfig
from tests.siglip_files import unpacked

pytestmark = pytest.mark.slow

REPOSITORY = pathlib.Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "docs/examples/segment_with_onnxruntime.py"
SIZE = 64
TEMPLATES = ("a photo of a {}.",)
TOLERANCE = 1e-5

_IN_JAX_ALONE = """
import sys
sys.modules |= dict.fromkeys(["maft_jax", "flax", "input_pipeline"])  # importing these fails
import jax, numpy as np
from jax import export
folder, inputs, outputs = sys.argv[1:]
program = export.deserialize(bytearray(open(f"{folder}/image_encoder.stablehlo", "rb").read()))
given = np.load(inputs)
found = jax.jit(program.call)(given["images"], given["masks"])
np.savez(outputs, **found)
"""
_WITHOUT_US = """
import runpy, sys
sys.modules |= dict.fromkeys(["maft_jax", "jax", "flax", "tensorflow", "torch", "scipy"])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def clip():
    return maft_jax.load("built-in:shapes_world", image_size=SIZE)


@pytest.fixture(scope="module")
def names_inside(clip, tmp_path_factory):
    """A folder of ONNX with two names and one of the background."""
    out = tmp_path_factory.mktemp("exports") / "onnx"
    export = Export(
        FORMATS["onnx"], classes=("red disc", "sand"), background=("grass",), templates=TEMPLATES
    )
    lines = list(export_clip(clip, "built-in:shapes_world", out, export))
    assert [line.split()[0] for line in lines] == ["image_encoder", "label_maps"]
    return out


def drawn(batch: int, proposals: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8),
        "masks": rng.uniform(0, 1, (batch, proposals, SIZE, SIZE)).round().astype(np.float32),
    }


def run_onnx(path: pathlib.Path, inputs) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def ours(clip, inputs) -> np.ndarray:
    """Embeddings by the public function, which no exported program has a part in."""
    pixels = normalised(jax.device_put(inputs["images"]))
    return np.asarray(clip.encode_proposals(pixels, inputs["masks"]))


def test_onnxruntime_gives_the_probabilities_of_baked_names_for_any_batch(clip, names_inside):
    text = clip.encode_text(["red disc", "sand", "grass"], TEMPLATES)
    for batch, proposals in ((1, 5), (3, 2)):
        inputs = drawn(batch, proposals)
        found = run_onnx(names_inside / "image_encoder.onnx", inputs)
        logits = clip.encoder.logit_scale * ours(clip, inputs) @ text.T
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        expected = exponentials / exponentials.sum(-1, keepdims=True)
        assert found["probabilities"].shape == (batch, proposals, 3)
        np.testing.assert_allclose(found["probabilities"], expected, atol=TOLERANCE)
        np.testing.assert_allclose(found["logits"], logits, atol=TOLERANCE * abs(logits).max())


def test_label_maps_are_those_of_prediction(names_inside):
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), (2, 6)).astype(np.float32)
    masks = rng.uniform(0, 1, (2, 6, 40, 56)).astype(np.float32)
    masks[0, :, :5] = 0  # covered by nothing
    inputs = {"probabilities": probabilities, "masks": masks}
    found = run_onnx(names_inside / "label_maps.onnx", inputs)
    size = jnp.array([40, 56])
    for image in range(2):
        labels = label_pixels(
            jax.device_put(probabilities[image]),
            jax.device_put(masks[image]),
            *(size, size, size),
            out_size=(40, 56),
        )
        total = np.asarray(labels.total)
        winner = np.where((total > 0) & (labels.label_map < 2), labels.label_map, -1)
        np.testing.assert_array_equal(found["label_map"][image], winner)
        share = np.asarray(labels.score) / np.maximum(total, 1e-9)
        np.testing.assert_allclose(found["score"][image], share, atol=TOLERANCE)
    assert {-1, 0, 1} == set(np.unique(found["label_map"]))


def test_a_process_with_jax_alone_runs_stablehlo(clip, tmp_path):
    FORMATS["stablehlo"].write(image_program(clip, None, "float32"), tmp_path)
    inputs = drawn(2, 3)
    np.savez(tmp_path / "inputs.npz", **inputs)
    arguments = [tmp_path, tmp_path / "inputs.npz", tmp_path / "outputs.npz"]
    subprocess.run(
        [sys.executable, "-c", _IN_JAX_ALONE, *map(str, arguments)], cwd=tmp_path, check=True
    )
    found = np.load(tmp_path / "outputs.npz")["embeddings"]
    np.testing.assert_allclose(found, ours(clip, inputs), atol=TOLERANCE)


def test_text_tower_reads_the_tokens_of_the_tokenizer_beside_it(clip, tmp_path):
    text = clip.config.text
    path = FORMATS["onnx"].write(text_program(text, clip.parameters["text"], "float32"), tmp_path)
    prompts = ["a photo of a red disc.", "sand", "a lamp beside a much longer description"]
    found = run_onnx(path, {"tokens": text.tokenize(prompts).astype(np.int32)})["embeddings"]
    expected = np.stack([clip.encode_text([prompt], ["{}"])[0] for prompt in prompts])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_folder_tells_what_makes_tokens_and_what_they_should_be(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "make_programs", lambda *_: [])
    monkeypatch.setattr(exporting, "pinned", lambda source: f"{source}@0123")
    file = TokenizerFile.open(unpacked("tokenizer_siglip", "spiece.model", tmp_path))
    siglip = SigLipTextConfig(64, 1, 70, 32, 64, head_width=16)
    told = {}
    for text in (clip.config.text, siglip.with_tokenizer(file)):
        name = type(text).__name__
        config = dataclasses.replace(clip.config, text=text)
        of_text = dataclasses.replace(clip, config=config)
        list(export_clip(of_text, "hf:a/b", tmp_path / name, Export(FORMATS["onnx"])))
        settings = json.loads((tmp_path / name / "export.json").read_text())
        assert settings["weights"] == "hf:a/b@0123"
        told[name] = settings["example_of_tokens"]
    [of_clip, of_siglip] = told
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / of_clip / "tokenizer")
    ids = theirs(told[of_clip]["text"])["input_ids"]
    assert told[of_clip]["tokens"] == ids + [0] * (77 - len(ids))
    copied = tmp_path / of_siglip / "tokenizer/spiece.model"
    model = sentencepiece.SentencePieceProcessor(model_file=str(copied))
    ids = [*model.encode("a photo of a red brown cat"), 1]
    assert told[of_siglip]["tokens"] == ids + [1] * (siglip.context_length - len(ids))


def test_weights_of_16_bits_take_half_the_space(clip, tmp_path):
    paths = []
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        paths.append(FORMATS["onnx"].write(image_program(clip, None, dtype), tmp_path / dtype))
    whole, half = paths
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    inputs = drawn(1, 3)
    difference = np.abs(run_onnx(half, inputs)["embeddings"] - ours(clip, inputs)).max()
    assert TOLERANCE < difference < 0.05  # of rounded weights
    verify(image_program(clip, None, "bfloat16"), onnx_program.opened(half))


def test_weights_beyond_two_gigabytes_lie_beside_an_onnx_file(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_program, "INSIDE", 1000)
    program = image_program(clip, None, "float32")
    path = FORMATS["onnx"].write(program, tmp_path)
    assert path.stat().st_size < 200_000 < path.with_name(f"{path.name}.data").stat().st_size
    verify(program, onnx_program.opened(path))


def test_what_cannot_hold_the_weights_says_so(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_LIMIT", 1000)
    with pytest.raises(ValueError, match="GiB of weights, of which --format=stablehlo holds 2"):
        FORMATS["stablehlo"].write(image_program(clip, None, "float32"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_absent_packages_are_named(tmp_path):
    onnx = FORMATS["onnx"]
    path = onnx.write(label_program(), tmp_path)
    assert dataclasses.replace(onnx, runtime="of_nobody").open(path) is None
    with pytest.raises(ValueError, match=r"of_nobody.*pip install 'maft_jax\[onnx\]'"):
        dataclasses.replace(onnx, module="of_nobody").write(label_program(), tmp_path)


def test_weights_that_adapt_rows_need_names(clip):
    reader = type("Adapting", (TowerReader,), {"adapts_text": True})()
    with pytest.raises(ValueError, match="give --classes"):
        image_program(dataclasses.replace(clip, modules=Modules({}, reader)), None, "float32")


def test_background_without_classes_and_names_alike_are_refused(clip):
    for export, message in (
        (Export(FORMATS["onnx"], background=("wall",)), "no meaning without --classes"),
        (Export(FORMATS["onnx"], classes=("Wall", "wall")), "comes twice"),
        (Export(FORMATS["onnx"], classes=("wall",), background=("wall",)), "one of the classes"),
    ):
        with pytest.raises(ValueError, match=message):
            make_programs(clip, export)


def test_tflite_has_fixed_sizes_and_no_label_maps_of_unknown_classes(clip):
    sizes = {each.name: each.inputs for each in make_programs(clip, Export(FORMATS["tflite"]))}
    assert list(sizes) == ["image_encoder", "text_encoder"]
    assert sizes["image_encoder"][1].shape == (1, 100, SIZE, SIZE)


def test_a_program_that_differs_is_refused_and_leaves_nothing(clip, tmp_path, monkeypatch):
    def opened(path):
        run = onnx_opened(path)
        return lambda inputs: {name: value + 2e-5 for name, value in run(inputs).items()}

    onnx_opened = onnx_program.opened
    monkeypatch.setattr(onnx_program, "opened", opened)
    out = tmp_path / "exported"
    with pytest.raises(DifferentProgram, match=r"image_encoder: differs by 2\.0e-05"):
        list(export_clip(clip, "built-in", out, Export(FORMATS["onnx"])))
    assert not any(tmp_path.iterdir())
    with pytest.raises(DifferentProgram, match="expected outputs"):
        verify(label_program(), lambda inputs: {})


@pytest.mark.parametrize("wrong", ["logits", "probabilities"])
def test_probabilities_are_compared_with_those_of_the_logits(clip, names_inside, wrong):
    rows = clip.encode_text(["red disc", "sand", "grass"], TEMPLATES)
    program = image_program(clip, rows, "float32")
    run = onnx_program.opened(names_inside / "image_encoder.onnx")
    verify(program, run)

    def differs(inputs):
        found = run(inputs)
        return found | {wrong: found[wrong] * 1.0001}

    with pytest.raises(DifferentProgram):
        verify(program, differs)


def test_primitives_without_a_rule_are_named(clip, monkeypatch):
    monkeypatch.delitem(onnx_program.RULES, "reduce_max")
    with pytest.raises(ValueError, match=r"reduce_max.*stablehlo or savedmodel"):
        onnx_program.convert(image_program(clip, None, "float32"))


def test_the_example_for_onnxruntime_runs_as_printed(names_inside, tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) <= 45
    rng = np.random.default_rng(0)
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    photo = Image.fromarray(rng.integers(0, 256, (80, 50, 3), np.uint8))
    photo.save(tmp_path / "photo.jpg", exif=on_its_side)
    arguments = [EXAMPLE, names_inside, "photo.jpg", "labels.png"]
    finished = subprocess.run(
        [sys.executable, "-c", _WITHOUT_US, *map(str, arguments)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    shares = dict(line.split(": ") for line in finished.stdout.splitlines())
    assert list(shares) == ["red disc", "sand"]
    with Image.open(tmp_path / "labels.png") as image:
        labels = np.asarray(image)
    assert labels.shape == (50, 80) and set(np.unique(labels)) <= {0, 1, 255}
    for number, share in enumerate(shares.values()):
        assert abs((labels == number).mean() - float(share.rstrip("%")) / 100) < 0.01


def test_the_example_keeps_apart_more_classes_than_a_byte_does(clip, tmp_path):
    inputs = {
        "images": np.zeros((1, SIZE, SIZE, 3), np.uint8),
        "masks": np.ones((1, 1, SIZE, SIZE)),
    }
    rows = np.tile(-ours(clip, inputs)[0], (300, 1))
    rows[299] *= -1
    for program in (image_program(clip, rows, "float32"), label_program(300)):
        FORMATS["onnx"].write(program, tmp_path)
    settings = {"image_size": SIZE, "mask_size": SIZE, "classes": [f"{i}" for i in range(300)]}
    (tmp_path / "export.json").write_text(json.dumps(settings))
    Image.new("RGB", (50, 80)).save(tmp_path / "photo.png")
    command = [sys.executable, EXAMPLE, tmp_path, tmp_path / "photo.png", tmp_path / "labels.png"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with Image.open(tmp_path / "labels.png") as image:
        labels = np.asarray(image)
    assert labels.shape == (80, 50) and set(np.unique(labels)) == {299}


def test_settings_of_a_clip_that_programs_do_not_have(clip):
    with pytest.raises(ValueError, match="image_aspect=keep: exported programs read squares"):
        image_program(dataclasses.replace(clip, image_aspect="keep"), None, "float32")
    half = image_program(dataclasses.replace(clip, compute_dtype="bfloat16"), None, "float32")
    [encoder, _] = half.function.args
    assert encoder.dtype == jnp.float32


def test_export_json_tells_how_to_use_it(names_inside):
    settings = json.loads((names_inside / "export.json").read_text())
    assert settings["classes"] == ["red disc", "sand"] and settings["background"] == ["grass"]
    [encoder, labels] = settings["programs"]
    assert encoder["inputs"][0] | {"meaning": ""} == {
        "name": "images",
        "dtype": "uint8",
        "shape": ["batch", SIZE, SIZE, 3],
        "meaning": "",
    }
    assert labels["file"] == "label_maps.onnx" and labels["largest_difference"] <= TOLERANCE
