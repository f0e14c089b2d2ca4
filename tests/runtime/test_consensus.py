"""What processes agree on: real ones, of which one has other values, problems and signals."""

import sys

import numpy as np
import pytest

from maft_jax.runtime import consensus
from tests.hosts import Hosts, free_port

PROGRAM = """
import functools
import sys
import jax
import numpy as np
from maft_jax.runtime import consensus
from maft_jax.runtime.processes import choose_launch, joined

address, count, process = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
answers = open(sys.argv[4], "w")  # apart from what Gloo prints between
print = functools.partial(print, file=answers)

def attempt(work):
    try:
        with consensus.fail_together():
            work()
        print("done")
    except Exception as error:
        code, everywhere = getattr(error, "exit_code", None), error.raised_everywhere
        print(type(error).__name__, code, everywhere, error)

def work():
    if process == 1:
        raise ValueError("no such file")

def check():
    try:
        names = ["cat"] * 3000 + [f"of {process}"]
        consensus.check_same({"seed": 3, "data": {"root": "a", "names": names}})
    except Exception as error:
        print(type(error).__name__, error)

with joined(choose_launch(address, count, process, {}), heartbeat_seconds=10):
    attempt(lambda: None)
    attempt(work)
    check()
    print(consensus.any_problem("broken" if process == 1 else None), consensus.any_problem(None))
    print(consensus.broadcast_from_first(np.array([2**40 + process, -1])).tolist())
    print(consensus.sum_over_processes(np.array([[2**40, process]])).tolist())
    shared = consensus.SharedMaximum()
    print([shared.put(value) for value in ([0, 0, 0, 0, 0], [0, 15, 15, 15, 15])[process]])
"""


def test_processes_agree(tmp_path):
    port = free_port()
    answers = [tmp_path / f"answers_{i}.txt" for i in range(2)]
    commands = [
        [sys.executable, "-c", PROGRAM, f"localhost:{port}", "2", str(i), str(answers[i])]
        for i in range(2)
    ]
    Hosts(commands, tmp_path, num_devices=2).finish(timeout=100)
    first, second = (file.read_text() for file in answers)
    for output in (first, second):
        lines = output.splitlines()
        assert lines[0] == "done"
        assert lines[-4] == "broken, on process 1 None"
        assert lines[-3] == f"[{2**40}, -1]"
        assert lines[-2] == f"[[{2**41}, 1]]"
        assert lines[-1] == "[0, 0, 0, 15, 15]", "the value of the second call at the fourth"
    assert "OtherProcessFailed 2 True process 1 of 2 stopped: no such file" in first
    assert "ValueError None True no such file" in second
    for output in (first, second):
        expected = "data.names[3000] is 'of 1' for process 1 and 'of 0' for process 0; start all"
        assert expected in output


def test_one_process_agrees_with_itself():
    value = np.array([2**40, -1])
    np.testing.assert_array_equal(consensus.broadcast_from_first(value), value)
    assert consensus.any_problem("broken") == "broken"
    consensus.check_same({"seed": 3})
    with pytest.raises(OSError, match="full"), consensus.fail_together():
        raise OSError("full")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (1, 2, ("", 1, 2)),
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}}, (".b.c[1]", 2, 3)),
        (["x"], ["x", "y"], ("[1]", "nothing", "y")),
        ({"a": 1}, {}, (".a", 1, "nothing")),
        ({"a": "x"}, {"a": ["x"]}, (".a", "x", ["x"])),
    ],
)
def test_the_first_difference_is_shown_by_its_place(one, other, expected):
    assert consensus.first_difference(one, other) == expected
