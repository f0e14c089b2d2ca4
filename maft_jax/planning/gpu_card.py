"""What a plan needs to know of one of NVIDIA's cards, and what XLA must know to compile for it."""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any, ClassVar

from maft_jax.planning.chips import GIB, Chip, Coordinates, Place

DEFAULT_SHARE = 0.75
"""Of a card's memory that jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says other."""
LARGE_SHARE = 0.9
"""That mostly works for a card which shows no desktop."""

_BFLOAT16 = (8, 0)
"""The first compute capability whose tensor cores multiply bfloat16: Ampere."""


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """What cards of one compute capability share, of a multiprocessor."""

    fpus: int
    threads: int
    shared_memory: int
    shared_memory_per_block: int


_ARCHITECTURES = {
    (7, 0): _Architecture(64, 2048, 98304, 98304),
    (7, 5): _Architecture(64, 1024, 65536, 65536),
    (8, 0): _Architecture(64, 2048, 167936, 166912),
    (8, 6): _Architecture(128, 1536, 102400, 101376),
    (8, 9): _Architecture(128, 1536, 102400, 101376),
    (9, 0): _Architecture(128, 2048, 233472, 232448),
    (10, 0): _Architecture(128, 2048, 233472, 232448),
}

_TARGET = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {architecture.shared_memory}
  threads_per_core_limit: {architecture.threads}
  core_count: {card.cores}
  fpus_per_core: {architecture.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {card.hbm_bandwidth:.0f}
  l2_cache_size: {card.l2_bytes}
  clock_rate_ghz: {card.clock_ghz}
  device_memory_size: {card.memory_bytes}
  shared_memory_per_block_optin: {architecture.shared_memory_per_block}
  cuda_compute_capability {{ {capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  device_address_bits: 64
  name: "{card.title}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{card.title}"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuCard(Chip):
    """One card. `hbm_bytes` is what jax takes of `memory_bytes` by default."""

    memory_bytes: int
    link_source: str
    network: float
    """Bytes per second between hosts, of as many cards as share it."""
    network_cards: int
    capability: tuple[int, int]
    cores: int
    """Streaming multiprocessors."""
    clock_ghz: float
    l2_bytes: int
    device_kinds: str
    """Regular expression of what jax calls this card and those with its peak."""
    float32_flops: float | None = None
    """Of cards without products in bfloat16."""

    noun = "card"
    part = "host"
    memory_name = "memory"
    # Without a card nothing can be timed, and the tiles that XLA's Triton products get untimed are
    # poor or do not exist ("Couldn't find output tile sizes"); cuBLAS, which is left, chooses its
    # own.
    compiler_options: ClassVar[Mapping[str, Any]] = {"xla_gpu_enable_triton_gemm": False}

    @property
    def has_bfloat16(self) -> bool:
        return self.capability >= _BFLOAT16

    @property
    def product_flops(self) -> float:
        """Where there is no bfloat16, XLA multiplies in float32."""
        return self.float32_flops or self.flops

    @property
    def limits(self) -> tuple[str, ...]:
        """What a plan for this card does not know or takes for granted."""
        found = (
            "no card: nothing is timed, products are cuBLAS's, and cuDNN's workspace and the code "
            "of kernels count as nothing",
            self.link_source,
        )
        if self.has_bfloat16:
            return found
        return (
            *found,
            f"{self.title} cannot multiply bfloat16, so that XLA multiplies in float32 "
            f"({self.product_flops / 1e12:g} TFLOP/s, not {self.flops / 1e12:g}), and cuDNN has no "
            "fused attention for it: attention=auto is xla",
        )

    def notes_on_memory(self, num_bytes: float) -> tuple[str, ...]:
        """The compiler refuses nothing, so whether it fits is a comparison with what jax takes."""
        large = LARGE_SHARE * self.memory_bytes
        verdict = "fits" if num_bytes <= large else "does not fit"
        return (
            f"jax takes {DEFAULT_SHARE:.0%} of the card's {self.memory_bytes / GIB:.2f} GiB; with "
            f"XLA_PYTHON_CLIENT_MEM_FRACTION={LARGE_SHARE} it takes {large / GIB:.2f} GiB, into "
            f"which this {verdict}",
        )

    def place(self, device) -> Place:
        """Every process is a host."""
        return device.process_index, (device.id,)

    def usable_links(self, group: Set[Coordinates], whole: Set[Coordinates]) -> int:
        """All that a card has reach every other card of its host."""
        del whole
        return int(len(group) > 1)

    def in_machine(self, shape: tuple[int, ...]) -> "GpuCard":
        """With its share of the network of a host of so many cards."""
        (cards,) = shape
        share = self.network / min(cards, self.network_cards)
        return dataclasses.replace(self, dcn_bandwidth=share)

    def target_config(self) -> str:
        """The text of XLA's GpuTargetConfigProto."""
        major, minor = self.capability
        capability = f"major: {major} minor: {minor}"
        if major >= 9:
            capability += " feature_extension: ACCELERATED_FEATURES"
        return _TARGET.format(
            card=self, architecture=_ARCHITECTURES[self.capability], capability=capability
        )
