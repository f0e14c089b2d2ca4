"""Several real processes on this machine that act as the hosts of one run."""

import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

from tests.runs import start
from tests.warm_processes import WarmProcess

HEARTBEAT_SECONDS = 10


class Hosts:
    """Processes of one run, each with its own fake devices and its own log."""

    def __init__(
        self,
        commands: Sequence[list[str]],
        folder: pathlib.Path,
        num_devices: int = 1,
        environments: Sequence[dict[str, str]] | None = None,
    ):
        """Starts one process per command; logs are in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = [folder / f"host_{i}.log" for i in range(len(commands))]
        self.processes: list[subprocess.Popen | WarmProcess] = []
        for i, command in enumerate(commands):
            environment = {"JAX_NUM_CPU_DEVICES": str(num_devices)}
            environment |= environments[i] if environments else {}
            with self._logs[i].open("w") as log:
                # Only one starts warm, so that they hash strings differently, as on real hosts.
                self.processes.append(
                    start(command, stdout=log, environment=environment, warm=i == 0)
                )

    def outputs(self) -> list[str]:
        """What each has printed so far."""
        return [log.read_text() for log in self._logs]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Polls while all are running."""
        while not condition():
            assert all(process.poll() is None for process in self.processes), self.described()
            time.sleep(0.005)

    def finish(self, *exit_codes: int, timeout: float = 200) -> list[str]:
        """Waits for all, checks their exit codes (default 0), and returns their outputs."""
        found = self.wait(timeout)
        assert found == list(exit_codes or [0] * len(found)), self.described()
        return self.outputs()

    def wait(self, timeout: float = 200) -> list[int]:
        """Exit codes, once all have ended."""
        try:
            return [process.wait(timeout) for process in self.processes]
        except subprocess.TimeoutExpired:
            for process in self.processes:
                process.send_signal(signal.SIGKILL)
            raise AssertionError(f"still running after {timeout} s\n{self.described()}") from None

    def described(self) -> str:
        """Codes and outputs, for messages."""
        codes = [process.poll() for process in self.processes]
        return "\n".join(
            f"=== {code}\n{text}" for code, text in zip(codes, self.outputs(), strict=True)
        )


def flags_of_process(process: int, num_processes: int, port: int) -> list[str]:
    """With which main joins the others."""
    return [
        f"--coordinator_address=localhost:{port}",
        f"--num_processes={num_processes}",
        f"--process_id={process}",
        f"--heartbeat_timeout={HEARTBEAT_SECONDS}",
    ]


def on_hosts(
    command: list[str],
    folder: pathlib.Path,
    num_devices: int = 1,
    own_flags: Sequence[list[str]] = ([], []),
) -> Hosts:
    """The same command line in several processes, with the flags that join them and their own."""
    port, count = free_port(), len(own_flags)
    commands = [
        [*command, *flags_of_process(i, count, port), *own] for i, own in enumerate(own_flags)
    ]
    return Hosts(commands, folder, num_devices)


def free_port() -> int:
    """On this machine, now."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]
