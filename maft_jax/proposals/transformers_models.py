"""Proposals of Mask2Former, MaskFormer, EoMT and SAM (1, 2, 3) in the format of `transformers`.

PyTorch and transformers are imported when the first image comes, never before.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline.examples import Example
from maft_jax.hub.names import did_you_mean
from maft_jax.proposals.generator import Proposals
from maft_jax.runtime.json_files import read_json

if TYPE_CHECKING:
    import torch

_INSTALL = "pip install 'maft_jax[torch]' (or torch and transformers), for SAM 2 and 3 torchvision"
_POINTS_PER_SIDE = 32
"""SAM: a grid of 32 x 32 points over the image, as in its automatic mask generator."""
_POINTS_AT_ONCE = 64
_NMS_IOU = 0.7
"""SAM: a mask whose IoU with a better one is above this is left out."""
_PROMPT_LENGTH = 32
"""SAM 3: tokens of a name, as its processor pads them."""

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class TransformersProposals:
    """The ProposalGenerator `transformers`: a model that `save_pretrained` wrote to `path`.

    `model_type` of its config.json decides how it is run: one of MODEL_TYPES. Weights are read
    from safetensors files alone, since others could run code. Each process loads the model once,
    onto the first CUDA device if there is one.

    Raises:
        ValueError: no such folder, another kind of model, no safetensors, or packages missing.
    """

    name = "transformers"

    def __init__(self, path: str, class_names: Sequence[str] = ()):
        if not path:
            raise ValueError(
                "config.proposals.path: generator=transformers needs the folder of a model "
                "(--config.proposals.path=mask2former-swin-large)"
            )
        self.path = Path(path)
        self.class_names = tuple(class_names)
        self.model_type = _read_model_type(self.path)
        if self.reads_names and not self.class_names:
            raise ValueError(
                f"{self.path}: {self.model_type} makes masks of class names, and got none; give "
                "some, or take what reads none: the folder of its Sam3TrackerModel, or of a SAM 2"
            )
        _refuse_split_images(self.path)
        weights = sorted(self.path.glob("*.safetensors"))
        if not weights:
            raise ValueError(
                f"{self.path}: expected weights as *.safetensors, got none; load the model where "
                "you trust its files and call save_pretrained, which writes them"
            )
        needed = "torch", "transformers", *MODEL_TYPES[self.model_type].also_needs
        if missing := [name for name in needed if not importlib.util.find_spec(name)]:
            raise ValueError(f"generator=transformers needs {' and '.join(missing)}: {_INSTALL}")
        digest = hashlib.sha256()
        for file in [*sorted(self.path.glob("*.json")), *weights]:
            with open(file, "rb") as opened:
                digest.update(
                    f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode()
                )
        self.fingerprint = f"transformers 1, {digest.hexdigest()}"

    def __call__(self, example: Example, num_proposals: int) -> Proposals:
        """Soft masks at the resolution of the model's mask logits."""
        loaded = _load(self.path, self.model_type, self.fingerprint)
        names = (self.class_names,) if self.reads_names else ()
        return MODEL_TYPES[self.model_type].propose(loaded, example.image, num_proposals, *names)

    @property
    def reads_names(self) -> bool:
        """Whether the class names, which are part of a record's key, are prompts of the model."""
        return MODEL_TYPES[self.model_type].reads_names


@dataclass(frozen=True)
class _Loaded:
    model: Any
    processor: Any
    device: str
    tokenizer: Any = None


@dataclass(frozen=True)
class _ModelType:
    model_class: str
    processor_class: str
    propose: Callable[..., Proposals]
    """Of what is loaded, an image, the number of proposals and, if it reads them, class names."""
    default_size: Callable[[Any], dict] = lambda config: {}
    """Settings of the processor by the model's, where the folder has none."""
    also_needs: tuple[str, ...] = ()
    """Packages of its processor, beside torch and transformers."""
    reads_names: bool = False


def _read_model_type(folder: Path) -> str:
    try:
        model_type = read_json(folder / "config.json")["model_type"]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"config.proposals.path={folder}: expected the folder of a transformers model with a "
            f"config.json that has model_type ({type(error).__name__}: {error})"
            + did_you_mean(str(folder))
        ) from error
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise ValueError(
            f"{folder}/config.json: model_type: expected one of {list(MODEL_TYPES)}, got "
            f"{model_type!r:.80}"
        )
    return model_type


def _refuse_split_images(folder: Path) -> None:
    """Of EoMT for semantic segmentation, which reads an image piece by piece."""
    for name in _PROCESSOR_FILES:
        if (folder / name).exists() and read_json(folder / name).get("do_split_image"):
            raise ValueError(
                f"{folder / name}: do_split_image: expected false, got true: of the pieces of an "
                "image that this model reads, none has masks of the whole image; use one of "
                "panoptic or instance segmentation"
            )


