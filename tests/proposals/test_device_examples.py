"""Networks on devices: batches, shards and records are those of a plain loop over the images."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from input_pipeline.records.record_source import RecordSource
from maft_jax.proposals import beam_precompute
from maft_jax.proposals.device_examples import gather
from maft_jax.proposals.generator import BatchedGenerator
from maft_jax.proposals.precompute import precompute
from tests.toy_generators import toy_generator, toy_job

pytestmark = pytest.mark.usefixtures("summaries_drawn_once")

REPOSITORY = pathlib.Path(__file__).parent.parent.parent

PROGRAM = """
import sys
from tests.toy_generators import run_slow_job
run_slow_job(*sys.argv[1:])
"""
FORKS = """
import os
import sys
from tests.toy_generators import run_slow_job

for line in sys.stdin:  # nothing has begun threads or devices yet
    if not (process := os.fork()):
        run_slow_job(*line.split())
        os._exit(0)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class OneByOne:
    """The same generator for the engine of those that take an image at a time."""

    name, fingerprint = "toy", "v1"

    def __init__(self):
        self._generator = toy_generator()

    def __call__(self, example, num_proposals):
        return self._generator(example, num_proposals)


def contents(folder) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pathlib.Path(folder).iterdir()
    }


@pytest.fixture(scope="module")
def plain_loop(tmp_path_factory):
    """Contents of the records that one image after the other makes."""
    folder = tmp_path_factory.mktemp("plain")
    precompute(toy_job(folder, generator=OneByOne()), num_workers=1)
    return contents(folder)


def test_records_are_those_of_a_plain_loop(tmp_path, plain_loop):
    generator = toy_generator()
    assert isinstance(generator, BatchedGenerator) and generator.num_devices == 8
    assert not isinstance(OneByOne(), BatchedGenerator)
    summary = precompute(toy_job(tmp_path, generator=generator), num_workers=3)
    assert summary.num_images == 20
    assert contents(tmp_path) == plain_loop


