"""How a process decides whether it is alone, and what it tells jax if it is not."""

import sys

import pytest

from maft_jax.runtime.processes import Launch, choose_launch
from tests.hosts import Hosts, free_port

SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
"""Of the sixth of eight tasks."""

TPU_VM = {"TPU_ML_PLATFORM": "JAX", "TPU_LIBRARY_PATH": "libtpu.so"}
"""What `import jax` adds where it finds chips."""


def chosen(environment, *flags):
    return choose_launch(*(flags or (None, None, None)), environment)


def test_a_laptop_is_alone():
    assert chosen({"TPU_SKIP_MDS_QUERY": "1"}) == Launch("alone")


def test_flags_go_before_everything():
    expected = Launch("flags", "10.0.0.1:1234", 2, 1)
    assert chosen(SRUN | TPU_VM, "10.0.0.1:1234", 2, 1) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", None, None), "--num_processes and --process_id: missing; expected all of"),
        ((None, 2, 0), "--coordinator_address: missing"),
        (("host:1", 2, None), "--process_id: missing"),
        (("host", 2, 0), "--coordinator_address=host: expected HOST:PORT"),
        (("host:http", 2, 0), "expected HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2: expected 0 .. 1, since --num_processes=2"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        chosen({}, *flags)


def test_tpu_vm_finds_its_processes_by_itself():
    assert chosen(TPU_VM) == Launch("tpu")
    assert chosen(TPU_VM | {"JAX_PLATFORMS": "tpu,cpu"}) == Launch("tpu")


def test_tpu_vm_that_was_told_to_use_its_cpu_is_alone():
    assert chosen(TPU_VM | {"JAX_PLATFORMS": "cpu"}) == Launch("alone")


def test_task_of_srun_takes_the_gpu_of_its_number():
    expected = Launch("slurm", None, 8, 5, all_local_devices=False)
    assert chosen(SRUN | {"SLURM_STEP_NUM_NODES": "2"}) == expected


def test_only_task_of_its_node_takes_all_gpus():
    nodes = {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "8"}
    assert chosen(SRUN | nodes | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).all_local_devices


def test_task_that_slurm_bound_to_one_gpu_takes_that_one():
    bound = {"SLURM_STEP_NUM_NODES": "2", "CUDA_VISIBLE_DEVICES": "3"}
    assert chosen(SRUN | bound).all_local_devices


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    ],
    ids=["batch script", "interactive shell of a large allocation", "step of one task"],
)
def test_shells_and_single_tasks_of_slurm_are_alone(environment):
    assert chosen(environment) == Launch("alone")


def test_step_without_the_variables_of_srun_is_refused():
    environment = {name: value for name, value in SRUN.items() if name != "SLURM_PROCID"}
    with pytest.raises(ValueError, match=r"without SLURM_PROCID; start with srun"):
        chosen(environment)
    with pytest.raises(ValueError, match=r"SLURM_NTASKS=2\(x3\) in the environment"):
        chosen(SRUN | {"SLURM_NTASKS": "2(x3)"})


JOIN = """
import os
import jax
from maft_jax.runtime.processes import choose_launch, joined

with joined(choose_launch(None, None, None, os.environ), heartbeat_seconds=10) as process:
    print(f"{process} of {jax.process_count()}, {jax.local_device_count()} devices", flush=True)
"""


def test_tasks_of_srun_find_each_other(tmp_path):
    shared = SRUN | {
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    tasks = [shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    hosts = Hosts([[sys.executable, "-c", JOIN]] * 2, tmp_path, num_devices=2, environments=tasks)
    outputs = hosts.finish(timeout=100)
    for i in range(2):
        assert f"{i} of 2, 2 devices" in outputs[i]
