"""The whole official system of one file, generator and CLIP, against what it made of a photo."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import torch
from PIL import Image

import maft_jax
from input_pipeline import eval_pipeline
from input_pipeline.eval_pipeline import EvalGeometry
from input_pipeline.records.record_source import RecordSource
from input_pipeline.sample_folder import SAMPLE_CLASSES, write_sample_folder
from maft_jax.config.sections import ProposalsConfig
from maft_jax.inference import segmentation
from maft_jax.inference.segmenter import Segmenter
from maft_jax.proposals.generators import make_generator
from tests import runs
from tests.convert.official_checkpoint import as_pth, official_system
from tests.golden_files import golden


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "maft.pth"
    torch.save(as_pth(official_system()), path)
    return path


@pytest.fixture
def class_scores(monkeypatch):
    """Filled with the scores [h, w] of every class as `segment` computes those of the best."""
    scores, label_rows = [], Segmenter.label_rows

    def keep_all(self, probabilities, *arguments):
        for index in range(probabilities.shape[2]):
            alone = probabilities * jax.nn.one_hot(index, probabilities.shape[2])
            scores.append(label_rows(self, alone, *arguments).score[0])
        return label_rows(self, probabilities, *arguments)

    monkeypatch.setattr(Segmenter, "label_rows", keep_all)
    return scores


@pytest.mark.slow
def test_a_photo_gets_the_scores_of_the_official_system(checkpoint, class_scores, monkeypatch):
    """5e-5 of the largest. Of the photo itself is known its size, and what it was resized to."""
    encoded, expected = golden("freeseg_maft_small_encoder"), golden("freeseg_maft_small_inference")
    names, scores = expected["class_names"].tolist(), expected["sem_seg"]
    monkeypatch.setattr(segmentation, "eval_geometry", lambda aspect: EvalGeometry(192))
    monkeypatch.setattr(eval_pipeline, "place_image", lambda *_: encoded["image_uint8"])
    generator = make_generator(ProposalsConfig(generator="freeseg", path=str(checkpoint)), names)
    generator = dataclasses.replace(generator, prepare=lambda image: encoded["image_uint8"])
    photo = np.zeros((*expected["original_size"], 3), np.uint8)

    result = maft_jax.segment(maft_jax.load(checkpoint), photo, names, generator)

    height, width = photo.shape[:2]
    found = np.stack(class_scores)[:, :height, :width]
    np.testing.assert_allclose(found, scores, atol=5e-5 * scores.max(), rtol=0)
    second, best = np.sort(scores, axis=0)[-2:]
    clear = best - second > 1e-4 * scores.max()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result.label_map[clear], scores.argmax(0)[clear])
    np.testing.assert_allclose(result.score, best / scores.sum(0), atol=1e-4)


NAMES = ("left", "right")
WITHOUT_TORCH = """
import runpy, sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_without_torch(module, *arguments) -> str:
    """What `python -m module` prints in a process in which PyTorch cannot be imported."""
    return runs.finish(
        runs.start([sys.executable, "-c", WITHOUT_TORCH, module, *map(str, arguments)])
    )


@pytest.mark.slow
def test_predict_needs_one_file_and_no_pytorch(checkpoint, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(photo)
    run_without_torch(
        "maft_jax.cli.predict",
        *("--generator=freeseg", f"--weights={checkpoint}", f"--image={photo}"),
        *(f"--classes={','.join(NAMES)}", f"--out={tmp_path}", f"--cache_dir={tmp_path / 'cache'}"),
    )
    generator = make_generator(ProposalsConfig(generator="freeseg", path=str(checkpoint)), NAMES)
    result = maft_jax.segment(maft_jax.load(checkpoint), photo, NAMES, generator)
    written = np.asarray(Image.open(tmp_path / "photo_labels.png"))
    np.testing.assert_array_equal(written, result.label_map)
    about = json.loads((tmp_path / "photo.json").read_text())
    assert about["proposals"]["path"] == str(checkpoint)
    assert about["proposals"]["fingerprint"] == generator.fingerprint


@pytest.mark.slow
def test_evaluation_needs_one_file_and_no_pytorch(checkpoint, tmp_path):
    """With the generator's own classes, which its records have for the names of the data set."""
    write_sample_folder(tmp_path / "data", num_images=2, size=(64, 64))
    printed = run_without_torch(
        "maft_jax.main",
        *("--config=configs/eval_only.py", f"--workdir={tmp_path / 'eval'}"),
        f"--config.checkpoint={checkpoint}",
        *("--config.proposals.generator=freeseg", f"--config.proposals.path={checkpoint}"),
        f"--config.evaluation.roots.folder={tmp_path / 'data'}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.evaluation.ensemble_weight=0.7",
    )
    result = json.loads((tmp_path / "eval" / "evaluation" / "folder.json").read_text())
    (index,) = (tmp_path / "cache" / "records").iterdir()
    record = RecordSource(index).record(0)
    assert record.class_logits.shape == (100, len(SAMPLE_CLASSES) + 1)
    assert "freeseg" in json.dumps(result) and "folder" in printed
