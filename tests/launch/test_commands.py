"""Argument lists against literal ones, which Google's own parser (gcloud 528) has accepted."""

import shlex

import pytest

from launch import commands
from launch.accelerators import parse_accelerator_type, parse_topology
from launch.commands import Request, Target

TARGET = Target("maft", "us-west4-a", "my-project")
TAIL = ["--zone=us-west4-a", "--project=my-project", "--quiet"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (
            Request("v5litepod-16"),
            "gcloud compute tpus queued-resources create maft --node-id=maft "
            "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite",
        ),
        (
            Request("v6e-8", capacity="spot", valid_until_duration="6h"),
            "gcloud compute tpus queued-resources create maft --node-id=maft "
            "--accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --spot "
            "--valid-until-duration=6h",
        ),
        (
            Request("v5p-32", num_slices=4, capacity="reserved", create_flags=("--network=n",)),
            "gcloud compute tpus queued-resources create maft --node-count=4 --node-prefix=maft "
            "--accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 --reserved --network=n",
        ),
        (
            Request("v4-8", capacity="flex_start", max_run_duration="12h", runtime_version="mine"),
            "gcloud alpha compute tpus queued-resources create maft --node-id=maft "
            "--accelerator-type=v4-8 --runtime-version=mine --provisioning-model=flex-start "
            "--max-run-duration=12h",
        ),
    ],
)
def test_create_asks_for_what_is_requested(request_, expected):
    assert commands.create(TARGET, request_) == [*expected.split(), *TAIL]


def test_other_commands():
    delete = "gcloud compute tpus queued-resources delete maft --force"
    assert commands.delete(TARGET) == [*delete.split(), *TAIL]
    describe = "gcloud compute tpus queued-resources describe maft --format=json"
    assert commands.describe(TARGET) == [*describe.split(), *TAIL]
    node = "gcloud compute tpus tpu-vm describe maft-1 --format=json"
    assert commands.describe_node(TARGET, "maft-1") == [*node.split(), *TAIL]
    copy = "gcloud compute tpus tpu-vm scp a maft-1:b --worker=all"
    assert commands.scp(TARGET, "maft-1", "a", "b") == [*copy.split(), *TAIL]
    start = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "maft-1", "--worker=3"]
    assert commands.ssh(TARGET, "maft-1", "ls -l", "3") == [*start, "--command=ls -l", *TAIL]


def test_project_is_gclouds_own_unless_given():
    assert commands.describe(Target("maft", "us-west4-a"))[-2:] == TAIL[:1] + TAIL[2:]


def test_arguments_of_training_survive_the_shell_of_the_machine():
    arguments = ["--a=it's", '--b=$HOME `x` "y"', "--c=('a b',)", "--d="]
    assert shlex.split(commands.job("start", "id", *arguments))[4:] == arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Target("Maft", "us-west4-a"), "--name=Maft: expected at most 50 lower-case"),
        (
            lambda: Target("maft", "us-west4"),
            "--zone=us-west4: expected a zone, such as",
        ),
        (lambda: Request("v5e-16"), "Cloud TPU calls it v5litepod-16"),
        (lambda: Request("tpu7x-8"), "GKE has them: python -m launch.gke"),
        (lambda: Request("v5p-7"), "expected one of v4-N, v5litepod-N, v5p-N, v6e-N"),
        (lambda: Request("v6e"), "expected one of"),
        (lambda: Request("v6e-8", num_slices=0), "--num_slices=0: expected 1 or more"),
        (lambda: Request("v6e-8", capacity="cheap"), "--capacity=cheap: expected one of"),
        (lambda: Request("v6e-8", capacity="flex_start"), "flex_start needs a duration"),
        (lambda: Request("v6e-8", max_run_duration="3h"), "nothing else has one"),
        (lambda: parse_topology("v5e"), "expected 2 sizes, such as v5e:4x4, got none"),
        (lambda: parse_topology("v5p:4x4"), "expected 3 sizes, such as v5p:4x4x4, got 4x4"),
        (lambda: parse_topology("h100:8"), "expected CHIP:SIZES, such as v5e:4x4"),
    ],
)
def test_what_google_has_not_is_refused_with_advice(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


# Of Google's tables (cloud.google.com/tpu/docs/v5e and the like, GKE's "Plan TPUs").
@pytest.mark.parametrize(
    ("topology", "accelerator_type", "chips", "hosts"),
    [
        ("v5e:1x1", "v5litepod-1", 1, 1),
        ("v5e:2x4", "v5litepod-8", 8, 1),
        ("v5e:4x4", "v5litepod-16", 16, 4),
        ("v5e:16x16", "v5litepod-256", 256, 64),
        ("v6e:2x2", "v6e-4", 4, 1),
        ("v6e:4x8", "v6e-32", 32, 8),
        ("v5p:2x2x1", "v5p-8", 4, 1),
        ("v5p:2x2x2", "v5p-16", 8, 2),
        ("v4:2x2x4", "v4-32", 16, 4),
        ("tpu7x:4x4x4", "tpu7x-128", 64, 16),
    ],
)
def test_sizes_of_slices(topology, accelerator_type, chips, hosts):
    found = parse_topology(topology)
    assert (found.accelerator_type, found.num_chips, found.num_hosts) == (
        accelerator_type,
        chips,
        hosts,
    )
    if found.generation.runtime_version:
        assert parse_accelerator_type(accelerator_type).num_chips == chips
