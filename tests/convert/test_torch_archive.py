"""Reading PyTorch archives: the bits that PyTorch reads, and nothing that PyTorch would run."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from maft_jax.convert.torch_archive import is_zip_archive, read_torch_archive

pytestmark = [
    # PyTorch discourages TorchScript, but OpenAI's released weights are TorchScript archives.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    # nn.MultiheadAttention checks sizes while it is traced.
    pytest.mark.filterwarnings("ignore:Converting a tensor to a Python:torch.jit.TracerWarning"),
]


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2)
        self.ln_1 = nn.LayerNorm(width)

    def forward(self, x):
        y = self.ln_1(x)
        return x + self.attn(y, y, y, need_weights=False)[0]


class Visual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.width: int = width
        self.conv1 = nn.Conv2d(3, width, 4, 4, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(4, width))
        blocks = nn.Sequential(Block(width), Block(width))
        self.transformer = nn.Sequential(collections.OrderedDict(resblocks=blocks))
        self.proj = nn.Parameter(torch.randn(width, 4))

    def forward(self, image):
        x = self.conv1(image).flatten(2).permute(2, 0, 1) + self.positional_embedding.unsqueeze(1)
        return self.transformer(x)[0] @ self.proj


class SmallCLIP(nn.Module):
    """OpenAI's names, with what their archives hold beside weights: sizes, flags, scalars."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.context_length: int = 77
        self.names = ["image", "text"]
        self.visual = Visual(width)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.register_buffer("input_resolution", torch.tensor(8))
        self.register_buffer("seen", torch.tensor([True, False]))

    def forward(self, image):
        return self.visual(image) * self.logit_scale.exp() + self.seen.sum() * torch.ones(4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmallCLIP().eval()


@pytest.fixture
def state_file(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def assert_same_bits(arrays: dict, tensors: dict):
    assert set(arrays) == set(tensors)
    for name, tensor in tensors.items():
        array, tensor = arrays[name], tensor.detach()
        assert f"torch.{array.dtype.name}" == str(tensor.dtype), name
        assert array.shape == tuple(tensor.shape), name
        expected = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert array.tobytes() == expected, name


def rewrite(source, target, changes: dict, compression=zipfile.ZIP_STORED):
    """Copies an archive with some entries (named without their folder) replaced or, None, left."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.namelist():
            folder, _, name = entry.partition("/")
            content = changes.get(name, old.read(entry))
            if content is not None:
                new.writestr(f"{folder}/{name}", content)
    return target


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_state_dict_matches_torch_load(state_file):
    assert is_zip_archive(state_file)
    arrays = read_torch_archive(str(state_file))
    assert_same_bits(arrays, torch.load(state_file, weights_only=True))
    array = arrays["visual.transformer.resblocks.1.attn.in_proj_weight"]
    assert not array.flags.owndata and not array.flags.writeable


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_wrapper_becomes_a_prefix_and_other_entries_are_left_out(model, tmp_path, wrapper):
    optimizer = torch.optim.AdamW(model.parameters())
    path = tmp_path / "checkpoint.pth"
    checkpoint = {
        wrapper: model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "others": [7, "half way", None, True, torch.Size([8, 8]), torch.float16],
    }
    torch.save(checkpoint, path)
    expected = {f"{wrapper}.{name}": value for name, value in model.state_dict().items()}
    assert_same_bits(read_torch_archive(path), expected)


def test_lists_and_parameters_are_named_by_position(tmp_path):
    path = tmp_path / "list.pt"
    weights = [torch.ones(2), nn.Parameter(torch.zeros(3))]
    torch.save({"moments": {0: weights[0]}, "weights": weights}, path)
    expected = {"moments.0": weights[0], "weights.0": weights[0], "weights.1": weights[1]}
    assert_same_bits(read_torch_archive(path), expected)


@pytest.mark.parametrize("half", [False, True])
def test_traced_module_matches_torch_jit(model, tmp_path, half):
    model = model.to(torch.bfloat16).half() if half else model
    path = tmp_path / "traced.pt"
    with torch.no_grad():
        image = torch.randn(1, 3, 8, 8).to(model.visual.proj.dtype)
        torch.jit.save(torch.jit.trace(model, image), path)
    arrays = read_torch_archive(path)
    assert_same_bits(arrays, torch.jit.load(path).state_dict())
    assert_same_bits(arrays, model.state_dict())


def test_scripted_module_matches_torch_jit_and_its_code_is_not_needed(model, tmp_path):
    path = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(model), path)
    assert_same_bits(read_torch_archive(path), torch.jit.load(path).state_dict())
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    without = dict.fromkeys(n for n in names if n.startswith(("code/", "constants")))
    assert len(without) > 4
    stripped = rewrite(path, tmp_path / "stripped.pt", without)
    assert_same_bits(read_torch_archive(stripped), model.state_dict())


NUMBERS = ["half", "bfloat16", "float", "double", "bool", "uint8", "int8", "short", "int", "long"]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_dtype(tmp_path, dtype):
    path = tmp_path / "dtype.pt"
    tensor = (torch.arange(-7, 8).reshape(3, 5) * 9 / 7).to(getattr(torch, dtype))
    torch.save({"x": tensor, "scalar": tensor[1, 1].clone(), "empty": tensor[:0].clone()}, path)
    assert_same_bits(read_torch_archive(path), torch.load(path, weights_only=True))


def test_views_of_one_storage_keep_offset_and_strides(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "transposed": base.T,
        "window": base[1:3, 2:5],
        "every_other": base[::2, ::3],
        "row": base[3],
        "expanded": base[0].expand(5, 6),
        "empty": base[:, 6:],
    }
    path = tmp_path / "views.pt"
    torch.save(tensors, path)
    arrays = read_torch_archive(path)
    assert_same_bits(arrays, torch.load(path, weights_only=True))
    assert np.shares_memory(arrays["base"], arrays["transposed"])


def test_a_recompressed_archive_reads_the_same(state_file, tmp_path):
    packed = rewrite(state_file, tmp_path / "packed.pt", {}, zipfile.ZIP_DEFLATED)
    assert_same_bits(read_torch_archive(packed), torch.load(state_file, weights_only=True))


@pytest.mark.parametrize("kind", ["state_dict", "torchscript"])
def test_a_pickle_bomb_is_refused_by_name_and_does_not_go_off(model, tmp_path, kind):
    path, marker = tmp_path / "bomb.pt", tmp_path / "executed"
    content = {"weight": torch.ones(2), "bomb": Bomb(marker)}
    if kind == "state_dict":
        torch.save(content, path)
    else:
        torch.jit.save(torch.jit.script(model), tmp_path / "clean.pt")
        content["weight"] = 1
        rewrite(tmp_path / "clean.pt", path, {"data.pkl": pickle.dumps(content, protocol=2)})
    with pytest.raises(ValueError, match=r"bomb\.pt.*posix\.system.*forbidden"):
        read_torch_archive(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the bomb of this test is a dud"


def test_other_globals_are_refused(state_file, tmp_path):
    names = "builtins eval,torch load,torch ComplexFloatStorage,__torch__x Module"
    names += ",collections OrderedDict.fromkeys,torch.jit._pickle build_tensor_from_id"
    for name in names.split(","):
        pickled = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
        path = rewrite(state_file, tmp_path / "other.pt", {"data.pkl": pickled})
        with pytest.raises(ValueError, match=f"{name.replace(' ', '.')}, which is forbidden"):
            read_torch_archive(path)


def test_a_pickle_cannot_alter_the_functions_that_it_is_given(state_file, tmp_path):
    function = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
    for state in (b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x0c\x00\x00\x00__defaults__)s\x86"):
        path = rewrite(state_file, tmp_path / "x.pt", {"data.pkl": function + state + b"b."})
        with pytest.raises(ValueError, match=r"data\.pkl: AttributeError"):
            read_torch_archive(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(state_file, tmp_path, kept):
    path = tmp_path / "truncated.pt"
    content = state_file.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"truncated\.pt: truncated or corrupt"):
        read_torch_archive(path)


@pytest.mark.parametrize(
    "entry, content, message",
    [
        ("data/5", b"\0" * 8, r"tensor 'visual\..*'data/5', found 8"),
        ("data/5", b"", r"tensor 'visual\..*'data/5', found 0"),
        ("data/5", None, r"tensor 'visual\..*'data/5' is missing"),
        ("data.pkl", b"", r"data\.pkl: EOFError"),
        ("data.pkl", b"\x80\x02}(X", r"data\.pkl: UnpicklingError"),
        ("data.pkl", b"\x80\x02K\x01Q.", r"data\.pkl: TypeError"),
        ("data.pkl", b"\x80\x02]q\x00h\x00a.", r"data\.pkl: RecursionError"),
        ("byteorder", b"big", "byte order b'big'; expected little-endian"),
    ],
)
def test_a_corrupt_or_foreign_entry_is_refused(state_file, tmp_path, entry, content, message):
    path = rewrite(state_file, tmp_path / "changed.pt", {entry: content})
    with pytest.raises(ValueError, match=rf"changed\.pt: .*{message}"):
        read_torch_archive(path)


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path):
    torch.save({"x": torch.arange(6.0)[1:4]}, tmp_path / "fine.pt")
    with zipfile.ZipFile(tmp_path / "fine.pt") as archive:
        pickled = archive.read("fine/data.pkl")
    shape = b"K\x03\x85"
    assert pickled.count(shape) == 1
    changes = {"data.pkl": pickled.replace(shape, b"K\x06\x85")}
    path = rewrite(tmp_path / "fine.pt", tmp_path / "outside.pt", changes)
    with pytest.raises(ValueError, match=r"tensor 'x': shape \(6,\).*offset 1 do not fit"):
        read_torch_archive(path)


def test_the_format_before_zip_asks_to_save_again(model, tmp_path):
    path = tmp_path / "legacy.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    assert not is_zip_archive(path)
    with pytest.raises(ValueError, match=r"legacy\.pt: not a PyTorch zip archive.*torch\.save it"):
        read_torch_archive(path)


@pytest.mark.parametrize("names", [[], ["readme.txt"], ["a/data.pkl", "b/data.pkl"]])
def test_a_zip_from_elsewhere_is_refused(tmp_path, names):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    assert is_zip_archive(path)
    with pytest.raises(ValueError, match=r"other\.zip: a zip file with \d entries"):
        read_torch_archive(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"iteration": 3}, "holds no tensors"),
        ({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, r"two tensors are both named 'a\.b'"),
    ],
)
def test_no_tensors_or_two_of_one_name_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "saved.pt")
    with pytest.raises(ValueError, match=rf"saved\.pt: {message}"):
        read_torch_archive(tmp_path / "saved.pt")
