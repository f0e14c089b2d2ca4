"""From a path to an opened WeightsSource: one file, or a folder as the libraries leave them."""

import functools
import os
import pathlib
from collections.abc import Mapping

from maft_jax.convert import open_clip, tips, transformers_clip
from maft_jax.convert.foreign_format import WeightsSource
from maft_jax.convert.state_dict_io import open_state_dict
from maft_jax.convert.stored_tensor import StoredTensor
from maft_jax.hub.hugging_face import WEIGHTS_FILES
from maft_jax.runtime.json_files import parse_json, read_json

OWN_METADATA = "maft_jax"
"""Key in a safetensors file's metadata under which we keep the architecture."""

_SETTINGS_FILES = (open_clip.SETTINGS_FILE, transformers_clip.SETTINGS_FILE)


def open_tensors(path: str | os.PathLike) -> WeightsSource:
    """Opens a file of weights, a folder with one, or one in shards; reads no values.

    Raises:
        ValueError: absent, corrupt, of another kind, or a folder without weights.
    """
    path = pathlib.Path(path)
    file = _in_folder(path) if path.is_dir() else path
    if file.name.endswith(".index.json"):
        tensors, metadata = _open_shards(file), {}
    else:
        tensors, metadata = open_state_dict(file)
        tensors = _with_other_tower(file, tensors)
    settings = {
        name: functools.partial(read_json, file.parent / name)
        for name in _SETTINGS_FILES
        if (file.parent / name).is_file()
    }
    return WeightsSource(os.fspath(path), tensors, settings, _own(metadata, path))


def _with_other_tower(
    file: pathlib.Path, tensors: Mapping[str, StoredTensor]
) -> Mapping[str, StoredTensor]:
    """TIPS has a file for each tower; the other one lies beside it."""
    companion = tips.companion_of(file)
    if companion is None or not tips.holds_a_part(tensors):
        return tensors
    if not companion.is_file():
        if file.stem.endswith("_text"):
            raise ValueError(
                f"{file}: TIPS's text tower alone; expected the image tower in {companion}"
            )
        return tensors
    return {**tensors, **open_state_dict(companion)[0]}


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"{folder}: a folder; expected a file of CLIP weights (.safetensors, .pt, .npz), or a "
        f"folder with one of {', '.join(WEIGHTS_FILES)}"
    )


def _open_shards(index: pathlib.Path) -> dict[str, StoredTensor]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, Mapping) or not all(isinstance(x, str) for x in where.values()):
        raise ValueError(f"{index}: expected weight_map, an object of file names by tensor")
    shards = {}
    for name in sorted(set(where.values())):
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{index}: the shard {name!r} is not a file beside it")
        shards[name], _ = open_state_dict(index.parent / name)
    absent = [tensor for tensor, shard in where.items() if tensor not in shards[shard]]
    listed = {(tensor, shard) for tensor, shard in where.items()}
    extra = [t for shard, found in shards.items() for t in found if (t, shard) not in listed]
    if absent or extra:
        raise ValueError(
            f"{index}: index and shards disagree: {len(absent)} tensors absent from their shard "
            f"{absent[:3]}, {len(extra)} not in the index {extra[:3]}; download the folder again"
        )
    return {tensor: shards[shard][tensor] for tensor, shard in where.items()}


def _own(metadata: Mapping[str, str], path: pathlib.Path) -> dict | None:
    if OWN_METADATA not in metadata:
        return None
    return parse_json(metadata[OWN_METADATA], f"{path}: corrupt metadata {OWN_METADATA!r}")
