"""Every setting of a training run, documented once, validated before anything is computed.

Outside, a run is configured with `ml_collections` (configs/*.py and `--config.x=y`); inside, with
the frozen dataclasses below. `from_config_dict` is the only bridge.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import ml_collections

from input_pipeline.class_lists import DEFAULT_IGNORED, UNLESS_NAMED
from maft_jax.config.evaluation_section import EvaluationConfig, EvaluationRoots
from maft_jax.config.fields import FROM_HERE, build, setting
from maft_jax.config.generator_section import GeneratorConfig
from maft_jax.config.sections import (
    ENCODER_LOSSES,
    METHOD_LOSSES,
    CheckpointingConfig,
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ProposalsConfig,
)


@dataclass(frozen=True)
class Config:
    task: str = setting(
        "train",
        "train CLIP or a generator of proposals (and evaluate on the way), or only evaluate CLIP",
        choices=("train", "train_generator", "evaluate"),
    )
    method: str = setting(
        "maft",
        "how CLIP is taught masks (docs/methods.md)",
        choices=METHOD_LOSSES,
    )
    checkpoint: str = setting(
        "",
        "task=evaluate: workdir of a run, or weights; empty = config.model.pretrained as it is",
        path=FROM_HERE,
    )
    seed: int = setting(0, "of the examples' order and augmentation", low=0, high=2**31 - 1)
    batch_size: int = setting(16, "images per step over all devices", low=1)
    num_steps: int = setting(1000, "length of training", low=1)
    log_every_steps: int = setting(20, "steps between fetching and writing metrics", low=1)
    tracking: str = setting(
        "none",
        "where curves go besides TensorBoard: Weights & Biases, MLflow (docs/tracking.md)",
        choices=("none", "wandb", "mlflow"),
    )
    profile_at_step: int = setting(
        0, "trace five steps from this one on into WORKDIR/profile; 0 = none", low=0
    )
    model: ModelConfig = dataclasses.field(
        default=ModelConfig(), metadata={"help": "CLIP and how it is run"}
    )
    data: DataConfig = dataclasses.field(
        default=DataConfig(), metadata={"help": "images, label maps, records, augmentation"}
    )
    proposals: ProposalsConfig = dataclasses.field(
        default=ProposalsConfig(), metadata={"help": "which regions CLIP learns to tell apart"}
    )
    loss: LossConfig = dataclasses.field(
        default=LossConfig(), metadata={"help": "what is minimised"}
    )
    generator: GeneratorConfig = dataclasses.field(
        default=GeneratorConfig(), metadata={"help": "task=train_generator: what is trained"}
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default=OptimizerConfig(), metadata={"help": "what is tuned and how"}
    )
    evaluation: EvaluationConfig = dataclasses.field(
        default=EvaluationConfig(), metadata={"help": "which data sets are evaluated and how"}
    )
    mesh: MeshConfig = dataclasses.field(
        default=MeshConfig(), metadata={"help": "how devices share the work"}
    )
    checkpointing: CheckpointingConfig = dataclasses.field(
        default=CheckpointingConfig(), metadata={"help": "what is kept on disk"}
    )


RENAMED = {"loss.temperature": "loss.logit_scale"}
"""Settings of version 0.1 that have another name now."""

OFFICIAL: dict[str, Any] = {"loss.distillation_weight": 0.1, "optimizer.weight_decay": 1e-4}
PAPER: dict[str, Any] = {"loss.distillation_weight": 1.0, "optimizer.weight_decay": 1e-5}
PRESETS = {"official": OFFICIAL, "paper": PAPER}
"""Where the released code and the paper's text differ."""


def preset(name: str) -> ml_collections.ConfigDict:
    """The default configuration with a preset's values, for configs/*.py to change further.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: expected one of {list(PRESETS)}")
    config = to_config_dict(Config())
    config.update_from_flattened_dict(PRESETS[name])
    return config


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The same values, open to `--config.x=y`; unknown fields are refused by the lock."""
    return ml_collections.ConfigDict(dataclasses.asdict(config)).lock()


