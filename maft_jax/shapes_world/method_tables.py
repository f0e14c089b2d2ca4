"""Parts of docs/methods_study.md that every CLIP has: what was found, and tables."""

from collections.abc import Mapping, Sequence

from maft_jax.runtime import markdown
from maft_jax.shapes_world.experiments import REFERENCE
from maft_jax.shapes_world.method_results import FROZEN, METRICS, Difference, MethodResults
from maft_jax.shapes_world.study_results import Estimate

_HOLDS = {"higher": "yes", "lower": "no", "open": "cannot be told"}
Claim = tuple[str, str, str, str]
"""That a method is above another in a number, and how one says it."""


def summary(results: MethodResults) -> list[str]:
    """What the test sees, in words."""
    questions = (
        (FROZEN, "unseen", "Unseen mIoU against the frozen CLIP"),
        (FROZEN, "unseen masks", "Accuracy of unseen classes' own masks against the frozen CLIP"),
        (REFERENCE, "hIoU", f"hIoU against {REFERENCE}"),
        (REFERENCE, "unseen masks", f"Accuracy of unseen classes' own masks against {REFERENCE}"),
    )
    return [
        "In short:",
        markdown.bullets(
            *(f"{name}: {_sides(results, other, metric)}." for other, metric, name in questions)
        ),
    ]


def _sides(results: MethodResults, other: str, metric: str) -> str:
    sides: dict[str, list[str]] = {"higher": [], "lower": [], "open": []}
    for method in results.methods:
        if method != other:
            sides[results.difference(method, other, metric).verdict].append(f"*{method}*")
    words = {"higher": "higher with", "lower": "lower with", "open": "cannot be told of"}
    return "; ".join(f"{words[side]} {', '.join(names)}" for side, names in sides.items() if names)


def provenance(study: Mapping) -> str:
    """Machine and versions."""
    versions = ", ".join(f"{name} {value}" for name, value in study["versions"].items() if value)
    return f"Machine: {study['machine']}, which others used at the same time. Versions: {versions}."


def incomplete(results: MethodResults) -> list[str]:
    """Which runs are missing, if any are."""
    if not results.missing:
        return []
    return [markdown.paragraph(f"**Incomplete.** Not run yet: {'; '.join(results.missing)}.")]


def results_table(results: MethodResults) -> str:
    """Means over pairs of all methods, the frozen CLIP first."""
    lines = [[FROZEN, *_cells(results, FROZEN), "-"]]
    for method in results.methods:
        time = results.relative_time(method)
        lines.append([method, *_cells(results, method), "-" if time is None else f"{time:.2f}"])
    return markdown.table(["", *METRICS, "time"], lines)


def _cells(results: MethodResults, method: str) -> list[str]:
    return [
        f"{Estimate.of([value / 100 for value in results.values(method, metric).values()])}"
        for metric in METRICS
    ]


def difference_table(results: MethodResults, other: str) -> str:
    """Of all methods less `other`."""
    lines = [
        [method, *(_difference_cell(results.difference(method, other, name)) for name in METRICS)]
        for method in results.methods
        if method != other
    ]
    return markdown.table(["", *METRICS], lines)


def _difference_cell(difference: Difference) -> str:
    text = str(difference) if difference.verdict == "open" else f"**{difference}**"
    return f"{text}, {difference.num_higher} of {len(difference.values)}"


def differences(results: MethodResults) -> list[str]:
    """Both tables of them."""
    return [
        "Against the frozen CLIP:",
        difference_table(results, FROZEN),
        f"Against {REFERENCE}:",
        difference_table(results, REFERENCE),
    ]


def claims_table(results: MethodResults, claims: Sequence[Claim]) -> str:
    """What each of those claims comes to whose methods have runs."""
    lines = []
    for method, other, metric, claim in claims:
        if {method, REFERENCE} <= set(results.methods):
            found = results.difference(method, other, metric)
            here = f"{metric}: {method} less {other} {found}"
            lines.append([claim, here, _HOLDS[found.verdict]])
    return markdown.table(["claim", "here", "holds?"], lines)


def compared(first: MethodResults, second: MethodResults, claims: Sequence[Claim]) -> str:
    """What claims put above each other, sorted by what two CLIPs say of it."""
    alike = {
        "higher": "holds with both",
        "lower": "holds with neither",
        "open": "cannot be told of either",
    }
    groups: dict[str, list[str]] = {name: [] for name in (*alike.values(), "is not judged alike")}
    for method, other, metric, _ in claims:
        if {method, REFERENCE} <= set(first.methods) & set(second.methods):
            here, there = (one.difference(method, other, metric).verdict for one in (first, second))
            name = f"*{method}* above *{other}* in {metric}"
            if here == there:
                groups[alike[here]].append(name)
            else:
                words = f"{_HOLDS[here]}, with the second {_HOLDS[there]}"
                groups["is not judged alike"].append(f"{name} ({words})")
    return markdown.bullets(
        *(f"{group}: {'; '.join(names)}." for group, names in groups.items() if names)
    )
