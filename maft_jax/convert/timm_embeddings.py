"""What open_clip and timm compute with a ConvNeXt CLIP, and timm with towers of SigLIP and TIPS.

With open_clip and timm comes FC-CLIP's pooling of masks.

PyTorch and the libraries are imported when they are needed.
"""

import collections
import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool

from maft_jax.convert import rules
from maft_jax.convert.class_token_embeddings import load_tensors
from maft_jax.convert.convnext import PUBLISHED, TIMM_CONVNEXT_FORMATS, timm_name
from maft_jax.convert.foreign_format import Format
from maft_jax.convert.library_embeddings import Images, Tokens, import_library, normalised
from maft_jax.convert.open_clip_convnext import OPEN_CLIP_CONVNEXT_FORMATS
from maft_jax.convert.timm_vit import TIMM_VIT_FORMATS
from maft_jax.convert.weights_source import open_tensors
from maft_jax.models.clip import ClipConfig
from maft_jax.models.towers.convnext import ConvNextConfig

_LAYOUTS = (*OPEN_CLIP_CONVNEXT_FORMATS, *TIMM_CONVNEXT_FORMATS)


def convnext_embeddings(
    path: str | os.PathLike | None,
    config: ClipConfig,
    parameters: Mapping,
    images: Images,
    tokens: Tokens,
    masks: Bool[np.ndarray, "b n grid_h grid_w"],
) -> tuple[str, dict[str, np.ndarray]]:
    """Name and version of the library, and its embeddings {"images", "masks", "texts"}.

    The library reads the file at `path` by itself; without one it gets our parameters.

    Raises:
        ValueError: it is not installed, or expects other tensors.
    """
    import_library("torch", "pip install torch")
    import torch

    layout = next(layout for layout in _LAYOUTS if layout.refuses(config) is None)
    if path is None:
        tensors = rules.to_foreign(parameters, layout.rules)
    else:
        tensors = {name: x.read() for name, x in open_tensors(path).tensors.items()}
    tensors = {name: torch.from_numpy(np.array(x, np.float32)) for name, x in tensors.items()}
    library, model = _build(config, layout)
    found = model.load_state_dict(tensors, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("attn_mask")]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"{path}: {library} expects tensors {missing[:3]} and not {found.unexpected_keys[:3]}"
        )
    with torch.no_grad():
        embeddings = _image_embeddings(model.eval(), images, masks)
        if config.text is not None:
            embeddings["texts"] = model.encode_text(torch.from_numpy(tokens).long())
    # Unlike a plain division it leaves zeros alone, to which random weights map an empty mask.
    unit = torch.nn.functional.normalize
    return library, {name: unit(value, dim=-1).numpy() for name, value in embeddings.items()}


def _image_embeddings(model, images: Images, masks: np.ndarray) -> dict:
    """Of whole images, and of masks on the grid of images padded to whole cells."""
    import torch

    trunk, head = model, torch.nn.Identity()
    if hasattr(model, "visual"):
        trunk, head = model.visual.trunk, model.visual.head
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    height, width = (32 * side for side in masks.shape[2:])
    padded = torch.zeros(len(pixels), 3, height, width)
    padded[:, :, : pixels.shape[2], : pixels.shape[3]] = pixels
    weights = torch.from_numpy(masks).flatten(2).float()
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
    pooled = weights @ trunk.forward_features(padded).flatten(2).transpose(1, 2)
    # The head pools what it gets, of a map of one cell that cell.
    one_cell = pooled.flatten(0, 1)[:, :, None, None]
    return {
        "images": head(trunk(pixels)),
        "masks": head(trunk.forward_head(one_cell)).unflatten(0, pooled.shape[:2]),
    }


def _build(config: ClipConfig, layout: Format) -> tuple[str, object]:
    """A model of the library, untrained, of any sizes."""
    timm = import_library("timm", "pip install timm")
    vision = config.vision
    if config.text is None:
        return f"timm {timm.__version__}", _trunk(vision, vision.embed_dim)
    library = import_library("open_clip", "pip install open_clip_torch")
    settings = layout.make_settings(config, np.dtype(np.float32))["model_cfg"]
    published = PUBLISHED[timm_name(vision)] == (vision.depths, vision.dims)
    if not published:  # which open_clip cannot be told: its own tower is replaced
        options = {"timm_model_name": "test_convnext2"}
        settings = settings | {"vision_cfg": settings["vision_cfg"] | options}
    model = library.CLIP(**settings)
    if not published:
        model.visual.trunk = _trunk(vision, 0)
        model.visual.head = _open_clip_head(vision)
    return f"open_clip {library.__version__}", model


def _trunk(vision: ConvNextConfig, num_classes: int):
    from timm.models.convnext import ConvNeXt

    has_hidden = num_classes and vision.head == "mlp"
    return ConvNeXt(
        depths=vision.depths,
        dims=vision.dims,
        norm_eps=vision.norm_epsilon,
        num_classes=num_classes,
        head_hidden_size=2 * vision.embed_dim if has_hidden else None,
    )


def _open_clip_head(vision: ConvNextConfig):
    """As open_clip puts it behind a trunk of this width."""
    import torch
    from timm.layers import Mlp

    width, embedding = vision.dims[-1], vision.embed_dim
    if vision.head == "mlp":
        layers = {"mlp": Mlp(width, 2 * embedding, embedding, bias=(True, False))}
    else:
        layers = {"proj": torch.nn.Linear(width, embedding, bias=False)}
    return torch.nn.Sequential(collections.OrderedDict(layers))


def timm_vit_embeddings(
    config: ClipConfig, parameters: Mapping, images: Images
) -> tuple[str, dict[str, np.ndarray]]:
    """What timm computes with SigLIP's and TIPS's image towers alone: {"images"}.

    Raises:
        ValueError: it is not installed, or computes these weights in another way.
    """
    import_library("torch", "pip install torch")
    timm = import_library("timm", "pip install timm")
    import torch

    layout = next(x for x in TIMM_VIT_FORMATS if isinstance(config.vision, x.tower))
    if reason := layout.refuses(config):
        raise ValueError(f"timm computes something else with these weights: {reason}")
    settings = layout.make_settings(config, np.dtype(np.float32))
    model = timm.create_model(settings["architecture"], num_classes=0, **settings["model_args"])
    load_tensors(model, rules.to_foreign(parameters, layout.table(config)))
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    return f"timm {timm.__version__}", {"images": normalised(found.numpy())}
