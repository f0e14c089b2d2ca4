"""Runs of methods other than MAFT's, and of LoRA, from weights and labels to a loaded CLIP."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import linen as nn

import maft_jax
from maft_jax.config.sections import LossConfig, MeshConfig, OptimizerConfig
from maft_jax.convert.method_modules import LINEAR_ALIGNMENT
from maft_jax.convert.rules import stored_as_ours
from maft_jax.convert.state_dict_io import open_state_dict
from maft_jax.losses import mask_aware
from maft_jax.methods.maft_plus import MaftPlus
from maft_jax.methods.mask_adapter import MaskAdapterMethod
from maft_jax.methods.maskclippp import MaskClipPlusPlus
from maft_jax.models.adapters import low_rank
from maft_jax.models.adapters.mask_adapter import AdapterReader, MaskAdapterConfig
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.encoder import EncoderSettings, MaskingSpec
from maft_jax.models.layers import OutProjection, QkvProjection
from maft_jax.runtime import sharding, tree_rules
from maft_jax.state import optimizer
from maft_jax.state.train_state import init_train_state
from maft_jax.state.tuned_tree import TunedTree
from maft_jax.training import train_step
from maft_jax.training.clip_objective import ClipObjective
from maft_jax.training.clip_task import open_clip_task
from maft_jax.training.method_objective import MethodObjective
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import make_data, read_metrics, small_config
from tests.tiny_models import NUM_CLASSES, VISION, ip_clip, tiny_batch, tiny_visual

pytestmark = pytest.mark.usefixtures("steps_compiled_once")

MASKCLIPPP = {
    "method": "maskclippp",
    "proposals__generator": "ground_truth",
    "optimizer__pretrained_rate": 0.1,
}
MAFT_PLUS = {
    "method": "maft_plus",
    "proposals__generator": "superpixels",
    "optimizer__pretrained_rate": 1.0,
}
CONVNEXT = {"model__pretrained": "random:convnext_tiny-random", "model__mask_start_layer": -1}
LORA = {"optimizer__lora_rank": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("methods"))


@pytest.fixture(scope="module", params=[MASKCLIPPP, LORA], ids=["maskclippp", "lora"])
def run(request, data, tmp_path_factory):
    """Settings, state, and workdir; with LoRA it evaluates before its first step and at its end."""
    workdir = tmp_path_factory.mktemp("run")
    evaluated = {"evaluation__roots__folder": data["data.root"]} if request.param is LORA else {}
    config = small_config(data, **request.param, **evaluated)
    return request.param, train_and_evaluate(config, workdir), workdir


@pytest.mark.slow
def test_its_own_parameters_are_trained(run):
    settings, state, workdir = run
    trained = tree_rules.flatten(state.trainable)
    metrics = [record for record in read_metrics(workdir) if "loss" in record]
    assert [record["step"] for record in metrics] == [2, 4, 6]
    if settings is LORA:
        assert {path.rpartition("/")[2] for path in trained} == set(low_rank.FACTORS)
        assert len(trained) == 4 * 2 * 2, "both kernels of four layers"
        assert all(np.abs(x).max() > 1e-5 for x in trained.values())
        return
    assert set(state.trainable) == {"visual", "extra"}
    assert {path for path in trained if path.startswith("extra/")} == {
        f"extra/proj_{part}/{name}" for part in ("in", "out") for name in ("kernel", "bias")
    }
    losses = [record["mask_classification_loss"] for record in metrics]
    assert losses == [record["loss"] for record in metrics]


@pytest.mark.slow
@pytest.mark.parametrize("run", [MASKCLIPPP], indirect=True, ids=["maskclippp"])
def test_the_tower_learns_at_its_own_rate(run):
    _, state, _ = run
    begun = maft_jax.load("random:tiny").parameters["visual"]["ln_post"]["scale"]
    moved = np.abs(state.trainable["visual"]["ln_post"]["scale"] - begun).max()
    of_module = np.abs(state.trainable["extra"]["proj_in"]["kernel"] - 1).max()
    assert 3e-5 < moved < 2e-4 < of_module < 2e-3


@pytest.mark.slow
def test_its_run_loads_as_a_tower_like_any_other(run):
    settings, state, workdir = run
    visual = tree_rules.flatten(maft_jax.load(workdir).parameters["visual"])
    begun = tree_rules.flatten(maft_jax.load("random:tiny").parameters["visual"])
    assert visual.keys() == begun.keys()
    exported = tree_rules.flatten(maft_jax.load(workdir / "tuned.safetensors").parameters["visual"])
    jax.tree.map(np.testing.assert_array_equal, exported, visual)
    if settings is MASKCLIPPP:
        trained = tree_rules.flatten(state.trainable["visual"])
        expected = {path: trained.get(path, leaf) for path, leaf in begun.items()}
    else:
        scale = 16 / 2
        expected = dict(begun)
        for layer in range(4):
            for name in ("in_proj", "out_proj"):
                down, up = (
                    state.trainable[f"blocks_{layer}"]["attn"][name][factor]
                    for factor in low_rank.FACTORS
                )
                change = scale * np.asarray(down) @ np.asarray(up)
                path = f"blocks_{layer}/attn/{name}/kernel"
                if name == "in_proj":
                    change = change.transpose(1, 0, 2)
                expected[path] = begun[path] + change.reshape(begun[path].shape)
                assert np.abs(change).max() > 1e-5
    for path, leaf in visual.items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-7, rtol=0, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("run", [MASKCLIPPP], indirect=True, ids=["maskclippp"])
def test_its_modules_are_exported_under_the_authors_names(run):
    _, state, workdir = run
    tensors, _ = open_state_dict(workdir / "modules.safetensors")
    assert "corr_proj_in.0.weight" in tensors
    stored = stored_as_ours(tensors, state.trainable["extra"], LINEAR_ALIGNMENT, source="file")
    for path, leaf in tree_rules.flatten(state.trainable["extra"]).items():
        np.testing.assert_array_equal(stored[path].read(), leaf)


@pytest.mark.slow
@pytest.mark.parametrize("run", [MASKCLIPPP], indirect=True, ids=["maskclippp"])
def test_another_run_begins_with_them(run, data):
    _, state, workdir = run
    file = str(workdir / "modules.safetensors")
    mesh = sharding.one_device_mesh()
    task = open_clip_task(small_config(data, **MASKCLIPPP, model__modules=file), mesh)
    jax.tree.map(
        np.testing.assert_array_equal, task.parameters["extra"], dict(state.trainable["extra"])
    )
    with pytest.raises(ValueError, match="nothing but the tower is trained"):
        _ = open_clip_task(small_config(data, model__modules=file), mesh).parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {
            "model__pretrained": "random:convnext_tiny-random",
            "model__mask_pooling": "soft",
            "loss__alignment": "pseudo_text",
            "optimizer__trainable": (".",),
        },
        {"model__pretrained": "random:eva02_tiny-random", "model__mask_rule": "maskclippp"},
        {"model__pretrained": "random:convnext_tiny-random"} | MAFT_PLUS,
    ],
    ids=["convnext", "eva02", "maft_plus"],
)
def test_other_towers_learn_by_their_own_rules(data, tmp_path, changes):
    changes = MASKCLIPPP | changes | {"model__mask_start_layer": -1, "num_steps": 2}
    changes |= {"evaluation__roots__folder": data["data.root"]}
    state = train_and_evaluate(small_config(data, **changes), tmp_path)
    begun = maft_jax.load(changes["model__pretrained"]).parameters["visual"]
    tuned = maft_jax.load(tmp_path).parameters["visual"]
    moved = tree_rules.flatten(jax.tree.map(lambda a, b: np.abs(a - b).max(), tuned, begun))
    trained = set(tree_rules.flatten(state.trainable.get("visual", state.trainable)))
    assert {path for path, change in moved.items() if change > 0} <= trained
    assert all(np.isfinite(change) for change in moved.values())
    for step in (0, 2):
        assert (tmp_path / f"evaluation/step_{step}/folder.json").is_file()
    if changes["method"] == "maft_plus":
        assert not any(path.startswith(("ln_post", "head", "proj")) for path in trained)
        assert any(path.startswith("stem/") for path in trained)
    elif "convnext" in changes["model__pretrained"]:
        assert trained == set(moved), "the head too"
        assert "cross_attn" in state.trainable["extra"]
    else:
        assert any(path.endswith("in_proj/kernel") for path in trained)


@pytest.mark.slow
def test_it_resumes_with_the_same_bits(run, data, tmp_path, caplog):
    settings, straight, _ = run
    config = small_config(data, **settings)
    train_and_evaluate(config, tmp_path / "resumed")
    for step in (tmp_path / "resumed/checkpoints").iterdir():
        if step.name == "6":
            step.rename(tmp_path / "forgotten")
    with caplog.at_level("INFO"):
        again = train_and_evaluate(config, tmp_path / "resumed")
    assert "resuming from the checkpoint of step" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again, straight)
    other = dataclasses.replace(config, method="maft", optimizer=OptimizerConfig())
    with pytest.raises(ValueError, match="was made with another method, or other low-rank factors"):
        train_and_evaluate(other, tmp_path / "resumed")


NARROW = AdapterReader(MaskAdapterConfig(width=16))
CASES = {
    "maskclippp": ("tiny", MaskClipPlusPlus("linear"), 0),
    "maskclippp with lora": ("tiny", MaskClipPlusPlus("linear"), 4),
    "pseudo text": ("convnext_tiny-random", MaskClipPlusPlus("pseudo_text"), 0),
    "maft_plus": ("convnext_tiny-random", MaftPlus.of(LossConfig(transfer="none")), 0),
    "transfer": ("convnext_tiny-random", MaftPlus.of(LossConfig()), 0),
    "mask_adapter": ("convnext_tiny-random", MaskAdapterMethod(True, NARROW), 0),
}


def batch_with_fitting_proposals():
    """The first two proposals of each image are the masks of two of its classes."""
    batch = tiny_batch(8)
    masks = mask_aware.class_masks(batch.label_map, batch.present_classes[:, :2])
    fitting = (255 * masks[..., ::4, ::4]).astype(jnp.uint8)
    return batch.replace(proposals=batch.proposals.at[:, :2].set(fitting))


def gradients_on(case: str, settings: MeshConfig, num_devices: int, parts: int = 1):
    """Gradients and metrics of eight images, on a mesh, in parts."""
    size, method, rank = CASES[case]
    vision = CLIP_SIZES[size].vision
    mesh = sharding.make_mesh(settings, jax.devices()[:num_devices])
    pooling = "soft" if case == "pseudo text" else "hard"
    masking = MaskingSpec(2 if size == "tiny" else 0, 64, pooling)
    encoder = vision.make_encoder(EncoderSettings(masking, mesh, logit_scale=10.0))
    tree = TunedTree(method, rank, 8.0, low_rank.KERNELS if rank else ())
    objective = MethodObjective(encoder, tree, (64, 64), parts)
    begun = tree_rules.map_with_path(  # which begins so small that gradients are rounding
        lambda path, x: 0.3 + 0 * x if path.endswith("layer_scale") else x,
        tree.begin(vision, vision.init(jax.random.key(0))),
    )
    rules = tree.rules(tree.tuned_kernels or method.default_trainable(vision))
    trained = tree_rules.select(rules, begun, where="rules")
    shardings = sharding.tree_shardings((trained, begun), mesh, objective.sharding_rules)
    trained, begun = jax.device_put((trained, begun), shardings)
    text = jax.random.normal(jax.random.key(7), (NUM_CLASSES, vision.embed_dim))
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    text = jax.device_put(text, sharding.replicated(mesh))
    batch = jax.device_put(batch_with_fitting_proposals(), sharding.batch_sharding(mesh))
    step = jax.jit(functools.partial(train_step.gradients, objective))
    return jax.tree.map(np.asarray, step(trained, begun, text, batch))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_step_on_eight_devices_and_in_parts_is_that_of_one(case):
    gradient, metrics = gradients_on(case, MeshConfig(), 1)
    expected = tree_rules.flatten(gradient)
    scale = {path: np.abs(leaf).max() for path, leaf in expected.items()}
    rounding = 1e-7 * max(scale.values())  # of biases whose gradient is zero
    assert sum(size > 100 * rounding for size in scale.values()) > len(scale) / 3
    split = MeshConfig(fsdp=2, model=2 if CASES[case][0] == "tiny" else 1)
    for mesh, num_devices, parts in ((split, 8, 1), (MeshConfig(), 2, 2)):
        gradient, other = gradients_on(case, mesh, num_devices, parts)
        np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-5)
        for path, leaf in tree_rules.flatten(gradient).items():
            if path == "extra/ln_text/bias":  # adds the same to all classes: its gradient is zero
                assert max(np.abs(leaf).max(), scale[path]) <= 10 * rounding
                continue
            error = np.abs(leaf - expected[path]).max()
            assert error <= 2e-5 * scale[path] + rounding, path


@pytest.mark.slow
def test_maft_pluss_first_step_ranks_as_maft_and_compensates_nothing():
    vision = CLIP_SIZES["convnext_tiny-random"].vision
    settings = EncoderSettings(MaskingSpec(0, 64), sharding.one_device_mesh(), logit_scale=10.0)
    encoder, visual = vision.make_encoder(settings), vision.init(jax.random.key(0))
    batch, loss = tiny_batch(4), LossConfig(distillation_weight=0.0, transfer="none")
    text = jax.random.normal(jax.random.key(1), (5, vision.embed_dim))
    trained = init_train_state(
        visual, vision.default_trainable, optimizer.make_optimizer(OptimizerConfig(), 10)
    ).trainable
    changed = jax.tree.map(lambda x: x + 0.1, trained)
    maft = ClipObjective(encoder, loss, (64, 64))
    plus = MethodObjective(encoder, TunedTree(MaftPlus.of(loss)), (64, 64))

    @jax.jit
    def terms(trained):
        return [
            objective.loss_and_metrics(trained, visual, text, batch, objective.counts(batch))[1][
                "terms"
            ]
            for objective in (maft, plus)
        ]

    of_maft, of_plus = terms(trained)
    np.testing.assert_allclose(of_plus["ranking"], of_maft["mask_aware"], rtol=1e-6)
    assert of_plus["compensation"] < 1e-12
    of_maft, of_plus = terms(changed)
    np.testing.assert_allclose(of_plus["ranking"], of_maft["mask_aware"], rtol=1e-6)
    assert of_plus["compensation"] > 1e-6


def test_merged_factors_give_what_a_path_beside_the_kernel_gives():
    visual, encoder = tiny_visual(), ip_clip(VISION, 1)
    tree = TunedTree(lora_rank=4, lora_alpha=8.0, tuned_kernels=low_rank.KERNELS)
    begun = tree.begin(VISION, visual)
    drawn = np.random.default_rng(0)
    begun = tree_rules.map_with_path(
        lambda path, x: (
            drawn.normal(0, 0.05, x.shape).astype(np.float32)
            if path.endswith(low_rank.FACTORS)
            else x
        ),
        begun,
    )

    def beside(next_function, arguments, keywords, context):
        """What merging replaces: a second, thin path through the factors."""
        module, result = context.module, next_function(*arguments, **keywords)
        if (
            not isinstance(module, (QkvProjection, OutProjection))
            or context.method_name != "__call__"
        ):
            return result
        leaves = begun
        for name in module.path:
            leaves = leaves[name]
        down, up = (2.0 * leaves[low_rank.FACTORS[0]], leaves[low_rank.FACTORS[1]])
        x, *parts = arguments
        if isinstance(module, OutProjection):
            return result + rearrange(x, "b a t h -> b t (a h)") @ down @ up
        places = ["qkv".index(part) for part in parts[0]]
        return [
            of_part + rearrange(x @ down[i] @ up[i], "b t (a h) -> b a t h", a=module.heads)
            for i, of_part in zip(places, result, strict=True)
        ]

    images, encode = encoder.normalise(tiny_batch(2).image), jax.jit(encoder.encode_images)
    with nn.intercept_methods(beside):
        unmerged = jax.jit(lambda visual: encoder.encode_images(visual, images))(visual)
    merged = encode(jax.jit(tree.visual)(begun), images)
    np.testing.assert_allclose(merged, unmerged, atol=1e-6, rtol=0)
    assert np.abs(merged - encode(visual, images)).max() > 1e-3


def test_lora_of_vit_b16_is_as_small_as_documented():
    shapes = jax.eval_shape(lambda: random_parameters(CLIP_SIZES["ViT-B-16"])["visual"])
    tree = TunedTree(lora_rank=16, lora_alpha=16.0, tuned_kernels=low_rank.KERNELS)
    begun = jax.eval_shape(lambda: tree.begin(CLIP_SIZES["ViT-B-16"].vision, shapes))
    trained = tree_rules.select(tree.rules(()), begun, where="rules")
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 1_179_648


@pytest.mark.parametrize("size", ["siglip_tiny-random", "eva02_tiny-random", "tips_tiny-random"])
def test_every_tower_with_attention_has_factors(size):
    vision = CLIP_SIZES[size].vision
    tree = TunedTree(lora_rank=2, lora_alpha=2.0, tuned_kernels=low_rank.KERNELS)
    visual = jax.eval_shape(lambda: vision.init(jax.random.key(0)))
    begun = jax.eval_shape(lambda: tree.begin(vision, visual))
    assert len(tree_rules.flatten(begun)) >= len(tree_rules.flatten(visual)) + 2 * vision.layers * 2
    assert jax.eval_shape(tree.visual, begun) == visual


def test_rules_over_the_towers_paths_are_meant_below_its_root():
    tree = TunedTree(MaskClipPlusPlus("linear"))
    rules = tree.rules((r"/attn/|^ln_post/", r"^(?!blocks)[^/]+$"))
    chosen = ("visual/blocks_0/attn/x", "visual/ln_post/scale", "visual/proj", "extra/proj_in/x")
    left = ("visual/blocks_0/mlp/x", "visual/blocks_0/ln_post/x")
    assert [tree_rules.matches_any(rules, path) for path in chosen + left] == [True] * 4 + [
        False
    ] * 2


def test_step_zero_of_lora_is_the_pretrained_tower_itself():
    visual = tiny_visual()
    tree = TunedTree(lora_rank=4, lora_alpha=8.0, tuned_kernels=low_rank.KERNELS)
    begun = tree.visual(tree.begin(VISION, visual))
    jax.tree.map(np.testing.assert_array_equal, begun, visual)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__pretrained_rate": 0.1}, "expected 1 where nothing but the tower is trained"),
        (MASKCLIPPP | {"loss__alignment": "pseudo_text"}, "reads the map that proposals"),
        (MASKCLIPPP | {"loss__cached_teacher": True, "data__augment": False}, "does not read it"),
        (LORA | CONVNEXT, "this tower has none"),
        ({"method": "maft_plus"}, "use maft, or a ConvNeXt"),
        (LORA | {"optimizer__trainable": ("/ln_1/",)}, "tunes kernels of attention alone"),
    ],
)
def test_what_cannot_be_taught_so_is_refused(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(small_config(data, **changes), tmp_path)
