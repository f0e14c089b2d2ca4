"""What timm and open_clip compute with EVA-02's weights, and transformers with TIPS's.

PyTorch and the libraries are imported when they are needed.
"""

from collections.abc import Mapping

import numpy as np

from maft_jax.convert import rules
from maft_jax.convert.eva02 import EVA02_OPEN_CLIP
from maft_jax.convert.library_embeddings import Images, Tokens, import_library, normalised
from maft_jax.convert.tips import TIPS_HUB
from maft_jax.models.clip import ClipConfig
from maft_jax.models.towers.eva02 import Eva02Config


def eva02_embeddings(
    config: ClipConfig, parameters: Mapping, images: Images, tokens: Tokens
) -> tuple[str, dict[str, np.ndarray]]:
    """Names of the libraries, and the embeddings {"images", "texts"} of their towers.

    The towers are built for this architecture, which need not be a published one, and get our
    parameters under open_clip's names.

    Raises:
        ValueError: a library is not installed, or expects other tensors.
    """
    import_library("torch", "pip install torch")
    timm = import_library("timm", "pip install timm")
    open_clip = import_library("open_clip", "pip install open_clip_torch")
    import torch

    tensors = rules.to_foreign(parameters, EVA02_OPEN_CLIP.table(config))
    trunk = _build_trunk(config.vision)
    text = config.text
    tower = open_clip.transformer.TextTransformer(
        context_length=text.context_length,
        vocab_size=text.vocab_size,
        width=text.width,
        heads=text.width // text.head_width,
        layers=text.layers,
        output_dim=text.embed_dim,
    )
    load_tensors(trunk, tensors, "visual.trunk.")
    load_tensors(tower, tensors, "text.")
    with torch.no_grad():
        found = {
            "images": trunk(torch.from_numpy(images).permute(0, 3, 1, 2)),
            "texts": tower(torch.from_numpy(tokens).long()),
        }
    library = f"timm {timm.__version__}, open_clip {open_clip.__version__}"
    return library, {name: normalised(value.numpy()) for name, value in found.items()}


def _build_trunk(vision: Eva02Config):
    from timm.models.eva import Eva

    return Eva(
        img_size=vision.image_size,
        patch_size=vision.patch_size,
        num_classes=vision.embed_dim,
        global_pool="token",
        embed_dim=vision.width,
        depth=vision.layers,
        num_heads=vision.heads,
        qkv_fused=False,
        mlp_ratio=(vision.mlp_width + 0.5) / vision.width,  # of which timm takes the whole part
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16),
    )


def load_tensors(module, tensors: Mapping[str, np.ndarray], prefix: str = "") -> None:
    """Into a module of a library, which has to expect them all; names begin with `prefix`."""
    import torch

    own = {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in tensors.items()
        if name.startswith(prefix) and not name.endswith("mask_logit_scale")
    }
    found = module.load_state_dict(own, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("attn_mask")]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"the library expects tensors {missing[:3]} and not {found.unexpected_keys[:3]}"
        )
    module.eval()


def tips_embeddings(
    config: ClipConfig, parameters: Mapping, images: Images, tokens: Tokens
) -> tuple[str, dict[str, np.ndarray]]:
    """The same of transformers' Tipsv2Model, which computes as PyTorch's layouts mean.

    Raises:
        ValueError: it is not installed, or computes these weights in another way.
    """
    import_library("torch", "pip install torch")
    library = import_library("transformers", "pip install 'transformers>=5.24'", "Tipsv2Model")
    import torch

    if reason := TIPS_HUB.refuses(config):
        raise ValueError(f"transformers computes something else with these weights: {reason}")
    settings = library.Tipsv2Config.from_dict(
        dict(TIPS_HUB.make_settings(config, np.dtype(np.float32)))
    )
    tensors = rules.to_foreign(parameters, TIPS_HUB.table(config))
    tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    model = library.Tipsv2Model.from_pretrained(None, config=settings, state_dict=tensors).eval()
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        ids = torch.from_numpy(tokens).long()
        found = {
            "images": model.vision_model(pixels).pooler_output,
            "texts": model.text_model(ids, attention_mask=(ids != 0).long()).pooler_output,
        }
    library_name = f"transformers {library.__version__}"
    return library_name, {name: normalised(value.numpy()) for name, value in found.items()}
