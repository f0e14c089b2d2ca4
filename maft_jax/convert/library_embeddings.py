"""What the library that a weights file is from computes with it, and what plain PyTorch does.

PyTorch and the libraries are imported when they are needed. The plain rendition takes class tokens
and patches as one sequence under one large attention mask, as the official MAFT code does.
"""

import importlib
import math
import os
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from maft_jax.convert import rules
from maft_jax.convert.foreign_format import Format
from maft_jax.convert.openai import text_rules, vision_rules
from maft_jax.convert.weights_source import open_tensors
from maft_jax.models.clip import ClipConfig
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.clip_vit import VisionConfig
from maft_jax.runtime import tree_rules

Images = Float[np.ndarray, "b h w 3"]
"""Normalised as CLIP's."""
Tokens = Int[np.ndarray, "k length"]


def import_library(name: str, installation: str, *needed: str):
    """A module with the attributes `needed`, or a ValueError that says how to install it."""
    try:
        module = importlib.import_module(name)
        for attribute in needed:  # transformers imports its parts when they are asked for
            getattr(module, attribute)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another PyTorch
        raise ValueError(
            f"comparing with the library needs {name.partition('.')[0]} ({error}): {installation}"
        ) from error
    return module


def transformers_embeddings(
    path: str | os.PathLike, config: ClipConfig, images: Images, tokens: Tokens
) -> tuple[str, dict[str, np.ndarray]]:
    """Name and version of transformers, and the embeddings {"images", "texts"} of its model."""
    import_library("torch", "pip install torch")
    alone = config.text is None
    kind = "CLIPVisionModelWithProjection" if alone else "CLIPModel"
    library = import_library("transformers", "pip install transformers", kind)
    import torch

    model = getattr(library, kind).from_pretrained(os.fspath(path), dtype=torch.float32).eval()
    with torch.no_grad():
        pixels = _channels_first(images)
        found = {"images": model.visual_projection(model.vision_model(pixels).pooler_output)}
        if not alone:
            read = model.text_model(torch.from_numpy(tokens).long()).pooler_output
            found["texts"] = model.text_projection(read)
    found = {name: normalised(value.numpy()) for name, value in found.items()}
    return f"transformers {library.__version__}", found


def open_clip_embeddings(
    path: str | os.PathLike, config: ClipConfig, layout: Format, images: Images, tokens: Tokens
) -> tuple[str, dict[str, np.ndarray]]:
    """The same of open_clip's CLIP or CustomTextCLIP, built for this architecture."""
    import_library("torch", "pip install torch")
    library = import_library("open_clip", "pip install open_clip_torch")
    import torch

    settings = dict(layout.make_settings(config, np.dtype(np.float32))["model_cfg"])
    kind = library.CustomTextCLIP if settings.pop("custom_text", False) else library.CLIP
    model = kind(**settings).eval()
    tensors = {
        name: torch.from_numpy(np.array(tensor.read(), np.float32))
        for name, tensor in open_tensors(path).tensors.items()
        if name in dict(model.named_parameters())
    }
    absent = model.load_state_dict(tensors, strict=False).missing_keys
    if absent := [name for name in absent if not name.endswith("attn_mask")]:
        raise ValueError(f"{path}: open_clip expects tensors {absent[:5]} besides")
    with torch.no_grad():
        found = {
            "images": model.encode_image(_channels_first(images)),
            "texts": model.encode_text(torch.from_numpy(tokens).long()),
        }
    found = {name: normalised(value.numpy()) for name, value in found.items()}
    return f"open_clip {library.__version__}", found


def big_vision_embeddings(
    path: str | os.PathLike, vision: VisionConfig, images: Images
) -> tuple[str, dict[str, np.ndarray]]:
    """The same of big_vision's ViT."""
    library = import_library(
        "big_vision.models.vit",
        "it is no package: clone github.com/google-research/big_vision onto PYTHONPATH",
    )
    prefix = "params/img/"
    params = rules.materialised(
        {
            name.removeprefix(prefix): tensor
            for name, tensor in open_tensors(path).tensors.items()
            if name.startswith(prefix)
        }
    )
    model = library.Model(
        num_classes=vision.embed_dim if vision.has_proj_bias else None,
        patch_size=(vision.patch_size,) * 2,
        width=vision.width,
        depth=vision.layers,
        mlp_dim=vision.mlp_width or 4 * vision.width,
        num_heads=vision.heads,
        pool_type="tok",
        scan="encoderblock" in params["Transformer"],
    )
    with jax.default_matmul_precision("highest"):
        features, _ = model.apply({"params": params}, _as_the_tower_expects(vision, images))
    return "big_vision", {"images": normalised(features)}


