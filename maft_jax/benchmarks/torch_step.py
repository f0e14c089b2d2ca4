"""The official step in plain PyTorch, on the weights and the batch of a benchmark."""

import dataclasses

import numpy as np
from jaxtyping import Float32

from maft_jax.benchmarks import torch_device
from maft_jax.benchmarks.models import BenchmarkModel
from maft_jax.config.sections import LossConfig, OptimizerConfig
from maft_jax.convert.openai import to_openai
from maft_jax.models.array_types import Batch

_FREE_LOSS = ("distillation_weight", "cached_teacher")
"""Settings of the loss that may differ from the official ones; the rendition shares all others."""
_FIXED_OPTIMIZER = (
    "schedule",
    "final_learning_rate",
    "pretrained_rate",
    "learning_rate_power",
    "clip_norm",
    "lora_rank",
    "trainable",
    "no_weight_decay",
)


def check_comparable(model: BenchmarkModel) -> None:
    """Refuses what the rendition does not compute, before anything is compiled.

    Raises:
        ValueError: names the setting, or says why PyTorch cannot run there.
    """
    config = model.config
    official = OptimizerConfig(trainable=model.clip.vision.default_trainable)
    fixed = tuple(x.name for x in dataclasses.fields(LossConfig) if x.name not in _FREE_LOSS)
    sections = (
        ("loss", config.loss, LossConfig(logit_scale=100.0), fixed),
        ("optimizer", config.optimizer, official, _FIXED_OPTIMIZER),
    )
    for section, ours, theirs, names in sections:
        for name in names:
            if getattr(ours, name) != getattr(theirs, name):
                raise ValueError(
                    f"--compare=torch: config.{section}.{name}={getattr(ours, name)!r}, but the "
                    f"official step has {getattr(theirs, name)!r}; benchmark that, or leave "
                    "--compare away"
                )
    if config.method != "maft":
        raise ValueError(
            f"--compare=torch: config.method={config.method!r}, but the official step is maft's; "
            "benchmark that, or leave --compare away"
        )
    if not config.loss.distillation_weight:
        raise ValueError(
            "--compare=torch: config.loss.distillation_weight=0, but the official step distils; "
            "benchmark that, or leave --compare away"
        )
    torch_device.matching_device(*model.devices)


class OfficialProgram:
    """The rendition with its state, which every run moves one step on.

    It gets its images at the encoder's size and its proposals at the crops' full resolution, as
    the official step has them from its proposal generator.
    """

    def __init__(self, model: BenchmarkModel, batch: Batch, text: Float32[np.ndarray, "c e"]):
        """Batch and class embeddings lie on the host; every proposal of the batch is valid."""
        import torch

        from maft_jax.benchmarks.pytorch.official_step import OfficialStep
        from maft_jax.benchmarks.pytorch.openai_clip import clip_from_state_dict

        self._device = torch_device.matching_device(*model.devices)
        self._compute_dtype = model.config.model.compute_dtype
        torch_device.use_exact_float32()
        tensors = {n: torch.tensor(value) for n, value in to_openai(model.parameters).items()}
        student, teacher = (clip_from_state_dict(tensors).visual.to(self._device) for _ in range(2))
        text = np.concatenate([text, text[:1]])  # the non-object row, never used
        config = model.config
        self._step = OfficialStep(
            student,
            teacher,
            config.model.mask_start_layer,
            torch.tensor(text).to(self._device),
            config.optimizer.learning_rate,
            config.num_steps,
            config.optimizer.weight_decay,
            config.loss.distillation_weight,
            bfloat16=self._compute_dtype == "bfloat16",
        )
        self._batch = _official_batch(model, batch, self._device)

    def run(self) -> float:
        """A step from its start to its end on the device; returns the loss before it."""
        loss = self._step.step(*self._batch)["loss"]
        torch_device.wait_for(self._device)
        return float(loss)

    def describe(self) -> dict:
        """For the record."""
        return torch_device.describe_torch(self._device, self._compute_dtype)


def _official_batch(model: BenchmarkModel, batch: Batch, device: str) -> tuple:
    """Images, masks, and for each image its classes and their masks, in PyTorch on its device."""
    import torch
    import torch.nn.functional as F

    from maft_jax.benchmarks.pytorch.official_inference import padded_image, padded_masks

    crop, size = batch.label_map.shape[1:], model.config.model.image_size
    images = torch.cat([padded_image(torch.tensor(image), crop) for image in batch.image])
    images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    masks = torch.cat([padded_masks(torch.tensor(m), crop, crop) for m in batch.proposals])
    labels, truth = [], []
    for label_map, present in zip(batch.label_map, batch.present_classes, strict=True):
        classes = present[present >= 0].astype(np.int64)
        labels.append(torch.tensor(classes).to(device))
        truth.append(torch.tensor(label_map[None] == classes[:, None, None]).to(device))
    return images.to(device), masks.to(device), labels, truth
