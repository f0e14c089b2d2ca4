"""Which weights an evaluation is about, and the protocol that comes with them."""

import dataclasses
import logging
from dataclasses import dataclass

from jax.sharding import Mesh

from maft_jax.config import Config
from maft_jax.config.sections import DataConfig, LossConfig, ModelConfig
from maft_jax.convert.formats import ClipWeights
from maft_jax.models.clip import ClipConfig
from maft_jax.models.encoder_setup import make_encoder
from maft_jax.models.mask_reader import Modules, Tower, describe_tower, with_modules
from maft_jax.resolved_config import ResolvedConfig, resolve
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.state.restored_run import (
    is_training_run,
    read_first_weights,
    read_run_config,
    read_student,
)
from maft_jax.state.tuned_tree import TunedTree
from maft_jax.weights import open_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EvaluatedWeights:
    """A whole CLIP on the host, and how it is evaluated."""

    config: ResolvedConfig
    """What was asked for, with the protocol as it is used."""
    clip: ClipConfig
    parameters: dict
    origin: dict
    """For the record; JSON values."""
    modules: Modules | None
    """With which the tower reads masks."""

    @property
    def tower(self) -> Tower:
        """What is evaluated."""
        return with_modules(self.parameters["visual"], self.modules)


def read_evaluated_weights(config: Config, mesh: Mesh) -> EvaluatedWeights:
    """Reads what config.checkpoint and config.evaluation.frozen say.

    A run's workdir has its own protocol: prompts, synonyms, logit scale, unseen classes, start
    layer and image size. A setting that `config` changes from its default goes before it. `mesh` is
    what they will be evaluated on.

    Raises:
        ValueError: the weights are absent, corrupt, without text tower, of a file of which nobody
            said what it was tuned from, or of a tower that cannot read with the modules given.
    """
    source, step = config.checkpoint or config.model.pretrained, None
    if not source:
        raise ValueError(
            "config.checkpoint: no weights; give the workdir of a run, a file of weights, or an "
            "untuned CLIP as config.model.pretrained"
        )
    frozen = config.evaluation.frozen or not config.checkpoint
    if config.checkpoint and is_training_run(source):
        if stated := [name for name, value in config.model.stated.items() if value]:
            raise ValueError(
                f"{', '.join(f'config.model.{name}' for name in stated)}: {source} is a training "
                "run, whose architecture is known; state none"
            )
        if config.model.modules:
            raise ValueError(
                f"config.model.modules={config.model.modules}: {source} is a training run, which "
                "has modules of its own if its method trains any; leave it empty"
            )
        moved = config.model.pretrained or None
        config = _with_protocol_of(config, read_run_config(source))
        weights, step = read_student(
            source, open_weights, pretrained=moved
        )  # refuses others than the run's
        first = read_first_weights(source, open_weights, pretrained=moved)
    else:
        stated = config.model.stated
        weights, first = open_weights(source, **stated, needs_text=not frozen), None
        if config.checkpoint and (frozen or config.model.pretrained):
            first = _frozen_of_file(config, weights)
        if config.model.modules:
            weights = _with_modules_of_file(config, weights)
    if config.checkpoint and frozen:
        weights, step, first = first, None, None
    parameters = weights.parameters()
    modules = weights.modules
    origin = {
        "checkpoint": source,
        "step": step,
        "frozen": frozen,
        "pretrained": config.model.pretrained or None,
        **describe_tower(with_modules(parameters["visual"], modules)),
        "tuned_from": first and fingerprint(first.parameters()["visual"]),
    }
    logger.info(
        "evaluating %s%s%s",
        "the frozen CLIP of " if frozen and config.checkpoint else "",
        source,
        "" if step is None else f" at step {step}",
    )
    config = resolve(config, weights.config, weights.masking, mesh)
    if modules is not None and config.model.modules:
        vision, scale = weights.config.vision, config.loss.logit_scale
        TunedTree.of(config, ()).method.check(make_encoder(config.model, vision, mesh, scale))
    return EvaluatedWeights(config, weights.config, parameters, origin, modules)


def _with_protocol_of(config: Config, run: Config) -> Config:
    """The settings with which a run was trained, where `config` has the default."""
    data = dataclasses.replace(
        config.data,
        templates=_first_changed(DataConfig.templates, config.data.templates, run.data.templates),
        synonyms=_first_changed(DataConfig.synonyms, config.data.synonyms, run.data.synonyms),
        dataset=config.data.dataset if config.data.unseen_classes else run.data.dataset,
        unseen_classes=config.data.unseen_classes or run.data.unseen_classes,
    )
    logit_scale = _first_changed(
        LossConfig.logit_scale, config.loss.logit_scale, run.loss.logit_scale
    )
    logger.info(
        "protocol of the run: %d prompts, logit scale %s%s",
        len(data.templates),
        f"{logit_scale:g}" if logit_scale else "of the tower",
        f", unseen classes {', '.join(data.unseen_classes)}" if data.unseen_classes else "",
    )
    return dataclasses.replace(
        config,
        data=data,
        loss=dataclasses.replace(config.loss, logit_scale=logit_scale),
        model=dataclasses.replace(
            config.model,
            pretrained=config.model.pretrained or run.model.pretrained,
            image_aspect=_first_changed(
                ModelConfig.image_aspect, config.model.image_aspect, run.model.image_aspect
            ),
        ),
    )


def _with_modules_of_file(config: Config, weights: ClipWeights) -> ClipWeights:
    """Those of config.model.modules, which config.method knows how to read masks with."""
    if not config.checkpoint:
        raise ValueError(
            f"config.model.modules={config.model.modules}: the frozen CLIP reads masks by itself; "
            "give the weights that the modules go with as config.checkpoint, tuned or not"
        )
    tree = TunedTree.of(config, ())
    modules = tree.read_modules(weights.config.vision, config.model.modules)
    if (found := tree.read_with(modules)) is None:
        raise ValueError(
            f"config.model.modules={config.model.modules}: config.method={config.method} reads "
            "masks without modules; leave it empty, or set the method whose they are"
        )
    return dataclasses.replace(weights, modules=found)


def _first_changed(default, given, run_value):
    return run_value if given == default else given


def _frozen_of_file(config: Config, tuned: ClipWeights) -> ClipWeights:
    """The CLIP that a file was tuned from, read as the file says that the tuned one is."""
    if not config.model.pretrained:
        raise ValueError(
            f"config.evaluation.frozen: {config.checkpoint} does not say what it was tuned from; "
            "give those weights as config.model.pretrained"
        )
    weights = open_weights(config.model.pretrained, **config.model.stated, needs_text=True)
    if weights.config.vision != tuned.config.vision:
        raise ValueError(
            f"config.model.pretrained={config.model.pretrained}: {config.checkpoint} was not tuned "
            f"from it, the image towers differ: {weights.config.vision} and {tuned.config.vision}"
        )
    return dataclasses.replace(weights, masking=tuned.masking)
