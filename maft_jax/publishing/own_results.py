"""Which evaluations are about given weights, and about the CLIP that these were tuned from."""

import logging
import pathlib
from dataclasses import dataclass

from maft_jax.evaluators.results import EvaluationResult, read_result

RESULTS_FOLDER = "evaluation"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnResults:
    """One of each data set."""

    tuned: list[EvaluationResult]
    frozen: list[EvaluationResult]


def find_results(folders: list[pathlib.Path], image_tower: str) -> OwnResults:
    """Those in the `evaluation` of workdirs, of a run or of an evaluation; what comes first counts.

    Args:
        image_tower: fingerprint of the tuned one. Results of other weights are left out.
    """
    results = [result for folder in folders for result in _read_all(folder / RESULTS_FOLDER)]
    tuned = _of_tower(results, image_tower, frozen=False)
    begun = {_weights(result).get("tuned_from") for result in tuned} - {None}
    frozen = [result for tower in begun for result in _of_tower(results, tower, frozen=True)]
    return OwnResults(tuned, frozen)


def _of_tower(results: list[EvaluationResult], tower: str, frozen: bool) -> list[EvaluationResult]:
    found: dict[tuple[str, str], EvaluationResult] = {}
    for result in results:
        weights = _weights(result)
        if weights.get("image_tower") == tower and bool(weights.get("frozen")) == frozen:
            found.setdefault((result.dataset, result.split), result)
    return list(found.values())


def _weights(result: EvaluationResult) -> dict:
    return result.provenance.get("weights") or {}


def _read_all(folder: pathlib.Path) -> list[EvaluationResult]:
    found = []
    for path in sorted(folder.rglob("*.json")):
        if path.with_name(f"{path.stem}_confusion.npz").exists():
            try:
                found.append(read_result(path))
            except ValueError as error:
                logger.warning("%s; it is left out of the card", error)
    return found
