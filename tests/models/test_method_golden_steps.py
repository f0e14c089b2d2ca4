"""Losses and gradients of whole methods against their authors' code, through `Method.terms`.

Weights, images and numbers are those of tests/models/test_method_modules.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maft_jax.config.sections import LossConfig
from maft_jax.convert import method_modules, rules
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.losses import mask_aware
from maft_jax.methods.maft_plus import MaftPlus
from maft_jax.methods.mask_adapter import Counts, MaskAdapterMethod, Pairs
from maft_jax.methods.method import StepInputs
from maft_jax.models.adapters.mask_adapter import AdapterReader, MaskAdapterConfig
from maft_jax.models.array_types import Batch
from maft_jax.models.towers.convnext_encoder import ConvNextEncoder
from tests.golden_files import golden
from tests.models.test_method_modules import (
    NAMES_OF_CLASS,
    assert_gradients,
    clip,
    file_of,
    masks_at_the_image,
)

__all__ = ["clip"]  # a fixture


class KnownMap(ConvNextEncoder):
    """Whose parameters have the map of a tower that is not among the files, and MAFT+'s masks."""

    def feature_map(self, parameters, pixels):
        return parameters["map"]

    def pool_proposals(self, parameters, maps, size, masks):
        return super().pool_proposals(parameters, maps, size, parameters["masks"])


def known(clip):
    return KnownMap(clip.encoder.tower, "hard", clip.encoder.logit_scale)


def modules_of(method, clip, name: str):
    tensors = {k[len("weights/") :]: v for k, v in golden(name).items() if k[:8] == "weights/"}
    vision = clip.encoder.architecture
    expected = jax.eval_shape(lambda: method.init_modules(vision, jax.random.key(0)))
    stored = rules.stored_as_ours(in_memory(tensors), expected, method.module_rules, source=name)
    return rules.materialised(stored)


def total(terms):
    return sum(term.value for term in terms.values())


def in_float64(tree):
    def wide(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf

    return jax.tree.map(wide, tree)


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
@pytest.mark.parametrize("order", ["official", "in_order"])
def test_maft_pluss_step(clip, kind, order):
    """In float64 where it can be: of biases our rounding alone is 2e-5, three times PyTorch's."""
    file, prefix = file_of("methods/maft_plus"), f"{kind}/{order}/"
    memory = "scrambled" if order == "official" else "in_order"
    method = MaftPlus.of(LossConfig(transfer=kind, transfer_memory=memory))
    encoder = known(clip)
    batch = Batch(
        image=clip.images_uint8,
        label_map=file["label_map"].astype(jnp.int32),
        present_classes=jnp.array([[0, 1, 2], [0, 2, -1]]),
        proposals=masks_at_the_image(clip),
        proposal_valid=jnp.ones((2, 7), bool),
    )
    tower = clip.visual | {"masks": clip.mask_grid_bool}
    student = in_float64(tower | {"map": file["dense_nhwc"]})
    frozen = in_float64(tower | {"map": file["teacher_dense_nhwc"]})
    text = in_float64(clip.text_embedding[NAMES_OF_CLASS])
    pixels = encoder.normalise(clip.images_uint8)

    def loss(modules):
        inputs = jax.device_put((student, frozen, modules, text))
        step = StepInputs(encoder, *inputs, pixels, batch)
        terms = method.terms(step, method.counts(batch))
        return total(terms), terms["ranking"].value

    modules = in_float64(modules_of(method, clip, "methods/maft_plus"))
    with jax.enable_x64(True):
        (ours, ranking), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(modules)
        gradient = jax.tree.map(np.asarray, gradient)
    np.testing.assert_allclose(ranking, file[prefix + "ranking_loss"], rtol=2e-6)
    np.testing.assert_allclose(ours, file[prefix + "total"], rtol=2e-6)
    if order == "official":
        table, noise = method_modules.CONTENT_DEPENDENT_TRANSFER, ("cross_atten.norm.bias",)
        assert_gradients(gradient, "methods/maft_plus", prefix + "grad/cdt.", table, noise)


def test_mask_adapters_step(clip):
    """Cross-entropy of seven masks, and two proposals that are to be as two of the masks are."""
    file, name = file_of("methods/mask_adapter"), "methods/mask_adapter"
    config = MaskAdapterConfig(12, (2, 8), int(file["num_maps"]))
    method = MaskAdapterMethod(True, AdapterReader(config))
    masks = clip.mask_logits_f16.astype(jnp.float32) > 0
    labels = file["labels"]
    text = jnp.concatenate(
        [clip.text_embedding[NAMES_OF_CLASS], clip.void_embedding[None].repeat(2, axis=1)]
    )
    pixels = clip.encoder.normalise(clip.images_uint8)
    pairs = Pairs(*(jnp.array([[0, 1]] * 2) for _ in range(2)), jnp.ones((2, 2), bool))
    counts = Counts(jnp.sum(labels >= 0).astype(jnp.float32), jnp.float32(4))

    encoder, tower = known(clip), clip.visual | {"map": clip.maps}
    nowhere = jnp.zeros((2, 224, 288), jnp.int32)
    batch = Batch(clip.images_uint8, nowhere, labels, masks, jnp.ones((2, 7), bool))

    def loss(modules):
        step = StepInputs(encoder, tower, tower, modules, text, pixels, batch)
        entropy = method.losses(step, counts, masks, labels, None)["mask_classification"]
        mixed = method.losses(
            step, counts, masks[:, jnp.array([2, 3, 0, 1])], labels[:, 2:4], pairs
        )
        values = entropy.value, mixed["consistency"].value
        return sum(values), values

    modules = modules_of(method, clip, name)
    function = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (entropy, consistency)), gradient = function(modules)
    np.testing.assert_allclose(entropy, 2 * file["cross_entropy"], rtol=2e-6)
    np.testing.assert_allclose(consistency, 5 * file["cosine"], atol=5e-6)
    assert_gradients(gradient, name, "grad/", method_modules.MASK_ADAPTER)


def test_mask_adapters_proposals_count_with_their_masks_as_often_as_they_match(clip):
    method = MaskAdapterMethod(True, AdapterReader(MaskAdapterConfig(12, (2, 8), 4)))
    label_map = jnp.zeros((1, 16, 16), jnp.int32).at[:, :, 8:].set(1)
    truths = mask_aware.class_masks(label_map, jnp.array([[0, 1, -1]]))
    proposals = jnp.stack([truths[0, 1], truths[0, 0], jnp.ones((16, 16))])[None]
    proposals = jnp.concatenate([0.39 * truths[:, :1], 0.41 * proposals], axis=1)
    valid = jnp.array([[True, True, False, True]])
    batch = Batch(jnp.zeros((1, 16, 16, 3)), label_map, jnp.array([[0, 1, -1]]), proposals, valid)
    counts = jax.jit(method.counts)(batch)
    assert (counts.masks, counts.pairs) == (2 + 2 * 1, 1), "class 1, of which one proposal is"
    alone = jax.jit(MaskAdapterMethod(False, method.reader).counts)(batch)
    assert (alone.masks, alone.pairs) == (2, 1)
