"""Tiny CLIPs with random weights, made by the libraries themselves, and what they compute."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
import torch
import transformers

from maft_jax.benchmarks.pytorch.openai_clip import random_clip
from tests.torch_reference.torchvision_operators import declare_missing_operators

declare_missing_operators()  # before anything makes transformers or open_clip import torchvision

IMAGE_SIZE, PATCH, VOCABULARY, CONTEXT, EMBED_DIM = 48, 16, 60, 9, 24


@dataclasses.dataclass
class LibraryModel:
    """A model, its two encoders (not normalised), and how its weights are saved."""

    model: torch.nn.Module
    encode_image: Callable
    encode_text: Callable | None
    save: Callable[[pathlib.Path], pathlib.Path]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in self.model.state_dict().items()}


def _disturbed(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter is random, those too that begin at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def _save_pt(model, path: pathlib.Path) -> pathlib.Path:
    torch.save(model.state_dict(), path / "clip.pt")
    return path / "clip.pt"


def openai() -> LibraryModel:
    vision = {"vision_width": 128, "vision_layers": 2, "patch_size": PATCH}
    text = {"text_width": 64, "text_layers": 1, "context_length": CONTEXT}
    sizes = {"image_size": IMAGE_SIZE, "vocab_size": VOCABULARY, "embed_dim": EMBED_DIM}
    model = _disturbed(random_clip(3, **vision, **text, **sizes))
    save = lambda path: _save_pt(model, path)  # noqa: E731
    return LibraryModel(model, model.encode_image, model.encode_text, save)


def open_clip(
    *,
    quick_gelu: bool = False,
    custom_text: bool = False,
    head_width: int = 64,
    vision_width: int = 128,
    mlp_ratio: float = 4.0,
    text_heads: int = 1,
    vision_options: dict | None = None,
    text_options: dict | None = None,
    **model_options,
) -> LibraryModel:
    """Saved as a folder with open_clip_config.json, as on the model hub."""
    import open_clip

    settings = {
        "embed_dim": EMBED_DIM,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "width": vision_width,
            "layers": 2,
            "head_width": head_width,
            "mlp_ratio": mlp_ratio,
            **(vision_options or {}),
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "width": 64,
            "heads": text_heads,
            "layers": 1,
            **(text_options or {}),
        },
    }
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    model = _disturbed(kind(**settings, **model_options))

    def save(path: pathlib.Path) -> pathlib.Path:
        torch.save(model.state_dict(), path / "open_clip_pytorch_model.bin")
        config = {"model_cfg": settings | ({"custom_text": True} if custom_text else {})}
        (path / "open_clip_config.json").write_text(json.dumps(config))
        return path

    return LibraryModel(model, model.encode_image, model.encode_text, save)


def transformers_settings(**changes) -> transformers.CLIPConfig:
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
    }
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": VOCABULARY - 1,
        "bos_token_id": VOCABULARY - 2,
    }
    return transformers.CLIPConfig(
        text_config=text | changes.pop("text", {}),
        vision_config=vision | changes.pop("vision", {}),
        projection_dim=EMBED_DIM,
    )


def transformers_clip(*, shards: bool = False, **changes) -> LibraryModel:
    torch.manual_seed(0)
    model = _disturbed(transformers.CLIPModel(transformers_settings(**changes)))

    def save(path: pathlib.Path) -> pathlib.Path:
        model.save_pretrained(path, **({"max_shard_size": "300KB"} if shards else {}))
        return path

    return LibraryModel(
        model,
        lambda images: model.get_image_features(pixel_values=images).pooler_output,
        lambda tokens: model.get_text_features(input_ids=tokens).pooler_output,
        save,
    )


def transformers_vision() -> LibraryModel:
    torch.manual_seed(0)
    settings = transformers_settings().vision_config
    settings.projection_dim = EMBED_DIM
    model = _disturbed(transformers.CLIPVisionModelWithProjection(settings))

    def save(path: pathlib.Path) -> pathlib.Path:
        model.save_pretrained(path)
        return path

    return LibraryModel(model, lambda images: model(images).image_embeds, None, save)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images [3, h, w, 3] and tokens [2, context], whose end of text is the largest id."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    tokens = rng.integers(3, VOCABULARY - 2, (2, CONTEXT)).astype(np.int32)
    tokens[0, 4], tokens[0, 5:], tokens[1, -1] = VOCABULARY - 1, 0, VOCABULARY - 1
    return images, tokens
