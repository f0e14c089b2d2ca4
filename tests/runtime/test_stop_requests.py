"""Signals in real processes: each ends its command with its code, wherever it comes."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import REPOSITORY

BEGINNING = """
import gc, signal, sys, threading, time
from maft_jax.runtime import stop_requests
from maft_jax.runtime.console import run_and_report

stop_requests.watch()
stop_requests.SECONDS_TO_STOP = 0.5
stop_requests._ONE_REQUEST_SECONDS = 0.05

def work():
    print("ready", flush=True)
{work}

sys.exit(stop_requests.leave(run_and_report(work)))
"""

IN_CALLBACKS = """
    class Hook:
        def __del__(self):
            sum(range(300))
    gc.callbacks.append(lambda *_: sum(range(3000)))  # where what is raised is forgotten
    while True:
        for _ in range(20):
            hook = Hook(); hook.itself = hook; del hook; gc.collect()
        stop_requests.check()
"""
NO_SAFE_POINT = """
    time.sleep(60)
"""
OTHER_PIPE = """
    signal.set_wakeup_fd(-1)  # as an event loop does while it runs
    while True:
        time.sleep(0.01)
        stop_requests.check()
"""
SAVING = """
    with stop_requests.saving():
        stop_requests._requests.arrived.wait(60)
        time.sleep(1.0)  # longer than what has nothing to save may take
        stop_requests.check()
        print("saved", flush=True)
"""
AT_THE_END = """
    stop_requests._requests.arrived.wait(60)
"""
SEMAPHORES = """
    import multiprocessing, tqdm
    from multiprocessing.pool import ThreadPool
    multiprocessing.set_start_method("forkserver")  # Python 3.14's own, in which they have names
    kept = [*tqdm.tqdm([multiprocessing.Lock()], disable=False), ThreadPool(1)]
    stop_requests.wait()
"""


def start(work: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", BEGINNING.format(work=work)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def outcome(process: subprocess.Popen) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=30)
    assert "Traceback" not in stderr and "ignored" not in stderr, stderr
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("seed", [0, pytest.param(range(1, 40), marks=pytest.mark.slow)])
def test_signal_in_a_callback_is_not_forgotten(seed):
    for one in [seed] if isinstance(seed, int) else seed:
        rng = random.Random(one)
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        process = start(IN_CALLBACKS)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(number)
        code, _, stderr = outcome(process)
        assert code == 128 + number
        assert f"stopped by {number.name}; what was finished is kept" in stderr


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (NO_SAFE_POINT, "stopped by SIGTERM, after 0 s without a place to stop at"),
        (OTHER_PIPE, "stopped by SIGTERM; "),
        (AT_THE_END, "stopped by SIGTERM; "),
        (SEMAPHORES, "stopped by SIGTERM; "),
    ],
    ids=["no safe point", "pipe of a library", "when all is done", "semaphores"],
)
def test_one_signal_is_enough(work, reason):
    process = start(work)
    process.send_signal(signal.SIGTERM)
    code, _, stderr = outcome(process)
    assert code == 143 and reason in stderr and "leaked" not in stderr


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_at_once(second):
    process = start(NO_SAFE_POINT.replace("60", "60)\n    time.sleep(60"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.15)
    process.send_signal(second)
    code, _, stderr = outcome(process)
    assert code == 130 and f"stopped by SIGINT and {second.name}, at once" in stderr


@pytest.mark.parametrize(("second", "saves"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_what_is_being_saved_is_waited_for(second, saves):
    process = start(SAVING)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.15)
    process.send_signal(second)
    code, stdout, _ = outcome(process)
    assert code == 143 and ("saved" in stdout) is saves


def test_signals_of_one_moment_are_one_request():
    process = start(IN_CALLBACKS.replace("range(3000)", "range(30)"))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    code, _, stderr = outcome(process)
    assert code == 130 and "at once;" not in stderr
