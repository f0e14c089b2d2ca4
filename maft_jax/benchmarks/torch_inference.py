"""The official inference in plain PyTorch, on the weights and the photograph of a benchmark."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, Int64

from maft_jax.benchmarks import torch_device
from maft_jax.benchmarks.models import BenchmarkModel
from maft_jax.config.evaluation_section import EvaluationConfig
from maft_jax.convert.openai import to_openai

_FIXED_EVALUATION = ("ensemble_weight", "filter_invalid", "scales", "flip")


def check_comparable(model: BenchmarkModel) -> None:
    """Refuses what the rendition does not compute, before anything is compiled.

    Raises:
        ValueError: names the setting, or says why PyTorch cannot run there.
    """
    config = model.config
    settings = [("loss.logit_scale", config.loss.logit_scale, 100.0)]
    settings += [
        (f"evaluation.{n}", getattr(config.evaluation, n), getattr(EvaluationConfig(), n))
        for n in _FIXED_EVALUATION
    ]
    for name, ours, official in settings:
        if ours != official:
            raise ValueError(
                f"--compare=torch: config.{name}={ours!r}, but the rendition of the official "
                f"inference has {official!r}; benchmark that, or leave --compare away"
            )
    torch_device.matching_device(*model.devices)


def official_inputs(example: Mapping[str, np.ndarray]) -> dict:
    """What the rendition's `segment` reads of a batch with one image, as numpy arrays and sizes."""
    height, width = example["image_size"][0]
    rows, columns = example["proposal_grid"][0]
    return {
        "image": example["image"][0, :height, :width],
        "proposals": example["proposals"][0, :, :rows, :columns],
        "padded_size": tuple(example["padded_size"][0].tolist()),
        "original_size": tuple(example["label_size"][0].tolist()),
    }


class OfficialInference:
    """Labels one image after the other, each with the scores of all classes at all pixels."""

    def __init__(
        self,
        model: BenchmarkModel,
        example: Mapping[str, np.ndarray],
        text: Float32[np.ndarray, "c e"],
        num_images: int,
    ):
        import torch

        from maft_jax.benchmarks.pytorch.openai_clip import clip_from_state_dict

        self._device = torch_device.matching_device(*model.devices)
        torch_device.use_exact_float32()
        tensors = {n: torch.tensor(value) for n, value in to_openai(model.parameters).items()}
        self._tower = clip_from_state_dict(tensors).visual.to(self._device)
        self._model = model.config.model
        self._num_images = num_images
        self._sizes = official_inputs(example)
        self._image, self._proposals, self._text = (
            torch.tensor(array).to(self._device)
            for array in (self._sizes.pop("image"), self._sizes.pop("proposals"), text)
        )

    def run(self) -> Int64[np.ndarray, "h w"]:
        """As many images as a batch of this program has; the labels of the last."""
        from maft_jax.benchmarks.pytorch.official_inference import segment

        for _ in range(self._num_images):
            _, labels = segment(
                self._tower,
                self._text,
                self._image,
                self._proposals,
                **self._sizes,
                clip_size=(self._model.image_size, self._model.image_size),
                start_layer=self._model.mask_start_layer,
                bfloat16=self._model.compute_dtype == "bfloat16",
            )
        torch_device.wait_for(self._device)
        return labels.cpu().numpy()

    def describe(self) -> dict:
        """For the record."""
        return torch_device.describe_torch(self._device, self._model.compute_dtype)
