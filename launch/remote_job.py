"""The training on the virtual machines of a queued resource: set up, started, watched."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator

from launch import commands, source_archive
from launch.commands import RUN_FOLDER
from launch.queued_resources import QueuedResource, ResourceLost
from launch.runner import Completed, LaunchError

_NUM_TRIES = 3
_SSH_FAILED = 255
_TIMED_OUT = 124
_REFUSED = 3
"""Of the scripts in launch/vm, when another training is in the way."""
_STATE_LINE = re.compile(
    r"^maft_jax host=(\S+) job=(\S+) state=(\w+) code=(-|\d+) \| ?(.*)$", re.MULTILINE
)
_READY_LINE = re.compile(r"^maft_jax host=(\S+) ready", re.MULTILINE)
_FAILED_WORKER = re.compile(r"worker (\d+) failed with exit status (\d+)")


@dataclasses.dataclass(frozen=True)
class WorkerState:
    """What one virtual machine says of its training."""

    host: str
    job: str
    state: str
    """absent, running, exited, stopped (by `stop`), or lost (the machine was restarted)."""
    code: int | None
    last_line: str

    def __str__(self):
        code = "" if self.code is None else f" with code {self.code}"
        return f"{self.host}: {self.state}{code}"


def local_folder(name: str) -> pathlib.Path:
    """Where logs of a queued resource are kept on this machine."""
    return pathlib.Path("runs", "launch", name)


class RemoteJob:
    """The training on all workers of all slices."""

    def __init__(self, resource: QueuedResource, num_workers: dict[str, int], arguments: list[str]):
        self.resource = resource
        self.target, self.runner = resource.target, resource.runner
        self.num_workers = num_workers
        """Of every slice by its name; the first worker of the first slice is asked alone."""
        self.arguments = arguments

    @property
    def id(self) -> str:
        """Tells trainings apart: the same command is the same training."""
        return hashlib.sha256("\0".join(self.arguments).encode()).hexdigest()[:12]

    def set_up(self, env_file: str | None, fetch: list[str]) -> None:
        """Copies the checkout and installs it, on all workers at once.

        Args:
            env_file: local file of secrets, see secrets_file.py.
            fetch: gs:// files and folders to copy into the folder that training runs in.

        Raises:
            ResourceLost: a worker could not be reached, again and again.
            LaunchError: installing failed.
        """
        names = source_archive.list_sources(self.runner)
        archive, digest = source_archive.pack(names)
        self._on_all(f"mkdir -p -m 700 {RUN_FOLDER}", "reaching the workers")
        local = local_folder(self.target.name) / "source.tar.gz"
        self.runner.write(local, archive)
        self._copy(str(local), "source.tar.gz")
        if env_file is not None:
            self._copy(env_file, "secrets.env")
        install = (
            f"cd {RUN_FOLDER} && rm -rf source.new && mkdir source.new && "
            "tar xzf source.tar.gz -C source.new && bash source.new/launch/vm/setup.sh "
            + " ".join(commands.quoted([digest, "tpu", *fetch]))
        )
        self._on_all(install, "installing", timeout=3600, line=_READY_LINE)

    def start(self) -> list[WorkerState]:
        """Starts it where it does not run."""
        verb = commands.job("start", self.id, *self.arguments)
        return _read_states(self._on_all(verb, "starting", line=_STATE_LINE))

    def ask_first(self) -> WorkerState | None:
        """Of the first worker, or None if it does not answer."""
        argv = commands.ssh(self.target, next(iter(self.num_workers)), commands.job("state"), "0")
        found = _read_states([self.runner.run(argv, timeout=180)])
        return found[0] if found else None

    def ask_all(self) -> list[WorkerState]:
        """Of the workers that answer."""
        argvs = [
            commands.ssh(self.target, node, commands.job("state")) for node in self.num_workers
        ]
        return _read_states(self.runner.run_all(argvs, timeout=180))

    def signal(self, verb: str) -> list[WorkerState]:
        """Has all workers `stop`, which saves, or `kill` what is left."""
        return _read_states(self._on_all(commands.job(verb), f"{verb}: ", line=_STATE_LINE))

    def log(self, num_lines: int, node: str, worker: str) -> str:
        """The end of a worker's output."""
        argv = commands.ssh(self.target, node, commands.job("log", str(num_lines)), worker)
        done = self.runner.run(argv, timeout=180)
        return done.stdout if done.exit_code == 0 else ""

    @property
    def total_workers(self) -> int:
        """Of all slices."""
        return sum(self.num_workers.values())

    def _copy(self, local: str, name: str) -> None:
        # Modes go along: a file of secrets stays readable by its owner alone.
        for tried, last in _tries():
            argvs = [
                commands.scp(self.target, node, local, f"{RUN_FOLDER}/{name}")
                for node in self.num_workers
            ]
            results = self.runner.run_all(argvs, timeout=900)
            if not any(done.exit_code for done in results):
                return
            self._report_failure(f"copying {name}", results, tried, last)

    def _on_all(
        self, command: str, what: str, timeout: float = 600, line: re.Pattern | None = None
    ) -> list[Completed]:
        """Runs a command on all workers until each of them has done it.

        Args:
            line: what every worker prints when it has; gcloud's exit code alone does not tell.
        """
        for tried, last in _tries():
            argvs = [commands.ssh(self.target, node, command) for node in self.num_workers]
            results = self.runner.run_all(argvs, timeout=timeout)
            answered = line is None or all(
                len(line.findall(done.stdout)) >= expected
                for done, expected in zip(results, self.num_workers.values(), strict=True)
            )
            if answered and not any(done.exit_code for done in results):
                return results
            self._report_failure(what, results, tried, last)
        raise AssertionError("the last try raises")

    def _report_failure(self, what: str, results: list[Completed], tried: int, last: bool) -> None:
        """Says which workers failed, and waits; after the last try raises."""
        failed = [
            f"{node} {_describe_failure(done)}"
            for node, done in zip(self.num_workers, results, strict=True)
            if done.exit_code
        ]
        message = f"{what} failed on " + ("; ".join(failed) or "a worker that did not answer")
        if not last and not any(_REFUSED in _codes(done) for done in results):
            self.resource.progress.say(f"{message}; trying again ({tried} of {_NUM_TRIES})")
            self.resource.clock.sleep(self.resource.retry_seconds * tried)
            return
        words = "\n".join("\n".join(done.stderr.strip().splitlines()[-8:]) for done in results)
        if all(_is_unreachable(done) for done in results if done.exit_code):
            raise ResourceLost(f"{message}:\n{words}")
        raise LaunchError(f"{message}:\n{words}")


def _tries() -> Iterator[tuple[int, bool]]:
    for tried in range(1, _NUM_TRIES + 1):
        yield tried, tried == _NUM_TRIES


def _describe_failure(done: Completed) -> str:
    workers = [f"worker {w} (exit code {code})" for w, code in _FAILED_WORKER.findall(done.stderr)]
    return ", ".join(workers) or f"(exit code {done.exit_code})"


def _is_unreachable(done: Completed) -> bool:
    """By ssh's own exit code, not by that of what was to run; gcloud's own errors count, too."""
    gcloud_failed = "ERROR: (gcloud." in done.stderr
    return gcloud_failed or all(code in (_SSH_FAILED, _TIMED_OUT) for code in _codes(done))


def _codes(done: Completed) -> list[int]:
    """Of the workers that failed."""
    return [int(code) for _, code in _FAILED_WORKER.findall(done.stderr)] or [done.exit_code]


def _read_states(results: list[Completed]) -> list[WorkerState]:
    return [
        WorkerState(host, job, state, None if code == "-" else int(code), line.strip())
        for done in results
        for host, job, state, code, line in _STATE_LINE.findall(done.stdout)
    ]
