"""The modules that methods train beside a tower, under the names of their authors' checkpoints.

Names are those below the module's own prefix, such as `cdt.` in MAFT+'s files.
"""

from maft_jax.convert.generator_rules import convolution, dense, norm, packed_attention
from maft_jax.convert.rules import Rule


def _pointwise(foreign: str, ours: str) -> list[Rule]:
    """A convolution of one pixel, which is a linear map here."""
    kernel = Rule(
        f"{foreign}.weight",
        f"{ours}/kernel",
        lambda shape, x: x[:, :, 0, 0].T,
        lambda x: x.T[:, :, None, None],
    )
    return [kernel, Rule(f"{foreign}.bias", f"{ours}/bias")]


def _convnext_block(foreign: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{foreign}.gamma", f"{ours}/layer_scale"),
        *convolution(f"{foreign}.dwconv", f"{ours}/conv_dw"),
        *norm(f"{foreign}.norm", f"{ours}/ln_mlp"),
        *dense(f"{foreign}.pwconv1", f"{ours}/mlp/c_fc"),
        *dense(f"{foreign}.pwconv2", f"{ours}/mlp/c_proj"),
    ]


CONTENT_DEPENDENT_TRANSFER = (
    *packed_attention("cross_atten.multihead_attn", "cross_attn"),
    *dense("cross_atten.MLP", "mlp"),
    *norm("cross_atten.norm", "ln_text"),
)
"""Of MAFT+."""
LINEAR_ALIGNMENT = (*dense("corr_proj_in.0", "proj_in"), *dense("corr_proj_out.0", "proj_out"))
PSEUDO_TEXT_ALIGNMENT = (
    *packed_attention("img2text", "cross_attn"),
    *dense("img_proj", "proj_cells", bias=False),
    *norm("ln_1", "ln_text"),
)
"""Both of MaskCLIP++."""
MASK_ADAPTER = (
    *convolution("mask_downscaling.0", "mask_conv_0"),
    *norm("mask_downscaling.1", "ln_mask_0"),
    *convolution("mask_downscaling.3", "mask_conv_1"),
    *norm("mask_downscaling.4", "ln_mask_1"),
    *_pointwise("mask_downscaling.6", "mask_proj"),
    *_pointwise("fuse", "fuse"),
    *(rule for i in range(3) for rule in _convnext_block(f"cnext{i + 1}", f"blocks_{i}")),
    *norm("norm", "ln_maps"),
    *_pointwise("final", "maps"),
)