def test_number_of_devices_changes_no_byte(tmp_path, plain_loop, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    generator = toy_generator()
    precompute(toy_job(tmp_path, generator=generator), num_workers=2)
    assert generator.num_devices == 2
    assert contents(tmp_path) == plain_loop


def test_groups_are_the_same_on_any_devices_and_whatever_is_finished(tmp_path, monkeypatch):
    """Groups of another size may round differently, and do here."""
    grouped = functools.partial(toy_job, tmp_path / "parts", shard_size=10)
    precompute(grouped(generator=toy_generator(images_per_device=3)), 2, 1, 2)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    precompute(grouped(generator=toy_generator(images_per_device=3)), num_workers=2)
    whole = toy_job(tmp_path / "whole", shard_size=10, generator=toy_generator(images_per_device=3))
    precompute(whole, num_workers=1)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_processes_take_their_shards(tmp_path, plain_loop):
    for process in (1, 0):
        summary = precompute(toy_job(tmp_path), 1, process, 2)
        assert (summary.num_shards, summary.total_shards) == ((2, 4) if process else (4, 4))
    assert contents(tmp_path) == plain_loop


def test_bad_examples_are_listed_and_good_shards_kept(tmp_path, plain_loop):
    with pytest.raises(ValueError, match=r"3 of 20 examples.*\n.*_003.*\n.*_018.*\n.*_019"):
        precompute(toy_job(tmp_path, bad=(3, 18, 19)), num_workers=2)
    assert len(list(tmp_path.glob("*.done.json"))) == 2
    precompute(toy_job(tmp_path), num_workers=2)
    assert contents(tmp_path) == plain_loop


def test_when_nothing_can_be_read_everything_is_listed(tmp_path):
    with pytest.raises(ValueError, match="20 of 20 examples"):
        precompute(toy_job(tmp_path, bad=range(20)), num_workers=2)


def test_numbers_that_are_not_finite_are_refused_naming_the_example(tmp_path):
    broken = {"kernel": np.full((4, 4, 3, 5), np.nan, np.float32), "classes": np.ones((5, 3))}
    generator = dataclasses.replace(toy_generator(), load=lambda: broken)
    with pytest.raises(ValueError, match="toy proposals of 'photo_000': expected finite scores"):
        precompute(toy_job(tmp_path, 1, generator=generator))


def test_error_of_a_program_names_the_example(tmp_path):
    generator = dataclasses.replace(toy_generator(), prepare=lambda image: 1 // 0)
    with pytest.raises(ZeroDivisionError) as caught:
        precompute(toy_job(tmp_path, generator=generator))
    assert "while computing example 'photo_000'" in caught.value.__notes__


def test_beam_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"generator=toy runs in batches.*leave --engine out"):
        beam_precompute.run(toy_job(tmp_path), [])


def test_class_logits_keep_no_object_and_belong_to_their_masks(tmp_path):
    job = toy_job(tmp_path, 1)
    precompute(job)
    record = RecordSource(tmp_path).record(0)
    assert record.class_logits.shape == (3, 3)
    probabilities = np.exp(record.class_logits) / np.exp(record.class_logits).sum(1, keepdims=True)
    inside = record.proposals / 255
    mean = [mask[mask > 0.5].mean() for mask in inside]
    np.testing.assert_allclose(record.scores, probabilities[:, :2].max(1) * mean, atol=2e-3)
    assert record.scores.tolist() == sorted(record.scores.tolist(), reverse=True)


def test_lists_of_equal_keys_are_complete_or_old():
    assert list(gather("aabaabb", str, 2)) == [["a", "a"], ["a", "a"], ["b", "b"], ["b"]]
    # After eight times two further items, b no longer waits for another one.
    found = list(gather("b" + "a" * 20 + "b", str, 2))
    assert found.index(["b"]) == 8 and found[-1] == ["b"] and len(found) == 12
    assert list(gather("abc", str, 1)) == [["a"], ["b"], ["c"]]
    assert list(gather("", str, 3)) == []


def start(program, cache, *arguments, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ
        | {
            "PYTHONPATH": str(REPOSITORY),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        text=True,
        **options,
    )


def num_finished(folder) -> int:
    return len(list(folder.glob("*.done.json")))


@pytest.mark.slow
def test_job_that_is_killed_twenty_times_ends_identical(tmp_path):
    """Each is killed in a process of its own, of which one that has imported everything makes all.

    It is killed at any time between its first shard and the third or so after it.
    """
    num_kills = 20
    num_examples = 30 + 30 * num_kills
    precompute(toy_job(tmp_path / "whole", num_examples, shard_size=2), num_workers=2)
    expected, folder, rng = contents(tmp_path / "whole"), tmp_path / "killed", random.Random(0)
    finished = 0
    cache = tmp_path / "compiled"
    with start(FORKS, cache, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as forks:
        for _ in range(num_kills):
            print(folder, num_examples, 0.06, rng.choice([1, 2, 3]), file=forks.stdin, flush=True)
            process = int(forks.stdout.readline())
            while num_finished(folder) == finished:
                assert pathlib.Path(f"/proc/{process}").exists(), "ended before its first shard"
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
            os.kill(process, signal.SIGKILL)
            code = int(forks.stdout.readline())
            assert code == -signal.SIGKILL, "finished before it was killed"
            finished = num_finished(folder)
            for name, digest in contents(folder).items():
                assert name.endswith(".unfinished") or digest == expected[name], name
    assert finished < num_examples // 2
    process = start(PROGRAM, cache, folder, num_examples, 0, 2, stderr=subprocess.PIPE)
    _, printed = process.communicate()
    assert process.returncode == 0, printed
    assert f"/{num_examples - 2 * finished} [" in printed.splitlines()[-1], printed
    assert contents(folder) == expected
