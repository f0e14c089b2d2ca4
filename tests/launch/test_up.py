"""The real `python -m launch.tpu` against a fake gcloud whose machines run the real scripts."""

import pathlib
import shlex
import signal
import stat
import time

import pytest

from tests.launch.fake_cloud import FOREVER, QUICK, RENTING, TARGET, TRAINING

pytestmark = pytest.mark.slow

QUOTA = (
    "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. "
    "Limit: 0 in zone us-west4-a."
)


def test_normal_life_is_create_wait_train_delete(make_cloud):
    cloud = make_cloud(states=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
    done = cloud.up("--fetch=gs://bucket/ViT-B-16.pt")
    assert done.returncode == 0, done.stderr
    assert cloud.life == ["create", "delete"] and not cloud.exists
    assert [t["host"] for t in cloud.trainings] == ["maft-w-0", "maft-w-1"]
    for training in cloud.trainings:
        assert training["argv"] == ["-m", "maft_jax.main", *TRAINING]
        assert training["files"] == ["ViT-B-16.pt", "configs"]
        assert pathlib.Path(training["folder"]).name == "work"
    assert (cloud.folder / "installed").read_text() == "source[tpu]\n" * 2
    for said in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "training is done", "deleted"):
        assert said in done.stderr
    log = cloud.folder / "here/runs/launch/maft/maft-worker-0.log"
    assert log.read_text() == "step 10 on maft-w-0\n"


def test_several_slices_are_set_up_and_trained_together(make_cloud):
    cloud = make_cloud(nodes=["maft-0", "maft-1"])
    done = cloud.up("--num_slices=2")
    assert done.returncode == 0, done.stderr
    hosts = {t["host"] for t in cloud.trainings}
    assert hosts == {"maft-0-w-0", "maft-0-w-1", "maft-1-w-0", "maft-1-w-1"}


def test_quota_error_names_the_quota_and_where_to_raise_it(make_cloud):
    cloud = make_cloud(create_errors=[QUOTA])
    done = cloud.up("--project=mine")
    assert done.returncode == 1
    assert "TPUV5sLitepodPerProjectPerZoneForTPUAPI" in done.stderr
    assert "iam-admin/quotas?service=tpu.googleapis.com&project=mine" in done.stderr
    assert cloud.life.count("create") == 1, "asking again cannot help"
    assert "Traceback" not in done.stderr


def test_what_gcloud_says_cannot_command_the_terminal(make_cloud):
    cloud = make_cloud(create_errors=[f"{QUOTA} \x1b]0;mine\x07\x9b2J"])
    done = cloud.up()
    assert done.returncode == 1
    assert r"\x1b]0;mine\x07\x9b2J" in done.stderr and "\x1b" not in done.stderr


def test_quota_that_google_finds_later_is_explained_too(make_cloud):
    cloud = make_cloud(states=[["PROVISIONING", f"FAILED:{QUOTA}"]])
    done = cloud.up()
    assert done.returncode == 1 and "iam-admin/quotas" in done.stderr
    assert cloud.life == ["create", "delete"], "it would go on using quota"


def test_suspended_while_waiting_is_deleted_and_asked_for_again(make_cloud):
    cloud = make_cloud(states=[["PROVISIONING", "SUSPENDING"], ["ACTIVE"]])
    done = cloud.up()
    assert done.returncode == 0, done.stderr
    assert cloud.life == ["create", "delete", "create", "delete"]
    assert "SUSPENDING" in done.stderr


def test_suspended_resource_of_an_earlier_command_is_replaced(make_cloud):
    cloud = make_cloud(states=[["SUSPENDED"], ["ACTIVE"]])
    assert cloud.launch("create", *RENTING).returncode == 0
    done = cloud.up()
    assert done.returncode == 0, done.stderr
    assert cloud.life == ["create", "delete", "create", "delete"]


def test_training_resumes_on_new_machines_after_a_preemption(make_cloud):
    cloud = make_cloud(
        states=[["ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED"], ["WAITING_FOR_RESOURCES", "ACTIVE"]],
        training=[[FOREVER], [0]],
    )
    done = cloud.up()
    assert done.returncode == 0, done.stderr
    assert cloud.life == ["create", "delete", "create", "delete"]
    commands = [t["argv"] for t in cloud.trainings]
    assert len(commands) == 4 and all(c == commands[0] for c in commands), (
        "the same command resumes"
    )


def test_training_that_lost_a_host_restarts_where_it_is(make_cloud):
    cloud = make_cloud(training=[[{"maft-w-0": 134, "others": 137}, 0]])
    done = cloud.up()
    assert done.returncode == 0, done.stderr
    assert cloud.life == ["create", "delete"]
    assert [t["play"] for t in cloud.trainings if t["host"] == "maft-w-0"] == [134, 0]


