"""Modules and losses of MAFT+, MaskCLIP++ and Mask-Adapter against their authors' code.

tests/golden/README.md says what the files hold. Images, masks and weights are convnext/mlp's.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.convert import method_modules, rules
from maft_jax.convert.formats import read_weights
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.losses import mask_aware
from maft_jax.losses.classification import (
    balanced_cross_entropy_terms,
    cosine_distance_terms,
    cross_entropies,
)
from maft_jax.losses.representation import representation_terms
from maft_jax.models.adapters.consistency_alignment import LinearAlignment, PseudoTextAlignment
from maft_jax.models.adapters.content_dependent_transfer import (
    ContentDependentTransfer,
    scrambled_cells,
)
from maft_jax.models.adapters.mask_adapter import MaskAdapter, MaskAdapterConfig
from maft_jax.models.encoder import EncoderSettings, MapEncoder
from maft_jax.models.mask_pooling import SOFT_EPSILON, pool
from maft_jax.models.preprocess import soft_patch_mask
from maft_jax.models.resize import resize
from maft_jax.runtime import tree_rules
from maft_jax.runtime.sharding import one_device_mesh
from tests.golden_files import GOLDEN, golden

GRID = (7, 9)
NAMES_OF_CLASS = np.array([[0, 1], [2, 2], [3, 4]])
product = functools.partial(jnp.einsum, precision="highest")


@functools.cache
def file_of(name: str) -> dict[str, jax.Array]:
    return {key: jax.device_put(array) for key, array in golden(name).items()}


@pytest.fixture(scope="module")
def clip():
    """Encoder, image tower and what convnext/mlp's file holds."""
    weights = read_weights(GOLDEN / "convnext/mlp")
    expected = file_of("convnext/mlp/expected")
    vision = weights.config.vision
    settings = EncoderSettings(
        vision.default_masking, one_device_mesh(), logit_scale=float(expected["logit_scale_exp"])
    )
    return types.SimpleNamespace(
        encoder=vision.make_encoder(settings),
        visual=jax.device_put(weights.parameters()["visual"]),
        maps=expected["res5_nhwc"],
        **expected,
    )


def module_of(name: str, prefix: str, module, table, *inputs):
    """The module and its parameters, which the table must fill, and write back bit for bit."""
    tensors = {k[len(prefix) :]: v for k, v in golden(name).items() if k.startswith(prefix)}
    expected = jax.eval_shape(
        lambda *inputs: module.init(jax.random.key(0), *inputs)["params"], *inputs
    )
    stored = rules.stored_as_ours(in_memory(tensors), expected, table, source=name)
    parameters = rules.materialised(stored)
    written = rules.to_foreign(parameters, table)
    assert written.keys() == tensors.keys()
    for key, tensor in written.items():
        np.testing.assert_array_equal(tensor, tensors[key])
    return module, parameters


def assert_gradients(ours, name: str, prefix: str, table, noise=()):
    """`noise`: what is zero but for rounding."""
    expected = {k[len(prefix) :]: v for k, v in golden(name).items() if k.startswith(prefix)}
    foreign = rules.to_foreign(ours, table)
    assert foreign.keys() == expected.keys()
    for key, theirs in expected.items():
        error = np.abs(foreign[key] - theirs).max()
        assert error <= (1e-6 if key in noise else 2e-5 * np.abs(theirs).max()), key


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def assert_close(ours, expected, tolerance=1e-5):
    np.testing.assert_allclose(ours, expected, atol=tolerance, rtol=0)


def test_no_masks_draw_no_maps():
    cells, adapter = jnp.zeros((2, 3, 4, 8)), MaskAdapter(MaskAdapterConfig(width=4, num_maps=5))
    masks = jnp.zeros((2, 0, 12, 16))
    parameters = jax.jit(adapter.init)(jax.random.key(0), cells, masks)
    draw = jax.jit(functools.partial(adapter.apply, method="activation_maps"))
    maps = draw(parameters, cells, masks)
    assert maps.shape == (2, 0, 3, 4, 5)


def test_a_convnext_has_the_methods_that_modules_ask_for(clip):
    assert isinstance(clip.encoder, MapEncoder)


@pytest.mark.parametrize("case", range(3))
def test_representation_compensation_of_square_landscape_and_portrait_maps(case):
    file = file_of("methods/maft_plus")
    student, teacher = (
        file[f"rc/{case}/{name}_nchw"].transpose(0, 2, 3, 1) for name in ("student", "teacher")
    )
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda maps: representation_terms(maps, teacher).mean())
    )(student)
    np.testing.assert_allclose(loss, file[f"rc/{case}/loss"], rtol=1e-6)
    expected = file[f"rc/{case}/grad"].transpose(0, 2, 3, 1)
    assert_close(gradient, expected, 2e-5 * np.abs(expected).max())


def test_representation_compensation_of_the_towers_maps():
    file = file_of("methods/maft_plus")
    terms = jax.jit(representation_terms)(file["dense_nhwc"], file["teacher_dense_nhwc"])
    np.testing.assert_allclose(
        terms.mean(), file["semantic/official/rc_loss_unweighted"], rtol=1e-6
    )


