"""The README.md of published weights: what they are, what they were tuned from, and results.

Its header is what the Hugging Face hub reads: licence, base model, tags, results as model-index.
"""

import dataclasses
import math
import pathlib
from typing import Any

import yaml

from input_pipeline.dataset_specs import SPECS
from maft_jax.config import Config
from maft_jax.convert.formats import ClipWeights
from maft_jax.evaluators.results import EvaluationResult
from maft_jax.evaluators.tables import COLUMNS, format_table, title_of
from maft_jax.hub.names import HF, OPENAI, parse_hub_name
from maft_jax.publishing.own_results import OwnResults, find_results
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.state.restored_run import read_run_config

CARD = "README.md"
_OPENAI_ON_THE_HUB = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
_TAGS = ["clip", "maft", "open-vocabulary-segmentation", "image-segmentation", "jax"]
_METRIC_TYPES = {"miou_gt_or_pred": "mean_iou"}
"""What the hub calls a number of ours that it knows."""
_SNIPPETS = {
    "transformers": """In transformers, plain CLIP, without masks:

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
```
""",
    "open_clip": """In open_clip, plain CLIP, without masks:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("{open_clip_name}")
```
""",
}
_TEXT = """
# {title}

A CLIP that was tuned with masks, so that what it says of a region follows how well the mask fits
(method `{method}` of maft_jax).

| | |
|---|---|
{rows}

## Results

{results}

## Use

With maft_jax, which reads masks:

```python
import maft_jax

clip = maft_jax.load("{source}")
result = maft_jax.segment(clip, "photo.jpg", ["cat", "sofa", "lamp"])
```
{snippet}"""


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """What a card is made of."""

    config: Config
    """Of the run."""
    step: int
    results: OwnResults
    format_name: str
    license: str | None
    """An identifier of the hub's, such as mit."""
    repository: str | None
    """Where it is uploaded, if it is."""
    folder: pathlib.Path


def describe_run_to_publish(
    run: str,
    weights: ClipWeights,
    folder: pathlib.Path,
    format_name: str,
    *,
    step: int | None,
    evaluation: str | None,
    license: str | None,
    repository: str | None,
) -> PublishedRun:
    """Reads what a card says of a training run, whose weights these are.

    Args:
        step: of the checkpoint; None is the newest.
        evaluation: workdir of an evaluation of these weights; those of the run itself count, too.

    Raises:
        ValueError: no such run, or `evaluation` has no results of these weights.
    """
    config = read_run_config(run)
    tower = fingerprint(weights.parameters()["visual"])
    places = [pathlib.Path(place) for place in (evaluation, run) if place]
    if evaluation and not find_results(places[:1], tower).tuned:
        raise ValueError(
            f"--results={evaluation}: expected the workdir of an evaluation of these weights "
            f"(--config=configs/eval_only.py --config.checkpoint={run}); there are no such results"
        )
    if step is None:
        saved = pathlib.Path(run, "checkpoints").iterdir()
        step = max(int(path.name) for path in saved if path.name.isdecimal())
    results = find_results(places, tower)
    return PublishedRun(config, step, results, format_name, license, repository, folder)


def model_card(published: PublishedRun) -> str:
    """The card, header and text."""
    header = yaml.safe_dump(_header(published), sort_keys=False, allow_unicode=True)
    name = published.repository or published.folder.name
    results = published.results
    table = "None yet: these weights were not evaluated."
    if results.tuned:
        shown = format_table(results.tuned, results.frozen or None)
        table = f"In percent, by maft_jax.\n\n```text\n{shown}\n```"
    rows = "\n".join(f"| {key} | {value} |" for key, value in _rows(published).items())
    snippet = _SNIPPETS.get(published.format_name, "").format(
        name=name,
        open_clip_name=f"hf-hub:{name}" if published.repository else f"local-dir:{name}",
    )
    text = _TEXT.format(
        title=name.rpartition("/")[2],
        method=published.config.method,
        rows=rows,
        results=table,
        source=f"{HF}{name}" if published.repository else name,
        snippet=f"\n{snippet}" if snippet else "",
    )
    return f"---\n{header}---\n{text}"


def _header(published: PublishedRun) -> dict[str, Any]:
    base = _base_model(published.config.model.pretrained)
    dataset = published.config.data.dataset
    fields = {
        "license": published.license,
        "library_name": published.format_name if published.format_name in _SNIPPETS else None,
        "pipeline_tag": "zero-shot-image-classification",
        "base_model": base,
        "tags": _TAGS,
        "datasets": [dataset] if dataset in SPECS else None,
    }
    if published.results.tuned:
        name = (published.repository or published.folder.name).rpartition("/")[2]
        entries = [_index_entry(result) for result in published.results.tuned]
        fields["model-index"] = [{"name": name, "results": entries}]
    return {name: value for name, value in fields.items() if value is not None}


def _index_entry(result: EvaluationResult) -> dict[str, Any]:
    numbers = result.numbers()
    metrics = [
        {"type": _METRIC_TYPES.get(key, key), "name": heading, "value": round(100 * number, 2)}
        for heading, key in COLUMNS.items()
        if not math.isnan(number := numbers[key])
    ]
    title = title_of((result.dataset, result.split))
    dataset = {"type": result.dataset, "name": title, "split": result.split}
    dataset["args"] = {"num_images": result.num_images}  # of an evaluation of a part, that part's
    return {"task": {"type": "image-segmentation"}, "dataset": dataset, "metrics": metrics}


def _base_model(pretrained: str) -> str | None:
    """The repository of the hub that holds the weights that a run began with, if one is known."""
    if pretrained.startswith(HF):
        return parse_hub_name(pretrained).repository
    return _OPENAI_ON_THE_HUB.get(pretrained.removeprefix(OPENAI))


def _rows(published: PublishedRun) -> dict[str, str]:
    config = published.config
    data, proposals, pretrained = config.data, config.proposals, config.model.pretrained
    if "://" in pretrained or ":" not in pretrained.split("/")[0]:  # where it lies is nobody's
        pretrained = pathlib.PurePath(pretrained).name
    dataset = SPECS[data.dataset].title if data.dataset in SPECS else "own images"
    unseen = ", ".join(data.unseen_classes)
    return {
        "tuned from": f"`{pretrained}`",
        "on": f"{dataset}, split {data.split}" + (f", without {unseen}" if unseen else ""),
        "steps": f"{published.step:,} of {config.batch_size} images",
        "proposals": f"{proposals.num_proposals} an image, of `{proposals.generator}`",
        "learning rate": f"{config.optimizer.learning_rate:g}",
        "licence": published.license or "not stated",
    }
