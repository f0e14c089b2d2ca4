"""What several processes decide together, so that all of them go on, stop or fail at one point.

Every function must be called by all processes, in the same order. One process alone agrees with
itself at no cost.
"""

import contextlib
import functools
import itertools
import json
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maft_jax.runtime import stop_requests
from maft_jax.runtime.exit_codes import FAILED, exit_code_of, message_of

RUN_AHEAD = 2
"""Calls of SharedMaximum.put between a value and its effect; training runs as far ahead."""

_MESSAGE_BYTES = 2048
_ABSENT = "nothing"
"""What a difference shows where one side has no such entry."""


class OtherProcessFailed(RuntimeError):
    """Another process cannot go on; `exit_code` is that with which it leaves."""

    raised_everywhere = True

    def __init__(self, process: int, exit_code: int, reason: str):
        super().__init__(f"process {process} of {jax.process_count()} stopped: {reason}")
        self.exit_code = exit_code


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Work of which each process does its part, without talking to others in it.

    A process that fails raises its own error, once the others know, with its attribute
    `raised_everywhere` set to True. The end is a safe point: when one got a signal, all leave.

    Raises:
        OtherProcessFailed: in the processes whose own part was done.
        Stopped: a signal came.
    """
    if jax.process_count() == 1:
        yield
        stop_requests.check()
        return
    try:
        yield
        stop_requests.check()
    except BaseException as error:
        code = exit_code_of(error)
        reason = f"{type(error).__name__}: {error}" if code is None else message_of(error)
        _gather_reports(code or FAILED, reason)
        error.raised_everywhere = True
        raise
    for process, (code, reason) in enumerate(_gather_reports(0, "")):
        if code:
            raise OtherProcessFailed(process, code, reason)


def any_problem(problem: str | None) -> str | None:
    """The first problem that a process has, with its number; None if none has one."""
    if jax.process_count() == 1:
        return problem
    reports = _gather_reports(int(problem is not None), problem or "")
    return next((f"{text}, on process {i}" for i, (bad, text) in enumerate(reports) if bad), None)


def broadcast_from_first(value: np.ndarray | bool | int) -> np.ndarray:
    """The first process's value; shape and dtype must be the same everywhere."""
    value = np.asarray(value)
    if jax.process_count() == 1:
        return value
    # Bytes, because 64 bits become 32 on the way.
    content = np.frombuffer(value.tobytes(), np.uint8)
    first = np.asarray(multihost_utils.broadcast_one_to_all(content))
    return np.frombuffer(first.tobytes(), value.dtype).reshape(value.shape)


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """The sum of what the processes counted, in integers of 64 bits."""
    if jax.process_count() == 1:
        return counts
    # Bytes, because 64 bits become 32 on the way.
    content = np.frombuffer(counts.astype(np.int64).tobytes(), np.uint8)
    rows = np.ascontiguousarray(multihost_utils.process_allgather(content))
    return rows.view(np.int64).sum(axis=0).reshape(counts.shape)


def check_same(values: Mapping[str, object]) -> None:
    """Refuses processes that were started with different settings, weights or data.

    Raises:
        ValueError: names the first value that a process has differently, both values, and the
            process.
    """
    if jax.process_count() == 1:
        return
    digests = np.array([zlib.crc32(repr(value).encode()) for value in values.values()], np.uint32)
    rows = np.asarray(multihost_utils.process_allgather(digests))
    different = np.argwhere(rows != rows[0]).tolist()
    if not different:
        return
    process, index = different[0]
    name = list(values)[index]
    texts = _gather_texts(json.dumps(values[name], default=repr))
    where, theirs, first = first_difference(json.loads(texts[process]), json.loads(texts[0]))
    with fail_together():
        raise ValueError(
            f"{name}{where} is {theirs!r} for process {process} and {first!r} for process 0; start "
            "all with the same command and files"
        )


def first_difference(one: Any, other: Any) -> tuple[str, Any, Any]:
    """Where in two JSON values the first difference is, such as [3].width, and what is there."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *other]:
            there = one.get(key, _ABSENT), other.get(key, _ABSENT)
            if there[0] != there[1]:
                where, *values = first_difference(*there)
                return f".{key}{where}", *values
    if isinstance(one, list) and isinstance(other, list):
        for index, there in enumerate(itertools.zip_longest(one, other, fillvalue=_ABSENT)):
            if there[0] != there[1]:
                where, *values = first_difference(*there)
                return f"[{index}]{where}", *values
    return "", one, other


def to_host(tree):
    """Whole arrays of a tree that may be spread over the devices of several processes."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


class SharedMaximum:
    """The largest of what the processes put, known to all at the same call, without a wait.

    The maximum is computed by the devices behind the work that they have already, and fetched
    RUN_AHEAD calls later, when the step that it followed is over.
    """

    def __init__(self):
        self._pending: deque[jax.Array] = deque()

    def put(self, value: int) -> int:
        """The maximum of what was put RUN_AHEAD calls ago; 0 before that."""
        sharding, maximum = _maximum_over_devices()
        own = np.full(jax.local_device_count(), value, np.int32)
        values = jax.make_array_from_process_local_data(sharding, own)
        self._pending.append(maximum(values))
        if len(self._pending) <= RUN_AHEAD:
            return 0
        return int(self._pending.popleft())


@functools.cache
def _maximum_over_devices():
    mesh = Mesh(np.array(jax.devices()), ("device",))
    replicated = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("device")), jax.jit(jnp.max, out_shardings=replicated)


def _gather_texts(text: str) -> list[str]:
    """The text of every process, however long."""
    return [content.decode() for content in gather_bytes(text.encode())]


def gather_bytes(content: bytes) -> list[bytes]:
    """What each process gives, however much, in their order."""
    if jax.process_count() == 1:
        return [content]
    content = np.frombuffer(content, np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(content)], np.int32)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes() for row, size in zip(rows, sizes.reshape(-1), strict=True)]


def _gather_reports(code: int, reason: str) -> list[tuple[int, str]]:
    """(code, reason) of every process."""
    text = reason.encode()[:_MESSAGE_BYTES]
    report = np.zeros(1 + _MESSAGE_BYTES, np.uint8)
    report[0] = code
    report[1 : 1 + len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(report))
    return [(int(row[0]), row[1:].tobytes().rstrip(b"\0").decode(errors="replace")) for row in rows]
