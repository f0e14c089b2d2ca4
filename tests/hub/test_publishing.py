"""Model cards of runs, and uploads by the real client to a hub of the tests' own."""

import dataclasses
import functools
import json
import pathlib
import re

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from absl.testing import flagsaver
from etils import epath
from PIL import Image

import maft_jax
from maft_jax.cli import command_line, convert_weights
from maft_jax.evaluators.results import EvaluationResult, write_results
from maft_jax.publishing.upload import upload
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.state import optimizer
from maft_jax.state.checkpointing import Checkpoints
from maft_jax.state.train_state import init_train_state, overlay
from maft_jax.weights import open_weights
from tests.hub_server import TOKEN
from tests.runs import small_config

STEP = 9
# Of the client's own: it hands files to httpx as `data`.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning"),
]


@pytest.fixture
def hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir as training leaves it, evaluated before and after."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    config = small_config({"data.root": "photos", "num_steps": STEP, "data.dataset": "coco_stuff"})
    weights = open_weights("random:tiny")
    visual = weights.parameters()["visual"]
    tx = optimizer.make_optimizer(config.optimizer, config.num_steps)
    state = init_train_state(visual, weights.config.vision.default_trainable, tx)
    trainable = jax.tree.map(lambda x: x + 0.01, state.trainable)
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    checkpoints = Checkpoints(epath.Path(workdir), config.checkpointing)
    saved = state.replace(step=jnp.int32(STEP), trainable=trainable)
    checkpoints.save(saved, {"pretrained": fingerprint(visual)}, loss=1.0)
    checkpoints.wait()
    checkpoints.close()
    tuned = fingerprint(overlay(visual, jax.tree.map(np.asarray, trainable)))
    evaluate(workdir, "step_0", np.array([[6, 4, 0], [4, 6, 0], [0, 0, 0]]), fingerprint(visual))
    better = np.array([[9, 1, 0], [1, 9, 0], [0, 0, 0]])
    evaluate(workdir, f"step_{STEP}", better, tuned, fingerprint(visual))
    evaluate(workdir, "step_4", better, "another tower", fingerprint(visual), "ade20k_150")
    return workdir


def evaluate(workdir, folder, counts, tower, tuned_from=None, dataset="voc2012") -> None:
    weights = {"image_tower": tower, "tuned_from": tuned_from, "frozen": tuned_from is None}
    provenance = {"weights": weights}
    result = EvaluationResult(dataset, "val", ("cat", "sofa"), (), 5, counts, provenance)
    write_results([result], workdir / "evaluation" / folder)


def convert(*arguments: object) -> int:
    with flagsaver.flagsaver():
        try:
            checked = command_line.parse(
                ["convert_weights", *map(str, arguments)], convert_weights.check_arguments
            )
            return convert_weights.main(checked)
        except SystemExit as stop:
            return stop.code