def masks_at_the_image(clip):
    """As MAFT+ has them: the sigmoid first, then half-pixel."""
    masks = jax.nn.sigmoid(clip.mask_logits_f16.astype(jnp.float32))
    return resize(masks, clip.images_uint8.shape[1:3], axes=(2, 3))


def ranking_target(clip):
    file = file_of("methods/maft_plus")
    present = jnp.array([[0, 1, 2], [0, 2, -1]])

    @jax.jit
    def targets():
        truth = mask_aware.class_masks(file["label_map"].astype(jnp.int32), present)
        iou = mask_aware.soft_iou(masks_at_the_image(clip), truth)
        return iou, mask_aware.normalise_over_proposals(iou, jnp.ones((2, 7), bool))

    return *targets(), present


def test_ranking_target_has_half_pixels(clip):
    iou, normalised, _ = ranking_target(clip)
    rows = np.concatenate([iou[0], normalised[0], iou[1, :2], normalised[1, :2]])
    assert_close(rows, file_of("methods/maft_plus")["iou_then_normalised_rows"])


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
@pytest.mark.parametrize("order", ["official", "in_order"])
def test_content_dependent_transfer_and_ranking_loss(clip, kind, order):
    file, prefix = file_of("methods/maft_plus"), f"{kind}/{order}/"
    maps = scrambled_cells(file["dense_nhwc"]) if order == "official" else file["dense_nhwc"]
    text = jnp.concatenate([clip.text_embedding, clip.void_embedding])
    cells = clip.encoder.embed(clip.visual, maps)
    assert_close(cells, file[prefix + "memory_nhwc"])
    cells = file[prefix + "memory_nhwc"]
    table = method_modules.CONTENT_DEPENDENT_TRANSFER
    module = ContentDependentTransfer(kind)
    module, parameters = module_of("methods/maft_plus", "weights/", module, table, text, cells)
    _, target, present = ranking_target(clip)
    scaled = clip.logit_scale_exp * unit(file["proposal_embedding_raw"])

    def ranking(rows):
        logits = product("bne,bse->bns", scaled, rows)
        of_classes = jnp.max(logits[..., NAMES_OF_CLASS], axis=-1)
        valid = jnp.ones((2, 7), bool)
        terms = mask_aware.mask_aware_terms(jax.nn.softmax(of_classes), target, present, valid)
        with_void = jnp.concatenate([of_classes, logits[..., 5:]], axis=-1)
        return terms.sum() / mask_aware.count_terms(present, valid), with_void

    def of_parameters(parameters):
        rows = module.apply({"params": parameters}, text, cells)
        return ranking(rows)[0], rows

    function = jax.jit(jax.value_and_grad(of_parameters, has_aux=True))
    (_, rows), gradient = function(parameters)
    assert_close(rows, file[prefix + "text_after"])
    loss, logits = jax.jit(ranking)(file[prefix + "text_after"])
    assert_close(logits / 100, file[prefix + "class_logits_with_void"] / 100)
    np.testing.assert_allclose(loss, file[prefix + "ranking_loss"], rtol=1e-6)
    if order == "official":
        noise = ("cross_atten.norm.bias",)
        start = prefix + "grad/cdt."
        assert_gradients(gradient, "methods/maft_plus", start, table, noise)


def test_panoptic_transfer_begins_as_the_identity():
    text, cells = jnp.ones((3, 16)), jnp.ones((2, 2, 2, 16))
    module = ContentDependentTransfer("panoptic")
    rows, _ = jax.jit(module.init_with_output)(jax.random.key(0), text, cells)
    np.testing.assert_array_equal(rows, np.broadcast_to(text, (2, 3, 16)))


def scores_of(kind, clip, maps):
    """Function of parameters and map, table and parameters of a score module."""
    file = file_of("methods/maskclippp")
    parts = file["label_parts"]
    masks = jnp.stack([parts == part for part in range(4)], axis=1)
    text, name = file["text_normalised"], "methods/maskclippp"

    def embedded(visual, maps):
        weights = soft_patch_mask(masks, GRID)
        return clip.encoder.embed(visual, pool(_flat(maps), weights, epsilon=SOFT_EPSILON))

    if kind == "linear":
        module, table = LinearAlignment(32), method_modules.LINEAR_ALIGNMENT

        def inputs(visual, maps):
            similarities = product("bne,cte->bnct", unit(embedded(visual, maps)), text)
            return (clip.logit_scale_exp * similarities,)

        def scores(parameters, visual, maps):
            return module.apply({"params": parameters}, *inputs(visual, maps))
    else:
        module, table = PseudoTextAlignment(), method_modules.PSEUDO_TEXT_ALIGNMENT

        def inputs(visual, maps):
            return unit(text.mean(axis=1)), unit(clip.encoder.embed(visual, maps))

        def scores(parameters, visual, maps):
            rows = module.apply({"params": parameters}, *inputs(visual, maps))
            return product("bne,bce->bnc", unit(embedded(visual, maps)), rows)

    shapes = jax.eval_shape(inputs, clip.visual, maps)
    _, parameters = module_of(name, f"{kind}/weights/", module, table, *shapes)
    return scores, table, parameters


