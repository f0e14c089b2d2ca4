"""NVIDIA's cards, with the sources of their peaks.

Peaks are of dense products in half precision with float32 accumulation, without sparsity, at boost
clock. Memory is what the driver reports, which is less than is printed on the box: as in XLA's own
descriptions of cards (openxla/xla, xla/backends/gpu/target_config/specs, Apache-2.0, whose numbers
of cores, caches and clocks stand here, too), and of others as PyTorch quotes it in its errors.
"""

from maft_jax.planning.chips import GIB, gigabit
from maft_jax.planning.gpu_card import DEFAULT_SHARE, GpuCard

_NVLINK = "NVLink's rate is that of a board with NVSwitch"
_V100_LINK = "NVLink's rate is that of all six links of a card"
_DATA_SHEETS = "https://www.nvidia.com/en-us/data-center"


def _card(
    *, memory_bytes: int, network: tuple[int, int, str], link: tuple[str, float, str], **values
) -> GpuCard:
    """network: gigabits per second, the cards that share it, source; link: name, GB/s, source."""
    gigabits, cards, dcn_source = network
    name, rate, link_source = link
    return GpuCard(
        memory_bytes=memory_bytes,
        hbm_bytes=int(DEFAULT_SHARE * memory_bytes),
        network=gigabit(gigabits),
        network_cards=cards,
        dcn_bandwidth=gigabit(gigabits) / cards,
        dcn_source=dcn_source,
        link_name=name,
        link_bandwidth=rate * 1e9,
        link_source=link_source,
        largest=(8,),
        **values,
    )


def _pcie(version: int, bridge: bool = False) -> tuple[str, float, str]:
    rate = {3: 16.0, 4: 32.0, 5: 64.0}[version]
    text = f"PCIe {version}.0 x16 between cards, {rate:g} GB/s one way"
    return "PCIe", rate, text + ("; no NVLink bridge, which would join two cards" if bridge else "")


_ETHERNET = (25, 8, "assumed: 25 Gbit/s for a host")

