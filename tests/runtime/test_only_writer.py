"""One writer for a folder, with holders in processes of their own."""

import os
import socket
import subprocess
import sys

import pytest

from maft_jax.runtime.only_writer import FolderInUse, only_writer
from tests.runs import REPOSITORY

HOLD = """
import sys
from maft_jax.runtime.only_writer import only_writer
with only_writer(sys.argv[1], "--workdir"):
    print("holds", flush=True)
    sys.stdin.read()
"""
COUNT = """
import pathlib, sys
from maft_jax.runtime.only_writer import only_writer
path = pathlib.Path(sys.argv[1], "count")
for _ in range(100):
    with only_writer(sys.argv[1], "--workdir", wait=True):
        path.write_text(str(int(path.read_text()) + 1))
"""


def start(program: str, folder) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, folder],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(tmp_path):
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


def test_second_is_told_who_is_there(holder, tmp_path):
    with pytest.raises(FolderInUse) as refused, only_writer(tmp_path, "--workdir"):
        pass
    message = str(refused.value)
    assert message.startswith(f"--workdir={tmp_path}: process {holder.pid} on ")
    assert socket.gethostname() in message and "since 2" in message and " -c " in message
    holder.communicate("")  # it ends
    with only_writer(tmp_path, "--workdir"):
        assert os.listdir(tmp_path) == [".writer"]
    assert os.listdir(tmp_path) == []


def test_nothing_remains_of_a_killed_one(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert os.listdir(tmp_path) == [".writer"]
    with only_writer(tmp_path, "--workdir"):
        pass


def test_who_waits_comes_next(holder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("maft_jax.runtime.stop_requests.wait", lambda _: holder.communicate(""))
    with only_writer(tmp_path, "--workdir", wait=True):
        pass
    assert "waiting for its end" in caplog.text


def test_parts_of_a_folder_have_their_own(holder, tmp_path):
    with only_writer(tmp_path, "records", part=".0-of-2"):
        pass


def test_two_are_never_in_it_at_once(tmp_path, monkeypatch):
    (tmp_path / "count").write_text("0")
    program = COUNT.replace(
        "import pathlib",
        "from maft_jax.runtime import only_writer as o\no._POLL_SECONDS = 0.0005\nimport pathlib",
    )
    processes = [start(program, tmp_path) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    assert (tmp_path / "count").read_text() == "300"


def test_disk_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with only_writer(tmp_path, "--workdir"):
        pass
    assert "this disk has no locks" in caplog.text
