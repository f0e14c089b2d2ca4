"""Prints the commands of a launch instead of running them, as if all went well."""

import json
import pathlib
from collections.abc import Sequence

from launch.accelerators import parse_accelerator_type
from launch.commands import Request, Target
from launch.runner import Clock, Completed, SubprocessRunner, shell_line


class DryRunner:
    """Answers as gcloud, kubectl and sbatch would on a good day."""

    def __init__(self, target: Target | None = None, request: Request | None = None):
        self._target, self._request = target, request
        self._exists = request is None
        self._runs = request is None  # a command about what is there already

    def run(self, argv: Sequence[str], *, stdin: str = "", timeout: float = 600) -> Completed:
        if argv[0] == "git":  # reads this machine alone, and what it lists is needed
            return SubprocessRunner().run(argv, timeout=timeout)
        print(shell_line(argv))
        return self._answer(list(argv))

    def run_all(self, argvs: Sequence[Sequence[str]], *, timeout: float = 600) -> list[Completed]:
        return [self.run(argv) for argv in argvs]

    def show(self, argv: Sequence[str]) -> int:
        print(shell_line(argv))
        return 0

    def write(self, path: pathlib.Path, content: bytes) -> None:
        print(f"# writes {path}")

    def _answer(self, argv: list[str]) -> Completed:
        if "queued-resources" in argv:
            if "create" in argv:
                self._exists = True
            if "delete" in argv:
                self._exists = False
            if "describe" in argv:
                if not self._exists:
                    return Completed(1, "", "NOT_FOUND")
                return Completed(0, json.dumps(self._resource()))
        elif "tpu-vm" in argv:
            if "describe" in argv:
                return Completed(0, json.dumps({"networkEndpoints": [{}] * self._num_hosts}))
            if "ssh" in argv:
                return self._answer_ssh(argv)
        return Completed(0)

    def _answer_ssh(self, argv: list[str]) -> Completed:
        num_workers = self._num_hosts if "--worker=all" in argv else 1
        self._runs = self._runs or any("job.sh start" in argument for argument in argv)
        state, code = ("exited", "0") if self._runs else ("absent", "-")
        lines = [
            f"maft_jax host=w-{i} job=- state={state} code={code} | -\nmaft_jax host=w-{i} ready"
            for i in range(num_workers)
        ]
        return Completed(0, "\n".join(lines))

    @property
    def _num_hosts(self) -> int:
        if self._request is None:
            return 1
        return parse_accelerator_type(self._request.accelerator_type).num_hosts

    def _resource(self) -> dict:
        name = self._target.name
        count = 1 if self._request is None else self._request.num_slices
        spec = {"nodeId": name} if count == 1 else {"multisliceParams": {"nodeCount": count}}
        return {"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [spec]}}


class DryClock(Clock):
    """Does not wait."""

    def sleep(self, seconds: float) -> None:
        pass
