from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from input_pipeline.eval_pipeline import SIZE_MULTIPLE, EvalGeometry, make_eval_dataset
from input_pipeline.examples import IGNORE
from input_pipeline.numpy_dataset import NumpyBatches
from tests.input_pipeline.tiny_source import TinySource

GEOMETRY = EvalGeometry(short_side=40, max_long_side=60, divisor=8)


def _batches(source, size=4, hosts=1, host=0, geometry=GEOMETRY, num_workers=2):
    return list(
        NumpyBatches(
            make_eval_dataset(
                source,
                global_batch_size=size,
                geometry=geometry,
                process_index=host,
                process_count=hosts,
                num_workers=num_workers,
            )
        )
    )


def _rows(source, **options):
    """All rows that are examples, without the padding of their batch."""
    for batch in _batches(source, **options):
        for i in np.flatnonzero(batch["example_valid"]):
            row = {key: value[i] for key, value in batch.items()}
            for key, size in [
                ("image", row["image_size"]),
                ("label_map", row["label_size"]),
            ]:
                row[key] = row[key][: size[0], : size[1]]
            grid = row["proposal_grid"]
            row["proposals"] = row["proposals"][row["proposal_valid"], : grid[0], : grid[1]]
            yield row


def test_batch_has_the_promised_types():
    [batch] = _batches(TinySource(3))
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 64, 64, 3), "uint8"),
        "image_size": ((4, 2), "int32"),
        "padded_size": ((4, 2), "int32"),
        "label_map": ((4, 64, 64), "int32"),
        "label_size": ((4, 2), "int32"),
        "proposals": ((4, 2, 16, 16), "uint8"),
        "proposal_grid": ((4, 2), "int32"),
        "proposal_valid": ((4, 2), "bool"),
        "example_index": ((4,), "int32"),
        "example_valid": ((4,), "bool"),
    }


@pytest.mark.parametrize("num_examples", [1, 4, 5, 8, 13])
@pytest.mark.parametrize("size, hosts", [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3), (16, 2)])
def test_every_example_comes_once_on_one_host_and_in_order(num_examples, size, hosts):
    source = TinySource(num_examples)
    parts = [_batches(source, size, hosts, host) for host in range(hosts)]
    assert {len(part) for part in parts} == {-(-num_examples // size)}
    seen = []
    for batches in zip(*parts, strict=True):
        for batch in batches:
            assert {key: value.shape for key, value in batch.items()} == {
                key: value.shape for key, value in batches[0].items()
            }
            np.testing.assert_array_equal(batch["example_valid"], batch["example_index"] >= 0)
            seen += batch["example_index"][batch["example_valid"]].tolist()
    assert seen == list(range(num_examples))


def test_rows_of_all_hosts_make_the_global_batch():
    source = TinySource(7)
    parts = [_batches(source, 4, 2, host, num_workers=1 + host) for host in range(2)]
    for whole, first, second in zip(_batches(source), *parts, strict=True):
        for key, value in whole.items():
            joined = np.concatenate([first[key], second[key]])
            np.testing.assert_array_equal(value, joined, err_msg=key)


def test_batch_size_changes_no_example():
    source = TinySource(7)
    for one, many in zip(_rows(source, size=1), _rows(source, size=7), strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], many[key], err_msg=key)


def test_image_is_resized_by_pillow_and_labels_stay_native():
    source = TinySource(5)
    for example, row in zip(source, _rows(source), strict=True):
        height, width = example.image.shape[:2]
        scale = min(40 / min(height, width), 60 / max(height, width))
        size = [int(height * scale + 0.5), int(width * scale + 0.5)]
        assert row["image_size"].tolist() == size
        assert row["padded_size"].tolist() == [-(-side // 8) * 8 for side in size]
        expected = Image.fromarray(example.image).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(row["image"], expected)
        np.testing.assert_array_equal(row["label_map"], example.label_map)


def test_proposals_of_the_right_grid_are_unchanged():
    """The grid of the resized image is the one that its generator would have made."""
    source = _WithProposals((9, 10), (36, 40))
    [row] = _rows(source, geometry=EvalGeometry(36, 100, 8))
    np.testing.assert_array_equal(row["proposals"], source[0].proposals)


def test_other_grids_are_resampled_with_aligned_corners_as_torch_does():
    source = _WithProposals((13, 7), (36, 40))
    [row] = _rows(source, geometry=EvalGeometry(72, 100, 8))
    stored = torch.tensor(source[0].proposals[None].astype(np.float32))
    expected = torch.nn.functional.interpolate(
        stored, size=(18, 20), mode="bilinear", align_corners=True
    )[0]
    assert np.abs(row["proposals"] - expected.numpy()).max() < 0.51


class _WithProposals(TinySource):
    def __init__(self, grid, image_size):
        super().__init__(1)
        self.num_proposals = 3
        self.image_sizes = np.array([image_size], np.int32)
        self._proposals = np.random.default_rng(0).integers(0, 256, (3, *grid)).astype(np.uint8)

    def __getitem__(self, index):
        return replace(super().__getitem__(index), proposals=self._proposals)


def test_padding_is_empty_and_ignored():
    for batch in _batches(TinySource(5)):
        for row in range(4):
            values = {key: value[row] for key, value in batch.items()}
            image, labels, proposals = (
                values[key].copy() for key in ("image", "label_map", "proposals")
            )
            if values["example_valid"]:
                image[: values["image_size"][0], : values["image_size"][1]] = 0
                labels[: values["label_size"][0], : values["label_size"][1]] = IGNORE
                grid = values["proposal_grid"]
                proposals[values["proposal_valid"], : grid[0], : grid[1]] = 0
            else:
                assert values["example_index"] == -1 and not values["proposal_valid"].any()
                for key in ("image_size", "padded_size", "label_size", "proposal_grid"):
                    assert values[key].tolist() == [1, 1]
            assert not image.any() and not proposals.any() and np.all(labels == IGNORE)


def test_shapes_are_few():
    """Sizes differ by a few pixels; shapes of batches are multiples, hence the same."""
    shapes = {batch["image"].shape[1:3] for batch in _batches(TinySource(12), size=2)}
    assert shapes <= {(64, 64)}
    assert SIZE_MULTIPLE == 64


def test_long_side_has_a_limit():
    source = _WithProposals((5, 5), (10, 1000))
    [row] = _rows(source, geometry=EvalGeometry())
    assert row["image_size"].tolist() == [26, 2560]


def test_error_of_the_source_reaches_the_caller():
    with pytest.raises(ValueError, match=r"^scene 2: the file is torn$"):
        _batches(TinySource(broken=(2, 3)))


def test_image_of_another_size_than_announced_is_refused():
    source = TinySource(2)
    source.image_sizes = source.image_sizes + 1
    image_of_true_size = TinySource(2)[0]
    source.__class__ = type("Stale", (TinySource,), {"__getitem__": lambda *_: image_of_true_size})
    with pytest.raises(ValueError, match=r"scene 0: expected an image of 37x21 pixels, .* 36x20"):
        _batches(source)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="positive multiple of the 2 processes, got 3"):
        _batches(TinySource(), size=3, hosts=2)
    with pytest.raises(ValueError, match="positive numbers"):
        EvalGeometry(divisor=0)
