"""The modules that methods train beside a tower, under the names of their authors' checkpoints.

Names are those below the module's own prefix, such as `cdt.` in MAFT+'s files.
"""

import os
from collections.abc import Collection, Mapping, Sequence

from maft_jax.convert.generator_rules import convolution, dense, norm, packed_attention
from maft_jax.convert.prefixes import find_prefixes, without_torch_wrappers
from maft_jax.convert.rules import Rule, materialised, stored_as_ours, to_foreign
from maft_jax.convert.state_dict_io import open_state_dict, write_state_dict
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.models.adapters.content_dependent_transfer import TransferReader
from maft_jax.models.adapters.mask_adapter import AdapterReader
from maft_jax.models.mask_reader import MaskReader, Modules

_READER = "reader"
"""In a file's metadata."""


def _pointwise(foreign: str, ours: str) -> list[Rule]:
    """A convolution of one pixel, which is a linear map here."""
    kernel = Rule(
        f"{foreign}.weight",
        f"{ours}/kernel",
        lambda shape, x: x[:, :, 0, 0].T,
        lambda x: x.T[:, :, None, None],
    )
    return [kernel, Rule(f"{foreign}.bias", f"{ours}/bias")]


def _convnext_block(foreign: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{foreign}.gamma", f"{ours}/layer_scale"),
        *convolution(f"{foreign}.dwconv", f"{ours}/conv_dw"),
        *norm(f"{foreign}.norm", f"{ours}/ln_mlp"),
        *dense(f"{foreign}.pwconv1", f"{ours}/mlp/c_fc"),
        *dense(f"{foreign}.pwconv2", f"{ours}/mlp/c_proj"),
    ]


def read_modules(path: str | os.PathLike, table: Sequence[Rule], expected: Mapping) -> dict:
    """The modules of a file, or of a whole checkpoint of their authors; float32.

    Args:
        expected: nested tree whose leaves have `.shape`.

    Raises:
        ValueError: it is absent, corrupt, or holds other modules, or of another size, or those of
            two methods, which work together (`has_both`).
    """
    tensors = without_torch_wrappers(open_state_dict(path)[0])
    if table in _TABLES.values() and has_both(tensors):
        raise ValueError(
            f"{os.fspath(path)}: expected the modules of MAFT+ or those of Mask-Adapter for "
            "FC-CLIP, got Mask-Adapter for MAFT+, where both work together; maft_jax.cli.predict "
            "reads the whole checkpoint with --generator=fcclip"
        )
    found = list(module_names(tensors, table).values())
    if len(found) == 1:
        tensors = {name: tensors[whole] for name, whole in found[0].items()}
    return materialised(stored_as_ours(tensors, expected, table, source=os.fspath(path)))


def module_names(names: Collection[str], table: Sequence[Rule]) -> dict[str, dict[str, str]]:
    """By prefix {name below it: whole name}, where all names of the table are."""
    wanted = {name for rule in table for name in rule.names}
    return find_prefixes(names, lambda below: wanted <= set(below))


def has_both(names: Collection[str]) -> bool:
    """Whether these are of Mask-Adapter for MAFT+, which reads cells as no run of ours does."""
    return all(module_names(names, table) for table in _TABLES.values())


def foreign_modules(modules: Modules, names: Collection[str], *, source: str) -> dict:
    """Arrays for the names that these modules have in a checkpoint of their authors.

    Raises:
        ValueError: the checkpoint has no such modules, or several.
    """
    table = _TABLES[type(modules.reader)]
    found = list(module_names(names, table).values())
    if len(found) != 1:
        raise ValueError(
            f"{source}: expected a checkpoint with the modules that the tower reads masks with, "
            f"{type(modules.reader).__name__}, found {len(found)}; give one of the same method, or "
            "the tower alone (tuned.safetensors of the run)"
        )
    ours = to_foreign(modules.parameters, table)
    return {whole: ours[name] for name, whole in found[0].items() if name in ours}


def reader_noted(path: str | os.PathLike) -> str | None:
    """How masks were read with the modules of a file, if a run that left it noted that.

    Raises:
        ValueError: as `open_state_dict`.
    """
    return open_state_dict(path)[1].get(_READER)


def write_modules(
    path: str | os.PathLike,
    table: Sequence[Rule],
    modules: Mapping,
    reader: MaskReader | None = None,
) -> None:
    """The file that `read_modules` reads; written aside, then renamed.

    Args:
        reader: is noted in it, where masks are read with the modules.
    """
    noted = {} if reader is None else {_READER: repr(reader)}
    write_state_dict(in_memory(to_foreign(modules, table)), path, noted)


CONTENT_DEPENDENT_TRANSFER = (
    *packed_attention("cross_atten.multihead_attn", "cross_attn"),
    *dense("cross_atten.MLP", "mlp"),
    *norm("cross_atten.norm", "ln_text"),
)
"""Of MAFT+."""
LINEAR_ALIGNMENT = (*dense("corr_proj_in.0", "proj_in"), *dense("corr_proj_out.0", "proj_out"))
PSEUDO_TEXT_ALIGNMENT = (
    *packed_attention("img2text", "cross_attn"),
    *dense("img_proj", "proj_cells", bias=False),
    *norm("ln_1", "ln_text"),
)
"""Both of MaskCLIP++."""
MASK_ADAPTER = (
    *convolution("mask_downscaling.0", "mask_conv_0"),
    *norm("mask_downscaling.1", "ln_mask_0"),
    *convolution("mask_downscaling.3", "mask_conv_1"),
    *norm("mask_downscaling.4", "ln_mask_1"),
    *_pointwise("mask_downscaling.6", "mask_proj"),
    *_pointwise("fuse", "fuse"),
    *(rule for i in range(3) for rule in _convnext_block(f"cnext{i + 1}", f"blocks_{i}")),
    *norm("norm", "ln_maps"),
    *_pointwise("final", "maps"),
)
_TABLES = {TransferReader: CONTENT_DEPENDENT_TRANSFER, AdapterReader: MASK_ADAPTER}
"""Of modules that masks are read with after training."""
