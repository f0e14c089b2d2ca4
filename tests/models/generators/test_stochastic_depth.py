"""Branches that training leaves out: how many, of which images, and what timm's Swin does then."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from maft_jax.models.generators.stochastic_depth import branch_factors
from maft_jax.models.generators.swin import SwinBlock, SwinConfig

RATE = 0.3


def keys_of(positions):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.array(positions))


def test_shares_that_are_left_out_rise_to_the_rate_and_what_stays_counts_for_all():
    factors = np.asarray(branch_factors(keys_of(range(4000)), 4, RATE))
    assert factors.shape == (4, 2, 4000)
    for block, share in enumerate((0, 0.1, 0.2, 0.3)):
        values = np.unique(factors[block])
        np.testing.assert_allclose(values, [0, 1 / (1 - share)] if share else [1], rtol=1e-6)
        np.testing.assert_allclose((factors[block] == 0).mean(axis=1), share, atol=0.03)
    together = (factors[3] == 0).all(axis=0).mean()
    np.testing.assert_allclose(together, 0.09, atol=0.02, err_msg="both branches are drawn apart")


def test_an_images_branches_do_not_depend_on_its_batch():
    one, other = (branch_factors(keys_of(p), 4, RATE) for p in ((5, 7), (7, 9, 5)))
    np.testing.assert_array_equal(one, other[..., np.array([2, 0])])


class Times(nn.Module):
    """In the place of timm's DropPath, which draws."""

    def __init__(self, factors):
        super().__init__()
        self.factors = torch.tensor(np.asarray(factors))

    def forward(self, x):
        return x * self.factors.reshape(-1, *[1] * (x.ndim - 1))


def as_flax(block) -> dict:
    """Parameters of timm's block under our names."""
    weights = {name: value.numpy() for name, value in block.state_dict().items()}

    def linear(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    table = weights["attn.relative_position_bias_table"]
    attention = {"qkv": linear("attn.qkv"), "proj": linear("attn.proj"), "bias_table": table}
    mlp = {name: linear(f"mlp.{name}") for name in ("fc1", "fc2")}
    return {"norm1": norm("norm1"), "norm2": norm("norm2"), "attn": attention, **mlp}


def test_branches_are_those_that_timm_drops():
    from timm.models.swin_transformer import SwinTransformerBlock  # after torchvision's operators

    torch.manual_seed(0)
    block = SwinTransformerBlock(8, (8, 8), 2, window_size=4, shift_size=2, drop_path=RATE).eval()
    factors = branch_factors(keys_of(range(6)), 2, RATE)[1]
    assert (factors == 0).any() and (factors != 0).any()
    block.drop_path1, block.drop_path2 = map(Times, factors)
    x = np.random.default_rng(0).standard_normal((6, 8, 8, 8), np.float32)
    with torch.no_grad():
        expected = block(torch.from_numpy(x)).numpy()
    config = SwinConfig(8, heads=(2, 2, 2, 2), window=4)
    ours = SwinBlock(config, heads=2, shifted=True, dtype=jnp.float32)
    found = jax.jit(ours.apply)({"params": as_flax(block)}, jax.device_put(x), factors)
    np.testing.assert_allclose(found, expected, atol=1e-5)