@functools.cache
def published(run: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A folder with a card, made once."""
    path = folder / "my-clip"
    assert convert(run, path, "--to=transformers", "--card", "--license=mit") == 0
    return path


@pytest.fixture
def folder(run):
    return published(run, run.parent)


def test_the_card_has_what_the_hub_reads_and_the_numbers_of_these_weights_alone(folder):
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    header = card.data
    assert (header.license, header.library_name) == ("mit", "transformers")
    assert header.datasets == ["coco_stuff"] and "clip" in header.tags
    assert header.base_model is None  # random weights are in no repository
    (*_, found) = (x for x in header.eval_results if x.metric_type == "mean_iou")
    assert {x.dataset_type for x in header.eval_results} == {"voc2012"}
    assert found.metric_name == "mIoU (gt_or_pred)"
    assert found.metric_value == round(100 * 9 / 11, 2)
    assert "| steps | 9 of 8 images |" in card.text and "COCO-Stuff" in card.text
    gain = next(line for line in card.text.splitlines() if line.split()[:1] == ["gain"])
    assert f"{100 * (9 / 11 - 6 / 14):+.2f}" in gain


@pytest.mark.parametrize(
    ("pretrained", "base"),
    [
        ("hf:laion/a-clip@v1/open_clip_model.safetensors", "laion/a-clip"),
        ("openai:ViT-B/16", "openai/clip-vit-base-patch16"),
        ("/home/me/ViT-B-16.pt", None),
        ("/home/me/10:30/ViT-B-16.pt", None),
        ("gs://bucket/home/me/ViT-B-16.pt", None),
    ],
)
def test_the_card_names_the_base_model_where_it_is_known(run, pretrained, base, tmp_path):
    from maft_jax.publishing.model_card import PublishedRun, model_card
    from maft_jax.publishing.own_results import OwnResults

    config = small_config({"data.root": "photos"}, model__pretrained=pretrained)
    none = OwnResults([], [])
    text = model_card(
        PublishedRun(config, 3, none, "open_clip", None, "me/clip", tmp_path / "clip")
    )
    header = huggingface_hub.ModelCard(text).data
    assert (header.base_model, header.license, header.datasets) == (base, None, None)
    assert "/home/me" not in text and "were not evaluated" in text
    assert f"`{pretrained if base else 'ViT-B-16.pt'}`" in text
    assert 'create_model_and_transforms("hf-hub:me/clip")' in text
    assert 'maft_jax.load("hf:me/clip")' in text


def test_transformers_loads_the_folder_with_its_processor(folder, run):
    model = transformers.CLIPModel.from_pretrained(folder)
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))
    inputs = processor(text=["cat", "a sofa"], images=image, return_tensors="pt", padding=True)
    theirs = model(**inputs)
    clip = maft_jax.load(run)
    pixels = inputs["pixel_values"].numpy().transpose(0, 2, 3, 1)
    image_features = clip.encode_image(pixels)
    np.testing.assert_allclose(theirs.image_embeds.detach(), image_features, atol=1e-4)


def test_a_folder_is_uploaded_and_read_again_by_its_name(hub, folder, run, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    tower = fingerprint(maft_jax.load(folder).parameters["visual"])
    evaluate(pathlib.Path("eval"), "", np.diag([3, 2, 0]), tower, "x", "ade20k_150")
    arguments = (
        "--to=transformers",
        "--card",
        "--push=user/my-clip",
        "--private",
        "--results=eval",
    )
    assert convert(run, "pushed", *arguments) == 0
    assert "maft_jax reads it as hf:user/my-clip" in capsys.readouterr().out
    assert "A-150" in pathlib.Path("pushed/README.md").read_text()
    (files,) = (x for x in hub.commits["user/my-clip"].values() if x)
    assert files == {x.name: x.read_bytes() for x in pathlib.Path("pushed").iterdir()}
    assert "user/my-clip" in hub.private and len(hub.uploaded) > 0
    found, expected = maft_jax.load("hf:user/my-clip"), maft_jax.load(folder)
    np.testing.assert_equal(found.parameters, expected.parameters)
    assert found.mask_start_layer == expected.mask_start_layer == 2
    assert convert(run, "again", *arguments) == 0  # into the same repository


@pytest.mark.parametrize(
    ("token", "arguments", "message"),
    [
        (None, ["--push=user/clip"], "nobody is logged in: `hf auth login` with a token that may"),
        ("hf_wrong", ["--push=user/clip"], r"refuses the token \(401\)"),
        (TOKEN, ["--push=clip"], "expected OWNER/NAME, such as"),
        (TOKEN, ["--push=user/public", "--private"], "got one that everybody can read; make it"),
        (TOKEN, ["--license=mit"], "--license: only with --card"),
        (TOKEN, ["--private"], "--private: only with --push"),
        (TOKEN, ["--card", "--license=GPL 3"], "expected an identifier of the hub, such as mit"),
        (TOKEN, ["--card", "--image_only"], "expected the whole CLIP"),
        (TOKEN, ["--card", "--text_from=random:tiny"], "the text tower that its results are of"),
    ],
)
def test_nothing_is_converted_where_it_cannot_be_published(
    hub, run, monkeypatch, capsys, token, arguments, message
):
    hub.put("user/public", {})
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert convert(run, "out", "--to=transformers", *arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not pathlib.Path("out").exists()


def test_a_card_is_of_a_run_a_folder_and_results_of_its_weights(hub, run, folder, capsys):
    assert convert(folder, "out", "--to=transformers", "--card") == 2
    assert "expected the workdir of a training run as SOURCE" in capsys.readouterr().err
    assert convert(run, "out.pt", "--card") == 2
    assert "expected a folder as DESTINATION" in capsys.readouterr().err
    evaluate(pathlib.Path("other"), "", np.eye(3, dtype=int), "another tower", "x")
    assert convert(run, "out", "--to=transformers", "--card", "--results=other") == 2
    assert "there are no such results" in capsys.readouterr().err
    assert not pathlib.Path("out").exists()


def test_an_upload_that_fails_says_so(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "out").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / "out" / name).write_bytes(name.encode() * 1000)
    hub.full = True
    message = r"hf:user/full: http://.* answers with 507; try again later; .*: hf upload user/full"
    with pytest.raises(OSError, match=message):
        upload(tmp_path / "out", "user/full", private=False, message="weights")


def test_the_cards_snippets_run_as_printed(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    arguments = ("--to=transformers", "--card", "--push=user/my-clip")
    assert convert(run, "pushed", *arguments) == 0
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    text = pathlib.Path("pushed/README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = [{} for _ in snippets]
    for snippet, names in zip(snippets, found, strict=True):
        exec(snippet, names)
    assert found[0]["result"].label_map.shape == (64, 80)
    assert found[1]["model"].config.model_type == "clip" and found[1]["processor"].tokenizer
