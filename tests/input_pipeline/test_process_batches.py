import contextlib
import gc
import os
import pathlib
import signal
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest

from input_pipeline.process_batches import choose_num_processes
from input_pipeline.reading_process import BatchLayout, _portable
from input_pipeline.train_pipeline import TrainGeometry, read_train_batches
from tests.input_pipeline.tiny_source import TinySource
from tests.runs import REPOSITORY

GEOMETRY = TrainGeometry(32, short_sides=(24, 40), max_long_side=200)
FIRST = 10_000_000

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="needs anonymous memory of Linux"
)


def _batches(num_processes, source=None, step=FIRST, **options):
    options = {"num_workers": 3, "process_index": 1, "process_count": 2, **options}
    return read_train_batches(
        source or TinySource(),
        num_processes=num_processes,
        global_batch_size=6,
        seed=7,
        start_step=step,
        geometry=GEOMETRY,
        per_example={"number": np.arange(5, dtype=np.float32)},
        with_positions=True,
        **options,
    )


def _assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert array.dtype == second[key].dtype
        np.testing.assert_array_equal(array, second[key], err_msg=key)


def _running(ids) -> list:
    states = {}
    for number in ids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states[number] = pathlib.Path(f"/proc/{number}/stat").read_text().split()[2]
    return [number for number, state in states.items() if state != "Z"]


def _wait_until_gone(ids) -> None:
    deadline = time.monotonic() + 10
    while _running(ids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _running(ids)


class DescribingSource(TinySource):
    """An error of a type of its own says which libraries its process has loaded."""

    def __getitem__(self, index):
        libraries = [name for name in ("jax", "tensorflow") if name in sys.modules]
        raise KeyError(str(libraries))


def test_two_processes_make_the_bytes_of_one_and_a_killed_one_is_told():
    reader = _batches(2)
    ids = reader.process_ids
    for expected, batch in zip(islice(_batches(1), 4), reader, strict=False):
        _assert_equal(expected, batch)
        assert not any(array.flags.writeable for array in batch.values())
    for number in ids:  # Ctrl-C reaches them too, and must not end them
        os.kill(number, signal.SIGINT)
        os.kill(number, signal.SIGTERM)
    assert len(list(islice(reader, 9))) == 9
    os.kill(ids[1], signal.SIGKILL)
    expected = rf"reading process {ids[1]} was killed by SIGKILL; if .* out of memory, use fewer"
    with pytest.raises(ChildProcessError, match=expected):
        list(islice(reader, 9))
    reader.close()
    assert not _running(ids)
    assert next(reader, None) is None


def test_error_of_the_source_arrives_as_it_is_from_a_process_without_jax_and_tensorflow():
    reader = _batches(2, DescribingSource())
    ids = reader.process_ids
    with pytest.raises(KeyError, match=r"^'\[\]'\nIn reading process \d+:\nTraceback"):
        next(reader)
    del reader
    gc.collect()
    _wait_until_gone(ids)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("raise SystemExit(3)", marks=pytest.mark.slow),
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_processes_end_with_the_program_however_it_ends(end):
    program = (
        "from tests.input_pipeline.test_process_batches import *\n"
        "from tests.input_pipeline.test_process_batches import _batches\n"
        "reader = _batches(2)\n"
        "next(reader)\n"
        "print(*reader.process_ids, flush=True)\n"
        f"{end}\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, timeout=60, capture_output=True, text=True
    )
    assert finished.returncode == (3 if "Exit" in end else -signal.SIGKILL), finished.stderr
    _wait_until_gone(finished.stdout.split())


def test_number_of_processes_follows_the_cores_unless_it_is_given(monkeypatch):
    found = {}
    for cores in (1, 8, 9, 16, 32, 224):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        found[cores] = choose_num_processes(0)
    assert found == {1: 1, 8: 1, 9: 2, 16: 4, 32: 8, 224: 8}
    assert [choose_num_processes(asked) for asked in (1, 2, 20)] == [1, 2, 20]
    monkeypatch.delattr("os.memfd_create")
    assert choose_num_processes(0) == choose_num_processes(1) == 1
    with pytest.raises(ValueError, match=r"config\.data\.reading_processes: expected 1, .* got 2"):
        choose_num_processes(2)


def test_arrays_of_a_batch_begin_at_multiples_of_64_bytes():
    signature = {
        "flag": (np.bool_, (3,)),
        "empty": (np.float32, (0, 2)),
        "value": (np.int64, ()),
        "pair": (np.float32, (2,)),
    }
    layout = BatchLayout(signature, 5)
    assert layout.num_bytes == 192
    memory = bytearray(layout.num_bytes)
    arrays = layout.arrays(memory)
    assert {name: array.shape for name, array in arrays.items()} == {
        "flag": (5, 3),
        "empty": (5, 0, 2),
        "value": (5,),
        "pair": (5, 2),
    }
    arrays["flag"][:], arrays["pair"][:] = True, 1.0
    assert bytes(memory) == b"\1" * 15 + bytes(113) + np.ones(10, np.float32).tobytes() + bytes(24)


def test_what_cannot_be_pickled_arrives_in_words():
    class Local(ValueError):
        pass

    error = _portable(Local("scene 2"))
    assert type(error) is RuntimeError and str(error) == "Local: scene 2"
    assert _portable(kept := ValueError("scene 3")) is kept


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
@pytest.mark.parametrize("num_workers", [1, 5])
@pytest.mark.parametrize("process_count", [1, 2])
def test_no_number_of_anything_changes_a_byte(num_processes, num_workers, process_count):
    """A resumed reader, too."""
    share = {"process_index": process_count - 1, "process_count": process_count}
    straight = list(islice(_batches(1, **share), 6))
    reader = _batches(num_processes, num_workers=num_workers, **share)
    resumed = _batches(num_processes, step=FIRST + 3, num_workers=num_workers, **share)
    for expected, batch in zip(straight, reader, strict=False):
        _assert_equal(expected, batch)
    for expected, batch in zip(straight[3:], resumed, strict=False):
        _assert_equal(expected, batch)
