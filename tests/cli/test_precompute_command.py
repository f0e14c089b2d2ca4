"""maft_jax.cli.precompute_proposals as a user gives it, in processes of its own."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from input_pipeline.records.record_source import RecordSource
from input_pipeline.sample_folder import SAMPLE_CLASSES, write_sample_folder
from maft_jax.config.sections import DataConfig, ProposalsConfig

pytestmark = pytest.mark.slow

REPOSITORY = pathlib.Path(__file__).parents[2]
NUM_IMAGES = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "photos"
    write_sample_folder(folder, num_images=NUM_IMAGES)
    return folder


@pytest.fixture(scope="module")
def records(photos, tmp_path_factory):
    """Records that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "records"
    result = finish(start(photos, folder, "--workers=2"))
    for part in (
        f"images               {NUM_IMAGES} in 10 shards",
        "proposals per image  ",
        "mask recall          1.000",
        "time ",
        f"records              {folder}",
    ):
        assert part in result.stdout
    # A bar with the time that is left, over all images.
    assert f"{NUM_IMAGES}/{NUM_IMAGES} [" in result.stderr
    return folder


def start(photos, folder, *arguments) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "maft_jax.cli.precompute_proposals"),
        "--config=configs/folder.py",
        f"--config.data.root={photos}",
        f"--config.data.records={folder}",
        "--config.proposals.generator=ground_truth",
        "--config.proposals.num_proposals=8",
        *arguments,
    ]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, exit_code: int = 0) -> subprocess.CompletedProcess:
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == exit_code, stderr
    return subprocess.CompletedProcess(process.args, exit_code, stdout, stderr)


def wait_until_gone(group: int):
    """The processes of a group have ended; the last, multiprocessing's own, a moment later."""
    end = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.01)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def test_training_reads_what_the_command_wrote(records):
    source = RecordSource(records)
    assert len(source) == NUM_IMAGES and source.class_names == SAMPLE_CLASSES
    assert source[0].proposals.shape[1:] == (30, 40)
    assert contents(records)["summary.png"].startswith(b"\x89PNG")


def test_several_processes_write_the_same_files(photos, records, tmp_path):
    both = [
        start(photos, tmp_path, "--workers=1", f"--process_index={i}", "--process_count=2")
        for i in range(2)
    ]
    for process in both:
        finish(process)
    assert contents(tmp_path) == contents(records)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_command_leaves_nothing_behind_and_goes_on(photos, tmp_path, number, exit_code):
    slow = ["--config.proposals.generator=superpixels", "--workers=2"]
    process = start(photos, tmp_path, *slow)
    while not list(tmp_path.glob("*.done.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    # As a terminal does, to all processes; SIGTERM usually comes to the first alone.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    result = finish(process, exit_code)
    last = result.stderr.strip().splitlines()[-1]
    assert f"stopped by {number.name}" in last and "the same command goes on" in last
    assert "Traceback" not in result.stderr
    wait_until_gone(process.pid)
    assert not list(tmp_path.glob("*.unfinished"))
    num_finished = len(list(tmp_path.glob("*.done.json")))
    assert 0 < num_finished < 10
    result = finish(start(photos, tmp_path, *slow))
    assert f"{num_finished} of 10 shards are finished already" in result.stderr
    assert len(RecordSource(tmp_path)) == NUM_IMAGES


def test_verify_names_the_corrupt_record(photos, records, tmp_path):
    result = finish(start(photos, records, "--verify"))
    assert "every record is whole" in result.stdout
    corrupt = tmp_path / "records"
    corrupt.mkdir()
    for name, content in contents(records).items():
        if name == "train-00003-of-00010.tfrecord":
            content = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
        (corrupt / name).write_bytes(content)
    result = finish(start(photos, corrupt, "--verify"), 1)
    assert "train-00003-of-00010.tfrecord" in result.stderr and "scene_0006" in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_other_recipe_is_refused_without_overwrite(photos, records, tmp_path):
    for name, content in contents(records).items():
        (tmp_path / name).write_bytes(content)
    other = "--config.proposals.num_proposals=9"
    result = finish(start(photos, tmp_path, other, "--workers=2"), 2)
    assert "recipe.num_proposals: 8 there, 9 now" in result.stderr
    assert contents(tmp_path) == contents(records)
    finish(start(photos, tmp_path, other, "--workers=2", "--overwrite"))
    assert RecordSource(tmp_path).description["recipe"]["num_proposals"] == 9


def test_bad_photos_are_listed_together(photos, tmp_path):
    broken = tmp_path / "photos"
    for path in photos.rglob("*.*"):
        copy = broken / path.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for name in ("scene_0004", "scene_0011"):
        (broken / "images" / f"{name}.jpg").write_bytes(b"torn")
    result = finish(start(broken, tmp_path / "records", "--workers=2"), 2)
    reason = result.stderr[result.stderr.index("2 of 20 examples") :].splitlines()
    assert "scene_0004.jpg" in reason[1] and "scene_0011.jpg" in reason[2] and len(reason) == 3
    assert len(list((tmp_path / "records").glob("*.done.json"))) == 8


WRONG_COMMANDS = {
    "no data": (["--config.data.root="], "config.data.root: no data to compute records from"),
    "no folder": (["--config.data.root=nowhere"], "nowhere"),
    "process beyond the count": (["--process_index=2", "--process_count=2"], "expected 0 .. 1"),
    "workers for Beam": (["--engine=beam", "--workers=2"], "--workers: for --engine=local only"),
    "options without Beam": (["--", "--runner=DirectRunner"], "options after -- need --engine"),
    "nothing to download": (["--download"], "'folder': nothing to download"),
    "misspelt setting": (["--config.data.rot=x"], "did you mean --config.data.root"),
}


@pytest.mark.parametrize("case", WRONG_COMMANDS)
def test_wrong_command_exits_with_2_and_writes_nothing(photos, tmp_path, case):
    arguments, reason = WRONG_COMMANDS[case]
    folder = tmp_path / "records"
    result = finish(start(photos, folder, *arguments), 2)
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) <= 3
    assert reason in result.stderr
    assert not folder.exists()


def test_help_lists_flags_and_settings_without_loading_jax():
    program = (
        "import sys; from maft_jax.cli import precompute_proposals as command\n"
        "sys.modules['__main__'].__doc__ = command.__doc__\n"
        "sys.argv = ['precompute_proposals', '--help']\n"
        "try: command.run()\n"
        "except SystemExit as stop: print(stop.code)\n"
        "print(sorted({'jax', 'tensorflow', 'torch', 'apache_beam'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.stdout.endswith("0\n[]\n"), result.stderr
    for section, kind in (("data", DataConfig), ("proposals", ProposalsConfig)):
        for name in kind.__dataclass_fields__:
            assert f"--config.{section}.{name}=" in result.stdout
