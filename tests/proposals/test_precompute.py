"""Records are computed once, only where something changed, and are the same whoever computes."""

import contextlib
import hashlib
import os
import pathlib
import pickle

import numpy as np
import pytest

from input_pipeline.records.record_source import RecordSource
from maft_jax.proposals.generator import Proposals
from maft_jax.proposals.precompute import precompute, prepare_folder
from maft_jax.proposals.soft_masks import soften_masks
from maft_jax.runtime import stop_requests
from maft_jax.runtime.only_writer import only_writer
from tests.precompute_jobs import CLASS_NAMES, BlockProposals, DrawnSource, make_job

pytestmark = pytest.mark.usefixtures("summaries_drawn_once")


def contents(folder) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pathlib.Path(folder).iterdir()
    }


def times(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in pathlib.Path(folder).glob("*.tfrecord")}


def rewritten(before: dict, after: dict) -> set[int]:
    """Numbers of the shards that were written in between."""
    return {int(name.split("-")[1]) for name in after if before.get(name) != after[name]}


class Fixed:
    """A generator that returns what it was given, unchecked as in worker processes."""

    name, fingerprint = "fixed", "1"

    def __init__(self, **fields):
        self._fields = {"class_logits": None, "input_size": None} | fields

    def __call__(self, example, num_proposals):
        made = object.__new__(Proposals)
        for name, value in self._fields.items():
            object.__setattr__(made, name, value)
        return made


def test_who_makes_the_same_records_waits_for_the_first(tmp_path, monkeypatch):
    job = make_job(tmp_path, num_examples=3)
    waited = []
    with contextlib.ExitStack() as held:
        held.enter_context(only_writer(tmp_path, "records", part=".0-of-1.unfinished"))
        monkeypatch.setattr(stop_requests, "wait", lambda _: waited.append(held.close()))
        precompute(job, num_workers=1)
    assert len(waited) == 1 and len(RecordSource(tmp_path)) == 3
    assert not list(tmp_path.glob(".*"))


def test_records_hold_the_example_and_its_best_proposals(tmp_path):
    masks = np.zeros((4, 24, 40), bool)
    for i in range(4):
        masks[i, :, : 10 * (i + 1)] = True
    generator = Fixed(
        masks=masks,
        scores=np.array([0.5, 2.0, 0.5, -1.0], np.float32),
        class_logits=np.arange(8, dtype=np.float32).reshape(4, 2),
    )
    job = make_job(tmp_path, num_examples=3, generator=generator)
    precompute(job, num_workers=1)
    records = RecordSource(tmp_path)
    assert records.class_names == CLASS_NAMES
    for i in range(3):
        record, example = records.record(i), job.source[i]
        assert record.example_id == f"photo_{i:03d}"
        assert record.image_bytes == job.source.image_bytes(i)
        np.testing.assert_array_equal(record.label_map, example.label_map)
        # Best first; of equals, the one that came first.
        assert record.scores.tolist() == [2.0, 0.5, 0.5]
        np.testing.assert_array_equal(record.class_logits, [[2, 3], [0, 1], [4, 5]])
        np.testing.assert_array_equal(record.proposals, soften_masks(masks[[1, 0, 2]], (24, 40)))
        assert record.provenance.generator == "fixed"
        assert record.provenance.weights_fingerprint == "1"


def test_grid_is_that_of_what_the_generator_read(tmp_path):
    masks = np.ones((1, 5, 7), np.float32)
    generator = Fixed(masks=masks, scores=np.ones(1, np.float32), input_size=(64, 96))
    precompute(make_job(tmp_path, num_examples=1, generator=generator), num_workers=1)
    assert RecordSource(tmp_path)[0].proposals.shape == (1, 16, 24)


def test_image_without_proposals_has_an_empty_grid(tmp_path):
    generator = Fixed(masks=np.zeros((0, 24, 40), bool), scores=np.zeros(0, np.float32))
    precompute(make_job(tmp_path, num_examples=1, generator=generator), num_workers=1)
    assert RecordSource(tmp_path)[0].proposals.shape == (0, 6, 10)


