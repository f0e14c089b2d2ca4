"""A SigLIP with its own tokenizer trains, resumes, is exported and read by transformers."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import maft_jax
from maft_jax.config.sections import MeshConfig, OptimizerConfig
from maft_jax.convert.formats import ClipWeights, read_weights, write_weights
from maft_jax.convert.state_dict_io import open_state_dict, write_state_dict
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.convert.verification import verify
from maft_jax.evaluators.checkpoint import evaluate_checkpoint
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.text.sentencepiece_tokenizer import TokenizerFile
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.towers.siglip import SigLipVisionConfig
from maft_jax.runtime import sharding, tree_rules
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import make_data, read_metrics, small_config
from tests.siglip_files import unpacked
from tests.tower_steps import lowered_step, step_on

pytestmark = pytest.mark.usefixtures("steps_compiled_once")

TINY = CLIP_SIZES["siglip_tiny-random"]


@pytest.mark.parametrize("teacher", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiler_counts_within_15_percent_of_the_formula(teacher):
    """The width of B/16 with fewer layers, of which all are alike."""
    vision = SigLipVisionConfig(width=768, layers=2, patch_size=16, image_size=512)
    counted = lowered_step(vision, 512, teacher).cost_analysis()["flops"]
    formula = vision.step_flops(vision.default_masking, 100, teacher=teacher)
    assert abs(counted / formula - 1) < 0.15


def test_formula_by_literal_numbers():
    vision = SigLipVisionConfig(2, 3, 16, 32, head_width=1, mlp_width=5)
    layer = 4 * (8 * 2**2 + 4 * 2 * 5) + 4 * 4**2 * 2  # four patches
    one, three = (4 * 4 * 2**2 + 2 * 4 * 2 * (1 + n) + n * (2 * 2**2 + 4 * 2 * 5) for n in (1, 3))
    weights = 3 * 8 * 4 * 2**2 + (4 * 4 + 2 * 3) * 2**2
    student = 2 * (3 * layer + three) + weights
    assert vision.step_flops(MaskingSpec(0, 32), 2, teacher=False) == student
    assert vision.step_flops(MaskingSpec(0, 32), 2) == student + 3 * layer + one


def test_any_number_of_proposals_costs_next_to_nothing():
    vision = CLIP_SIZES["siglip2-base-patch16-512"].vision
    none, thousand = (vision.step_flops(vision.default_masking, n) for n in (0, 1000))
    assert thousand < 1.04 * none


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    metrics, trained = step_on(TINY.vision, one, OptimizerConfig())
    other_metrics, other = step_on(TINY.vision, mesh, OptimizerConfig())
    for name in ("loss", "mask_aware_loss", "distillation_loss"):
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-4, atol=1e-8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), other, trained)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights in transformers' layout, with the golden tokenizer of T5's kind."""
    where = tmp_path_factory.mktemp("siglip")
    file = TokenizerFile.open(unpacked("tokenizer_siglip", "spiece.model", where))
    text = SigLipTextConfig(64, 1, 70, 32, 64, head_width=16).with_tokenizer(file)
    config = dataclasses.replace(TINY, text=text)
    weights = ClipWeights.of(config, random_parameters(config))
    write_weights(weights, where / "weights", "transformers")
    return where / "weights"


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """Settings of a run on data of its own, with the sigmoid of SigLIP in its losses."""
    data = make_data(tmp_path_factory.mktemp("data"))
    own = {
        "model__pretrained": str(folder),
        "model__mask_start_layer": -1,
        "model__image_size": 0,
        "loss__probabilities": "sigmoid",
        "checkpointing__every_steps": 2,
    }
    return lambda **changes: small_config(data, **own | changes), data


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return train_and_evaluate(run[0](), workdir), workdir


@pytest.mark.slow
def test_attention_and_its_norms_are_trained(finished, folder):
    state, workdir = finished
    trained = tree_rules.flatten(state.trainable)
    assert {"head/attn/in_proj/kernel", "head/ln_2/scale", "ln_post/bias"} <= trained.keys()
    begun = tree_rules.flatten(maft_jax.load(folder).parameters["visual"])
    moved = {path: np.abs(value - begun[path]).max() for path, value in trained.items()}
    assert all(0 < change < 1e-2 for change in moved.values())
    losses = [record["loss"] for record in read_metrics(workdir) if "loss" in record]
    assert len(losses) == 3 and np.isfinite(losses).all()


@pytest.mark.slow
def test_its_export_is_whole_and_transformers_computes_the_same(finished, tmp_path):
    state, workdir = finished
    clip = maft_jax.load(workdir / "tuned.safetensors")
    assert (clip.mask_start_layer, clip.image_size) == (0, 64)
    kernel = clip.parameters["visual"]["head"]["attn"]["in_proj"]["kernel"]
    np.testing.assert_array_equal(kernel, state.trainable["head"]["attn"]["in_proj"]["kernel"])
    clip.save(tmp_path / "tuned")
    found = verify(tmp_path / "tuned", read_weights(tmp_path / "tuned"))
    assert all(comparison.largest_difference < 1e-6 for comparison in found)
    for source in (workdir, tmp_path / "tuned"):
        image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        result = maft_jax.segment(maft_jax.load(source), image, ["cat", "potted-plant"])
        assert result.label_map.shape == (48, 64)


@pytest.mark.slow
def test_it_is_evaluated(run, finished, tmp_path):
    config_of, data = run
    config = config_of(
        task="evaluate",
        checkpoint=str(finished[1]),
        model__pretrained="",
        evaluation__roots__folder=data["data.root"],
    )
    assert "folder" in evaluate_checkpoint(config, tmp_path / "evaluated").table()


@pytest.mark.slow
def test_it_resumes_with_the_same_bits(run, finished, tmp_path, caplog):
    resumed = tmp_path / "resumed"
    train_and_evaluate(run[0](), resumed)
    (resumed / "checkpoints/6").rename(tmp_path / "forgotten")
    (resumed / "tuned.safetensors").unlink()
    with caplog.at_level("INFO"):
        again = train_and_evaluate(run[0](), resumed)
    assert "resuming from the checkpoint of step" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again, finished[0])


@pytest.mark.slow
def test_it_does_not_resume_with_another_tokenizer(run, folder, finished, tmp_path):
    bare = tmp_path / "bare"  # without our own metadata, which would name the tokenizer
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("spiece.model"))
    unpacked("tokenizer_siglip", "tokenizer.json", bare)
    tensors = open_state_dict(bare / "model.safetensors")[0]
    values = {name: tensor.read() for name, tensor in tensors.items()}
    write_state_dict(in_memory(values), bare / "model.safetensors")
    with pytest.raises(ValueError, match="another text tower beside the same image tower"):
        train_and_evaluate(run[0](model__pretrained=str(bare)), finished[1])