@functools.lru_cache(maxsize=1)
def _load(folder: Path, model_type: str, fingerprint: str) -> _Loaded:
    """`fingerprint` stands for the content of the folder."""
    import torch
    import transformers

    kind = MODEL_TYPES[model_type]
    model, loading = getattr(transformers, kind.model_class).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        raise ValueError(
            f"{folder}: not the weights of a {kind.model_class}; missing or of another shape: "
            f"{sorted(map(str, [*loading['missing_keys'], *loading['mismatched_keys']]))[:5]}"
        )
    # The PIL backend, so that results do not depend on whether torchvision is installed.
    if any((folder / name).exists() for name in _PROCESSOR_FILES):
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    else:
        processor = getattr(transformers, kind.processor_class)(**kind.default_size(model.config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = None
    if kind.reads_names:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return _Loaded(model.to(device).eval(), processor, device, tokenizer)


def _preprocess(
    loaded: _Loaded, image: UInt8[np.ndarray, "h w 3"], **options
) -> dict[str, "torch.Tensor"]:
    return loaded.processor(
        image, input_data_format="channels_last", return_tensors="pt", **options
    )


def _propose_queries(
    loaded: _Loaded, image: UInt8[np.ndarray, "h w 3"], num_proposals: int
) -> Proposals:
    """Every query of Mask2Former, MaskFormer or EoMT; the void column of the classes is left out.

    The score is the highest probability of a class times the mean probability inside the mask
    (above 1/2), 0 for a mask that has no inside: that of the official instance inference.
    """
    import torch

    inputs = _preprocess(loaded, image)
    pixels = inputs["pixel_values"]
    given = {"pixel_values": pixels.to(loaded.device)}
    if "pixel_mask" in inputs:
        valid = inputs["pixel_mask"][0]
        given["pixel_mask"] = valid[None].to(loaded.device)
        input_size = int(valid.any(dim=1).sum()), int(valid.any(dim=0).sum())
    else:  # EoMT's processor does not say what it padded
        height, width = _preprocess(loaded, image, do_pad=False)["pixel_values"].shape[-2:]
        input_size = height, width
    with torch.inference_mode():
        outputs = loaded.model(**given)
        masks = _crop_padding(outputs.masks_queries_logits[0], pixels.shape[-2:], input_size)
        masks = masks.float().sigmoid()
        class_logits = outputs.class_queries_logits[0].float()
        inside = masks > 0.5
        quality = (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        scores = class_logits.softmax(dim=-1)[:, :-1].amax(dim=-1) * quality
    return Proposals(
        masks.cpu().numpy(), scores.cpu().numpy(), class_logits[:, :-1].cpu().numpy(), input_size
    )


def _propose_points(
    loaded: _Loaded, image: UInt8[np.ndarray, "h w 3"], num_proposals: int
) -> Proposals:
    """The best masks of SAM for a grid of points, three masks a point; scores: predicted IoU.

    SAM pads images, SAM 2 and 3 stretch them.
    """
    import torch

    inputs = _preprocess(loaded, image)
    pixels = inputs["pixel_values"].to(loaded.device)
    (input_size,) = inputs.get("reshaped_input_sizes", [pixels.shape[-2:]])
    input_size = tuple(int(side) for side in input_size)
    points = _point_grid(input_size)
    logits, scores = [], []
    with torch.inference_mode():
        embeddings = loaded.model.get_image_embeddings(pixels)
        for start in range(0, len(points), _POINTS_AT_ONCE):
            some = torch.from_numpy(points[start : start + _POINTS_AT_ONCE]).to(loaded.device)
            outputs = loaded.model(
                image_embeddings=embeddings,
                input_points=some[None, :, None],
                input_labels=torch.ones(1, len(some), 1, dtype=torch.long, device=loaded.device),
                multimask_output=True,
            )
            part = outputs.pred_masks[0].flatten(0, 1)
            # Half precision, since three thousand masks would take a gigabyte.
            logits.append(_crop_padding(part, pixels.shape[-2:], input_size).half())
            scores.append(outputs.iou_scores[0].flatten().float())
        all_logits, all_scores = torch.cat(logits), torch.cat(scores)
        kept = _suppress_overlaps(all_logits > 0, all_scores, num_proposals)
        masks = all_logits[kept].float().sigmoid()
    return Proposals(
        masks.cpu().numpy(), all_scores[kept].cpu().numpy(), None, (input_size[0], input_size[1])
    )


def _propose_concepts(
    loaded: _Loaded, image: UInt8[np.ndarray, "h w 3"], num_proposals: int, names: tuple[str, ...]
) -> Proposals:
    """The best masks of SAM 3 of all names, each a prompt; scores as in its post-processing."""
    import torch

    pixels = _preprocess(loaded, image)["pixel_values"].to(loaded.device)
    masks, scores = [], []
    with torch.inference_mode():
        vision = loaded.model.get_vision_features(pixels)
        for text, attended in _embedded(loaded, names):
            outputs = loaded.model(vision_embeds=vision, text_embeds=text, attention_mask=attended)
            of_name = outputs.pred_logits[0].sigmoid() * outputs.presence_logits[0].sigmoid()
            best = torch.argsort(-of_name, stable=True)[:num_proposals]
            masks.append(outputs.pred_masks[0][best].half())
            scores.append(of_name[best].float())
        all_logits, all_scores = torch.cat(masks), torch.cat(scores)
        kept = _suppress_overlaps(all_logits > 0, all_scores, num_proposals)
        found = all_logits[kept].float().sigmoid()
    height, width = pixels.shape[-2:]
    return Proposals(found.cpu().numpy(), all_scores[kept].cpu().numpy(), None, (height, width))


@functools.lru_cache(maxsize=1)
def _embedded(loaded: _Loaded, names: tuple[str, ...]) -> list[tuple[Any, "torch.Tensor"]]:
    """What SAM 3 reads of every name, which all images share."""
    texts = []
    for name in names:
        tokens = loaded.tokenizer(
            [name], padding="max_length", max_length=_PROMPT_LENGTH, return_tensors="pt"
        ).to(loaded.device)
        if tokens["input_ids"].shape[1] > _PROMPT_LENGTH:
            raise ValueError(
                f"class {name!r}: expected at most {_PROMPT_LENGTH} tokens, which SAM 3 reads of a "
                f"prompt, got {tokens['input_ids'].shape[1]}; shorten the name"
            )
        texts.append((loaded.model.get_text_features(**tokens), tokens["attention_mask"]))
    return texts


def _point_grid(input_size: tuple[int, ...]) -> np.ndarray:
    """(x, y) of the points in pixels of the model's input."""
    steps = (np.arange(_POINTS_PER_SIDE) + 0.5) / _POINTS_PER_SIDE
    x, y = np.meshgrid(steps * input_size[1], steps * input_size[0])
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def _suppress_overlaps(
    masks: "torch.Tensor", scores: "torch.Tensor", num_masks: int
) -> "torch.Tensor":
    """Indices of at most `num_masks`, best first, no two of which overlap by more than _NMS_IOU.

    Empty masks are left out.
    """
    import torch

    flat = masks.flatten(1)
    areas = flat.sum(dim=1, dtype=torch.float32)
    kept: list[int] = []
    for index in torch.argsort(-scores, stable=True).tolist():
        if len(kept) == num_masks:
            break
        if areas[index] == 0:
            continue
        shared = (flat[kept] & flat[index]).sum(dim=1, dtype=torch.float32)
        if not torch.any(shared / (areas[kept] + areas[index] - shared) > _NMS_IOU):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long, device=masks.device)


def _crop_padding(
    logits: "torch.Tensor", padded_size: tuple[int, ...], input_size: tuple[int, ...]
) -> "torch.Tensor":
    """Mask logits [n, h, w] of a padded input, interpolated where padding ends inside a pixel.

    Padding is below and to the right. What comes back covers the image exactly, at about the same
    pixels per input pixel.
    """
    import torch

    if tuple(padded_size) == tuple(input_size):
        return logits
    scale = [mask / padded for mask, padded in zip(logits.shape[1:], padded_size, strict=True)]
    size = [max(1, round(side * s)) for side, s in zip(input_size, scale, strict=True)]
    y, x = (
        (torch.arange(n, device=logits.device) + 0.5) / n * 2 * side / padded - 1
        for n, side, padded in zip(size, input_size, padded_size, strict=True)
    )
    grid = torch.stack(torch.broadcast_tensors(x[None], y[:, None]), dim=-1)
    return torch.nn.functional.grid_sample(
        logits[None].float(), grid[None], padding_mode="border", align_corners=False
    )[0]


def _padded_square(side: int) -> dict:
    return {"size": {"shortest_edge": side, "longest_edge": side}, "do_pad": True}


def _padded_square_of_sam(side: int) -> dict:
    return {"size": {"longest_edge": side}, "pad_size": {"height": side, "width": side}}


def _stretched_square(side: int) -> dict:
    return {"size": {"height": side, "width": side}}


_SAM_2, _SAM_3_TRACKER = (
    _ModelType(
        f"{name}Model",
        f"{processor}ImageProcessor",
        _propose_points,
        lambda config: _stretched_square(config.prompt_encoder_config.image_size),
        also_needs=("torchvision",),
    )
    for name, processor in (("Sam2", "Sam2"), ("Sam3Tracker", "Sam3"))
)
_SAM_3 = _ModelType(
    "Sam3Model",
    "Sam3ImageProcessor",
    _propose_concepts,
    lambda config: _stretched_square(config.vision_config.backbone_config.image_size),
    also_needs=("torchvision",),
    reads_names=True,
)
MODEL_TYPES = {
    "mask2former": _ModelType(
        "Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessorPil", _propose_queries
    ),
    "maskformer": _ModelType(
        "MaskFormerForInstanceSegmentation", "MaskFormerImageProcessorPil", _propose_queries
    ),
    "eomt": _ModelType(
        "EomtForUniversalSegmentation",
        "EomtImageProcessorPil",
        _propose_queries,
        lambda config: _padded_square(config.image_size),
    ),
    "sam": _ModelType(
        "SamModel",
        "SamImageProcessorPil",
        _propose_points,
        lambda config: _padded_square_of_sam(config.vision_config.image_size),
    ),
    "sam3": _SAM_3,
    "sam3_video": _SAM_3,
    "sam3_tracker": _SAM_3_TRACKER,
    "sam2": _SAM_2,
    "sam2_video": _SAM_2,
}
