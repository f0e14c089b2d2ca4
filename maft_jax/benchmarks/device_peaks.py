"""Published peaks of matrix products, by the names that devices give themselves in jax.

Dense bfloat16 with float32 accumulation, without sparsity and at boost clock; float16 on V100 and
T4, whose tensor cores know no bfloat16. TPUs: `maft_jax.planning.chips`; GPUs:
`maft_jax.planning.gpu_cards`.
"""

import re

from maft_jax.planning.chips import CHIPS
from maft_jax.planning.gpu_cards import CARDS

_PEAKS = (
    (r"TPU v4", CHIPS["v4"].device_flops),
    (r"TPU v5e|TPU v5 lite", CHIPS["v5e"].device_flops),
    (r"TPU v5p?", CHIPS["v5p"].device_flops),
    (r"TPU v6e|TPU v6 lite", CHIPS["v6e"].device_flops),
    (r"TPU7x", CHIPS["tpu7x"].device_flops),
    *((card.device_kinds, card.flops) for card in CARDS.values()),
)


def peak_flops(device_kind: str, compute_dtype: str) -> float | None:
    """Operations per second of one device, or None where no peak is known.

    Peaks are of half precision, so that other dtypes have none.
    """
    if compute_dtype != "bfloat16":
        return None
    for pattern, peak in _PEAKS:
        if re.fullmatch(pattern, device_kind):
            return peak
    return None
