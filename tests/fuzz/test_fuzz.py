"""Damaged files of every reader: a right result, or a ValueError that names the file, in time.

`MAFT_JAX_FUZZ=2000 pytest tests/fuzz` damages each file so often, `MAFT_JAX_FUZZ_SEED=7` in another
way. A failure names the seed; the damaged file stays in the test's folder.
"""

import os
import random
import resource
import signal
import sys
import zlib
from collections.abc import Mapping

import numpy as np
import pytest

from tests.fuzz.readers import READERS

pytestmark = pytest.mark.slow

NUMBER = int(os.environ.get("MAFT_JAX_FUZZ", "40"))
SEED = int(os.environ.get("MAFT_JAX_FUZZ_SEED", "0"))
MOST_SECONDS = 10
MOST_MEBIBYTES = 1500


class Hangs(BaseException):
    """Not one of the exceptions that readers may catch."""


@pytest.fixture(autouse=True)
def alarm():
    def stop(*_):
        raise Hangs(f"more than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def equal(one, other) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if hasattr(one, "masks"):
        return equal([one.masks, one.scores], [other.masks, other.scores])
    return bool(one == other)


def peak_mebibytes() -> float:
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files(reader, tmp_path):
    folder = tmp_path / "fuzz"
    folder.mkdir()
    path = reader.make(folder)
    whole, right = path.read_bytes(), reader.read(path)
    assert right is not None
    before = peak_mebibytes()
    for number in range(NUMBER // reader.cost):
        rng = random.Random(zlib.crc32(f"{reader.name} {SEED} {number}".encode()))
        path.write_bytes(reader.mutation(whole, rng))
        about = f"{reader.name}, MAFT_JAX_FUZZ_SEED={SEED}, damage {number}, {path}"
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        try:
            read = reader.read(path)
        except ValueError as error:
            assert named(path, folder, str(error)), f"{about}: no file in {error!s:.300}"
        except (Exception, Hangs) as error:
            raise AssertionError(f"{about}: {type(error).__name__}: {error!s:.300}") from error
        else:
            unnoticed = reader.checked and read is not None and not equal(read, right)
            assert not unnoticed, f"{about}: silently another result"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert peak_mebibytes() - before < MOST_MEBIBYTES


def named(path, folder, message: str) -> bool:
    """The file, or the folder that it is a part of."""
    return any(
        str(part) in message for part in (path, *path.parents) if part.is_relative_to(folder)
    )
