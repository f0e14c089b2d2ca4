"""--generator=fcclip of `predict`: a released system, from the checkpoint that --weights names."""

import os
from collections.abc import Iterable, Mapping, Sequence

from absl import flags

from maft_jax.cli import command_line

NAME = "fcclip"

_EXPONENTS = flags.DEFINE_list(
    "ensemble_exponents",
    None,
    "generator=fcclip: exponents of CLIP's probabilities for classes that the generator was "
    "trained on and for others; default: 0.4,0.8 of FC-CLIP, 1,1 of MAFT+, "
    "0.7,0.9 of Mask-Adapter for FC-CLIP, 0.8,1 of that for MAFT+ (0.7,1 with a ConvNeXt-B)",
)
_TRAINED = command_line.define_path(
    "trained_classes",
    "",
    "generator=fcclip: class list (file or built-in) that it was trained on; a class that shares a "
    "name with it is seen; default: none is",
)
_RESIZED = flags.DEFINE_enum(
    "resized",
    "logits",
    ["logits", "scores"],
    "generator=fcclip: what is resized to an image's own size; FC-CLIP does scores where it makes "
    "nothing but semantic output",
)
_TRANSFER = flags.DEFINE_enum(
    "transfer",
    "semantic",
    ["semantic", "panoptic"],
    "generator=fcclip: of MAFT+'s weights, whether they are of a semantic or of a panoptic model; "
    "they do not tell",
)
_OWN = (_EXPONENTS, _TRAINED, _RESIZED, _TRANSFER)
_MEANINGLESS = ("proposals", "num_proposals", "scales", "flip")


def check_flags(asked: bool, of_weights: Iterable[str]) -> None:
    """Refuses flags that would be ignored.

    Args:
        asked: whether --generator is this one.
        of_weights: names of flags that say how weights of other systems are read.

    Raises:
        ValueError: this system has no use for a flag that was given, or others have none.
    """
    names, why = [flag.name for flag in _OWN], f"only with --generator={NAME}"
    if asked:
        names = (*_MEANINGLESS, *of_weights)
        why = (
            f"has no meaning with --generator={NAME}, whose own CLIP reads images as it was "
            "trained to"
        )
    for name in names:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name}: {why}; leave it out")


def load(
    weights: str,
    class_names: Sequence[str],
    background: Sequence[str],
    synonyms: Mapping[str, Sequence[str]],
    templates: Sequence[str],
    compute_dtype: str,
    cache_dir: str | os.PathLike,
) -> tuple:
    """The segmenter, and what the JSON files say of how it was made.

    Raises:
        ValueError: exponents that are none, or no checkpoint of such a system.
    """
    from maft_jax.hub.local_files import pinned
    from maft_jax.inference.fcclip import FcClipSegmenter
    from maft_jax.inference.geometric_ensemble import read_trained_classes
    from maft_jax.models.encoder_setup import compute_dtype as decided
    from maft_jax.runtime.versions import versions

    exponents = _EXPONENTS.value and _two_numbers(_EXPONENTS.value)
    dtype = decided(compute_dtype).name
    segmenter = FcClipSegmenter(
        weights,
        class_names,
        background=background,
        synonyms=synonyms,
        templates=templates,
        trained=read_trained_classes(_TRAINED.value) if _TRAINED.value else (),
        exponents=exponents,
        order=_RESIZED.value,
        transfer=_TRANSFER.value,
        compute_dtype=dtype,
        cache_dir=cache_dir,
    )
    provenance = {
        "weights": {"path": pinned(weights), "fingerprint": segmenter.fingerprint},
        "settings": {
            "templates": list(templates),
            **({"synonyms": dict(synonyms)} if synonyms else {}),
            "generator": NAME,
            "ensemble_exponents": list(segmenter.exponents),
            "trained_classes": _TRAINED.value,
            "resized": _RESIZED.value,
            "transfer": _TRANSFER.value if segmenter.is_maft_plus else None,
            "short_side": segmenter.preparation.shortest_edge,
            "max_long_side": segmenter.preparation.longest_edge,
            "mask_threshold": segmenter.mask_threshold,
            "compute_dtype": dtype,
        },
        "versions": versions(),
    }
    return segmenter, provenance


def _two_numbers(texts: list[str]) -> tuple[float, float]:
    try:
        first, second = (float(text) for text in texts)
    except ValueError:
        raise ValueError(
            f"--ensemble_exponents: expected two numbers such as 0.4,0.8, got {','.join(texts)}"
        ) from None
    if not (0 <= first <= 1 and 0 <= second <= 1):
        raise ValueError(f"--ensemble_exponents: expected 0 to 1, got {first},{second}")
    return first, second