_ALL = (
    _card(
        name="h100",
        title="NVIDIA H100 80GB HBM3",
        flops=989e12,
        hbm_bandwidth=3352.32e9,
        memory_bytes=84942979072,
        link=("NVLink", 450.0, _NVLINK),
        network=(400, 1, "400 Gbit/s for each card, as in a DGX H100"),
        capability=(9, 0),
        cores=132,
        clock_ghz=1.98,
        l2_bytes=52428800,
        device_kinds="NVIDIA H100 .*HBM3",
        source=f"{_DATA_SHEETS}/h100/",
    ),
    _card(
        name="h100-pcie",
        title="NVIDIA H100 PCIe",
        flops=756e12,
        hbm_bandwidth=2039.04e9,
        memory_bytes=84942979072,
        link=_pcie(5, bridge=True),
        network=_ETHERNET,
        capability=(9, 0),
        cores=114,
        clock_ghz=1.755,
        l2_bytes=52428800,
        device_kinds="NVIDIA H100 PCIe",
        source=f"{_DATA_SHEETS}/h100/",
    ),
    _card(
        name="h100-nvl",
        title="NVIDIA H100 NVL",
        flops=835e12,
        hbm_bandwidth=3900e9,
        memory_bytes=int(93.1 * GIB),
        link=_pcie(5, bridge=True),
        network=_ETHERNET,
        capability=(9, 0),
        cores=132,
        clock_ghz=1.785,
        l2_bytes=52428800,
        device_kinds="NVIDIA H100 NVL",
        source=f"{_DATA_SHEETS}/h100/",
    ),
    _card(
        name="h200",
        title="NVIDIA H200",
        flops=989e12,
        hbm_bandwidth=4800e9,
        memory_bytes=int(139.8 * GIB),
        link=("NVLink", 450.0, _NVLINK),
        network=(400, 1, "400 Gbit/s for each card, as in a DGX H200"),
        capability=(9, 0),
        cores=132,
        clock_ghz=1.98,
        l2_bytes=52428800,
        device_kinds="NVIDIA (H200|GH200 .*)",
        source=f"{_DATA_SHEETS}/h200/",
    ),
    _card(
        name="b200",
        title="NVIDIA B200",
        flops=2250e12,
        hbm_bandwidth=7672.32e9,
        memory_bytes=191514411008,
        link=("NVLink", 900.0, _NVLINK),
        network=(400, 1, "400 Gbit/s for each card, as in a DGX B200"),
        capability=(10, 0),
        cores=148,
        clock_ghz=1.965,
        l2_bytes=132644864,
        device_kinds="NVIDIA B200",
        source=f"{_DATA_SHEETS}/dgx-b200/",
    ),
    _card(
        name="a100-80",
        title="NVIDIA A100-SXM4-80GB",
        flops=312e12,
        hbm_bandwidth=2039.04e9,
        memory_bytes=85100068864,
        link=("NVLink", 300.0, _NVLINK),
        network=(200, 1, "200 Gbit/s for each card, as in a DGX A100"),
        capability=(8, 0),
        cores=108,
        clock_ghz=1.41,
        l2_bytes=41943040,
        device_kinds="NVIDIA A100.*",
        source=f"{_DATA_SHEETS}/a100/",
    ),
    _card(
        name="a100-40",
        title="NVIDIA A100-SXM4-40GB",
        flops=312e12,
        hbm_bandwidth=1555.2e9,
        memory_bytes=42331013120,
        link=("NVLink", 300.0, _NVLINK),
        network=(200, 1, "200 Gbit/s for each card, as in a DGX A100"),
        capability=(8, 0),
        cores=108,
        clock_ghz=1.41,
        l2_bytes=41943040,
        device_kinds="NVIDIA A100.*",
        source=f"{_DATA_SHEETS}/a100/",
    ),
    _card(
        name="a6000",
        title="NVIDIA RTX A6000",
        flops=154.8e12,
        hbm_bandwidth=768.096e9,
        memory_bytes=51041271808,
        link=_pcie(4, bridge=True),
        network=_ETHERNET,
        capability=(8, 6),
        cores=84,
        clock_ghz=1.8,
        l2_bytes=6291456,
        device_kinds="NVIDIA RTX A6000",
        source="https://www.nvidia.com/en-us/design-visualization/rtx-a6000/",
    ),
    _card(
        name="3090",
        title="NVIDIA GeForce RTX 3090",
        flops=71e12,  # GeForce accumulates in float32 at half the rate
        hbm_bandwidth=936e9,
        memory_bytes=int(23.69 * GIB),
        link=_pcie(4, bridge=True),
        network=_ETHERNET,
        capability=(8, 6),
        cores=82,
        clock_ghz=1.695,
        l2_bytes=6291456,
        device_kinds="NVIDIA GeForce RTX 3090",
        source="https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
    ),
    _card(
        name="4090",
        title="NVIDIA GeForce RTX 4090",
        flops=165.2e12,
        hbm_bandwidth=1008e9,
        memory_bytes=int(23.6 * GIB),
        link=_pcie(4),
        network=_ETHERNET,
        capability=(8, 9),
        cores=128,
        clock_ghz=2.52,
        l2_bytes=75497472,
        device_kinds="NVIDIA GeForce RTX 4090",
        source="https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    _card(
        name="l4",
        title="NVIDIA L4",
        flops=121e12,
        hbm_bandwidth=300e9,
        memory_bytes=int(22.0 * GIB),
        link=_pcie(4),
        network=_ETHERNET,
        capability=(8, 9),
        cores=58,
        clock_ghz=2.04,
        l2_bytes=50331648,
        device_kinds="NVIDIA L4",
        source=f"{_DATA_SHEETS}/l4/",
    ),
    _card(
        name="v100-16",
        title="NVIDIA V100-SXM2-16GB",
        flops=125e12,
        float32_flops=15.7e12,
        hbm_bandwidth=898.048e9,
        memory_bytes=16935682048,
        link=("NVLink", 150.0, _V100_LINK),
        network=(100, 2, "400 Gbit/s for eight cards, as in a DGX-1"),
        capability=(7, 0),
        cores=80,
        clock_ghz=1.53,
        l2_bytes=6291456,
        device_kinds="Tesla V100-SXM.*",
        source=f"{_DATA_SHEETS}/v100/",
    ),
    _card(
        name="v100-32",
        title="NVIDIA V100-SXM2-32GB",
        flops=125e12,
        float32_flops=15.7e12,
        hbm_bandwidth=898.048e9,
        memory_bytes=int(31.7 * GIB),
        link=("NVLink", 150.0, _V100_LINK),
        network=(100, 2, "400 Gbit/s for eight cards, as in a DGX-1"),
        capability=(7, 0),
        cores=80,
        clock_ghz=1.53,
        l2_bytes=6291456,
        device_kinds="Tesla V100-SXM.*",
        source=f"{_DATA_SHEETS}/v100/",
    ),
    _card(
        name="v100-pcie",
        title="NVIDIA V100-PCIE-16GB",
        flops=112e12,
        float32_flops=14e12,
        hbm_bandwidth=898.048e9,
        memory_bytes=16935682048,
        link=_pcie(3),
        network=_ETHERNET,
        capability=(7, 0),
        cores=80,
        clock_ghz=1.38,
        l2_bytes=6291456,
        device_kinds="Tesla V100-PCIE.*",
        source=f"{_DATA_SHEETS}/v100/",
    ),
    _card(
        name="t4",
        title="NVIDIA T4",
        flops=65e12,
        float32_flops=8.1e12,
        hbm_bandwidth=320e9,
        memory_bytes=int(14.56 * GIB),
        link=_pcie(3),
        network=_ETHERNET,
        capability=(7, 5),
        cores=40,
        clock_ghz=1.59,
        l2_bytes=4194304,
        device_kinds="Tesla T4",
        source=f"{_DATA_SHEETS}/tesla-t4/",
    ),
)

CARDS: dict[str, GpuCard] = {card.name: card for card in _ALL}

ALIASES = {"a100": "a100-80", "v100": "v100-16", "rtx3090": "3090", "rtx4090": "4090"}
