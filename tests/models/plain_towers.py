"""EVA-02's and TIPS's towers in numpy, one sequence under one large mask of what reads what."""

import numpy as np
from scipy.special import erf

from maft_jax.models.towers.eva02 import Eva02Config


def proposal_embeddings(config, visual, pixels, allowed, start, shares_patches, class_token=0):
    """[n, e] of one image, whose masks let proposals read the patches `allowed` [n, t]."""
    eva = isinstance(config, Eva02Config)
    grid = tuple(side // config.patch_size for side in pixels.shape[:2])
    x = embed(config, visual, pixels, eva)
    classes = config.class_tokens
    for layer in range(start):
        x = block(config, visual[f"blocks_{layer}"], x, grid, classes, everything(len(x)), eva)
    n, ordinary = len(allowed), len(x)
    x = np.concatenate([x, np.repeat(x[class_token : class_token + 1], n, axis=0)])
    visible = np.zeros((len(x), len(x)), bool)
    visible[:ordinary, :ordinary] = True
    if not shares_patches:
        visible[classes:ordinary, :classes] = False
    visible[ordinary:, classes:ordinary] = allowed
    visible[ordinary:, ordinary:] = np.eye(n, dtype=bool)
    for layer in range(start, config.layers):
        x = block(config, visual[f"blocks_{layer}"], x, grid, classes, visible, eva)
    features = norm(x[ordinary:], visual["ln_post"])
    if eva:
        features = features @ visual["proj"] + visual["proj_bias"]
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def everything(tokens):
    return np.ones((tokens, tokens), bool)


def embed(config, visual, pixels, eva):
    """Of an image at the native size."""
    p, side = config.patch_size, config.image_size // config.patch_size
    cells = pixels.reshape(side, p, side, p, 3).transpose(0, 2, 1, 3, 4).reshape(side * side, -1)
    patches = cells @ visual["patch_kernel"].reshape(-1, config.width) + visual["patch_bias"]
    classes = visual["class_embedding"].reshape(-1, config.width)
    positions = visual["position_embedding"]
    if eva:
        return np.concatenate([classes, patches]) + positions
    return np.concatenate([classes, patches + positions])


def norm(x, parameters):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * parameters["scale"] + parameters["bias"]


def block(config, p, x, grid, classes, visible, eva):
    attn, y = p["attn"], norm(x, p["ln_1"])
    bias = attn["in_proj"].get("bias")
    if eva:
        query, value = (attn["in_proj"][f"{part}_bias"] for part in "qv")
        bias = np.stack([query, np.zeros_like(query), value])
    q, k, v = np.einsum("td,dsah->sath", y, attn["in_proj"]["kernel"]) + bias[:, :, None]
    if eva:
        for heads in (q, k):
            patches = slice(classes, classes + grid[0] * grid[1])
            heads[:, patches] = turned(heads[:, patches], grid)
    scores = np.einsum("aqh,akh->aqk", q, k) / np.sqrt(config.head_width)
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    joined = np.einsum("aqk,akh->qah", weights, v).reshape(len(x), -1)
    out = attn["out_proj"]
    if eva:
        joined = norm(joined, out["ln_heads"])
    x = x + joined @ out["kernel"].reshape(-1, config.width) + out["bias"]
    return x + mlp(config, p["mlp"], norm(x, p["ln_2"]), eva)


def turned(heads, grid):
    """Pairs of features as complex numbers, times a power of e."""
    quarter = heads.shape[-1] // 4
    speed = 10_000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    places = np.stack([row / grid[0], column / grid[1]], axis=1) * 16
    angles = (places[:, :, None] * speed).reshape(len(row), -1)
    numbers = (heads[..., ::2] + 1j * heads[..., 1::2]) * np.exp(1j * angles)
    return np.stack([numbers.real, numbers.imag], axis=-1).reshape(heads.shape)


def mlp(config, p, x, eva):
    if eva or config.gated:
        both = np.einsum("td,dsm->tsm", x, p["c_gated"]["kernel"]) + p["c_gated"]["bias"]
        gate, value = both[:, 0], both[:, 1]
        hidden = gate / (1 + np.exp(-gate)) * value
        if eva:
            hidden = norm(hidden, p["ln_hidden"])
    else:
        hidden = x @ p["c_fc"]["kernel"] + p["c_fc"]["bias"]
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    return hidden @ p["c_proj"]["kernel"] + p["c_proj"]["bias"]
