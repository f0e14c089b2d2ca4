"""A method as a newcomer writes it: this file, and the settings of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maft_jax
from maft_jax.config.sections import METHOD_LOSSES
from maft_jax.losses.mask_aware import class_masks
from maft_jax.methods import registry
from maft_jax.methods.method import Method
from maft_jax.models.encoder import class_logits
from maft_jax.runtime import tree_rules
from maft_jax.training.objective import LossTerm
from maft_jax.training.train_loop import train_and_evaluate
from tests.runs import make_data, read_metrics, small_config


@dataclasses.dataclass(frozen=True)
class Contrast(Method):
    """Masks of the ground truth and names of the classes that an image shows find each other."""

    weight: float

    def terms(self, step, counts):
        labels = step.batch.present_classes
        masks = class_masks(step.batch.label_map, labels)
        embeddings = step.encoder.encode_proposals(step.student, step.pixels, masks)
        logits = class_logits(step.encoder, embeddings, step.text)
        scores = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=2)
        shown = labels >= 0
        both = shown[:, :, None] & shown[:, None]
        of_masks, of_texts = (
            jax.nn.log_softmax(jnp.where(both, scores, -jnp.inf), axis=axis, where=both)
            for axis in (1, 2)
        )
        diagonals = [jnp.diagonal(x, axis1=1, axis2=2) for x in (of_masks, of_texts)]
        examples = -jnp.sum(sum(diagonals) / 2, axis=1, where=shown)
        return {"contrast": LossTerm(self.weight, examples, counts)}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(registry.METHODS, "contrast", lambda config: Contrast(1.0))
    monkeypatch.setitem(METHOD_LOSSES, "contrast", ())


@pytest.mark.slow
def test_a_fifth_method_trains_resumes_and_loads(registered, tmp_path):
    data = make_data(tmp_path)
    changes = {"method": "contrast", "proposals__generator": "ground_truth", "num_steps": 2}
    state = train_and_evaluate(small_config(data, **changes), tmp_path / "run")
    assert int(state.step) == 2
    [record] = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert record["contrast_loss"] == record["loss"] > 0
    begun = tree_rules.flatten(maft_jax.load("random:tiny").parameters["visual"])
    tuned = tree_rules.flatten(maft_jax.load(tmp_path / "run").parameters["visual"])
    moved = {path for path in begun if np.any(begun[path] != tuned[path])}
    assert moved and moved <= set(tree_rules.flatten(state.trainable))
