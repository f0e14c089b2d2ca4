"""From nothing to a finished training, through preemptions, lost workers and full zones."""

import dataclasses
import enum

from launch.commands import Request
from launch.queued_resources import DEAD, DELETING, Description, QueuedResource, ResourceLost
from launch.remote_job import RemoteJob, WorkerState, local_folder
from launch.runner import LaunchError

_MAX_MISSES = 5
"""Answers in a row that the first worker may owe before its machine counts as lost."""
_LEAVING_POLLS = 10
"""How often to look whether the other workers have left, too."""
_HEALTHY_SECONDS = 1800
"""A training that ran so long makes earlier failures forgotten."""
_LONGEST_PAUSE = 1800
_IN_PLACE = 2
"""Restarts on the same machines before others are asked for."""
_LOG_LINES = 5000


class WrongInput(LaunchError):
    """Training refused its flags or data; trying again cannot help."""

    exit_code = 2


class Refused(LaunchError):
    """What is there under this name is something else, and stays as it is."""

    exit_code = 2


class TrainingStopped(LaunchError):
    """Somebody ran `stop`."""

    exit_code = 143


class Outcome(enum.Enum):
    """Why training does not run any more."""

    DONE = 0
    STOPPED = 1
    WRONG_INPUT = 2
    FAILED = 3
    INTERRUPTED = 4


def judge(states: list[WorkerState], num_workers: int) -> Outcome:
    """What the workers' exit codes mean together (`maft_jax.main --help` has the codes).

    A worker that lost another one dies of a signal, so that 2 and 1 on any worker say more than
    what the others left with, and codes above 128 mean that the same command resumes.

    Raises:
        ResourceLost: a worker does not answer, or its machine was restarted.
    """
    if len(states) < num_workers or any(s.state in ("absent", "lost") for s in states):
        answers = ", ".join(map(str, states)) or "none"
        raise ResourceLost(f"expected answers of {num_workers} workers, got {answers}")
    codes = {s.code for s in states}
    if 2 in codes:
        return Outcome.WRONG_INPUT
    if any(s.state == "stopped" for s in states):
        return Outcome.STOPPED
    if codes == {0}:
        return Outcome.DONE
    if any(code is None or code > 128 for code in codes):
        return Outcome.INTERRUPTED
    return Outcome.FAILED


