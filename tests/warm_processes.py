"""Commands in processes that begin with the libraries imported: forks of one that did it.

A command imports for six seconds of CPU before it begins, TensorFlow above all, and slow tests
start more than a hundred. Here a process for all tests of a worker imports once and forks for each.
A fork has its own arguments, environment, output and, if asked, session, and it ends as any Python
process ends. Of ours next to nothing is imported before. All forks hash strings alike.
"""

import array
import contextlib
import functools
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import time

from maft_jax.runtime.absent_keras import leave_keras_out

REPOSITORY = pathlib.Path(__file__).parent.parent
WARM = "MAFT_JAX_TESTS_START_WARM"
"""Set in the environment of tests that may use this."""
_DEVICES = "JAX_NUM_CPU_DEVICES"
_LIBRARIES = (
    *("tensorflow", "clu.metric_writers", "flax.linen", "jax", "matplotlib.figure", "optax"),
    *("orbax.checkpoint", "scipy.ndimage"),
)


class WarmProcess:
    """As much of subprocess.Popen as tests use."""

    def __init__(
        self, arguments: list[str], environment: dict[str, str], stdout, start_new_session: bool
    ):
        """`arguments` begin with -m; `stdout` is subprocess.PIPE or a file."""
        request = {
            "arguments": arguments,
            "environment": environment,
            "new_session": start_new_session,
        }
        self.returncode: int | None = None
        self._news, theirs = socket.socketpair()
        server, _ = _server(_settings_of_jax(environment))
        with theirs, contextlib.ExitStack() as ours:
            if stdout == subprocess.PIPE:
                self._output, writes = os.pipe()
                stdout = ours.enter_context(os.fdopen(writes, "wb"))
            descriptors = [stdout.fileno(), theirs.fileno()]
            socket.send_fds(server, [json.dumps(request).encode()], descriptors)
        self.pid = self._number()

    def _number(self) -> int:
        """The next that is told: the id by the process, then the exit code by its parent."""
        told = array.array("q")
        told.frombytes(self._news.recv(8, socket.MSG_WAITALL))
        return told[0]

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            _wait_for(self._news, timeout)
            self.returncode = self._number()
            self._news.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it and all that it started have printed, once they have ended."""
        end, parts = None if timeout is None else time.monotonic() + timeout, [b""]
        while len(parts) == 1 or parts[-1]:
            _wait_for(self._output, end and max(0, end - time.monotonic()))
            parts.append(os.read(self._output, 1 << 16))
        os.close(self._output)
        self.wait(end and max(0, end - time.monotonic()))
        return b"".join(parts).decode(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _wait_for(readable, timeout: float | None) -> None:
    if not select.select([readable], [], [], timeout)[0]:
        raise subprocess.TimeoutExpired("a fork", timeout)


def _settings_of_jax(environment: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """What is read while jax is imported; a fork can be told how many devices."""
    return tuple(
        sorted((k, v) for k, v in environment.items() if k.startswith("JAX_") and k != _DEVICES)
    )


@functools.cache
def _server(settings: tuple[tuple[str, str], ...]) -> tuple[socket.socket, subprocess.Popen]:
    """A process that ends with this one, and the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    others = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_processes", str(theirs.fileno())],
        cwd=REPOSITORY,
        env=others | dict(settings) | {"PYTHONPATH": str(REPOSITORY)},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    return ours, process


def _serve(requests: socket.socket) -> None:
    """Forks for each request; in a fork it returns when the command has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the forks
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return _become(json.loads(request), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(request: dict, output: int, news: int) -> None:
    """Forks once more: the child is the command, the parent tells how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        with contextlib.suppress(OSError):  # nobody may be there any more
            os.close(output)
            _, status = os.waitpid(child, 0)
            _tell(news, os.waitstatus_to_exitcode(status))
        os._exit(0)
    if request["new_session"]:
        os.setsid()
    _tell(news, os.getpid())
    os.close(news)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    if _DEVICES in os.environ:
        import jax  # not before: processes that read this file have no use for it

        jax.config.update(_DEVICES.lower(), int(os.environ[_DEVICES]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _, module, *sys.argv[1:] = request["arguments"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _tell(news: int, number: int) -> None:
    os.write(news, array.array("q", [number]).tobytes())


if __name__ == "__main__":
    leave_keras_out()  # as commands do
    sys.modules["triton"] = None  # see conftest
    for library in _LIBRARIES:
        importlib.import_module(library)
    _serve(socket.socket(fileno=int(sys.argv[1])))