@pytest.mark.parametrize(
    ("num_examples", "per_shard"), [(1, 1), (16, 1), (17, 2), (100, 7), (4096, 256), (118287, 256)]
)
def test_shards_have_at_most_256_examples_and_small_sets_16_shards(num_examples, per_shard):
    job = make_job("nowhere", num_examples, shard_size=None)
    assert job.examples_per_shard == per_shard
    listed = [i for shard in range(job.num_shards) for i in job.examples_of(shard)]
    assert listed == list(range(num_examples))


def test_any_number_of_workers_and_processes_writes_the_same_files(tmp_path):
    precompute(make_job(tmp_path / "one"), num_workers=1)
    precompute(make_job(tmp_path / "pool"), num_workers=3)
    for process in (2, 0, 1):
        summary = precompute(make_job(tmp_path / "several"), 1, process, 3)
        assert (tmp_path / "several" / "summary.json").exists() == (process == 1)
    assert summary.num_images == 20
    expected = contents(tmp_path / "one")
    assert len(expected) == 3 * 10 + 4
    assert contents(tmp_path / "pool") == expected
    assert contents(tmp_path / "several") == expected


def test_process_beyond_the_count_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"process_index: expected 0 \.\. 1 of 2.*got 2"):
        precompute(make_job(tmp_path), 1, 2, 2)


def test_finished_shards_are_left_alone(tmp_path):
    precompute(make_job(tmp_path), num_workers=1)
    before = times(tmp_path)
    os.utime(tmp_path / "summary.png", (1, 1))
    precompute(make_job(tmp_path), num_workers=1)
    assert not rewritten(before, times(tmp_path))
    assert (tmp_path / "summary.png").stat().st_mtime == 1


def test_changed_photo_has_its_shard_computed_again_and_no_other(tmp_path):
    precompute(make_job(tmp_path / "set"), num_workers=1)
    before = times(tmp_path / "set")
    versions = [0] * 20
    versions[7] = 1
    changed = {"source": DrawnSource(20, versions=versions)}
    precompute(make_job(tmp_path / "set", **changed), num_workers=1)
    assert rewritten(before, times(tmp_path / "set")) == {3}
    precompute(make_job(tmp_path / "fresh", **changed), num_workers=1)
    assert contents(tmp_path / "set") == contents(tmp_path / "fresh")


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("kind", ["tfrecord", "idx", "done.json"])
@pytest.mark.parametrize("damage", [cut, pathlib.Path.unlink])
def test_shard_with_a_corrupt_or_missing_file_is_written_again(tmp_path, kind, damage):
    precompute(make_job(tmp_path, num_examples=6), num_workers=1)
    expected = contents(tmp_path)
    damage(tmp_path / f"train-00001-of-00003.{kind}")
    precompute(make_job(tmp_path, num_examples=6), num_workers=1)
    assert contents(tmp_path) == expected


def test_records_of_another_recipe_are_refused_with_both_values(tmp_path):
    precompute(make_job(tmp_path, num_examples=4), num_workers=1)
    expected = contents(tmp_path)
    other = make_job(
        tmp_path, num_examples=5, num_proposals=2, generator=BlockProposals(fingerprint="v2")
    )
    with pytest.raises(ValueError) as caught:
        precompute(other, num_workers=1)
    for part in (
        "--overwrite",
        "num_examples: 4 there, 5 now",
        "recipe.num_proposals: 3 there, 2 now",
        "recipe.generator_fingerprint: 'v1' there, 'v2' now",
    ):
        assert part in str(caught.value)
    assert contents(tmp_path) == expected


def test_replacing_another_recipe_leaves_nothing_of_it(tmp_path):
    precompute(make_job(tmp_path / "set", num_examples=20), num_workers=1)
    (tmp_path / "set" / "notes-of-mine.txt").write_text("mine")
    other = {"num_examples": 7, "generator": BlockProposals(fingerprint="v2")}
    precompute(make_job(tmp_path / "set", replace=True, **other), num_workers=1)
    precompute(make_job(tmp_path / "fresh", **other), num_workers=1)
    (tmp_path / "set" / "notes-of-mine.txt").unlink()
    assert contents(tmp_path / "set") == contents(tmp_path / "fresh")


def test_half_replaced_records_do_not_look_complete(tmp_path):
    precompute(make_job(tmp_path), num_workers=1)
    other = make_job(tmp_path, replace=True, num_proposals=2)
    # A process of three that was killed before its first shard.
    assert prepare_folder(other, range(0, other.num_shards, 3)) == [0, 3, 6, 9]
    with pytest.raises(ValueError, match="10 of 10 shards are not finished"):
        RecordSource(tmp_path)


