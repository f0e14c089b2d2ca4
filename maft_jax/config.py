"""Every setting of a training run, documented once, validated before anything is computed.

Outside, a run is configured with `ml_collections` (configs/*.py and `--config.x=y`); inside, with
the frozen dataclasses below. `from_config_dict` is the only bridge.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import ml_collections

from maft_jax.config_fields import build, setting
from maft_jax.prompts import PROMPT_TEMPLATES

DATASETS = (
    "folder",
    "coco_stuff",
    "voc2012",
    "ade20k_150",
    "ade20k_full",
    "pascal_context_59",
    "pascal_context_459",
    "shapes_world",
)
GENERATORS = ("superpixels", "ground_truth", "external", "transformers")


@dataclass(frozen=True)
class ModelConfig:
    pretrained: str = setting(
        "", "weights: OpenAI, open_clip, transformers, ...; or random:tiny, built-in:shapes_world"
    )
    mask_start_layer: int = setting(
        8,
        "first layer (from 0) where proposals use their masks; -1 = as the weights say, or 8",
        low=-1,
    )
    image_size: int = setting(
        480, "pixels per side at which CLIP reads images; 0 = as the weights say, or 480", low=0
    )
    activation: str = setting(
        "",
        "of the weights, where they do not tell it; empty = as they say",
        choices=("", "quick_gelu", "gelu", "gelu_tanh"),
    )
    head_width: int = setting(
        0, "of the image tower's attention, likewise; 0 = as the weights say", low=0
    )
    compute_dtype: str = setting(
        "auto",
        "of matrix products; auto = bfloat16, on a CPU float32",
        choices=("auto", "bfloat16", "float32"),
    )
    attention: str = setting(
        "auto",
        "how it is computed; auto = the fused kernel of the device: pallas on TPUs, cudnn on GPUs",
        choices=("auto", "xla", "pallas", "cudnn"),
    )
    remat: bool = setting(False, "recompute blocks in the backward pass: less memory, more time")
    scan_blocks: bool = setting(
        True,
        "on accelerators blocks are a loop, compiled once; False = one after the other, which "
        "takes less memory and traffic, and longer to compile",
    )

    @property
    def stated(self) -> dict[str, Any]:
        """What weights are opened with, because they do not tell it themselves."""
        return {"activation": self.activation or None, "head_width": self.head_width or None}

    @property
    def given_masking(self) -> tuple[int | None, int | None]:
        """mask_start_layer and image_size, None where the weights decide."""
        layer = None if self.mask_start_layer < 0 else self.mask_start_layer
        return layer, self.image_size or None


@dataclass(frozen=True)
class DataConfig:
    dataset: str = setting("folder", "layout of the files below root", choices=DATASETS)
    split: str = setting("train", "part of the data set that is read", choices=("train", "val"))
    root: str = setting("", "folder of the data set, extracted or in its official archives")
    images: str = setting("images", "dataset=folder: images, below root, searched recursively")
    annotations: str = setting("annotations", "dataset=folder: PNG label maps, named like images")
    classes: str = setting(
        "classes.txt",
        "dataset=folder: file of class names (below root or absolute), or a built-in list's name",
    )
    ignore_labels: tuple[int, ...] = setting(
        (255,), "dataset=folder: label values of unlabelled pixels", low=0, high=65535
    )
    unseen_classes: tuple[str, ...] = setting(
        (), "names of classes left out of training; published = the data set's zero-shot split"
    )
    records: str = setting("", "folder of the precomputed records; empty = inside cache_dir")
    templates: tuple[str, ...] = setting(PROMPT_TEMPLATES, "prompts; {} stands for the class name")
    crop_size: int = setting(640, "pixels per side of a training crop", low=8)
    short_sides: tuple[int, ...] = setting(
        tuple(range(320, 961, 64)), "sizes drawn for the short side before cropping", low=2
    )
    max_long_side: int = setting(2560, "limit of the long side when resizing", low=2)
    augment: bool = setting(True, "random scale, crop, colour and flip; False fits the image in")
    cache_dir: str = setting("", "for proposals and text embeddings; empty = ~/.cache/maft_jax")


@dataclass(frozen=True)
class ProposalsConfig:
    generator: str = setting("superpixels", "what makes the proposals", choices=GENERATORS)
    num_proposals: int = setting(100, "most proposals of an image", low=1)
    path: str = setting(
        "",
        "external: file or folder of masks made elsewhere, {dataset} in it stands for the data "
        "set's name; transformers: folder of the model",
    )
    kinds: tuple[str, ...] = setting(
        ("regions",),
        "ground_truth: which masks to make of the label map",
        choices=("regions", "jittered", "unions", "parts", "random"),
    )


@dataclass(frozen=True)
class LossConfig:
    mask_aware: str = setting(
        "smooth_l1", "between probability and IoU", choices=("smooth_l1", "l1", "l2", "kl")
    )
    mask_aware_weight: float = setting(1.0, "0 leaves distillation alone, for ablations", low=0)
    distillation_weight: float = setting(0.1, "0.1 in the official code, 1 in the paper", low=0)
    temperature: float = setting(100.0, "factor of similarities before the softmax", low=1e-6)
    cached_teacher: bool = setting(
        False, "compute distillation's teacher once, not in every step; for data.augment=False"
    )


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = setting(1e-5, "at step 0", low=0)
    learning_rate_power: float = setting(
        0.9, "learning_rate * (1 - step / num_steps) ** power", low=0
    )
    weight_decay: float = setting(1e-4, "1e-4 in the official code, 1e-5 in the paper", low=0)
    clip_norm: float = setting(0.01, "largest norm of the trainable gradient", low=1e-12)
    trainable: tuple[str, ...] = setting(
        (),
        "regular expressions over the image tower's parameter paths, the rest is frozen; empty = "
        "the tower's own, of CLIP attention and its LayerNorms",
    )
    no_weight_decay: tuple[str, ...] = setting(("ln_",), "paths without weight decay")
    accumulation_steps: int = setting(1, "parts into which a batch is split to fit", low=1)


@dataclass(frozen=True)
class MeshConfig:
    data: int = setting(-1, "devices that split the batch; -1 = all that remain", low=-1)
    fsdp: int = setting(1, "devices that split the batch and the parameters", low=1)
    model: int = setting(1, "devices that split attention heads and MLPs", low=1)


@dataclass(frozen=True)
class CheckpointingConfig:
    every_steps: int = setting(200, "steps between checkpoints; the end makes one more", low=1)
    keep_newest: int = setting(2, "how many of the newest to keep", low=1)
    keep_best: int = setting(1, "how many with the lowest training loss to keep", low=0)
    keep_every_steps: int = setting(0, "keep for good those at multiples of this; 0 = none", low=0)


@dataclass(frozen=True)
class EvaluationRoots:
    ade20k_full: str = setting("", "folder of ADE20K-Full, 847 classes")
    pascal_context_459: str = setting("", "folder of Pascal Context, for its 459 classes")
    ade20k_150: str = setting("", "folder of ADE20K-150")
    pascal_context_59: str = setting("", "folder of Pascal Context, for its 59 classes")
    voc2012: str = setting("", "folder of VOC 2012, 20 classes")
    coco_stuff: str = setting("", "folder of COCO-Stuff 164k, 171 classes")
    shapes_world: str = setting("", "folder of shapes world, 42 classes")
    folder: str = setting("", "folder of your own, laid out as config.data says of dataset=folder")


@dataclass(frozen=True)
class EvaluationConfig:
    records: str = setting(
        "", "folder with the records of each data set in a folder of its name; empty = the cache"
    )
    every_steps: int = setting(
        0, "training steps between evaluations; 0 = before the first and after the last", low=0
    )
    max_images: int = setting(0, "images of each data set that are evaluated; 0 = all", low=0)
    frozen: bool = setting(False, "evaluate the CLIP that the checkpoint was tuned from")
    images_per_device: int = setting(1, "images that a device evaluates at once", low=1)
    short_side: int = setting(640, "pixels of the short side that images are resized to", low=8)
    max_long_side: int = setting(2560, "limit of the long side when resizing", low=8)
    ensemble_weight: float = setting(
        0.0, "exponent of the generator's own class probabilities; 0 = CLIP alone", low=0, high=1
    )
    filter_invalid: bool = setting(False, "leave out proposals that are nowhere above 0.5")
    scales: tuple[float, ...] = setting(
        (1.0,), "test-time augmentation: sizes at which CLIP reads, times config.model.image_size"
    )
    flip: bool = setting(False, "test-time augmentation: also read the mirror image")
    num_pictures: int = setting(
        4, "images of each data set drawn as image | labels | frozen | tuned; 0 = none", low=0
    )
    roots: EvaluationRoots = dataclasses.field(
        default=EvaluationRoots(),
        metadata={"help": "where the data sets to evaluate lie; those without a folder are not"},
    )

    @property
    def has_data_sets(self) -> bool:
        """Whether there is anything to evaluate."""
        return bool(self.records or any(dataclasses.astuple(self.roots)))


@dataclass(frozen=True)
class Config:
    task: str = setting(
        "train", "train (and evaluate on the way), or only evaluate", choices=("train", "evaluate")
    )
    checkpoint: str = setting(
        "", "task=evaluate: workdir of a run, or weights; empty = config.model.pretrained as it is"
    )
    seed: int = setting(0, "of the examples' order and augmentation", low=0, high=2**31 - 1)
    batch_size: int = setting(16, "images per step over all devices", low=1)
    num_steps: int = setting(1000, "length of training", low=1)
    log_every_steps: int = setting(20, "steps between fetching and writing metrics", low=1)
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


def from_config_dict(
    config_dict: ml_collections.ConfigDict, require_weights: bool = True
) -> Config:
    """Validated, frozen configuration; without `require_weights` for commands that read data only.

    Raises:
        ValueError: unknown or missing fields, wrong types, impossible values or combinations.
    """
    config = build(Config, config_dict.to_dict(), "config")
    if require_weights and not config.model.pretrained and not config.checkpoint:
        raise ValueError(
            "config.model.pretrained: no weights; give a file (--config.model.pretrained="
            "ViT-B-16.pt), or random:tiny to try things out"
        )
    if config.task == "evaluate":
        _validate_evaluation_alone(config)
    else:
        _validate_where_data_is(config)
        _validate_evaluation_on_the_way(config.evaluation)
    _validate_evaluation(config.evaluation)
    _validate_data(config.data, config.proposals)
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


def _validate_evaluation(evaluation: EvaluationConfig) -> None:
    if not evaluation.scales or min(evaluation.scales) <= 0:
        raise ValueError(
            f"config.evaluation.scales: expected at least one positive factor, got "
            f"{evaluation.scales}"
        )
    if evaluation.short_side > evaluation.max_long_side:
        raise ValueError(
            f"config.evaluation.max_long_side={evaluation.max_long_side}: expected at least "
            f"config.evaluation.short_side, {evaluation.short_side}"
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
    if not proposals.kinds:
        raise ValueError("config.proposals.kinds: expected at least one kind, got none")


def _validate_training(config: Config) -> None:
    if config.batch_size % config.optimizer.accumulation_steps:
        raise ValueError(
            f"config.optimizer.accumulation_steps={config.optimizer.accumulation_steps}: expected "
            f"a divisor of config.batch_size={config.batch_size}"
        )
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
