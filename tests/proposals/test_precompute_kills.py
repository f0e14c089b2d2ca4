"""Processes killed at random: nothing half-written has a final name, and nothing is left over."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.worker_processes import run_tasks
from tests.precompute_jobs import make_job

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
EXAMPLES_PER_KILL = 40  # three workers of 0.06 s per example finish about ten between two kills

PROGRAM = """
import sys
from tests.precompute_jobs import make_job
from maft_jax.proposals.precompute import precompute

if __name__ == "__main__":
    folder, num_examples, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    precompute(make_job(folder, num_examples, seconds=seconds), num_workers=3)
"""


def start(folder, seconds: float, num_examples: int = 240) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(num_examples), str(seconds)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def workers_of(process: subprocess.Popen) -> list[int]:
    """Spawned children that run tasks, not multiprocessing's resource tracker."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [pid for pid in map(int, children.split()) if "spawn_main" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def group_is_gone(process: subprocess.Popen) -> bool:
    """Whether the process and everything that it started have ended."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def num_finished(folder) -> int:
    return len(list(folder.glob("*.done.json")))


def assert_final_names_are_whole(folder, expected: dict[str, bytes]):
    for name, content in contents(folder).items():
        if not name.endswith(".unfinished"):
            assert content == expected[name], name


def kill_at_random(folder, rng: random.Random, num_examples: int):
    """Starts the job and kills it, or one of its workers."""
    process = start(folder, 0.06, num_examples)
    before = num_finished(folder)
    if rng.random() < 0.8:  # else maybe before there are workers
        wait_until(lambda: num_finished(folder) > before or process.poll() is not None)
    time.sleep(rng.uniform(0, 0.4))
    workers = workers_of(process)
    if workers and rng.random() < 0.3:
        os.kill(rng.choice(workers), signal.SIGKILL)
    else:
        process.kill()
    process.communicate(timeout=30)
    assert process.returncode != 0, "finished before it was killed: make the job slower"
    wait_until(lambda: group_is_gone(process))


@pytest.mark.slow
def test_killed_job_goes_on_and_ends_identical_to_an_undisturbed_one(tmp_path):
    num_kills = 12
    num_examples = EXAMPLES_PER_KILL * num_kills
    precompute(make_job(tmp_path / "undisturbed", num_examples), num_workers=1)
    expected = contents(tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    rng = random.Random(num_kills)
    finished, left_over = [0], 0
    for _ in range(num_kills):
        kill_at_random(folder, rng, num_examples)
        assert_final_names_are_whole(folder, expected)
        finished.append(num_finished(folder))
        left_over += len(list(folder.glob("*.unfinished")))
    assert left_over > 0, "no kill hit a shard that was being written"
    assert finished == sorted(finished) and 0 < finished[-1] < num_examples // 2
    process = start(folder, 0, num_examples)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    total = re.search(r"(\d+)/(\d+) \[", printed.splitlines()[-1])
    assert int(total.group(2)) == num_examples - 2 * finished[-1], "computed something again"
    assert contents(folder) == expected


@pytest.mark.slow
def test_killed_worker_is_explained(tmp_path):
    process = start(tmp_path, seconds=0.1)
    wait_until(lambda: num_finished(tmp_path))
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 1
    last = printed.splitlines()[-1]
    assert "ChildProcessError" in last and "use fewer workers" in last
    assert "the same command goes on" in last
    wait_until(lambda: group_is_gone(process))
    assert not list(tmp_path.glob("*.unfinished"))


def test_workers_end_with_a_parent_that_was_killed_while_they_were_busy(tmp_path):
    process = start(tmp_path, seconds=60)
    wait_until(lambda: len(list(tmp_path.glob("*.unfinished"))) == 3)
    process.kill()
    process.communicate()
    wait_until(lambda: group_is_gone(process), seconds=5)


def wait_and_count(task, tick):
    for _ in range(task):
        tick()
    time.sleep(0.3 if task < 100 else 600)
    return os.getpid()


def test_progress_counts_the_work_of_all_processes():
    told = []
    results = dict(run_tasks(wait_and_count, [3, 5, 7], 2, told.append))
    assert set(results) == {3, 5, 7} and len(set(results.values())) == 2
    assert os.getpid() not in results.values()
    assert told == sorted(told) and told[-1] == 15


def test_leaving_early_ends_the_workers_at_once():
    results = run_tasks(wait_and_count, [1, 100, 101], 2, lambda done: None)
    _, pid = next(results)
    start_time = time.monotonic()
    results.close()
    assert time.monotonic() - start_time < 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
