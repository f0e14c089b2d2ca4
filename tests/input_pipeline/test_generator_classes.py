"""Class logits of the proposal generator in evaluation batches: asked for, padded, refused."""

from dataclasses import replace

import numpy as np
import pytest

from input_pipeline.eval_pipeline import EvalGeometry, make_eval_dataset
from input_pipeline.numpy_dataset import NumpyBatches
from tests.input_pipeline.tiny_source import TinySource

GEOMETRY = EvalGeometry(short_side=40, max_long_side=60, divisor=8)


class Classified(TinySource):
    """Example i has i proposals with logits over five classes, i times ten upwards."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        logits = 10.0 * index + np.arange(5 * index, dtype=np.float32).reshape(index, 5)
        return replace(example, class_logits=logits.astype(np.float32))


def batches(source, num_generator_classes):
    return list(
        NumpyBatches(
            make_eval_dataset(
                source,
                global_batch_size=2,
                geometry=GEOMETRY,
                num_generator_classes=num_generator_classes,
            )
        )
    )


def test_logits_are_there_only_if_they_are_asked_for():
    assert all("class_logits" not in batch for batch in batches(Classified(3), 0))


def test_logits_are_those_of_the_example_and_zeros_in_padding():
    source = Classified(3)
    for batch in batches(source, 5):
        assert batch["class_logits"].shape == (2, 2, 5)
        assert batch["class_logits"].dtype == np.float32
        for index, rows in zip(batch["example_index"], batch["class_logits"], strict=True):
            count = max(0, int(index))
            np.testing.assert_array_equal(rows[count:], 0)
            if count:
                np.testing.assert_array_equal(rows[:count], source[count].class_logits)


@pytest.mark.parametrize(("source", "got"), [(TinySource(3), "none"), (Classified(3), r"\(0, 5\)")])
def test_missing_or_other_logits_are_refused_with_the_example(source, got):
    with pytest.raises(
        ValueError, match=f"scene 0: expected class logits.*x 6 classes, got.*{got}"
    ):
        batches(source, 6)
