"""The sections of the configuration: every setting with its meaning, default and range."""

from dataclasses import dataclass
from typing import Any

from input_pipeline.class_lists import UNLESS_NAMED
from input_pipeline.dataset_specs import SPECS
from maft_jax.config.fields import BELOW_ROOT, FROM_HERE, setting
from maft_jax.config.prompts import PROMPT_TEMPLATES

DATASETS = ("folder", *SPECS)
GENERATORS = (
    "superpixels",
    "ground_truth",
    "external",
    "transformers",
    "mask2former",
    "maskformer",
    "freeseg",
    "fcclip",
)


@dataclass(frozen=True)
class ModelConfig:
    pretrained: str = setting(
        "",
        "weights: OpenAI, open_clip, transformers, ...; hf:OWNER/NAME or openai:ViT-B/16, "
        "downloaded once; or random:tiny, built-in:shapes_world",
        path=FROM_HERE,
    )
    mask_start_layer: int = setting(
        8,
        "first layer (from 0) where proposals use their masks; -1 = as the weights say, or 8",
        low=-1,
    )
    image_size: int = setting(
        480, "pixels per side at which CLIP reads images; 0 = as the weights say, or 480", low=0
    )
    image_aspect: str = setting(
        "squash",
        "of evaluated images: squash = image_size squared, whatever the image; keep = the short "
        "side becomes image_size, and the long one as the ratio says, at most "
        "evaluation.max_long_side / evaluation.short_side times it. Training crops are squares",
        choices=("squash", "keep"),
    )
    mask_pooling: str = setting(
        "",
        "how towers that pool read masks: hard = cells with at least 1/2 of it, as FC-CLIP; soft = "
        "cells as far as it covers them, as MaskCLIP++; empty = as the weights say, or hard",
        choices=("", "hard", "soft"),
    )
    mask_rule: str = setting(
        "",
        "whether patches that proposals read go on reading class tokens, and whether masks are "
        "soft (docs/towers.md); empty = as the weights say, of CLIP maft",
        choices=("", "maft", "shared_patches", "maskclippp"),
    )
    class_token: int = setting(
        -1,
        "of towers with several: which is matched with text, and copied for proposals (from 0); "
        "-1 = as the weights say, or the first",
        low=-1,
    )
    activation: str = setting(
        "",
        "of the weights, where they do not tell it; empty = as they say",
        choices=("", "quick_gelu", "gelu", "gelu_tanh"),
    )
    head_width: int = setting(
        0, "of the image tower's attention, likewise; 0 = as the weights say", low=0
    )
    tokenizer: str = setting(
        "",
        "file of the text tower's tokenizer, for towers that do not share CLIP's; empty = beside "
        "the weights",
        path=FROM_HERE,
    )
    modules: str = setting(
        "",
        "file of the method's own modules to begin with, such as modules.safetensors of a run; "
        "empty = new ones",
        path=FROM_HERE,
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
        return {
            "activation": self.activation or None,
            "head_width": self.head_width or None,
            "tokenizer": self.tokenizer or None,
        }

    @property
    def given_masking(self) -> tuple[int | None, int | None, str | None, str | None, int | None]:
        """mask_start_layer, image_size, mask_pooling, mask_rule and class_token.

        None where the weights decide.
        """
        layer = None if self.mask_start_layer < 0 else self.mask_start_layer
        class_token = None if self.class_token < 0 else self.class_token
        rules = self.mask_pooling or None, self.mask_rule or None
        return layer, self.image_size or None, *rules, class_token


@dataclass(frozen=True)
class DataConfig:
    dataset: str = setting("folder", "layout of the files below root", choices=DATASETS)
    split: str = setting("train", "part of the data set that is read", choices=("train", "val"))
    root: str = setting(
        "", "folder of the data set, extracted or in its official archives", path=FROM_HERE
    )
    images: str = setting(
        "images", "dataset=folder: images, below root, searched recursively", path=BELOW_ROOT
    )
    annotations: str = setting(
        "annotations",
        "dataset=folder: PNG label maps named like images, or a .json of COCO or Label Studio",
        path=BELOW_ROOT,
    )
    classes: str = setting(
        "classes.txt",
        "dataset=folder: file of class names (below root or absolute), or a built-in list's name",
        path=BELOW_ROOT,
    )
    ignore_labels: tuple[int, ...] = setting(
        UNLESS_NAMED,
        "dataset=folder: label values of unlabelled pixels; -1 = 255, unless the classes name it",
        low=-1,
        high=65535,
    )
    synonyms: bool = setting(
        True,
        "classes of several names (1:person,child) score the maximum over them; False = the first "
        "name alone",
    )
    unseen_classes: tuple[str, ...] = setting(
        (), "names of classes left out of training; published = the data set's zero-shot split"
    )
    records: str = setting(
        "", "folder of the precomputed records; empty = inside cache_dir", path=FROM_HERE
    )
    templates: tuple[str, ...] = setting(PROMPT_TEMPLATES, "prompts; {} stands for the class name")
    crop_size: int = setting(640, "pixels per side of a training crop", low=8)
    short_sides: tuple[int, ...] = setting(
        tuple(range(320, 961, 64)), "sizes drawn for the short side before cropping", low=2
    )
    max_long_side: int = setting(2560, "limit of the long side when resizing", low=2)
    augment: bool = setting(True, "random scale, crop, colour and flip; False fits the image in")
    reading_processes: int = setting(
        0,
        "processes of each host that make training batches; 1 = threads of the training process, "
        "0 = by its cores: 1 up to 8 of them, then one for every 4, at most 8",
        low=0,
        high=256,
    )
    cache_dir: str = setting(
        "", "for proposals and text embeddings; empty = ~/.cache/maft_jax", path=FROM_HERE
    )


@dataclass(frozen=True)
class ProposalsConfig:
    generator: str = setting("superpixels", "what makes the proposals", choices=GENERATORS)
    num_proposals: int = setting(100, "most proposals of an image", low=1)
    path: str = setting(
        "",
        "external: file or folder of masks made elsewhere, {dataset} in it stands for the data "
        "set's name; transformers: folder of the model; mask2former, maskformer, freeseg, fcclip: "
        "file or folder of the weights; of all but external hf:OWNER/NAME, too; mask2former: or "
        "built-in:shapes_world",
        path=FROM_HERE,
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
    logit_scale: float = setting(
        0.0, "factor of similarities before the softmax; 0 = the tower's own, of CLIP 100", low=0
    )
    probabilities: str = setting(
        "softmax",
        "of classes in the losses; sigmoid = each class by itself, with the bias of SigLIP's "
        "weights",
        choices=("softmax", "sigmoid"),
    )
    cached_teacher: bool = setting(
        False, "compute distillation's teacher once, not in every step; for data.augment=False"
    )
    compensation_weight: float = setting(
        0.1, "method=maft_plus: of the sums of the last map, which are to stay", low=0
    )
    alignment: str = setting(
        "linear",
        "method=maskclippp: the module between logits and loss; pseudo_text is for towers that "
        "pool proposals from a map",
        choices=("linear", "pseudo_text", "none"),
    )
    transfer: str = setting(
        "semantic",
        "method=maft_plus: how class rows adapt to an image, LN(t + change), or t + LN(change), "
        "which begins as the identity; none = they do not",
        choices=("semantic", "panoptic", "none"),
    )
    transfer_memory: str = setting(
        "scrambled",
        "what they look at: the map as the authors' code and weights read it, or its cells",
        choices=("scrambled", "in_order"),
    )
    adapter_masks: str = setting(
        "ground_truth",
        "method=mask_adapter: what the adapter learns to read; mixed = also proposals that fit",
        choices=("ground_truth", "mixed"),
    )
    adapter_width: int = setting(
        768, "method=mask_adapter: channels of the adapter, of the authors' 768", low=8
    )


METHOD_LOSSES = {
    "maft": ("mask_aware", "mask_aware_weight", "distillation_weight", "cached_teacher"),
    "maft_plus": (
        *("mask_aware", "mask_aware_weight", "compensation_weight"),
        *("transfer", "transfer_memory"),
    ),
    "mask_adapter": ("adapter_masks", "adapter_width"),
    "maskclippp": ("alignment",),
}
"""What each value of config.method reads of config.loss; others of it are left as they are."""
ENCODER_LOSSES = ("logit_scale", "probabilities")
"""What encoders read of it, with every method."""


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = setting(1e-5, "at step 0", low=0)
    schedule: str = setting(
        "polynomial",
        "how the rate falls: polynomial or cosine to final_learning_rate; drops = to a tenth at "
        "each of learning_rate_drops",
        choices=("polynomial", "cosine", "drops"),
    )
    final_learning_rate: float = setting(0.0, "which it would have at step num_steps", low=0)
    learning_rate_power: float = setting(
        0.9, "schedule=polynomial: as (1 - step / num_steps) ** power", low=0
    )
    learning_rate_drops: tuple[int, ...] = setting((), "schedule=drops: steps", low=1)
    pretrained_rate: float = setting(
        1.0,
        "learning rate of what begins pretrained, times that of what begins anew: of a method with "
        "modules the tower, of a generator the backbone",
        low=0,
    )
    weight_decay: float = setting(1e-4, "1e-4 in the official code, 1e-5 in the paper", low=0)
    clip_norm: float = setting(0.01, "largest norm of the trainable gradient", low=1e-12)
    trainable: tuple[str, ...] = setting(
        (),
        "regular expressions over the image tower's parameter paths, the rest is frozen; empty = "
        "the tower's own, of CLIP attention and its LayerNorms",
    )
    no_weight_decay: tuple[str, ...] = setting(("ln_",), "paths without weight decay")
    lora_rank: int = setting(
        0, "tune kernels of attention by products of two matrices of this rank; 0 = whole", low=0
    )
    lora_alpha: float = setting(16.0, "the product counts alpha / rank times", low=0)
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
