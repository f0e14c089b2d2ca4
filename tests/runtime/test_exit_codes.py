"""Which exit code an error leads to, as docs/many_hosts.md lists them."""

import pytest

from maft_jax.runtime.consensus import OtherProcessFailed
from maft_jax.runtime.exit_codes import exit_code_of
from maft_jax.runtime.stop_requests import Stopped
from maft_jax.runtime.stop_signals import EvaluationInterrupted, TrainingInterrupted


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such class"), 2),
        (OSError("disk full"), 1),
        (KeyboardInterrupt(), 130),
        (Stopped(15), 143),
        (TrainingInterrupted(15, 7), 143),
        (EvaluationInterrupted(2, "voc2012", 4, 9), 130),
        (OtherProcessFailed(1, 2, "no such class"), 2),
        (RuntimeError("a bug"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_code_of_an_error(error, code):
    assert exit_code_of(error) == code
