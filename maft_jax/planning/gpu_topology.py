"""NVIDIA GPUs that need not be there, as devices for which JAX compiles.

`pip install 'maft_jax[cuda-compile]'` brings the compiler; neither a GPU nor a driver is needed,
and JAX must run on the CPU (JAX_PLATFORMS=cpu). gpu_targets holds what XLA must know of each card,
copied from openxla/xla, xla/backends/gpu/target_config/specs (Apache-2.0).
"""

import importlib.util
import pathlib
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

GPU_TARGETS = {"h100": "h100_sxm.txtpb", "a100": "a100_sxm_80.txtpb"}
"""Files of gpu_targets by the names of cards: those with 80 GB that sit on a board of eight."""

# Without a GPU nothing can be timed, and the tiles that XLA's Triton products get untimed are poor
# or do not exist ("Couldn't find output tile sizes"); cuBLAS, which is left, chooses its own.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
"""For `lowered.compile` of a program for such devices."""

_MODULES = ("jax_cuda12_plugin", "nvidia.cuda_nvcc", "nvidia.cudnn")
"""JAX's compiler; the library of device functions and the assembler; and what JAX asks for its
version when it traces attention."""


def why_no_gpu_compiler() -> str | None:
    """What is missing to trace and compile for GPUs here, or None."""
    for module in _MODULES:
        if not _is_installed(module):
            return (
                f"{module}, which compiling for NVIDIA GPUs needs, is not installed; it needs no "
                "GPU: pip install 'maft_jax[cuda-compile]'"
            )
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def target_config(name: str) -> str:
    """The text of XLA's GpuTargetConfigProto of a card.

    Raises:
        ValueError: `name` is not one of GPU_TARGETS.
    """
    if name not in GPU_TARGETS:
        raise ValueError(f"GPU {name!r}: expected one of {list(GPU_TARGETS)}")
    return pathlib.Path(__file__).with_name("gpu_targets").joinpath(GPU_TARGETS[name]).read_text()


def device_bytes(target: str) -> int:
    """Memory of the card of such a text; jax takes three quarters of it if it is not told other."""
    return int(re.search(r"\bdevice_memory_size: (\d+)", target)[1])


def gpu_devices(target: str, num_devices: int, num_hosts: int = 1) -> Sequence[jax.Device]:
    """Devices of XLA's compiler, those of a host side by side.

    Args:
        target: what target_config returns.
        num_devices: of each host.

    Raises:
        ValueError: the compiler is not installed.
    """
    if missing := why_no_gpu_compiler():
        raise ValueError(missing)
    found = topologies.get_topology_desc(
        platform="cuda",  # "gpu" is not known to it
        target_config=target,
        topology=f"1x{num_hosts}x{num_devices}",
    )
    return tuple(found.devices)
