"""NVIDIA GPUs that need not be there, as devices for which JAX compiles.

`pip install 'maft_jax[cuda-compile]'` brings the compiler; neither a GPU nor a driver is needed,
and JAX must run on the CPU (JAX_PLATFORMS=cpu). `maft_jax.planning.gpu_cards` has the cards.
"""

import functools
import importlib.util
from collections.abc import Sequence

from maft_jax.planning.gpu_card import GpuCard

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


def gpu_devices(card: GpuCard, num_devices: int, num_hosts: int = 1) -> Sequence:
    """Devices of XLA's compiler, those of a host side by side.

    Args:
        num_devices: of each host.

    Raises:
        ValueError: the compiler is not installed.
    """
    if missing := why_no_gpu_compiler():
        raise ValueError(missing)
    return _devices(card.target_config(), num_devices, num_hosts)


@functools.cache
def _devices(target: str, num_devices: int, num_hosts: int) -> tuple:
    from jax.experimental import topologies  # not before the environment is prepared

    found = topologies.get_topology_desc(
        platform="cuda",  # "gpu" is not known to it
        target_config=target,
        topology=f"1x{num_hosts}x{num_devices}",
    )
    return tuple(found.devices)
