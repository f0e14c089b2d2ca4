"""Records of one shard as a pure function of the job and the shard's number."""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from input_pipeline.examples import Example, ExampleSource
from input_pipeline.label_maps.interface import UnknownLabels
from input_pipeline.records.proposal_records import SCHEMA_VERSION, ProposalRecord, Provenance
from input_pipeline.records.record_shards import (
    PackedRecord,
    ShardWriter,
    pack_record,
    read_done,
    read_index,
    shard_stem,
)
from maft_jax.proposals.generator import ProposalGenerator, Proposals
from maft_jax.proposals.kept_proposals import check_proposals, keep_best
from maft_jax.proposals.precompute_summary import Statistics
from maft_jax.proposals.record_sets import SYNONYMS

RECIPE_VERSION = 1
"""Part of every shard's key: raise it when the same input would give other records."""

_LARGEST_SHARD = 256
_FEWEST_SHARDS = 16


@dataclass(frozen=True)
class Problem:
    """Why an example cannot be used."""

    text: str
    label_map: str = ""
    """The file of the label values without a class, if there are any."""
    unknown_labels: Mapping[str, int] = field(default_factory=dict)
    """Pixels by label value, as messages show it."""


class BadExamples(ValueError):
    """What is wrong with the examples of a shard."""

    def __init__(self, problems: tuple[Problem, ...]):
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n  ".join(problem.text for problem in self.problems)


@dataclass(frozen=True)
class ComputedExample:
    """What a shard takes over of an example."""

    record: PackedRecord
    statistics: Statistics


@dataclass(frozen=True)
class PrecomputeJob:
    """What makes a set of records, and where; picklable, since worker processes run it.

    Shards have `shard_size` examples: at most 256, and fewer in small data sets, which get 16
    shards if they have that many examples. `unseen_classes` is the published zero-shot split of
    the data set, `synonyms` are the further names of classes that have some: both for the
    description of the records, as text alone. With `replace`, records of another recipe
    in `folder` are replaced, else they are refused.
    """

    source: ExampleSource
    dataset: str
    split: str
    generator: ProposalGenerator
    num_proposals: int
    folder: str
    unseen_classes: tuple[str, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shard_size: int | None = None
    replace: bool = False

    @property
    def examples_per_shard(self) -> int:
        few = max(1, -(-len(self.source) // _FEWEST_SHARDS))
        return self.shard_size or min(_LARGEST_SHARD, few)

    @property
    def num_shards(self) -> int:
        return -(-len(self.source) // self.examples_per_shard)

    def stem(self, shard: int) -> str:
        """Name of the shard's files without what says their kind."""
        return shard_stem(self.split, shard, self.num_shards)

    def examples_of(self, shard: int) -> range:
        """Indices into the source."""
        start = shard * self.examples_per_shard
        return range(start, min(start + self.examples_per_shard, len(self.source)))

    @property
    def description(self) -> dict:
        """Content of dataset.json; equal recipes make equal records of equal examples."""
        several = {name: list(further) for name, further in self.synonyms.items()}
        return {
            "dataset": self.dataset,
            "split": self.split,
            "class_names": list(self.source.class_names),
            "unseen_classes": list(self.unseen_classes),
            "num_examples": len(self.source),
            "num_shards": self.num_shards,
            "recipe": {
                "schema_version": SCHEMA_VERSION,
                "recipe_version": RECIPE_VERSION,
                "generator": self.generator.name,
                "generator_fingerprint": self.generator.fingerprint,
                "num_proposals": self.num_proposals,
            },
            **({SYNONYMS: several} if several else {}),
        }

    def shard_key(self, shard: int) -> str:
        """Digest of the recipe, the classes and the signatures of the shard's examples."""
        source, description = self.source, self.description
        examples = [(source.example_ids[i], source.signature(i)) for i in self.examples_of(shard)]
        parts = [description["recipe"], description["class_names"], examples]
        return _digest(json.dumps(parts, sort_keys=True))

    def is_finished(self, shard: int) -> bool:
        """Whether the files of the shard are there, whole, and what this job would write."""
        try:
            done = read_done(self.folder, self.stem(shard))
            if done is None or done["key"] != self.shard_key(shard):
                return False
            read_index(self.folder, self.stem(shard))
        except ValueError:  # corrupt, so that it has to be written again
            return False
        return True

    def write_shard(
        self,
        shard: int,
        on_example: Callable[[], None] = lambda: None,
        compute: Callable[[int], ComputedExample] | None = None,
    ) -> None:
        """Writes a shard, unless it is finished; calls `on_example` after each example.

        Equal jobs write equal bytes, whoever calls this. It may be killed anywhere: a shard's
        files have their names once they are whole. `compute` gives what `compute` of this job
        would, and raises ValueError where an example cannot be used.

        Raises:
            BadExamples: lists all examples of the shard that cannot be used; nothing is written.
        """
        if self.is_finished(shard):
            return
        # Before reading: what changes while it is read must not look finished.
        key = self.shard_key(shard)
        statistics = Statistics()
        problems = []
        with ShardWriter(self.folder, self.stem(shard), key) as writer:
            for index in self.examples_of(shard):
                example_id = self.source.example_ids[index]
                try:
                    computed = (compute or self.compute)(index)
                except ValueError as error:
                    problems.append(_problem_of(error, example_id))
                except Exception as error:
                    error.add_note(f"while computing example {example_id!r}")
                    raise
                else:
                    writer.add_packed(computed.record)
                    statistics.merge(computed.statistics)
                on_example()
            if problems:
                raise BadExamples(tuple(problems))
            writer.finish({"statistics": statistics.to_json()})

    def compute(self, index: int) -> ComputedExample:
        """Reads an example and makes its proposals. Raises ValueError where it cannot be used."""
        example = self.source[index]
        return self.computed(index, example, self.generator(example, self.num_proposals))

    def computed(self, index: int, example: Example, made: Proposals) -> ComputedExample:
        """The record of an example with its proposals; any number of threads may call it.

        Raises:
            ValueError: the generator returned what it must not.
        """
        check_proposals(made, f"{self.generator.name} proposals of {example.example_id!r}")
        kept = keep_best(made, example.label_map.shape, self.num_proposals)
        record = ProposalRecord(
            example_id=example.example_id,
            image_bytes=self.source.image_bytes(index),
            image_size=example.label_map.shape,
            label_map=example.label_map,
            proposals=kept.masks,
            scores=kept.scores,
            class_logits=kept.class_logits,
            provenance=self._provenance,
        )
        statistics = Statistics()
        statistics.add(kept.masks, example.label_map, kept.input_size)
        return ComputedExample(pack_record(record), statistics)

    @functools.cached_property
    def _provenance(self) -> Provenance:
        version = importlib.metadata.version("maft_jax")
        return Provenance(
            generator=self.generator.name,
            weights_fingerprint=self.generator.fingerprint,
            vocabulary_hash=_digest(json.dumps(list(self.source.class_names))),
            code_version=f"maft_jax {version}, recipe {RECIPE_VERSION}",
        )


def _problem_of(error: ValueError, example_id: str) -> Problem:
    text = str(error) if example_id in str(error) else f"{example_id}: {error}"
    if isinstance(error, UnknownLabels):
        return Problem(text, error.where, error.pixels)
    return Problem(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
