"""CLIP (ViT) in plain PyTorch, with the tensor names of OpenAI's released state dicts."""

import collections
import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64


class LayerNorm(nn.LayerNorm):
    """In float32 whatever the input's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-LN transformer block on [sequence, batch, width]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = LayerNorm(width)
        layers = {
            "c_fc": nn.Linear(width, 4 * width),
            "gelu": QuickGELU(),
            "c_proj": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(collections.OrderedDict(layers))
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor, attention_bias: Tensor | None = None) -> Tensor:
        """`attention_bias` is [s, s] or [batch * heads, s, s], added to the attention scores."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=attention_bias, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.heads = heads
        self.resblocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))

    def forward(self, x: Tensor, attention_bias: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, attention_bias)
        return x


class ImageTower(nn.Module):
    def __init__(
        self, *, width: int, layers: int, patch_size: int, image_size: int, embed_dim: int
    ):
        super().__init__()
        grid = image_size // patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid * grid + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, width // HEAD_WIDTH)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, embed_dim))

    def embed(self, images: Tensor) -> tuple[Tensor, tuple]:
        """Input of the first block, [1 + patches, batch, width], and the patch grid.

        `images` are [batch, 3, height, width], normalised, of any size.
        """
        patches = self.conv1(images)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        position = resize_position_embedding(self.positional_embedding, grid)
        x = torch.cat([class_token, patches], dim=1) + position
        return self.ln_pre(x).transpose(0, 1), grid

    def project(self, tokens: Tensor) -> Tensor:
        return self.ln_post(tokens) @ self.proj

    def forward(self, images: Tensor) -> Tensor:
        """Image embeddings [batch, embed_dim], not normalised."""
        x, _ = self.embed(images)
        return self.project(self.transformer(x)[0])


class CLIP(nn.Module):
    def __init__(
        self,
        *,
        vision_width: int,
        vision_layers: int,
        patch_size: int,
        image_size: int,
        text_width: int,
        text_layers: int,
        embed_dim: int,
        text_heads: int | None = None,
        context_length: int = 77,
        vocab_size: int = 49408,
    ):
        super().__init__()
        self.visual = ImageTower(
            width=vision_width,
            layers=vision_layers,
            patch_size=patch_size,
            image_size=image_size,
            embed_dim=embed_dim,
        )
        self.transformer = Transformer(text_width, text_layers, text_heads or text_width // 64)
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.positional_embedding = nn.Parameter(torch.zeros(context_length, text_width))
        self.ln_final = LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.zeros(text_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.visual(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeddings [batch, embed_dim], not normalised, at the largest token: the end of text."""
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        causal = torch.full((length, length), -math.inf, device=x.device).triu(1)
        x = self.ln_final(self.transformer(x.transpose(0, 1), causal)).transpose(0, 1)
        return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection


def resize_position_embedding(embedding: Tensor, grid: tuple) -> Tensor:
    """[1 + s * s, width] to [1 + h * w, width]: bicubic with aligned corners, class row kept.

    `grid` is (h, w), integers or, while TorchScript traces, tensors.
    """
    side = math.isqrt(len(embedding) - 1)
    if grid == (side, side):
        return embedding
    image = embedding[1:].T.reshape(1, -1, side, side).float()
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=True)
    return torch.cat([embedding[:1], image[0].flatten(1).T.to(embedding.dtype)])


def random_clip(seed: int, **sizes) -> CLIP:
    """A CLIP of the given `sizes` (arguments of CLIP), initialised at OpenAI's scales."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(**sizes)
        _initialise(clip)
    return clip


def clip_from_state_dict(state_dict: Mapping[str, Tensor]) -> CLIP:
    """The float32 CLIP that the tensors describe; every tensor must be used."""
    width, _, patch_size, _ = state_dict["visual.conv1.weight"].shape
    grid = math.isqrt(len(state_dict["visual.positional_embedding"]) - 1)
    vocab_size, text_width = state_dict["token_embedding.weight"].shape

    def count_layers(prefix: str) -> int:
        return len({m[1] for n in state_dict if (m := re.match(prefix + r"\.(\d+)\.", n))})

    clip = CLIP(
        vision_width=width,
        vision_layers=count_layers(r"visual\.transformer\.resblocks"),
        patch_size=patch_size,
        image_size=grid * patch_size,
        text_width=text_width,
        text_layers=count_layers(r"transformer\.resblocks"),
        embed_dim=state_dict["visual.proj"].shape[1],
        context_length=len(state_dict["positional_embedding"]),
        vocab_size=vocab_size,
    )
    clip.load_state_dict(state_dict, strict=True)
    return clip


@torch.no_grad()
def _initialise(clip: CLIP) -> None:
    visual = clip.visual
    scale = visual.proj.shape[0] ** -0.5
    for tensor in (visual.class_embedding, visual.positional_embedding, visual.proj):
        tensor.normal_(std=scale)
    visual.conv1.weight.normal_(std=visual.conv1.weight[0].numel() ** -0.5)
    clip.token_embedding.weight.normal_(std=0.02)
    clip.positional_embedding.normal_(std=0.01)
    clip.text_projection.normal_(std=clip.text_projection.shape[0] ** -0.5)
    for transformer in (visual.transformer, clip.transformer):
        for block in transformer.resblocks:
            width = block.attn.embed_dim
            output_std = width**-0.5 * (2 * len(transformer.resblocks)) ** -0.5
            block.attn.in_proj_weight.normal_(std=width**-0.5)
            block.attn.out_proj.weight.normal_(std=output_std)
            block.mlp.c_fc.weight.normal_(std=(2 * width) ** -0.5)
            block.mlp.c_proj.weight.normal_(std=output_std)