def test_training_that_keeps_dying_gets_new_machines_and_ends_at_the_limit(make_cloud):
    cloud = make_cloud(training=[[134]])
    done = cloud.up("--max_attempts=4")
    assert done.returncode == 1
    assert "gave up after 4 attempts" in done.stderr
    assert cloud.life == ["create", "delete", "create", "delete"]
    assert len(cloud.trainings) == 8


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (1, 1)])
def test_wrong_input_and_failures_are_not_tried_again(make_cloud, code, expected):
    cloud = make_cloud(training=[[{"maft-w-1": code, "others": 134 if code == 2 else 0}]])
    done = cloud.up()
    assert done.returncode == expected
    assert f"maft-w-1: exited with code {code}: step 10 on maft-w-1" in done.stderr
    assert len(cloud.trainings) == 2 and cloud.life == ["create", "delete"]


def test_worker_that_ssh_reaches_late_is_tried_again(make_cloud):
    cloud = make_cloud(ssh_failures=[{"1": 2}])
    done = cloud.up()
    assert done.returncode == 0, done.stderr
    assert "worker 1 (exit code 255)" in done.stderr
    assert cloud.life == ["create", "delete"]


def test_worker_that_ssh_never_reaches_has_all_machines_replaced(make_cloud):
    cloud = make_cloud(ssh_failures=[{"1": 1000}, {}])
    done = cloud.up()
    assert done.returncode == 0, done.stderr
    assert cloud.life == ["create", "delete", "create", "delete"]


def test_worker_that_stops_answering_during_training_has_all_machines_replaced(make_cloud):
    cloud = make_cloud(training=[[FOREVER], [0]])
    scenario = cloud.folder / "scenario.json"
    process = cloud.start("up", *TARGET, *QUICK, *RENTING, "--", *TRAINING)
    cloud.wait_for("trainings.jsonl", 2)
    broken = scenario.read_text().replace(
        '"ssh_failures": [{}]', '"ssh_failures": [{"0": 999}, {}]'
    )
    aside = scenario.with_name("aside.json")
    aside.write_text(broken)
    aside.rename(scenario)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "worker 0 does not answer (5 of 5)" in stderr
    assert cloud.life == ["create", "delete", "create", "delete"]