def test_all_bad_examples_are_reported_at_once_and_good_shards_kept(tmp_path):
    bad = make_job(tmp_path / "set", source=DrawnSource(20, bad=(3, 12, 13)))
    with pytest.raises(ValueError, match=r"3 of 20 examples.*\n.*_003.*\n.*_012.*\n.*_013") as e:
        precompute(bad, num_workers=1)
    assert str(e.value).count("photo_003") == 1
    names = contents(tmp_path / "set")
    assert sum(name.endswith(".done.json") for name in names) == 8
    assert not any(name.startswith(("train-00001", "train-00006")) for name in names)
    before = times(tmp_path / "set")
    precompute(make_job(tmp_path / "set"), num_workers=1)
    assert rewritten(before, times(tmp_path / "set")) == {1, 6}
    precompute(make_job(tmp_path / "fresh"), num_workers=1)
    assert contents(tmp_path / "set") == contents(tmp_path / "fresh")


def test_long_list_of_bad_examples_is_cut(tmp_path):
    job = make_job(tmp_path, source=DrawnSource(20, bad=range(20)))
    with pytest.raises(ValueError, match="20 of 20 examples") as e:
        precompute(job, num_workers=1)
    assert "photo_009" in str(e.value) and "photo_010" not in str(e.value)
    assert str(e.value).endswith("and 10 more")


MASKS = np.zeros((2, 24, 40), bool)
SCORES = np.zeros(2, np.float32)
NAN_MASK = np.full((2, 3, 4), np.nan, np.float32)
WRONG_PROPOSALS = {
    "one mask": ({"masks": MASKS[0]}, r"masks \[n, h, w\].*got bool \[24, 40\]"),
    "integer masks": ({"masks": MASKS.astype(np.int64)}, "bool, uint8 or float32, got int64"),
    "no pixels": ({"masks": MASKS[:, :0]}, r"with pixels, got \[2, 0, 40\]"),
    "missing score": ({"scores": SCORES[:1]}, r"each of 2 masks, got float32 \[1\]"),
    "double scores": ({"scores": SCORES.astype(float)}, r"got float64 \[2\]"),
    "NaN score": ({"scores": np.array([0, np.nan], np.float32)}, "finite scores, got nan"),
    "infinite score": ({"scores": np.array([np.inf, 0], np.float32)}, "finite scores, got inf"),
    "NaN mask": ({"masks": NAN_MASK}, r"masks in \[0, 1\], got nan"),
    "logits as masks": ({"masks": np.full_like(NAN_MASK, 7)}, r"in \[0, 1\], got 7\.0 to 7\.0"),
    "missing logits": (
        {"class_logits": np.zeros((1, 5), np.float32)},
        r"logits \[2, c\].*\[1, 5\]",
    ),
    "NaN logits": ({"class_logits": np.full((2, 5), np.nan, np.float32)}, "finite class logits"),
}


@pytest.mark.parametrize("case", WRONG_PROPOSALS)
def test_wrong_proposals_are_refused_naming_generator_and_example(tmp_path, case):
    fields, reason = WRONG_PROPOSALS[case]
    generator = Fixed(**{"masks": MASKS, "scores": SCORES} | fields)
    job = make_job(tmp_path, num_examples=1, generator=generator)
    with pytest.raises(ValueError, match=f"fixed proposals of 'photo_000': expected.*{reason}"):
        precompute(job, num_workers=1)
    assert set(contents(tmp_path)) == {"dataset.json"}


class Broken(BlockProposals):
    def __call__(self, example, num_proposals):
        raise IndexError("a mistake in the generator")


def test_error_of_a_program_names_the_example_and_leaves_nothing_half_written(tmp_path):
    with pytest.raises(IndexError) as e:
        precompute(make_job(tmp_path, generator=Broken()), num_workers=1)
    assert "while computing example 'photo_000'" in e.value.__notes__
    assert set(contents(tmp_path)) == {"dataset.json"}


def test_job_survives_pickling(tmp_path):
    precompute(make_job(tmp_path / "one"), num_workers=1)
    precompute(pickle.loads(pickle.dumps(make_job(tmp_path / "two"))), num_workers=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
