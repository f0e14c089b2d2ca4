"""Files that appear whole or not at all: what killed writers leave, and what full disks say."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from etils import epath

from maft_jax.runtime.atomic_files import (
    atomic_folder,
    atomic_write,
    atomic_write_bytes,
    clear_leftovers,
)
from maft_jax.runtime.exit_codes import exit_code_of, message_of
from maft_jax.runtime.workdir import make_writable
from tests.runs import REPOSITORY

WRITE = """
import pathlib, sys
from maft_jax.runtime.atomic_files import atomic_folder, atomic_write
folder = pathlib.Path(sys.argv[1])
with atomic_write(folder / "scene_overlay.png") as aside, atomic_folder(folder / "clip") as clip:
    aside.write_bytes(b"half")
    (clip / "config.json").write_text("half")
    print("writes", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, tmp_path],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writes\n"
    yield process
    process.kill()
    process.communicate()


def test_leftovers_of_a_killed_writer_are_cleared(writer, tmp_path):
    (tmp_path / ".hidden").write_text("not ours")
    writer.kill()
    writer.wait()
    assert len(os.listdir(tmp_path)) == 3
    clear_leftovers(tmp_path, "other.png")
    assert len(os.listdir(tmp_path)) == 3
    clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [".hidden"]


def test_what_is_being_written_stays(writer, tmp_path):
    clear_leftovers(tmp_path)
    writer.communicate("")
    assert sorted(os.listdir(tmp_path)) == ["clip", "scene_overlay.png"]
    assert (tmp_path / "scene_overlay.png").read_bytes() == b"half"


@pytest.mark.parametrize("is_folder", [False, True])
def test_who_clears_while_a_writer_begins_takes_nothing_from_it(tmp_path, monkeypatch, is_folder):
    lock = fcntl.flock

    def lock_late(*arguments):
        monkeypatch.setattr(fcntl, "flock", lock)
        clear_leftovers(tmp_path)
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with (atomic_folder if is_folder else atomic_write)(tmp_path / "scene") as aside:
        clear_leftovers(tmp_path)
        assert aside.exists()
        (aside / "part" if is_folder else aside).write_bytes(b"whole")
    assert os.listdir(tmp_path) == ["scene"]


def test_leftovers_of_another_user_are_no_failure(tmp_path, monkeypatch):
    def refuse(path, missing_ok):
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    (tmp_path / ".scene.png.89abcdef").write_bytes(b"half")
    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    clear_leftovers(tmp_path)


def test_written_files_keep_the_rights_of_ordinary_ones(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    atomic_write_bytes(epath.Path(tmp_path / "atomic"), b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_is_told_with_the_path_and_is_no_wrong_input(tmp_path, monkeypatch):
    """numpy.savez's archive fails again when it is closed, with a ValueError."""
    path = tmp_path / "weights.npz"
    with (
        pytest.raises(OSError, match="No space left") as caught,
        atomic_write(path) as aside,
        zipfile.ZipFile(aside, "w") as archive,
        archive.open("x.npy", "w"),
    ):
        full()
    assert exit_code_of(caught.value) == 1
    assert message_of(caught.value) == (
        f"[Errno 28] No space left on device: '{path}'\n"
        "free some space; what was finished is kept, the same command goes on"
    )
    assert os.listdir(tmp_path) == []


def test_full_disk_behind_other_errors_is_told_first():
    try:
        try:
            full()
        finally:
            raise ValueError("cannot be closed")
    except ValueError as error:
        assert exit_code_of(error) == 1
        assert message_of(error).splitlines()[:2] == [
            "[Errno 28] No space left on device",
            "cannot be closed",
        ]


def test_folder_that_a_full_disk_has_no_room_for_is_no_wrong_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_text", full)
    with pytest.raises(ValueError, match=r"--workdir=.*cannot write there") as caught:
        make_writable(epath.Path(tmp_path), "--workdir")
    assert exit_code_of(caught.value) == 1


def test_full_disk_in_the_words_of_other_libraries():
    error = RuntimeError("RESOURCE_EXHAUSTED: /a/b: No space left on device")
    assert exit_code_of(error) == 1 and "/a/b" in message_of(error)


def test_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="clip"), atomic_folder(tmp_path / "clip") as aside:
        (aside / "config.json").write_text("{}")
        full()
    assert os.listdir(tmp_path) == []
