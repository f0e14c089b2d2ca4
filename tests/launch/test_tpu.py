"""The commands that `up` is made of, one by one, and flags that are refused."""

import os
import shutil
import signal
import sys

import pytest

from launch.runner import SubprocessRunner
from launch.secrets_file import check_secrets_file
from launch.source_archive import list_sources, pack
from launch.tpu import COMMANDS
from tests.launch.fake_cloud import FOREVER, QUICK, RENTING, TARGET, TRAINING

UP = ["up", *TARGET, *QUICK, *RENTING]


@pytest.mark.slow
def test_step_by_step(make_cloud):
    cloud = make_cloud(states=[["PROVISIONING", "ACTIVE"]])
    assert "there is no such queued resource" in cloud.launch("status").stdout
    created = cloud.launch("create", *RENTING)
    assert created.returncode == 0 and "To stop paying" in created.stderr
    early = cloud.launch("setup")
    assert early.returncode == 1 and "is PROVISIONING; expected ACTIVE" in early.stderr
    assert cloud.launch("wait").returncode == 0
    assert cloud.launch("setup", "--fetch=gs://bucket/w.pt").returncode == 0
    started = cloud.launch("run", arguments=TRAINING)
    assert started.returncode == 0 and started.stdout.count("maft-w-") == 2
    assert cloud.launch("watch", arguments=TRAINING).returncode == 0
    assert "exited with code 0: step 10 on maft-w-1" in cloud.launch("status").stdout
    assert cloud.launch("logs", "--worker=1").stdout == "step 10 on maft-w-1\n"
    assert cloud.launch("delete").returncode == 0
    assert cloud.launch("delete").returncode == 0, "deleting twice is no error"
    assert not cloud.exists


def test_waiting_for_a_suspended_resource_ends(make_cloud):
    cloud = make_cloud(states=[["SUSPENDED"]])
    cloud.launch("create", *RENTING)
    done = cloud.launch("wait")
    assert done.returncode == 1 and "maft is SUSPENDED" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_outlives_the_command_that_started_it_and_ends_by_stop(make_cloud):
    cloud = make_cloud(training=[[FOREVER]])
    cloud.launch("create", *RENTING)
    cloud.launch("setup")
    assert cloud.launch("run", arguments=TRAINING).returncode == 0
    again = cloud.launch("run", arguments=TRAINING)
    assert again.returncode == 0 and len(cloud.trainings) == 2, "it runs already"
    replaced = cloud.launch("run", arguments=[*TRAINING, "--config.seed=1"])
    assert replaced.returncode == 1 and "another training runs here" in replaced.stderr
    cloud.wait_for("trainings.jsonl", 2)
    cloud.launch("stop")
    ended = cloud.launch("watch", arguments=TRAINING)
    assert ended.returncode == 143, ended.stderr


def test_every_command_has_a_dry_run(make_cloud):
    cloud = make_cloud()
    for command in COMMANDS:
        flags = RENTING if command in ("create", "up") else []
        arguments = TRAINING if command in ("run", "watch", "up") else []
        done = cloud.launch(command, *flags, "--dry-run", arguments=arguments)
        assert done.returncode == 0, done.stderr
        assert "gcloud compute tpus" in done.stdout
    assert cloud.calls == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["up", *TARGET, *RENTING], "expected the flags of maft_jax.main after --, --config=..."),
        ([*UP, "--", "--config=c", "--workdir=runs/first"], "disk is lost with the machine"),
        ([*UP, "--fetch=weights.pt", "--", *TRAINING], "--fetch=weights.pt: expected gs://BUCKET"),
        ([*UP, "--env_file=no", "--", *TRAINING], "--env_file=no: there is no such file"),
        (["status", *TARGET, "--", "x"], "status: expected flags alone, got ['x'] after --"),
        (["status", "--name=A", "--zone=us-west4-a"], "--name=A: expected at most 50"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_rented(make_cloud, command, message):
    cloud = make_cloud()
    process = cloud.start(*command)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and message in stderr, stderr
    assert cloud.calls == []


def test_gcloud_that_is_not_installed_is_named(make_cloud):
    cloud = make_cloud()
    cloud.environment["PATH"] = str(cloud.folder / "vm_bin")
    done = cloud.launch("status")
    assert done.returncode == 1 and "cloud.google.com/sdk/docs/install" in done.stderr


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("A=b\n", 0o644, "others may read it; first: chmod 600"),
        ("A=b\n", 0o640, "others may read it"),
        ("# c\n\nexport A=hush\n", 0o600, "line 3: expected NAME=value"),
        ("hush\n", 0o600, "line 1: expected NAME=value"),
    ],
)
def test_secrets_that_others_can_read_are_refused_without_telling_them(
    tmp_path, content, mode, message
):
    file = tmp_path / "tokens.env"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(ValueError) as error:
        check_secrets_file(str(file))
    assert message in str(error.value) and "hush" not in str(error.value)


def test_secrets_file_of_names_and_values(tmp_path):
    file = tmp_path / "tokens.env"
    file.write_text("# tokens\nHF_TOKEN=a=b\n\nB=\n")
    file.chmod(0o600)
    assert check_secrets_file(str(file)) == ["HF_TOKEN", "B"]


def test_archive_is_the_checkout_as_it_stands_and_equal_for_equal_files(checkout, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy)
    (copy / "launch" / "new.py").write_text("new = 1\n")
    names = list_sources(SubprocessRunner(), copy)
    assert "launch/new.py" in names and "configs/coco.py" in names
    assert "notes.txt" not in names and not [n for n in names if "__pycache__" in n]
    first = pack(names, copy)
    os.utime(copy / "launch" / "new.py", (1, 1))
    assert pack(names, copy) == first
    (copy / "launch" / "new.py").write_text("new = 2\n")
    assert pack(names, copy)[1] != first[1]


def test_programs_that_run_at_once_keep_their_output_and_exit_codes_apart():
    code = "import sys; print('x' * 200_000); sys.exit(int(sys.argv[1]))"
    argvs = [[sys.executable, "-c", code, str(i)] for i in range(3)]
    results = SubprocessRunner().run_all(argvs)
    assert [r.exit_code for r in results] == [0, 1, 2]
    assert all(len(r.stdout) == 200_001 for r in results)


def test_program_that_takes_too_long_is_ended():
    done = SubprocessRunner().run(
        [sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2
    )
    assert done.exit_code == 124 and "no answer within" in done.stderr


def test_program_that_a_signal_ended_has_the_exit_code_of_a_shell():
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    assert SubprocessRunner().run([sys.executable, "-c", code]).exit_code == 137


def test_a_secrets_file_that_is_not_utf8_is_refused_without_its_content(tmp_path):
    path = tmp_path / "tokens.env"
    path.write_bytes(b"NAME=hush-hush\xff\n")
    path.chmod(0o600)
    with pytest.raises(ValueError, match=r"--env_file=.*tokens\.env: expected UTF-8 text") as error:
        check_secrets_file(str(path))
    assert "hush" not in str(error.value) and error.value.__suppress_context__