def config_of_run(values: dict[str, Any]) -> Config:
    """The settings of a run's config.json, perhaps of an earlier version, as they are meant today.

    Those that its version did not know have their defaults.

    Raises:
        ValueError: as from_config_dict.
    """
    config = preset("official")
    try:
        config.update(_in_words_of_today(values))
        return from_config_dict(config)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"no settings of a run: {error}") from error


def _in_words_of_today(values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings under their present names, as version 0.1 and those after it kept them."""
    values = {**values}
    for old, new in RENAMED.items():
        section, name = old.split(".")
        if isinstance(values.get(section), dict) and name in values[section]:
            renamed = {**values[section]}
            renamed[new.removeprefix(f"{section}.")] = renamed.pop(name)
            values[section] = renamed
    loss = values.get("loss")
    if values.get("method") == "maft_plus" and isinstance(loss, dict) and "transfer" not in loss:
        values["loss"] = loss | {"transfer": "none"}  # which it had not then
    loss, read = values.get("loss"), _read_of_loss(values.get("method", "maft"))
    if isinstance(loss, dict):  # Settings of other methods were taken, and did nothing.
        unread = {field.name for field in dataclasses.fields(LossConfig)} - read
        values["loss"] = {name: value for name, value in loss.items() if name not in unread}
    data = values.get("data")
    without_synonyms = isinstance(data, dict) and "synonyms" not in data
    if without_synonyms and data.get("ignore_labels") == list(DEFAULT_IGNORED):
        # It gave way to a class of this value.
        values["data"] = data | {"ignore_labels": list(UNLESS_NAMED)}
    return values


def from_config_dict(
    config_dict: ml_collections.ConfigDict, require_weights: bool = True
) -> Config:
    """Validated, frozen configuration; without `require_weights` for commands that read data only.

    Raises:
        ValueError: unknown or missing fields, wrong types, impossible values or combinations.
    """
    config = build(Config, config_dict.to_dict(), "config")
    without_clip = config.task == "train_generator" and config.generator.classes != "text"
    if require_weights and not (without_clip or config.model.pretrained or config.checkpoint):
        raise ValueError(
            "config.model.pretrained: no weights; give a file (--config.model.pretrained="
            "ViT-B-16.pt), a name (hf:openai/clip-vit-base-patch16), or random:tiny to try things "
            "out"
        )
    if config.task == "evaluate":
        _validate_evaluation_alone(config)
    else:
        _validate_where_data_is(config)
        _validate_evaluation_on_the_way(config.evaluation)
    _validate_evaluation(config.evaluation)
    _validate_data(config.data, config.proposals)
    _validate_loss(config)
    _validate_training(config)
    return config


def _validate_where_data_is(config: Config) -> None:
    if not config.data.root and not config.data.records:
        raise ValueError(
            "config.data.root: no data; give the folder (--config.data.root=photos), or that of "
            "records made before (--config.data.records=...)"
        )
    if config.evaluation.frozen:
        raise ValueError(
            "config.evaluation.frozen: only for --config=configs/eval_only.py; training evaluates "
            "the frozen CLIP by itself, before its first step"
        )
    if config.checkpoint:
        raise ValueError(
            f"config.checkpoint={config.checkpoint}: only for --config=configs/eval_only.py; "
            "training begins with config.model.pretrained and resumes from its --workdir"
        )


def _validate_evaluation_on_the_way(evaluation: EvaluationConfig) -> None:
    if evaluation.task != "semantic":
        raise ValueError(
            f"config.evaluation.task={evaluation.task}: only for --config=configs/eval_only.py; "
            "training evaluates label maps"
        )
    if evaluation.every_steps and not evaluation.has_data_sets:
        raise ValueError(
            f"config.evaluation.every_steps={evaluation.every_steps}: no data set; say where one "
            "lies, such as --config.evaluation.roots.voc2012=VOC2012"
        )


def _validate_evaluation_alone(config: Config) -> None:
    if not config.evaluation.has_data_sets:
        names = [field.name for field in dataclasses.fields(EvaluationRoots)]
        raise ValueError(
            "config.evaluation.roots: no data set; say where one lies, such as "
            f"--config.evaluation.roots.voc2012=VOC2012 (of {names})"
        )
    if config.tracking != "none":
        raise ValueError(
            f"config.tracking={config.tracking}: only for training, which has curves; an "
            "evaluation leaves its numbers in WORKDIR/evaluation; leave the setting out"
        )


def _validate_evaluation(evaluation: EvaluationConfig) -> None:
    if not evaluation.scales or min(evaluation.scales) <= 0:
        raise ValueError(
            f"config.evaluation.scales: expected at least one positive factor, got "
            f"{evaluation.scales}"
        )
    exponents = evaluation.ensemble_exponents
    if len(exponents) not in (0, 2):
        raise ValueError(
            "config.evaluation.ensemble_exponents: expected two numbers, for seen and for other "
            f"classes, or none, got {exponents}"
        )
    if exponents and evaluation.ensemble_weight:
        raise ValueError(
            f"config.evaluation.ensemble_exponents={exponents}: FC-CLIP's ensemble, and "
            f"ensemble_weight={evaluation.ensemble_weight} is MAFT's; expected one of the two"
        )
    if evaluation.trained_classes and not (exponents or evaluation.ensemble_weight):
        raise ValueError(
            f"config.evaluation.trained_classes={evaluation.trained_classes}: only for an "
            "ensemble; set ensemble_exponents or ensemble_weight, or leave it out"
        )
    _validate_segments(evaluation)
    if evaluation.short_side > evaluation.max_long_side:
        raise ValueError(
            f"config.evaluation.max_long_side={evaluation.max_long_side}: expected at least "
            f"config.evaluation.short_side, {evaluation.short_side}"
        )


def _validate_segments(evaluation: EvaluationConfig) -> None:
    rules, things = evaluation.segment_rules, evaluation.things
    if evaluation.task == "semantic":
        for name, given in (
            ("things", things),
            ("segment_rules", rules if rules != EvaluationConfig.segment_rules else ""),
            ("write_segments", "" if evaluation.write_segments else "False"),
        ):
            if given:
                raise ValueError(
                    f"config.evaluation.{name}={given}: only for config.evaluation.task=panoptic "
                    "or instance; leave it out"
                )
    if things and not evaluation.roots.folder:
        raise ValueError(
            f"config.evaluation.things={things}: of config.evaluation.roots.folder alone, which is "
            "not there; data sets with a name of their own know their things: leave it out"
        )


def _validate_data(data: DataConfig, proposals: ProposalsConfig) -> None:
    if data.augment and not data.short_sides:
        raise ValueError("config.data.short_sides: expected at least one size, got none")
    if max(data.short_sides, default=0) > data.max_long_side:
        raise ValueError(
            f"config.data.max_long_side={data.max_long_side}: expected at least the largest of "
            f"config.data.short_sides, {max(data.short_sides)}"
        )
    if not data.templates:
        raise ValueError("config.data.templates: expected at least one template, got none")
    for template in data.templates:
        if template.count("{}") != 1:
            raise ValueError(f"config.data.templates: expected one {{}} in {template!r}")
    if -1 in data.ignore_labels and data.ignore_labels != UNLESS_NAMED:
        raise ValueError(
            "config.data.ignore_labels: expected -1 alone, or the values themselves, got "
            f"{data.ignore_labels}; write 255 for -1"
        )
    if not proposals.kinds:
        raise ValueError("config.proposals.kinds: expected at least one kind, got none")


def _validate_generator(config: Config) -> None:
    generator = config.generator
    for name, given in (
        ("method", config.method != "maft"),
        ("optimizer.lora_rank", config.optimizer.lora_rank),
        ("model.modules", config.model.modules),
    ):
        if given:
            raise ValueError(
                f"config.{name}: tunes CLIP, which config.task=train_generator does not; leave it "
                "out, or set config.task=train"
            )
    if config.data.crop_size % 32:
        raise ValueError(
            f"config.data.crop_size={config.data.crop_size}: expected a multiple of 32 for "
            "config.task=train_generator, the stride of a generator's coarsest map"
        )
    if generator.width % 32:
        raise ValueError(f"config.generator.width={generator.width}: expected a multiple of 32")
    if generator.weights and generator.backbone_weights:
        raise ValueError(
            f"config.generator.backbone_weights={generator.backbone_weights}: the weights in "
            f"config.generator.weights={generator.weights} have a backbone; give one of the two"
        )
    if generator.backbone.startswith("resnet"):
        return
    if generator.backbone_weights:
        raise ValueError(
            f"config.generator.backbone_weights={generator.backbone_weights}: those of a ResNet "
            f"are read; got config.generator.backbone={generator.backbone}"
        )
    if generator.classes == "text":
        raise ValueError(
            f"config.generator.backbone={generator.backbone}: expected a ResNet for "
            "config.generator.classes=text; FreeSeg's checkpoints know no other"
        )


def _read_of_loss(method: str) -> set[str]:
    """Settings of config.loss that a method reads, or would if it were one."""
    return {*ENCODER_LOSSES, *METHOD_LOSSES.get(method, ())}


def _validate_loss(config: Config) -> None:
    read = _read_of_loss(config.method)
    for field in dataclasses.fields(LossConfig):
        value = getattr(config.loss, field.name)
        if field.name not in read and value != field.default:
            readers = [name for name, fields in METHOD_LOSSES.items() if field.name in fields]
            raise ValueError(
                f"config.loss.{field.name}={value}: config.method={config.method} does not read "
                f"it; leave it out or at its default, {field.default!r}, or set config.method to "
                f"one of {readers}, which do"
            )


def _validate_schedule(optimizer: OptimizerConfig) -> None:
    drops = optimizer.schedule == "drops"
    if drops != bool(optimizer.learning_rate_drops):
        raise ValueError(
            f"config.optimizer.schedule={optimizer.schedule}: expected learning_rate_drops with "
            f"drops, and with it alone, got {optimizer.learning_rate_drops}"
        )
    highest = 0 if drops else optimizer.learning_rate
    if optimizer.final_learning_rate > highest:
        raise ValueError(
            f"config.optimizer.final_learning_rate={optimizer.final_learning_rate}: expected at "
            f"most {highest}, "
            + ("since drops say how low the rate falls" if drops else "the learning_rate")
        )


def _validate_training(config: Config) -> None:
    if config.batch_size % config.optimizer.accumulation_steps:
        raise ValueError(
            f"config.optimizer.accumulation_steps={config.optimizer.accumulation_steps}: expected "
            f"a divisor of config.batch_size={config.batch_size}"
        )
    _validate_schedule(config.optimizer)
    if config.task == "train_generator":
        _validate_generator(config)
    if config.loss.cached_teacher and (config.data.augment or not config.loss.distillation_weight):
        raise ValueError(
            "config.loss.cached_teacher: expected config.data.augment=False, where an image always "
            "looks the same to the teacher, and a config.loss.distillation_weight above 0; got "
            f"{config.data.augment} and {config.loss.distillation_weight}"
        )
    if config.mesh.data == 0:
        raise ValueError("config.mesh.data: expected -1 or at least 1, got 0")
    kept = config.checkpointing
    if kept.keep_every_steps % kept.every_steps:
        raise ValueError(
            f"config.checkpointing.keep_every_steps={kept.keep_every_steps}: expected a multiple "
            f"of config.checkpointing.every_steps={kept.every_steps}"
        )
