"""The tables of peaks in docs/scaling.md."""

from maft_jax.planning.chips import CHIPS, GIB
from maft_jax.planning.gpu_cards import CARDS
from maft_jax.runtime import markdown


def peaks() -> list[str]:
    """The part of the page with the rates that its bounds are made of."""
    lines = [
        [
            f"[{chip.title}]({chip.source})",
            f"{chip.flops / 1e12:.0f}",
            f"{chip.devices_per_chip} x {chip.hbm_bytes / GIB:.2f}",
            f"{chip.hbm_bandwidth / 1e9:.0f}",
            f"{2 * len(chip.largest)} x {chip.link_bandwidth / 1e9:.0f}",
            f"{chip.dcn_bandwidth / 1e9:.2f} ({chip.dcn_source})",
        ]
        for chip in CHIPS.values()
    ]
    headings = [
        "chip",
        "bfloat16 TFLOP/s",
        "usable HBM, GiB",
        "HBM GB/s",
        "links, GB/s one way",
        "to other slices, GB/s",
    ]
    return [
        "## Peaks",
        markdown.table(headings, lines),
        markdown.paragraph(
            "Of a chip. Usable HBM is the compiler's limit per device. Rates of links are those "
            "of the [scaling book](https://jax-ml.github.io/scaling-book/tpus), below the data "
            "sheets' 50 and 100; Ironwood's is taken for v5p's, whose data sheet has the same "
            "1200 GB/s for all links in both directions."
        ),
        *_cards(),
    ]


def _cards() -> list[str]:
    lines = [
        [
            f"[{card.title}]({card.source})",
            f"`{card.name}`",
            f"{card.flops / 1e12:g}",
            f"{card.memory_bytes / GIB:.2f}",
            f"{card.hbm_bytes / GIB:.2f}",
            f"{card.hbm_bandwidth / 1e9:.0f}",
            f"{card.link_name}, {card.link_bandwidth / 1e9:.0f}",
            f"{card.dcn_bandwidth / 1e9:.3g} ({card.dcn_source})",
        ]
        for card in CARDS.values()
    ]
    headings = [
        *("card", "name", "TFLOP/s", "memory, GiB", "jax takes, GiB", "memory GB/s"),
        *("in a host, GB/s one way", "to other hosts, GB/s"),
    ]
    return [
        markdown.table(headings, lines),
        markdown.paragraph(
            "Of a card: dense products in half precision with float32 accumulation, without "
            "sparsity (float16 on V100 and T4). Memory is what the driver reports. Cards without "
            "NVLink talk over PCIe; bridges, which join two of some of them, are not assumed. The "
            "network is that of a host with eight cards; fewer share it between them."
        ),
    ]
