"""The gcloud commands of a queued resource, as argument lists; nothing here runs anything."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from launch.accelerators import parse_accelerator_type

CAPACITIES = ["on_demand", "spot", "reserved", "flex_start"]
RUN_FOLDER = "maft_jax_run"
"""On the VM, in the home folder."""
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Target:
    """Which queued resource."""

    name: str
    zone: str
    project: str | None = None
    """By default the project that gcloud is set to."""

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"--name={self.name}: expected at most 50 lower-case letters, digits and hyphens, "
                "a letter first and no hyphen last"
            )
        if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z0-9]+", self.zone):
            raise ValueError(f"--zone={self.zone}: expected a zone, such as us-west4-a")

    @property
    def flags(self) -> list[str]:
        """What every command about it ends with."""
        project = [] if self.project is None else [f"--project={self.project}"]
        return [f"--zone={self.zone}", *project, "--quiet"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to rent."""

    accelerator_type: str
    num_slices: int = 1
    capacity: str = "on_demand"
    runtime_version: str | None = None
    """By default the one for JAX on these chips."""
    valid_until_duration: str | None = None
    """How long to wait in the queue at most, such as 6h."""
    max_run_duration: str | None = None
    """After which Google deletes the machines; for flex_start only, such as 12h."""
    create_flags: tuple[str, ...] = ()
    """Further flags of `gcloud compute tpus queued-resources create`."""

    def __post_init__(self):
        parse_accelerator_type(self.accelerator_type)
        if self.capacity not in CAPACITIES:
            raise ValueError(f"--capacity={self.capacity}: expected one of {CAPACITIES}")
        if self.num_slices < 1:
            raise ValueError(f"--num_slices={self.num_slices}: expected 1 or more")
        if (self.capacity == "flex_start") != (self.max_run_duration is not None):
            raise ValueError(
                f"--capacity={self.capacity} --max_run_duration={self.max_run_duration}: "
                "flex_start needs a duration, such as 12h, and nothing else has one"
            )
        if self.capacity == "flex_start" and self.num_slices > 1:
            raise ValueError("--capacity=flex_start: expected --num_slices=1")

    @property
    def num_chips(self) -> int:
        """Of all slices."""
        return parse_accelerator_type(self.accelerator_type).num_chips * self.num_slices

    @property
    def description(self) -> str:
        """For people."""
        slices = f"{self.num_slices} x " if self.num_slices > 1 else ""
        return f"{slices}{self.accelerator_type} ({self.num_chips} chips, {self.capacity})"


def create(target: Target, request: Request) -> list[str]:
    """Asks for the resource; returns when the request is in the queue."""
    generation = parse_accelerator_type(request.accelerator_type).generation
    track = ["alpha"] if request.capacity == "flex_start" else []  # its two flags are there only
    if request.num_slices == 1:
        nodes = [f"--node-id={target.name}"]
    else:
        nodes = [f"--node-count={request.num_slices}", f"--node-prefix={target.name}"]
    capacity = {
        "on_demand": [],
        "spot": ["--spot"],
        "reserved": ["--reserved"],
        "flex_start": [
            "--provisioning-model=flex-start",
            f"--max-run-duration={request.max_run_duration}",
        ],
    }[request.capacity]
    until = request.valid_until_duration
    return [
        *["gcloud", *track, "compute", "tpus", "queued-resources", "create", target.name],
        *nodes,
        f"--accelerator-type={request.accelerator_type}",
        f"--runtime-version={request.runtime_version or generation.runtime_version}",
        *capacity,
        *([] if until is None else [f"--valid-until-duration={until}"]),
        *request.create_flags,
        *target.flags,
    ]


def describe(target: Target) -> list[str]:
    """State and nodes, as JSON."""
    return [*_queued("describe"), target.name, "--format=json", *target.flags]


def delete(target: Target) -> list[str]:
    """Ends it and its machines, whatever its state; returns when it is gone."""
    return [*_queued("delete"), target.name, "--force", *target.flags]


def describe_node(target: Target, node: str) -> list[str]:
    """State and workers of one slice, as JSON."""
    return [*_node("describe"), node, "--format=json", *target.flags]


def ssh(target: Target, node: str, command: str, worker: str = "all") -> list[str]:
    """Runs a shell command on one worker of a slice, or on all at once."""
    return [*_node("ssh"), node, f"--worker={worker}", f"--command={command}", *target.flags]


def scp(target: Target, node: str, source: str, destination: str, worker: str = "all") -> list[str]:
    """Copies a local file to the workers of a slice."""
    return [*_node("scp"), source, f"{node}:{destination}", f"--worker={worker}", *target.flags]


def job(verb: str, *arguments: str) -> str:
    """The shell command that has launch/vm/job.sh on the VM do something."""
    return " ".join(["bash", f"{RUN_FOLDER}/source/launch/vm/job.sh", verb, *quoted(arguments)])


def quoted(arguments: Sequence[str]) -> list[str]:
    """Safe in a shell command."""
    return [shlex.quote(argument) for argument in arguments]


def _queued(verb: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "queued-resources", verb]


def _node(verb: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "tpu-vm", verb]