def _flat(maps):
    return maps.reshape(len(maps), -1, maps.shape[-1])


@pytest.mark.parametrize("kind", ["linear", "pseudo_text"])
def test_consistency_alignment_and_balanced_cross_entropy(clip, kind):
    file = file_of("methods/maskclippp")
    scores, table, parameters = scores_of(kind, clip, clip.maps)
    labels = file["labels"].reshape(2, 4)

    def loss(parameters):
        values = scores(parameters, clip.visual, clip.maps)
        return balanced_cross_entropy_terms(values, labels).sum() / 2, values

    function = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (balanced, values), gradient = function(parameters)
    expected = file[f"{kind}/scores"]
    assert_close(values.reshape(8, 3), expected, 1e-6 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(balanced, file[f"{kind}/loss_balanced"], rtol=1e-6)
    per_mask = cross_entropies(values, labels).mean()
    np.testing.assert_allclose(per_mask, file[f"{kind}/loss_per_mask"], rtol=1e-6)
    noise = ("corr_proj_out.0.bias", "ln_1.bias", "corr_proj_in.0.bias")
    start = f"{kind}/grad/psm."
    assert_gradients(gradient, "methods/maskclippp", start, table, noise)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "pseudo_text"])
def test_maskclippp_reaches_the_tower(clip, kind):
    file = file_of("methods/maskclippp")
    scores, _, parameters = scores_of(kind, clip, clip.maps)
    labels = file["labels"].reshape(2, 4)
    pixels = clip.encoder.normalise(clip.images_uint8)

    def loss(visual):
        values = scores(parameters, visual, clip.encoder.feature_map(visual, pixels))
        return balanced_cross_entropy_terms(values, labels).sum() / 2

    gradient = tree_rules.flatten(jax.jit(jax.grad(loss))(clip.visual))
    for foreign, ours, transposed in (
        ("trunk.stages.3.blocks.0.conv_dw.weight", "stages_3/blocks_0/conv_dw/kernel", True),
        ("trunk.head.norm.weight", "ln_post/scale", False),
        ("trunk.stem.0.bias", "stem/bias", False),
    ):
        theirs = file[f"{kind}/grad/visual.{foreign}"]
        mine = gradient[ours]
        mine = mine.transpose(3, 2, 0, 1) if transposed else mine
        assert np.abs(mine - theirs).max() <= 2e-5 * np.abs(theirs).max(), foreign


def test_mask_adapter_and_its_losses(clip):
    file, name = file_of("methods/mask_adapter"), "methods/mask_adapter"
    masks = clip.mask_logits_f16.astype(jnp.float32) > 0
    cells = clip.encoder.embed(clip.visual, clip.maps)
    module = MaskAdapter(MaskAdapterConfig(12, (2, 8), int(file["num_maps"])))
    table = method_modules.MASK_ADAPTER
    module, parameters = module_of(name, "weights/", module, table, cells, masks)
    labels = file["labels"]
    text = jnp.concatenate([clip.text_embedding, clip.void_embedding])

    def losses(parameters):
        variables = {"params": parameters}
        weights = module.apply(variables, cells, masks)
        pooled = pool(_flat(clip.maps), weights.reshape(2, -1, weights.shape[-1]))
        embeddings = clip.encoder.embed(clip.visual, pooled).reshape(2, 7, -1, 24).mean(axis=2)
        proposals = unit(embeddings)
        logits = clip.logit_scale_exp * product("bne,se->bns", proposals, text)
        with_void = jnp.concatenate(
            [jnp.max(logits[..., NAMES_OF_CLASS], axis=-1), logits[..., 5:]], axis=-1
        )
        entropy = cross_entropies(with_void, labels).sum() / jnp.sum(labels >= 0)
        of_truth = jax.lax.stop_gradient(proposals[:, 2:4])
        pairs = cosine_distance_terms(proposals[:, :2], of_truth, jnp.ones((2, 2), bool))
        maps = module.apply(variables, cells, masks, method="activation_maps")
        cosine = pairs.sum() / 4
        return 2 * entropy + 5 * cosine, (entropy, cosine, embeddings, with_void, maps)

    function = jax.jit(jax.value_and_grad(losses, has_aux=True))
    (_, (entropy, cosine, embeddings, logits, maps)), gradient = function(parameters)
    by_cell = maps.transpose(0, 2, 3, 1, 4).reshape(file["activation_maps_nhwc"].shape)
    assert_close(by_cell, file["activation_maps_nhwc"], 1e-4)
    assert_close(embeddings, file["proposal_embedding_raw"])
    assert_close(logits / 100, file["class_logits_with_void"] / 100)
    np.testing.assert_allclose(entropy, file["cross_entropy"], rtol=1e-6)
    assert_close(cosine, file["cosine"], 1e-6)
    assert_gradients(gradient, name, "grad/", table)
