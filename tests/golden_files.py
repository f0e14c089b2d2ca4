"""The golden numbers, made by the official PyTorch code on a CPU in float32.

tests/golden/README.md says what each file holds. A missing file fails the test that needs it.
"""

import functools
import pathlib

import numpy as np

from tests.in_memory_weights import from_openai, load_state_dict

GOLDEN = pathlib.Path(__file__).parent / "golden"
MASK_START_LAYER = 3


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of golden/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@functools.cache
def maft_small():
    """Architecture, teacher parameters and student parameters of maft_small."""
    teacher = load_state_dict(GOLDEN / "maft_small_teacher.safetensors")
    tuned = load_state_dict(GOLDEN / "maft_small_student.safetensors")
    student = teacher | {f"visual.{name}": value for name, value in tuned.items()}
    config, teacher_parameters = from_openai(teacher, source="maft_small_teacher")
    return config, teacher_parameters, from_openai(student, source="maft_small_student")[1]