def test_failing_installation_is_reported_with_its_words_and_not_rented_again(make_cloud):
    cloud = make_cloud()
    (cloud.folder / "vm_bin/python3").write_text("#!/bin/bash\necho no wheel for you >&2; exit 1\n")
    done = cloud.up()
    assert done.returncode == 1
    assert "installing failed" in done.stderr and "no wheel for you" in done.stderr
    assert cloud.life == ["create", "delete"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_training_running_and_says_what_costs(make_cloud, number):
    cloud = make_cloud(training=[[FOREVER]])
    process = cloud.start("up", *TARGET, *QUICK, *RENTING, "--", *TRAINING)
    cloud.wait_for("trainings.jsonl", 2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "python -m launch.tpu delete --name=maft --zone=us-west4-a" in stderr
    assert "Traceback" not in stderr
    assert cloud.exists and cloud.life == ["create"]
    shown = cloud.launch("status")
    assert shown.stdout.count("running: step 10") == 2, shown


def test_the_same_command_watches_a_training_that_runs_already(make_cloud):
    cloud = make_cloud(training=[[FOREVER]])
    process = cloud.start("up", *TARGET, *QUICK, *RENTING, "--", *TRAINING)
    cloud.wait_for("trainings.jsonl", 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    copies = [argv for argv in cloud.calls if "scp" in argv]
    again = cloud.start("up", *TARGET, *QUICK, *RENTING, "--", *TRAINING)
    while "watching it" not in again.stderr.readline():
        pass
    stopped = cloud.launch("stop")
    assert stopped.returncode == 0, stopped.stderr
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 143 and "the same command resumes" in stderr
    assert cloud.exists, "stopping is not deleting"
    assert [argv for argv in cloud.calls if "scp" in argv] == copies
    assert len(cloud.trainings) == 2


def test_another_training_under_the_same_name_is_left_alone(make_cloud):
    cloud = make_cloud(training=[[FOREVER]])
    assert cloud.launch("create", *RENTING).returncode == 0
    assert cloud.launch("setup").returncode == 0
    assert cloud.launch("run", arguments=TRAINING).returncode == 0
    other = [*TRAINING[:1], "--workdir=gs://bucket/other"]
    done = cloud.launch("up", *RENTING, arguments=other)
    assert done.returncode == 2 and "other arguments" in done.stderr
    assert cloud.exists and len(cloud.trainings) == 2


def test_interrupt_deletes_if_asked_to(make_cloud):
    cloud = make_cloud(training=[[FOREVER]])
    flags = [*TARGET, *QUICK, *RENTING, "--delete_on_interrupt"]
    process = cloud.start("up", *flags, "--", *TRAINING)
    cloud.wait_for("trainings.jsonl", 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert not cloud.exists and cloud.life == ["create", "delete"]


@pytest.mark.parametrize(
    ("deleting", "reason"),
    [
        ("PERMISSION_DENIED: The caller does not have permission", "TPU Admin"),
        ("is said to be done", "maft is ACTIVE, after it was deleted"),
    ],
)
@pytest.mark.parametrize(("play", "why"), [(0, ""), (1, "training failed")])
def test_what_could_not_be_deleted_is_a_code_of_its_own(make_cloud, deleting, reason, play, why):
    cloud = make_cloud(training=[[play]], deleting=deleting)
    done = cloud.up()
    assert done.returncode == 3 and cloud.exists
    assert why in done.stderr and "COULD NOT DELETE maft" in done.stderr
    assert reason in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("python -m launch.tpu delete --name=maft --zone=us-west4-a")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_deletion_is_a_code_of_its_own(make_cloud, number):
    cloud = make_cloud(deleting="hangs")
    process = cloud.start("up", *TARGET, *QUICK, *RENTING, "--", *TRAINING)
    while not (cloud.folder / "deleting").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3 and cloud.exists
    assert f"COULD NOT DELETE maft: interrupted by {number.name}" in stderr
    assert stderr.strip().splitlines()[-1].endswith("--name=maft --zone=us-west4-a")
    assert "Traceback" not in stderr


def test_log_that_cannot_be_kept_does_not_keep_machines(make_cloud):
    cloud = make_cloud()
    (cloud.folder / "here/runs/launch/maft/maft-worker-0.log").mkdir(parents=True)  # in its place
    done = cloud.up()
    assert done.returncode == 0 and not cloud.exists
    assert "its output could not be kept" in done.stderr


def test_resource_is_kept_if_asked_to(make_cloud):
    cloud = make_cloud()
    done = cloud.up("--keep")
    assert done.returncode == 0 and cloud.exists
    assert "To stop paying: python -m launch.tpu delete" in done.stderr


def test_resource_that_somebody_deletes_is_not_asked_for_again(make_cloud):
    """Whoever stops paying must not be made to pay again."""
    cloud = make_cloud(training=[[FOREVER]])
    process = cloud.start("up", *TARGET, *QUICK, *RENTING, "--", *TRAINING)
    cloud.wait_for("trainings.jsonl", 2)
    assert cloud.launch("delete").returncode == 0
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "somebody deleted maft" in stderr
    assert cloud.life.count("create") == 1 and not cloud.exists


def test_flex_start_is_not_asked_for_again_when_its_hours_are_over(make_cloud):
    cloud = make_cloud(states=[["ACTIVE", "SUSPENDED"]], training=[[FOREVER]])
    flags = ["--accelerator_type=v5litepod-16", "--capacity=flex_start", "--max_run_duration=12h"]
    done = cloud.launch("up", *flags, arguments=TRAINING)
    assert done.returncode == 1 and "--max_run_duration" in done.stderr
    assert cloud.life == ["create", "delete"]
    assert cloud.calls[1][0] == "alpha"


def test_secrets_reach_training_and_never_a_command_line(make_cloud):
    cloud = make_cloud()
    secret = "hf_s3cret with spaces, $HOME and 'quotes'"
    file = cloud.folder / "here" / "tokens.env"
    file.write_text(f"# tokens\nTOKEN={secret}\n")
    file.chmod(0o600)
    done = cloud.up("--env_file=tokens.env", "--keep")
    assert done.returncode == 0, done.stderr
    assert [t["token"] for t in cloud.trainings] == [secret, secret]
    assert not [argv for argv in cloud.calls if any("hf_s3cret" in a for a in argv)]
    assert "hf_s3cret" not in done.stdout + done.stderr
    copies = list(cloud.folder.glob("vm/*/maft_jax_run/secrets.env"))
    assert len(copies) == 2
    for copy in copies:
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700


def test_dry_run_prints_what_a_good_day_executes(make_cloud):
    cloud = make_cloud(num_workers=4)
    printed = cloud.up("--dry-run", "--fetch=gs://bucket/ViT-B-16.pt")
    assert printed.returncode == 0 and cloud.calls == []
    assert cloud.up("--fetch=gs://bucket/ViT-B-16.pt").returncode == 0
    lines = [shlex.split(line, comments=True) for line in printed.stdout.splitlines()]
    expected = [argv for argv in cloud.calls if "storage" not in argv]  # on the machines
    assert [line[1:] for line in lines if line] == expected
