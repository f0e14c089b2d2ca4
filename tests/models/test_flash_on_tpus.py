"""The attention kernels compile for every TPU, which differ in what they can do."""

import os
import subprocess
import sys

import pytest

from tests.runs import REPOSITORY

TOPOLOGIES = ("v5e:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
WITHOUT_SEARCH = os.environ | {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1"}
"""What is around the kernels is not looked at, so that nobody need search for its fastest loops."""


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_kernels_compile_and_say_what_they_cost(topology):
    program = [sys.executable, "-m", "tests.models.compile_kernels", topology]
    finished = subprocess.run(
        program, cwd=REPOSITORY, env=WITHOUT_SEARCH, capture_output=True, text=True, timeout=900
    )
    assert finished.returncode == 0, finished.stderr
    costs = {
        tuple(line[:2]): tuple(map(int, line[2:]))
        for line in map(str.split, finished.stdout.splitlines())
        if line[0].startswith(("attend", "masked", "read"))
    }
    assert len(costs) == (12 if topology.startswith("v5e") else 6)
    flops, _ = costs["masked", "bfloat16"]
    assert flops == pytest.approx(4 * (901 * 901 + 900 * 900 + 100 * 900) * 768, rel=0.001)
    flops, num_bytes = costs["attend", "bfloat16"]
    assert flops == pytest.approx(4 * 901 * 901 * 768, rel=0.001)
    assert num_bytes == pytest.approx(2 * 901 * 4 * 768, rel=0.01)
