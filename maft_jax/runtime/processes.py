"""How the processes of a run on several hosts find each other, and how they leave.

`choose_launch` decides from flags and environment alone; `joined` acts on it, before anything
touches the devices.
"""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import jax

from maft_jax.runtime.exit_codes import FAILED, exit_code_of, message_of

HEARTBEAT_SECONDS = 60
"""Without a sign of life after which a process counts as dead, and the others stop."""

_SLURM_STEP = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
"""What srun gives each task, and jax reads; a shell of salloc or sbatch has only some."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """How this process was started; what is None, jax finds by itself."""

    method: Literal["alone", "flags", "slurm", "tpu"]
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    all_local_devices: bool = True
    """False: one of several processes of its node, which takes the GPU of its local number."""


def choose_launch(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> Launch:
    """From the three flags and the environment as it is once jax is imported.

    Flags go first, then a SLURM step of several tasks, then a TPU VM, which `import jax` marks in
    the environment; anything else is one process alone.

    Raises:
        ValueError: only some of the flags are given, they contradict each other, or variables of
            SLURM are missing.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    if missing := [flag for flag, value in given.items() if value is None]:
        if len(missing) < len(given):
            raise ValueError(
                f"{' and '.join(missing)}: missing; expected all of {', '.join(given)}, or none of "
                "them, on TPU VMs, under SLURM and for one process alone"
            )
    else:
        return _from_flags(coordinator_address, num_processes, process_id)
    if _slurm_tasks(environment) > 1:
        return _from_slurm(environment)
    platforms = environment.get("JAX_PLATFORMS", "tpu").split(",")
    if "TPU_ML_PLATFORM" in environment and platforms[0] in ("", "tpu"):
        return Launch("tpu")
    return Launch("alone")


@contextlib.contextmanager
def joined(launch: Launch, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> Iterator[int]:
    """Context in which this process is one of those of the run; yields its index.

    What all processes agreed on ends the context in all of them together. An error in this one
    alone is reported and ends the process at once, since the others wait for it in vain: they
    stop when its connections break or its heartbeats fail to come.
    """
    if launch.method == "alone":
        yield 0
        return
    _initialize(launch, heartbeat_seconds)
    if jax.process_count() > 1 and jax.process_index() == 0:
        logger.info(
            "%d processes (%s) with %d devices, %d of them here",
            jax.process_count(),
            launch.method,
            jax.device_count(),
            jax.local_device_count(),
        )
    try:
        yield jax.process_index()
    except BaseException as error:
        if jax.process_count() > 1 and not getattr(error, "raised_everywhere", False):
            _leave_alone(error)
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def _from_flags(address: str, num_processes: int, process_id: int) -> Launch:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ValueError(
            f"--coordinator_address={address}: expected HOST:PORT, host and a free port of the "
            "process with --process_id=0"
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id}: expected 0 .. {num_processes - 1}, since "
            f"--num_processes={num_processes}"
        )
    return Launch("flags", address, num_processes, process_id)


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the step that this process belongs to; 0 outside of steps."""
    if "SLURM_STEP_NODELIST" not in environment:
        return 0
    return _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS", 0))


def _from_slurm(environment: Mapping[str, str]) -> Launch:
    if missing := [name for name in _SLURM_STEP if name not in environment]:
        raise ValueError(
            f"a SLURM step of several tasks without {', '.join(missing)}; start with srun python "
            "-m maft_jax.main ..., or give --coordinator_address, --num_processes, --process_id"
        )
    num_tasks = _slurm_tasks(environment)
    num_nodes = _number(environment, "SLURM_STEP_NUM_NODES", 1)
    visible_gpus = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    one_gpu_bound = visible_gpus != [""] and len(visible_gpus) == 1
    return Launch(
        "slurm",
        num_processes=num_tasks,
        process_id=_number(environment, "SLURM_PROCID", 0),
        all_local_devices=num_tasks <= num_nodes or one_gpu_bound,
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, str(default))
    if not value.isdigit():
        raise ValueError(f"{name}={value} in the environment: expected a number")
    return int(value)


def _initialize(launch: Launch, heartbeat_seconds: int) -> None:
    # Its SIGTERM handler would swallow a signal that comes before training.
    jax.config.update("jax_enable_preemption_service", False)
    # An empty list restricts nothing; None would let jax take one GPU of those of a SLURM node.
    local_device_ids = [] if launch.method == "slurm" and launch.all_local_devices else None
    jax.distributed.initialize(
        launch.coordinator_address,
        launch.num_processes,
        launch.process_id,
        local_device_ids,
        heartbeat_timeout_seconds=heartbeat_seconds,
    )


def _leave_alone(error: BaseException) -> None:
    code = exit_code_of(error)
    if code is None:
        traceback.print_exception(error)
    message = f"{type(error).__name__}" if code is None else message_of(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        message += "; perhaps another process is gone: start all again, the run resumes"
    print(f"\nprocess {jax.process_index()} leaves: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(FAILED if code is None else code)  # at exit, jax would wait for the others
