"""SavedModels and TFLite files by the command, run by processes that have only TensorFlow."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import maft_jax
from maft_jax.models.preprocess import normalised
from tests.runs import REPOSITORY

pytestmark = pytest.mark.slow

SIZE, TOLERANCE = 64, 1e-5
_IN_TENSORFLOW_ALONE = """
import sys
sys.modules |= dict.fromkeys(["maft_jax", "jax", "flax", "keras"])  # importing these fails
import numpy as np, tensorflow as tf
kind, path, inputs, outputs = sys.argv[1:]
given = dict(np.load(inputs))
if kind == "savedmodel":
    run = tf.saved_model.load(path).signatures["serving_default"]
    found = run(**{name: tf.constant(value) for name, value in given.items()})
else:
    found = tf.lite.Interpreter(path + ".tflite").get_signature_runner()(**given)
np.savez(outputs, **found)
"""


@pytest.mark.parametrize("format_name", ["savedmodel", "tflite"])
def test_a_process_with_tensorflow_alone_runs_it(format_name, tmp_path):
    out, proposals = tmp_path / "exported", 3
    command = [sys.executable, "-m", "maft_jax.cli.export_program", "built-in:shapes_world", out]
    command += [f"--format={format_name}", f"--image_size={SIZE}", "--classes=sand, grass"]
    command += ["--template=a {}", "--benchmark"]
    command += [f"--proposals={proposals}"] if format_name == "tflite" else []
    finished = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("differs by") == finished.stdout.count("median of ours") == 2

    batch = 1 if format_name == "tflite" else 3
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    masks = rng.uniform(0, 1, (batch, proposals, SIZE, SIZE)).astype(np.float32)
    read = run_alone(
        format_name, out / "image_encoder", {"images": images, "masks": masks}, tmp_path
    )
    clip = maft_jax.load("built-in:shapes_world", image_size=SIZE)
    embeddings = np.asarray(clip.encode_proposals(normalised(jax.device_put(images)), masks))
    logits = clip.encoder.logit_scale * embeddings @ clip.encode_text(["sand", "grass"], ["a {}"]).T
    np.testing.assert_allclose(read["logits"], logits, atol=TOLERANCE * abs(logits).max())

    scored = {"probabilities": read["probabilities"], "masks": masks}
    labels = run_alone(format_name, out / "label_maps", scored, tmp_path)["label_map"]
    scores = np.einsum("bnc,bnhw->bchw", read["probabilities"].astype(float), masks)
    clear = np.abs(scores[:, 0] - scores[:, 1]) > 1e-5
    np.testing.assert_array_equal(labels[clear], scores.argmax(1)[clear])
    settings = json.loads((out / "export.json").read_text())
    free = settings["programs"][0]["inputs"][1]["shape"]
    assert free == [1, 3, 64, 64] if batch == 1 else free == ["batch", "proposals", 64, 64]


def run_alone(kind, path, inputs, folder):
    np.savez(folder / "inputs.npz", **inputs)
    arguments = [kind, path, folder / "inputs.npz", folder / "outputs.npz"]
    subprocess.run(
        [sys.executable, "-c", _IN_TENSORFLOW_ALONE, *map(str, arguments)], cwd=folder, check=True
    )
    return dict(np.load(folder / "outputs.npz"))
