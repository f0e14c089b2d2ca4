"""Modules of methods in whole checkpoints of their authors, read and written back."""

import jax
import numpy as np
import pytest

from maft_jax.convert import fcclip
from maft_jax.convert.formats import read_weights
from maft_jax.convert.method_modules import (
    CONTENT_DEPENDENT_TRANSFER,
    MASK_ADAPTER,
    read_modules,
)
from maft_jax.convert.rules import to_foreign
from maft_jax.convert.state_dict_io import open_state_dict
from maft_jax.methods.mask_adapter import MaskAdapterMethod
from maft_jax.models.adapters.content_dependent_transfer import TransferReader
from maft_jax.models.adapters.mask_adapter import AdapterReader, MaskAdapterConfig
from maft_jax.models.mask_reader import Modules
from tests.fcclip_files import checkpoint_tensors, maft_plus_tensors, write_checkpoint

ADAPTER = MaskAdapterMethod(False, AdapterReader(MaskAdapterConfig(width=8)))


def stored(path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in open_state_dict(path)[0].items()}


def halved(tree):
    return jax.tree.map(lambda x: (0.5 * np.asarray(x)).astype(np.float32), tree)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """FC-CLIP's CLIP of the golden checkpoint."""
    path = write_checkpoint(tmp_path_factory.mktemp("fcclip") / "fcclip.pth")
    weights = read_weights(path)
    return weights.config.vision, weights.parameters()["visual"]


def test_mafts_plus_transfer_is_read_from_its_checkpoint_and_written_back(tmp_path, clip):
    vision, visual = clip
    theirs = write_checkpoint(tmp_path / "maft_plus.pth", maft_plus_tensors())
    expected = fcclip.read_modules(theirs)["transfer"]
    ours = read_modules(theirs, CONTENT_DEPENDENT_TRANSFER, expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    changed = Modules(halved(ours), TransferReader())
    fcclip.write_into(theirs, tmp_path / "ours.pth", vision, halved(visual), modules=changed)
    before, after = stored(theirs), stored(tmp_path / "ours.pth")
    differ = {name for name in before if not np.array_equal(before[name], after[name])}
    assert all(".cdt." in name or "backbone.clip_model.visual." in name for name in differ)
    foreign = to_foreign(changed.parameters, CONTENT_DEPENDENT_TRANSFER)
    [prefix] = {name.partition("cdt.")[0] for name in after if "cdt." in name}
    for name, value in foreign.items():
        np.testing.assert_array_equal(after[f"{prefix}cdt.{name}"], value.astype(np.float16))


@pytest.mark.slow
def test_mask_adapters_checkpoint_likewise(tmp_path, clip):
    vision, visual = clip
    modules = ADAPTER.init_modules(vision, jax.random.key(0))
    adapter = to_foreign(modules, MASK_ADAPTER)
    tensors = checkpoint_tensors() | {f"mask_adapter.{name}": x for name, x in adapter.items()}
    theirs = write_checkpoint(tmp_path / "adapter.pth", tensors)
    ours = read_modules(theirs, MASK_ADAPTER, modules)
    jax.tree.map(np.testing.assert_array_equal, ours, modules)
    tower = read_weights(theirs)
    assert tower.format_name == "fcclip"
    assert any("mask_adapter." in name for name in tower.ignored)
    (whole,) = fcclip.read_modules(theirs).items()
    assert whole[0] == "adapter" and fcclip.adapter_config(whole[1]) == ADAPTER.reader.config
    jax.tree.map(np.testing.assert_array_equal, whole[1], modules)
    of_maft_plus = {name: x for name, x in maft_plus_tensors().items() if name.startswith("cdt.")}
    both = write_checkpoint(tmp_path / "both.pth", tensors | of_maft_plus)
    assert fcclip.read_modules(both).keys() == {"transfer", "adapter"}
    refused = r"both\.pth: .*got Mask-Adapter for MAFT\+.*cli\.predict.*--generator=fcclip"
    for table in (MASK_ADAPTER, CONTENT_DEPENDENT_TRANSFER):
        with pytest.raises(ValueError, match=refused):
            read_modules(both, table, modules)
    for given in (None, Modules(modules, ADAPTER.reader), Modules({}, TransferReader())):
        with pytest.raises(ValueError, match=r"both\.pth: .*modules of one method at most"):
            fcclip.write_into(both, tmp_path / "none.pth", vision, visual, modules=given)
    tensors["mask_adapter.fuse.weight"] = np.zeros(3)
    damaged = write_checkpoint(tmp_path / "damaged.pth", tensors)
    with pytest.raises(ValueError, match=r"mask_adapter\.fuse\.weight: expected the kernel of a"):
        fcclip.read_modules(damaged)
    changed = Modules(halved(modules), ADAPTER.reader)
    fcclip.write_into(theirs, tmp_path / "ours.pth", vision, visual, modules=changed)
    again = read_modules(tmp_path / "ours.pth", MASK_ADAPTER, modules)
    jax.tree.map(np.testing.assert_array_equal, again, changed.parameters)
    other = write_checkpoint(tmp_path / "fcclip.pth")
    with pytest.raises(ValueError, match=r"AdapterReader, found 0.*tuned\.safetensors"):
        fcclip.write_into(other, tmp_path / "none.pth", vision, visual, modules=changed)
    assert not (tmp_path / "none.pth").exists()
