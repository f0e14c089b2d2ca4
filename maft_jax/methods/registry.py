"""The methods of config.method, by name."""

from collections.abc import Callable

from maft_jax.config import Config
from maft_jax.methods.maft_plus import MaftPlus
from maft_jax.methods.mask_adapter import MaskAdapterMethod
from maft_jax.methods.maskclippp import MaskClipPlusPlus
from maft_jax.methods.method import Method

METHODS: dict[str, Callable[[Config], Method]] = {
    "maft_plus": lambda config: MaftPlus.of(config.loss),
    "mask_adapter": lambda config: MaskAdapterMethod.of(config.loss),
    "maskclippp": lambda config: MaskClipPlusPlus.of(config.loss),
}
"""Beside maft, which is no Method: its objective has a teacher and proposals, as it always had.

What each reads of config.loss is in config.sections.METHOD_LOSSES.
"""


def make_method(config: Config) -> Method | None:
    """What config.method names; None is maft."""
    return None if config.method == "maft" else METHODS[config.method](config)
