"""The study's records as files, beside the page that is made of them."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from maft_jax.runtime.atomic_files import atomic_write
from maft_jax.shapes_world.experiments import (
    CONVNEXT_TABLE,
    EXPERIMENTS,
    LEARNED_MASKS,
    METHODS_TABLE,
    RECALL_TABLE,
    SECOND_CLIP_TABLE,
)

RUNS, LEARNED, METHODS_FILE = "runs.json", "learned_masks.json", "methods.json"
RECALL = "proposal_recall.json"
SECOND_CLIP_FILE = "methods_second_clip.json"
CONVNEXT_FILE = "methods_convnext.json"
OF_METHODS = {METHODS_FILE, SECOND_CLIP_FILE, CONVNEXT_FILE}
_LEARNED_TABLES = frozenset({"learned_masks"})


def write_records(
    records: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any], folder: pathlib.Path
) -> set[str]:
    """Writes those files of which all tables are there; returns their names.

    A run is in one file: rows of runs.json's tables with learned masks are found in the other.
    """
    there = {record["table"] for record in records}
    others = {experiment.table for experiment in EXPERIMENTS} - _LEARNED_TABLES
    files = {
        RUNS: others,
        LEARNED: _LEARNED_TABLES,
        RECALL: {RECALL_TABLE},
        METHODS_FILE: {METHODS_TABLE},
        SECOND_CLIP_FILE: {SECOND_CLIP_TABLE},
        CONVNEXT_FILE: {CONVNEXT_TABLE},
    }
    complete = {name: tables for name, tables in files.items() if tables <= there}
    for name, tables in complete.items():
        runs = [
            record
            for record in records
            if record["table"] in tables and (name != RUNS or record["settings"] != LEARNED_MASKS)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / name) as aside:
            aside.write_text(json.dumps({"runs": runs, **provenance}, indent=1) + "\n")
    return set(complete)


def read_study(folder: pathlib.Path) -> dict[str, Any]:
    """runs.json and, as `learned_masks` and `proposal_recall`, what files of these names have.

    Raises:
        ValueError: there is no runs.json.
    """
    return _read(folder, RUNS, {"learned_masks": LEARNED, "proposal_recall": RECALL})


def read_methods(folder: pathlib.Path) -> dict[str, Any]:
    """methods.json, and what files of other CLIPs have as `second_clip` and `convnext`, if any.

    Raises:
        ValueError: there is no methods.json.
    """
    others = {"second_clip": SECOND_CLIP_FILE, "convnext": CONVNEXT_FILE}
    return _read(folder, METHODS_FILE, others)


def _read(folder: pathlib.Path, first: str, others: Mapping[str, str]) -> dict[str, Any]:
    path = folder / first
    if not path.exists():
        raise ValueError(
            f"{path}: there is none, of which its page is made; give the page that has one "
            "(--page=docs), or run all tables"
        )
    study = json.loads(path.read_text())
    for name, file in others.items():
        if (folder / file).exists():
            study[name] = json.loads((folder / file).read_text())
    return study