def plain_image_embeddings(
    config: VisionConfig,
    visual: Mapping,
    images: Images,
    masks: Bool[np.ndarray, "b n grid_h grid_w"] | None = None,
    first_masked_layer: int = 0,
) -> np.ndarray:
    """Embeddings [b, e] of images, or [b, n, e] of masks on them, in plain PyTorch.

    Args:
        visual: our parameters; PyTorch computes with what they are under OpenAI's names.
        masks: on the patch grid. A proposal sees itself and its patches, a patch all patches.
    """
    import_library("torch", "pip install torch")
    import torch
    from torch.nn import functional

    visual = dict(visual)
    biases = {name: visual.pop(name, np.float32(0)) for name in ("patch_bias", "proj_bias")}
    biases = {name: torch.tensor(np.asarray(value)) for name, value in biases.items()}
    tensors = _as_torch(rules.to_foreign({"visual": visual}, vision_rules("")))
    pixels = _channels_first(_as_the_tower_expects(config, images))
    x = functional.conv2d(pixels, tensors["conv1.weight"], stride=config.patch_size)
    x = x.flatten(2).transpose(1, 2) + biases["patch_bias"]
    start = tensors["class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([start, x], dim=1) + tensors["positional_embedding"]
    if config.has_ln_pre:
        x = _norm(functional, x, tensors, "ln_pre", config.norm_epsilon)
    num_proposals, bias = 1, None
    for layer in range(config.layers):
        if masks is not None and layer == first_masked_layer:
            num_proposals = masks.shape[1]
            x = torch.cat([x[:, :1].expand(-1, num_proposals, -1), x[:, 1:]], dim=1)
            bias = _proposal_bias(torch, masks, config.heads)
        x = _block(x, tensors, layer, config, bias)
    x = _norm(functional, x[:, :num_proposals], tensors, "ln_post", config.norm_epsilon)
    features = normalised((x @ tensors["proj"] + biases["proj_bias"]).numpy())
    return features[:, 0] if masks is None else features


def plain_text_embeddings(config: TextConfig, text: Mapping, tokens: Tokens) -> np.ndarray:
    """Embeddings [k, e], read at the largest token of each row, in plain PyTorch."""
    import_library("torch", "pip install torch")
    import torch
    from torch.nn import functional

    tensors = _as_torch(rules.to_foreign({"text": text}, text_rules("")))
    ids = torch.from_numpy(tokens).long()
    length = ids.shape[1]
    x = tensors["token_embedding.weight"][ids] + tensors["positional_embedding"][:length]
    causal = torch.full((length, length), -math.inf).triu(1)
    for layer in range(config.layers):
        x = _block(x, tensors, layer, config, causal)
    x = _norm(functional, x, tensors, "ln_final", 1e-5)
    return normalised((x[range(len(x)), ids.argmax(dim=1)] @ tensors["text_projection"]).numpy())


def normalised(features) -> np.ndarray:
    """Rows of L2 norm 1."""
    features = np.asarray(features, np.float32)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def _as_the_tower_expects(vision: VisionConfig, images: Images) -> np.ndarray:
    if vision.pixel_range == "clip":
        return images
    return (images * PIXEL_STD + PIXEL_MEAN) / 127.5 - 1


def _channels_first(images: np.ndarray):
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _as_torch(tensors: Mapping[str, np.ndarray]) -> dict:
    import torch

    return {name: torch.from_numpy(value) for name, value in tree_rules.flatten(tensors).items()}


def _norm(functional, x, tensors: Mapping, name: str, epsilon: float):
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return functional.layer_norm(x, weight.shape, weight, bias, epsilon)


def _block(x, tensors: Mapping, layer: int, config: VisionConfig | TextConfig, bias):
    """A pre-norm block on [b, tokens, width]; `bias` is added to the attention's scores."""
    from torch.nn import functional

    part = {
        name.removeprefix(prefix): value
        for prefix in (f"transformer.resblocks.{layer}.",)
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    epsilon = config.block.norm_epsilon
    y = _norm(functional, x, part, "ln_1", epsilon).transpose(0, 1)
    attended, _ = functional.multi_head_attention_forward(
        *(y, y, y),
        embed_dim_to_check=config.width,
        num_heads=config.block.heads,
        in_proj_weight=part["attn.in_proj_weight"],
        in_proj_bias=part["attn.in_proj_bias"],
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=part["attn.out_proj.weight"],
        out_proj_bias=part["attn.out_proj.bias"],
        training=False,
        need_weights=False,
        attn_mask=bias,
    )
    x = x + attended.transpose(0, 1)
    y = _norm(functional, x, part, "ln_2", epsilon)
    y = functional.linear(y, part["mlp.c_fc.weight"], part["mlp.c_fc.bias"])
    y = _activation(functional, y, config.activation)
    return x + functional.linear(y, part["mlp.c_proj.weight"], part["mlp.c_proj.bias"])


def _activation(functional, x, name: str):
    if name == "quick_gelu":
        return x * (1.702 * x).sigmoid()
    return functional.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def _proposal_bias(torch, masks: np.ndarray, heads: int):
    """[b * heads, n + t, n + t]: 0 where attention is allowed, -inf elsewhere."""
    allowed = torch.from_numpy(masks).flatten(2)
    batch, n, t = allowed.shape
    visible = torch.zeros(batch, n + t, n + t, dtype=torch.bool)
    visible[:, :n, :n] = torch.eye(n, dtype=torch.bool)
    visible[:, :n, n:] = allowed
    visible[:, n:, n:] = True
    bias = torch.zeros(visible.shape).masked_fill(~visible, -math.inf)
    return bias.repeat_interleave(heads, dim=0)
