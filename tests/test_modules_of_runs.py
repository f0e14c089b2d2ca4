"""Runs whose method's modules take part after training: in evaluation, prediction, other runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maft_jax
from maft_jax.config import config_of_run, from_config_dict, preset
from maft_jax.convert.method_modules import write_modules
from maft_jax.convert.state_dict_io import open_state_dict
from maft_jax.evaluators.checkpoint import evaluate_checkpoint
from maft_jax.evaluators.results import read_result
from maft_jax.inference.segmentation import ImageSegmenter
from maft_jax.models.mask_reader import Modules
from maft_jax.runtime import sharding, tree_rules
from maft_jax.state.tuned_tree import TunedTree
from maft_jax.training.clip_task import open_clip_task
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import make_data, read_metrics, small_config

TOWER = "random:convnext_tiny-random"
SHARED = {"model__pretrained": TOWER, "model__mask_start_layer": -1, "num_steps": 4}
MASK_ADAPTER = SHARED | {
    "method": "mask_adapter",
    "loss__adapter_masks": "mixed",
    "loss__adapter_width": 16,
    "proposals__generator": "ground_truth",
    "optimizer__learning_rate": 1e-2,
}
MAFT_PLUS = SHARED | {"method": "maft_plus", "loss__transfer": "panoptic"}
METHODS = [
    pytest.param(MASK_ADAPTER, id="mask_adapter", marks=pytest.mark.slow),
    pytest.param(MAFT_PLUS, id="maft_plus", marks=pytest.mark.slow),
]
NAMES = {"mask_adapter": "cnext2.dwconv.weight", "maft_plus": "cross_atten.MLP.weight"}
CLASSES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module", params=METHODS)
def run(request, data, tmp_path_factory):
    """Settings, state, and workdir, with evaluations before the first step and after the last."""
    workdir = tmp_path_factory.mktemp("run")
    evaluated = {"evaluation__roots__folder": data["data.root"]}
    config = small_config(data, **request.param, **evaluated)
    return request.param, train_and_evaluate(config, workdir), workdir


def probabilities(clip) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 96, 3), np.uint8)
    masks = rng.random((4, 2, 3)).repeat(32, axis=1).repeat(32, axis=2) > 0.4
    return ImageSegmenter(clip, CLASSES)(image, masks).proposal_probabilities


def test_what_is_trained_and_what_is_left_behind(run):
    settings, state, workdir = run
    assert ("visual" in state.trainable) == (settings["method"] == "maft_plus")
    begun = maft_jax.load(TOWER).parameters["visual"]
    tuned = maft_jax.load(workdir / "tuned.safetensors").parameters["visual"]
    same = jax.tree.map(np.array_equal, begun, tuned)
    assert all(jax.tree.leaves(same)) == (settings["method"] == "mask_adapter")
    tensors, _ = open_state_dict(workdir / "modules.safetensors")
    assert NAMES[settings["method"]] in tensors
    losses = [record for record in read_metrics(workdir) if "loss" in record]
    assert len(losses) == 2 and all(np.isfinite(record["loss"]) for record in losses)
    if settings["method"] == "mask_adapter":
        assert losses[0]["consistency_loss"] > 0
    else:
        assert {"ranking_loss", "compensation_loss"} <= losses[0].keys()


def test_prediction_reads_masks_with_the_modules(run):
    _, state, workdir = run
    clip = maft_jax.load(workdir)
    ours = probabilities(clip)
    trained = clip.modules.parameters
    jax.tree.map(np.testing.assert_array_equal, trained, dict(state.trainable["extra"]))
    alone = probabilities(dataclasses.replace(clip, modules=None))
    np.testing.assert_array_equal(
        alone, probabilities(maft_jax.load(workdir / "tuned.safetensors", image_size=64))
    )
    changed = Modules(jax.tree.map(lambda x: 0.5 * x, trained), clip.modules.reader)
    other = probabilities(dataclasses.replace(clip, modules=changed))
    assert np.abs(ours - alone).max() > 1e-3
    assert np.abs(ours - other).max() > 1e-3
    np.testing.assert_array_equal(ours, probabilities(dataclasses.replace(clip)))


def evaluated(data, **settings):
    config = preset("official")
    changes = {"task": "evaluate", "model.mask_start_layer": -1, "model.image_size": 64}
    changes |= {"evaluation.roots.folder": data["data.root"], "proposals.num_proposals": 8}
    changes |= {name: value for name, value in data.items() if name != "data.root"}
    config.update_from_flattened_dict(
        changes | {name.replace("__", "."): value for name, value in settings.items()}
    )
    return from_config_dict(config)


def test_evaluation_in_training_and_alone_and_of_files_read_masks_with_them(run, data, tmp_path):
    settings, _, workdir = run
    on_the_way = read_result(workdir / "evaluation/step_4/folder.json")
    assert "Reader(" in on_the_way.provenance["weights"]["modules"]["reader"]
    frozen = read_result(workdir / "evaluation/step_0/folder.json")
    assert "modules" not in frozen.provenance["weights"]
    generator = settings.get("proposals__generator", "superpixels")
    shared = {"proposals__generator": generator}
    [of_run] = evaluate_checkpoint(
        evaluated(data, checkpoint=str(workdir), **shared), tmp_path / "run"
    ).results
    np.testing.assert_array_equal(of_run.confusion, on_the_way.confusion)
    of_method = {name: value for name, value in settings.items() if name.startswith("loss__")}
    tower = shared | {"checkpoint": str(workdir / "tuned.safetensors")}
    files = tower | of_method | {"method": settings["method"]}
    files |= {"model__modules": str(workdir / "modules.safetensors")}
    [of_files] = evaluate_checkpoint(evaluated(data, **files), tmp_path / "files").results
    np.testing.assert_array_equal(of_files.confusion, on_the_way.confusion)
    [alone] = evaluate_checkpoint(evaluated(data, **tower), tmp_path / "alone").results
    assert (alone.confusion != of_run.confusion).any()
    with pytest.raises(ValueError, match="is a training run, which has modules of its own"):
        again = files | {"checkpoint": str(workdir)}
        evaluate_checkpoint(evaluated(data, **again), tmp_path / "refused")


def test_what_cannot_use_them_says_so(run, data, tmp_path):
    settings, _, workdir = run
    clip = maft_jax.load(workdir)
    with pytest.raises(ValueError, match=r"expected a tower alone.*tuned\.safetensors"):
        clip.save(tmp_path / "all.safetensors")
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    masks = jnp.zeros((1, 1, 64, 64), bool).at[:, :, :, :32].set(True)
    if settings["method"] == "maft_plus":
        with pytest.raises(ValueError, match="adapt the rows of class names to each image"):
            clip.encode_proposals(images, masks)
    else:
        alone = dataclasses.replace(clip, modules=None).encode_proposals(images, masks)
        assert np.abs(clip.encode_proposals(images, masks) - alone).max() > 1e-6
    config = small_config(data, **settings | {"model__pretrained": str(workdir)})
    with pytest.raises(ValueError, match=r"begin with the run.s tuned\.safetensors"):
        open_clip_task(config, sharding.one_device_mesh())


def test_another_run_begins_with_them(run, data):
    settings, state, workdir = run
    file = str(workdir / "modules.safetensors")
    config = small_config(data, **settings, model__modules=file)
    task = open_clip_task(config, sharding.one_device_mesh())
    jax.tree.map(
        np.testing.assert_array_equal, task.parameters["extra"], dict(state.trainable["extra"])
    )


@pytest.mark.slow
def test_it_resumes_with_the_same_bits(run, data, tmp_path, caplog):
    settings, straight, _ = run
    config = small_config(data, **settings, checkpointing__every_steps=2)
    train_and_evaluate(config, tmp_path / "resumed")
    (tmp_path / "resumed/checkpoints/4").rename(tmp_path / "forgotten")
    with caplog.at_level("INFO"):
        again = train_and_evaluate(config, tmp_path / "resumed")
    assert "resuming from the checkpoint of step" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again, straight)


@pytest.mark.slow
def test_modules_of_another_size_are_refused(tmp_path):
    settings = {"method": "mask_adapter", "loss.adapter_width": 16}
    config = preset("official")
    config.update_from_flattened_dict(settings | {"data.root": "photos"})
    config = from_config_dict(config, require_weights=False)
    tree, vision = TunedTree.of(config, ()), maft_jax.load(TOWER).config.vision
    modules = tree.method.init_modules(vision, jax.random.key(0))
    write_modules(tmp_path / "m.safetensors", tree.method.module_rules, modules)
    again = tree.read_modules(vision, str(tmp_path / "m.safetensors"))
    assert tree_rules.fingerprint(again) == tree_rules.fingerprint(modules)
    other = dataclasses.replace(config, loss=dataclasses.replace(config.loss, adapter_width=8))
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        TunedTree.of(other, ()).read_modules(vision, str(tmp_path / "m.safetensors"))


@pytest.mark.slow
def test_a_tower_without_a_map_is_not_read_with_them(data, tmp_path):
    clip = maft_jax.load("random:tiny")
    clip.save(tmp_path / "clip.safetensors")
    method = TunedTree.of(small_config(data, **MASK_ADAPTER), ()).method
    modules = method.init_modules(clip.config.vision, jax.random.key(0))
    write_modules(tmp_path / "modules.safetensors", method.module_rules, modules)
    files = {"checkpoint": str(tmp_path / "clip.safetensors"), "method": "mask_adapter"}
    files |= {"model__modules": str(tmp_path / "modules.safetensors"), "loss__adapter_width": 16}
    with pytest.raises(ValueError, match=r"config\.method=mask_adapter: draws weights of"):
        evaluate_checkpoint(evaluated(data, **files), tmp_path / "results")


@pytest.mark.parametrize("other", [{"transfer": "semantic"}, {"transfer_memory": "in_order"}])
def test_modules_are_not_read_in_another_way_than_their_run_did(data, tmp_path, other):
    begun = small_config(data, **MAFT_PLUS)
    tree, vision = TunedTree.of(begun, ()), maft_jax.load(TOWER).config.vision
    modules, file = tree.method.init_modules(vision, jax.random.key(0)), tmp_path / "m.safetensors"
    write_modules(file, tree.method.module_rules, modules, tree.method.reader)
    tree.read_modules(vision, str(file))
    changed = dataclasses.replace(begun, loss=dataclasses.replace(begun.loss, **other))
    with pytest.raises(ValueError, match=r"the run that left them read masks with TransferReader"):
        TunedTree.of(changed, ()).read_modules(vision, str(file))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"method": "maskclippp"}, {"optimizer__lora_rank": 2}])
def test_rules_of_weight_decay_mean_the_towers_paths(settings, data):
    rules = ("^ln_", r"^blocks_0/attn/\w+/kernel$", r"^extra/proj_in/bias$")
    config = small_config(
        data, **settings, optimizer__no_weight_decay=rules, optimizer__weight_decay=0.5
    )
    task = open_clip_task(config, sharding.one_device_mesh())
    params = task.setup.init_state(task.parameters).trainable
    params = jax.tree.map(lambda x: jnp.ones_like(x), params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = task.setup.optimizer.update(zeros, task.setup.optimizer.init(params), params)
    decayed = {path: bool(x.any()) for path, x in tree_rules.flatten(updates).items()}
    if "method" in settings:
        assert not decayed["visual/ln_post/scale"] and decayed["visual/blocks_1/ln_1/scale"]
        assert not decayed["visual/blocks_0/attn/in_proj/kernel"]
        assert decayed["visual/blocks_0/attn/in_proj/bias"]
        assert not decayed["extra/proj_in/bias"] and decayed["extra/proj_in/kernel"]
    else:
        assert not decayed["blocks_0/attn/in_proj/lora_down"]
        assert decayed["blocks_1/attn/in_proj/lora_down"]


def test_runs_from_before_the_transfer_are_what_they_were():
    values = {"method": "maft_plus", "loss": {"mask_aware": "l1"}, "data": {"root": "photos"}}
    config = config_of_run(values | {"model": {"pretrained": TOWER}})
    tree = TunedTree.of(config, ())
    assert not tree.has_modules
    shown = "MaftPlus(mask_aware='l1', mask_aware_weight=1.0, compensation_weight=0.1)"
    assert repr(tree.method) == shown, "as their checkpoints have it"
