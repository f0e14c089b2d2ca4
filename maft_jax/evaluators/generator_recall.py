"""Evaluation while a generator is trained: how well its best proposals fit images held out."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from etils import epath

from maft_jax.evaluators.data_sets import EvaluationSet, find_evaluation_data
from maft_jax.evaluators.during_training import PREFIX, is_due, is_written
from maft_jax.evaluators.proposal_recall import ProposalRecall
from maft_jax.models.generators.image_preparation import ImagePreparation
from maft_jax.proposals.device_generator import DeviceGenerator
from maft_jax.proposals.precompute_summary import best_ious
from maft_jax.resolved_config import ResolvedConfig
from maft_jax.runtime import consensus
from maft_jax.runtime.metric_logging import MetricWriter
from maft_jax.runtime.stop_signals import EvaluationInterrupted, StopSignals
from maft_jax.state.train_state import TrainState, overlay

MakeGenerator = Callable[[Mapping, Sequence[str]], DeviceGenerator]
"""From a generator's parameters on the host and the class names of a data set."""

logger = logging.getLogger(__name__)


class GeneratorEvaluation:
    """A PeriodicEvaluation of all queries: how many proposals users keep is theirs to choose."""

    def __init__(
        self,
        config: ResolvedConfig,
        parameters: Mapping,
        preparation: ImagePreparation,
        make_generator: MakeGenerator,
        queries: int,
    ):
        """`parameters` are the generator's before the first step, on the host.

        Raises:
            ValueError: the data sets of config.evaluation cannot be evaluated.
        """
        self._config, self._parameters, self._preparation = config, parameters, preparation
        self._make_generator, self._queries = make_generator, queries
        self._data_sets = [found.open() for found in find_evaluation_data(config)]

    def is_due(self, step: int) -> bool:
        return is_due(self._config, step)

    def evaluate(
        self,
        workdir: epath.Path,
        state: TrainState,
        pretrained: Mapping,
        writer: MetricWriter,
        signals: StopSignals,
    ) -> None:
        step = int(state.step)
        if consensus.broadcast_from_first(is_written(workdir, step)):
            return
        parameters = overlay(self._parameters, consensus.to_host(state.trainable))
        scalars = {}
        for data in self._data_sets:
            counts = consensus.sum_over_processes(self._count(data, parameters, signals))
            found = ProposalRecall(counts).scalars(data.unseen_classes)
            described = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            logger.info("step %d: %s: %s", step, data.name, described)
            scalars |= {f"{PREFIX}/{data.name}/{name}": value for name, value in found.items()}
        writer.write_scalars(step, scalars)
        writer.flush()

    def _count(self, data: EvaluationSet, parameters: Mapping, signals: StopSignals) -> np.ndarray:
        """Of this process's images."""
        source = data.source
        generator = self._make_generator(parameters, source.class_names)
        rows = generator.num_devices * generator.images_per_device
        batches = [self._batches(data, rows, i) for i in range(jax.process_count())]
        recall, own = ProposalRecall.of_nothing(len(source.class_names)), jax.process_index()
        for number in range(max(map(len, batches))):
            for index in batches[own][number : number + 1]:
                examples = [source[i] for i in index]
                images = [self._preparation.prepare(example.image) for example in examples]
                filled = itertools.islice(
                    itertools.chain(images, itertools.repeat(images[0])), rows
                )
                made = generator.start(list(filled), self._queries)()
                for example, proposals in zip(examples, made, strict=False):
                    size = proposals.input_size
                    recall.add(best_ious(proposals.masks, example.label_map, size))
            if (stopped := signals.agreed()) is not None:
                raise EvaluationInterrupted(stopped, data.name, 0, len(source))  # nothing is kept
        return recall.counts

    def _batches(self, data: EvaluationSet, rows: int, process: int) -> list[list[int]]:
        """Indices of the images that a process reads, of one padded size in each batch."""
        of_size = defaultdict(list)
        for index in range(process, len(data.source), jax.process_count()):
            size = self._preparation.padded_size(*data.source.image_sizes[index].tolist())
            of_size[size].append(index)
        return [
            indices[first : first + rows]
            for _, indices in sorted(of_size.items())
            for first in range(0, len(indices), rows)
        ]
