"""Parts of sources: the same examples under new numbers, and ranges that do not exist."""

import numpy as np
import pytest

from input_pipeline.example_range import ExampleRange, FirstExamples
from input_pipeline.examples import ExampleSource, PreparedSource
from input_pipeline.folder_source import FolderSource
from input_pipeline.sample_folder import write_sample_folder
from tests.input_pipeline.tiny_source import TinySource


def test_range_has_the_examples_between_its_ends_and_the_bounds_of_all():
    source = TinySource(5)
    part = ExampleRange(source, 1, 4)
    assert isinstance(part, PreparedSource)
    assert len(part) == 3 and part.example_ids == ("scene 1", "scene 2", "scene 3")
    assert [part[i].example_id for i in range(3)] == list(part.example_ids)
    np.testing.assert_array_equal(part.image_sizes, source.image_sizes[1:4])
    assert part.num_proposals == source.num_proposals == 4
    assert part.fingerprint != ExampleRange(source, 0, 4).fingerprint
    with pytest.raises(IndexError):
        part[3]


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 6), (4, 3)])
def test_range_outside_of_the_source_is_refused(start, stop):
    with pytest.raises(ValueError, match=f"expected a range of 5 examples, got {start} to {stop}"):
        ExampleRange(TinySource(5), start, stop)


def test_first_examples_are_those_of_the_source(tmp_path):
    write_sample_folder(tmp_path / "data", num_images=3, size=(20, 16))
    source = FolderSource(tmp_path / "data")
    part = FirstExamples(source, 2)
    assert isinstance(part, ExampleSource)
    assert part.example_ids == source.example_ids[:2] and part.class_names == source.class_names
    assert len(part) == 2 and part[1].example_id == "scene_0001"
    assert part.image_bytes(1) == source.image_bytes(1)
    assert part.signature(1) == source.signature(1)
    with pytest.raises(IndexError):
        part[2]
    with pytest.raises(ValueError, match="expected a range of 3 examples, got 0 to 4"):
        FirstExamples(source, 4)