@dataclasses.dataclass
class Lifecycle:
    """What `up` does; the same command again goes on where the last one ended."""

    resource: QueuedResource
    request: Request
    arguments: list[str]
    """Of maft_jax.main."""
    env_file: str | None = None
    fetch: list[str] = dataclasses.field(default_factory=list)
    max_attempts: int = 10
    active_seconds: float = 0.0
    """How long machines were seen in use."""

    def up(self) -> None:
        """Returns when training is done.

        Raises:
            LaunchError: it cannot be done, or not within `max_attempts`.
        """
        failures = 0
        while True:
            lost, began = False, None
            try:
                found, fresh = self._active_resource()
                began = self.resource.clock.now()
                if self.watch(self._running_job(found, fresh)) is Outcome.DONE:
                    return
                reason = "training was interrupted"
            except ResourceLost as error:
                lost, reason = True, str(error)
            finally:
                seconds = 0.0 if began is None else self.resource.clock.now() - began
                self.active_seconds += seconds
            failures = 1 if seconds >= _HEALTHY_SECONDS else failures + 1
            self._prepare_next_attempt(reason, failures, lost or failures > _IN_PLACE)

    def watch(self, job: RemoteJob) -> Outcome:
        """Looks after the training until it has ended on all workers.

        Raises:
            ResourceLost: the machines are gone or do not answer.
            LaunchError: training failed for good.
        """
        misses = 0
        while True:
            self._require_alive()
            worker = job.ask_first()
            if worker is None:
                misses += 1
                self.resource.progress.say(f"worker 0 does not answer ({misses} of {_MAX_MISSES})")
                if misses == _MAX_MISSES:
                    raise ResourceLost("worker 0 does not answer")
            else:
                misses = 0
                if worker.state != "running":
                    return self._end(job)
                self.resource.progress.say_if_new(f"training: {worker.last_line}")
            self.resource.clock.sleep(self.resource.poll_seconds)

    def _running_job(self, found: Description, fresh: bool) -> RemoteJob:
        """The training on these machines, started unless it runs there, or has ended well."""
        job = RemoteJob(self.resource, self.resource.num_workers(found.nodes), self.arguments)
        states = [] if fresh else job.ask_all()
        if {s.job for s in states if s.state == "running"} - {job.id}:
            raise Refused(
                f"{self.resource.target.name} runs a training with other arguments. Stop it first "
                "(python -m launch.tpu stop), or use another --name"
            )
        mine = [s for s in states if s.job == job.id and (s.state == "running" or s.code == 0)]
        if len(mine) == job.total_workers:
            self.resource.progress.say("this training is there already; watching it")
            return job
        self.resource.progress.say(f"setting up {job.total_workers} workers")
        job.set_up(self.env_file, self.fetch)
        job.start()
        self.resource.progress.say("training runs; it goes on without this command")
        return job

    def _active_resource(self) -> tuple[Description, bool]:
        """A resource in use, and whether it was asked for just now."""
        found = self.resource.describe()
        if found is not None and found.state == DELETING:
            self.resource.wait_until_gone()
            found = None
        if found is not None and found.state in DEAD:
            self.resource.progress.say(f"{self.resource.target.name} is {found.state}")
            self.resource.delete()
            found = None
        fresh = found is None
        if fresh:
            self.resource.create(self.request)
        elif found.accelerator_type not in ("", self.request.accelerator_type):
            raise Refused(
                f"{self.resource.target.name} is a {found.accelerator_type}; expected "
                f"{self.request.accelerator_type}. Use another --name, or delete it first"
            )
        return self.resource.wait_until_active(), fresh

    def _prepare_next_attempt(self, reason: str, failures: int, renew: bool) -> None:
        name = self.resource.target.name
        if failures >= self.max_attempts:
            raise LaunchError(f"gave up after {failures} attempts (--max_attempts); {reason}")
        pause = min(self.resource.retry_seconds * 2 ** (failures - 1), _LONGEST_PAUSE)
        if renew:
            self._require_undeleted(self.resource.describe())
        what = f"asking for new machines for {name}" if renew else "starting it again"
        if renew and self.request.capacity == "flex_start":
            raise LaunchError(
                f"{name}: {reason}. Its hours were limited by --max_run_duration, so no new ones "
                "are asked for by themselves; the same command does, and resumes"
            )
        self.resource.progress.say(f"{reason}; {what} in {pause:.0f} s")
        if renew:
            self.resource.delete()
        self.resource.clock.sleep(pause)

    def _require_alive(self) -> None:
        found = self._require_undeleted(self.resource.describe())
        if found.state in DEAD:
            raise ResourceLost(f"{self.resource.target.name} is {found.state}")

    def _require_undeleted(self, found: Description | None) -> Description:
        """Google suspends what it takes away; what is deleted, somebody does not want any more."""
        if found is None or found.state == DELETING:
            raise LaunchError(
                f"somebody deleted {self.resource.target.name}; no other one is asked for. The "
                "same command does, and resumes"
            )
        return found

    def _end(self, job: RemoteJob) -> Outcome:
        """Of all workers, once they have left; keeps their logs."""
        misses = 0
        for _ in range(_LEAVING_POLLS):
            states = job.ask_all()
            misses += len(states) < job.total_workers
            complete = len(states) == job.total_workers
            if misses == _MAX_MISSES or (complete and all(s.state != "running" for s in states)):
                break
            self.resource.clock.sleep(self.resource.poll_seconds)
            self._require_alive()
        else:
            self.resource.progress.say("some workers do not leave; ending their training")
            states = job.signal("kill")
        outcome = judge(states, job.total_workers)
        if outcome is Outcome.INTERRUPTED:
            return outcome
        if outcome is Outcome.FAILED:  # the news of a preemption may come later than its effects
            self.resource.clock.sleep(self.resource.poll_seconds)
            self._require_alive()
        last_lines = self._keep_logs(job)
        workers = "\n".join(f"{s}: {s.last_line}" for s in states)
        summary = f"{last_lines}\n\nThe workers, and the last line of each:\n{workers}"
        if outcome is Outcome.WRONG_INPUT:
            raise WrongInput(f"training refused its input; trying again cannot help:\n{summary}")
        if outcome is Outcome.FAILED:
            raise LaunchError(f"training failed:\n{summary}")
        if outcome is Outcome.STOPPED:
            raise TrainingStopped("training was stopped, and saved; the same command resumes it")
        return outcome

    def _keep_logs(self, job: RemoteJob) -> str:
        """Copies the output of the first worker of each slice here; returns how the first ends."""
        ends = []
        for node in job.num_workers:
            path = local_folder(self.resource.target.name) / f"{node}-worker-0.log"
            text = job.log(_LOG_LINES, node, "0")
            try:
                self.resource.runner.write(path, text.encode())
                self.resource.progress.say(f"its output: {path}")
            except OSError as error:  # no reason to let machines run on
                self.resource.progress.say(f"its output could not be kept: {error}")
            ends.append("\n".join(text.splitlines()[-15:]))
        return ends[0]
