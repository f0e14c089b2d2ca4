"""A queued resource: asking for it, waiting for it, knowing when it is lost, deleting it."""

import dataclasses
import json

from launch import commands
from launch.commands import Request, Target
from launch.gcloud_errors import GcloudError, Kind, explain
from launch.runner import Clock, Completed, LaunchError, Progress, Runner

ACTIVE = "ACTIVE"
DELETING = "DELETING"
DEAD = {"SUSPENDING", "SUSPENDED", "FAILED"}
"""States that never lead back to ACTIVE; such a resource still uses quota."""
_NUM_TRIES = 5


class ResourceLost(LaunchError):
    """The machines are gone or do not answer; new ones can go on, which `up` asks for."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What Google says of a queued resource."""

    state: str
    nodes: list[str]
    """One per slice."""
    accelerator_type: str
    error: str = ""
    """Why it FAILED."""


class QueuedResource:
    """One resource by its name, whether or not it exists."""

    def __init__(
        self,
        target: Target,
        runner: Runner,
        clock: Clock,
        progress: Progress,
        *,
        poll_seconds: float = 30,
        retry_seconds: float = 60,
    ):
        self.target = target
        self.runner, self.clock, self.progress = runner, clock, progress
        self.poll_seconds, self.retry_seconds = poll_seconds, retry_seconds

    def describe(self) -> Description | None:
        """Its state now, or None where there is no such resource."""
        done = self.call(commands.describe(self.target), "asking for the state", {Kind.NOT_FOUND})
        return parse_description(done.stdout, self.target.name) if done.exit_code == 0 else None

    def create(self, request: Request) -> None:
        """Puts the request into Google's queue."""
        self.progress.say(f"asking for {self.target.name}: {request.description}")
        argv = commands.create(self.target, request)
        self.call(argv, f"creating {self.target.name}", {Kind.EXISTS})  # a try that did arrive

    def delete(self) -> None:
        """Ends it and its machines; where there is none, nothing is to be done."""
        self.progress.say(f"deleting {self.target.name}")
        argv = commands.delete(self.target)
        self.call(argv, f"deleting {self.target.name}", {Kind.NOT_FOUND}, timeout=1800)

    def wait_until_active(self) -> Description:
        """Waits in Google's queue.

        Raises:
            ResourceLost: it cannot become active any more.
            LaunchError: nor could another one, as it stands.
        """
        while True:
            found = self.describe()
            if found is None:
                raise ResourceLost(f"{self.target.name} does not exist")
            if found.state == ACTIVE:
                self.progress.say(f"{self.target.name} is ACTIVE, and costs from now on")
                return found
            if found.state in DEAD:
                kind, _ = explain(found.error, self.target)
                if found.error and kind not in (Kind.CAPACITY, Kind.TRANSIENT):
                    raise GcloudError(
                        f"{self.target.name}: Google's side", found.error, self.target
                    )
                raise ResourceLost(f"{self.target.name} is {found.state} {found.error}".rstrip())
            self.progress.say_if_new(f"waiting: {self.target.name} is {found.state}")
            self.clock.sleep(self.poll_seconds)

    def wait_until_gone(self) -> None:
        """Waits for a deletion that somebody began.

        Raises:
            LaunchError: nobody did.
        """
        while (found := self.describe()) is not None:
            if found.state != DELETING:
                raise LaunchError(f"{self.target.name} is {found.state}, after it was deleted")
            self.progress.say_if_new(f"waiting: {self.target.name} is being deleted")
            self.clock.sleep(self.poll_seconds)

    def num_workers(self, nodes: list[str]) -> dict[str, int]:
        """Virtual machines of each slice.

        Raises:
            ResourceLost: a slice is not there or not usable.
        """
        found = {}
        for node in nodes:
            argv = commands.describe_node(self.target, node)
            done = self.call(argv, f"asking for {node}", {Kind.NOT_FOUND})
            if done.exit_code:
                raise ResourceLost(f"slice {node} does not exist")
            described = _parse_json(done.stdout, node)
            if described.get("state") in ("PREEMPTED", "TERMINATED", "STOPPED", "DELETING"):
                raise ResourceLost(f"slice {node} is {described['state']}")
            found[node] = max(1, len(described.get("networkEndpoints", [])))
        return found

    def call(
        self, argv: list[str], what: str, accepted: set[Kind], timeout: float = 600
    ) -> Completed:
        """Runs a command of gcloud's API; tries again what may pass by itself.

        Raises:
            GcloudError: it failed, and not in a way that is `accepted`.
        """
        for tried in range(1, _NUM_TRIES + 1):
            done = self.runner.run(argv, timeout=timeout)
            if done.exit_code == 0:
                return done
            kind, _ = explain(done.stderr, self.target)
            if kind in accepted:
                return done
            if kind is not Kind.TRANSIENT or tried == _NUM_TRIES:
                break
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            self.progress.say(f"{what}: {last_line}; trying again ({tried} of {_NUM_TRIES})")
            self.clock.sleep(min(self.retry_seconds * tried, self.poll_seconds))
        raise GcloudError(what, done.stderr, self.target)


def parse_description(text: str, name: str) -> Description:
    """Reads `gcloud compute tpus queued-resources describe --format=json`."""
    described = _parse_json(text, name)
    state = described.get("state", {})
    nodes, types = [], set()
    for spec in described.get("tpu", {}).get("nodeSpec", []):
        types.add(spec.get("node", {}).get("acceleratorType", ""))
        several = spec.get("multisliceParams") or spec.get("multiNodeParams")
        if spec.get("nodeId"):
            nodes.append(spec["nodeId"])
        elif several:
            prefix = several.get("nodeIdPrefix", name)
            nodes += [f"{prefix}-{i}" for i in range(int(several["nodeCount"]))]
    return Description(
        state=state.get("state", "STATE_UNSPECIFIED"),
        nodes=nodes or [name],
        accelerator_type=", ".join(sorted(types - {""})),
        error=state.get("failedData", {}).get("error", {}).get("message", ""),
    )


def _parse_json(text: str, name: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LaunchError(f"{name}: gcloud answered no JSON: {text[:200]!r}") from error
    if not isinstance(found, dict):
        raise LaunchError(f"{name}: expected one JSON object of gcloud, got {text[:200]!r}")
    return found
