"""Pairs of label maps as evaluations meet them, and their counts by the project's own code."""

import functools

import jax
import numpy as np

from input_pipeline.examples import IGNORE
from maft_jax.evaluators.confusion import ConfusionTotal, confusion_matrix
from tests.golden_files import golden

count = jax.jit(confusion_matrix, static_argnums=2)


def confusion_of(predicted, labels, num_classes):
    """Counted on the device, added up on the host; every pixel is accounted for."""
    total = ConfusionTotal(num_classes)
    matrix = count(jax.device_put(predicted), jax.device_put(labels), num_classes)
    total.add(matrix, num_pixels=np.size(labels))
    return total.confusion


def random_maps(num_classes, seed, shape=(2, 40, 50)):
    """Half of the pixels right, a fifth unlabelled; the last class never labelled, the one before
    it never predicted, and the first one neither."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, num_classes - 1, shape)
    guesses = rng.integers(1, num_classes, shape)
    predicted = np.where(rng.random(shape) < 0.5, labels, guesses)
    predicted = np.where(predicted == num_classes - 2, num_classes - 1, predicted)
    labels = np.where(rng.random(shape) < 0.2, IGNORE, labels)
    return predicted.astype(np.int32), labels.astype(np.int32)


@functools.cache
def golden_maps():
    """Predicted, labels and counts of pipeline_ops, with 255 as IGNORE."""
    arrays = golden("pipeline_ops")
    labels = arrays["eval_gt"].astype(np.int32)
    labels[labels == 255] = IGNORE
    return (
        arrays["eval_pred"].astype(np.int32),
        labels,
        arrays["eval_confusion_pred_by_gt"],
    )
