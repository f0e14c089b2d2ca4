"""What transformers' SiglipModel computes with SigLIP's weights, whatever layout they came in."""

import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from maft_jax.convert import rules
from maft_jax.convert.library_embeddings import import_library
from maft_jax.convert.transformers_siglip import RULES, make_settings
from maft_jax.models.clip import ClipConfig
from maft_jax.runtime import tree_rules


def siglip_embeddings(
    folder: str | os.PathLike | None,
    config: ClipConfig,
    parameters: Mapping,
    images: Float[np.ndarray, "b h w 3"],
    tokens: Int[np.ndarray, "k length"],
    masks: Bool[np.ndarray, "b n grid_h grid_w"],
) -> tuple[str, dict[str, np.ndarray]]:
    """Name and version of transformers, and the embeddings {"images", "texts", "masks"}.

    Of an image tower alone it is SiglipVisionModel, and there are no texts.

    Args:
        folder: in transformers' layout, which the library reads by itself; None: it is given our
            parameters under its names.
        images: normalised as the tower expects.
        masks: on the patch grid; the library's head is asked for one image and its masks, and what
            its attention adds is taken for zero where a mask is empty.
    """
    import_library("torch", "pip install torch")
    library = import_library("transformers", "pip install transformers", "SiglipModel")
    import torch

    if folder is not None:
        kind = library.SiglipVisionModel if config.text is None else library.SiglipModel
        model = kind.from_pretrained(os.fspath(folder), dtype=torch.float32)
    else:
        model = _built(library, config, parameters)
    model = model.eval()
    with torch.no_grad():
        tower = model if config.text is None else model.vision_model
        vision = tower(torch.from_numpy(images).permute(0, 3, 1, 2))
        found = {"images": vision.pooler_output}
        if config.text is not None:
            ids = torch.from_numpy(np.asarray(tokens)).long()
            found["texts"] = model.text_model(ids).pooler_output
        found["masks"] = _masked_head(tower.head, vision.last_hidden_state, masks)
    found = {name: _normalised(value.numpy()) for name, value in found.items()}
    return f"transformers {library.__version__}", found


def _normalised(features: np.ndarray) -> np.ndarray:
    """Zeros, which only random weights give, stay zeros."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def _built(library, config: ClipConfig, parameters: Mapping):
    import torch

    settings = make_settings(config, np.dtype(np.float32))
    tensors = rules.to_foreign(parameters, RULES)
    if config.text is None:
        values = {
            name.removeprefix("vision_model."): torch.from_numpy(x) for name, x in tensors.items()
        }
        model = library.SiglipVisionModel(library.SiglipVisionConfig.from_dict(settings))
        model.load_state_dict(values)
        return model
    model = library.SiglipModel(library.SiglipConfig.from_dict(settings))
    if not config.text.has_head:  # which the library always has
        tensors["text_model.head.weight"] = np.eye(config.text.width, dtype=np.float32)
        tensors["text_model.head.bias"] = np.zeros(config.text.width, np.float32)
    values = {name: torch.from_numpy(x) for name, x in tree_rules.flatten(tensors).items()}
    model.load_state_dict(values, strict=False)
    return model


def _masked_head(head, patches, masks: np.ndarray):
    import torch

    allowed = torch.from_numpy(masks).flatten(2)
    embeddings = []
    for row, visible in zip(patches, allowed, strict=True):
        keys = row.expand(len(visible), -1, -1)
        probe = head.probe.expand(len(visible), -1, -1)
        empty = ~visible.any(dim=1)
        attended, _ = head.attention(probe, keys, keys, ~visible & ~empty[:, None])
        attended[empty] = head.attention.out_proj.bias
        embeddings.append(attended + head.mlp(head.layernorm(attended)))
    return torch.stack(embeddings)[:, :, 0]
