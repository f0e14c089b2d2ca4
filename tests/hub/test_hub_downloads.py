"""Names of the Hugging Face hub, read by its real client from a hub of the tests' own."""

import builtins
import hashlib
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import constants

import maft_jax
from maft_jax.config.sections import ProposalsConfig
from maft_jax.convert.fcclip import read_modules
from maft_jax.convert.generators import BUILT_IN
from maft_jax.hub.hugging_face import explained, fetch
from maft_jax.hub.local_files import digests, local_path, pinned
from maft_jax.hub.names import HubName, parse_hub_name
from maft_jax.proposals.generators import make_generator
from maft_jax.weights import is_here, path_of
from tests.convert import library_models
from tests.fcclip_files import maft_plus_tensors, write_checkpoint
from tests.hub_server import TOKEN

SETTINGS = b'{"model_type": "clip"}'
GENERATOR = BUILT_IN["built-in:shapes_world"]
BIG = bytes(range(256)) * 64


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asked the network")

    def forbid():
        for name in ("socket", "create_connection", "getaddrinfo"):
            monkeypatch.setattr(socket, name, refuse)

    return forbid


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:a/b", HubName("a/b")),
        ("hf:laion/CLIP-B.16@v1.0", HubName("laion/CLIP-B.16", "v1.0")),
        ("hf:a/b/x.pt", HubName("a/b", None, "x.pt")),
        ("hf:a/b@main/sub/x.pt", HubName("a/b", "main", "sub/x.pt")),
        ("hf:a/b@refs/pr/3/x.pt", HubName("a/b", "refs/pr/3", "x.pt")),
        ("hf:a/b@my%2Fbranch", HubName("a/b", "my/branch")),
    ],
)
def test_names_have_a_repository_and_perhaps_a_revision_and_a_file(name, expected):
    assert parse_hub_name(name) == expected
    assert parse_hub_name(str(expected)) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("hf:", "hf:a", "hf://a/b", "hf:a/b@", "hf:a/b/../x", "hf:a b/c"),
        *("hf:../b", "hf:a/b@..", "hf:a/b@..%2F..%2Fx", "hf:a/b//x", "hf:a/b@main//x"),
    ],
)
def test_what_is_no_name_is_refused_with_the_form_of_one(name):
    with pytest.raises(ValueError, match="expected hf:OWNER/NAME, perhaps with @REVISION"):
        local_path(name)


def test_weights_are_those_of_the_folder_that_was_uploaded(hub, tmp_path):
    folder = library_models.transformers_clip().save(tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    commit = hub.put("user/clip", files | {"README.md": b"# no", "flax_model.msgpack": BIG})
    there, here = maft_jax.load("hf:user/clip"), maft_jax.load(folder)
    np.testing.assert_equal(there.parameters, here.parameters)
    assert not hub.asked("README") and not hub.asked("msgpack")
    assert path_of("hf:user/clip").endswith(f"snapshots/{commit}") and is_here("hf:user/clip")
    assert pinned("hf:user/clip") == f"hf:user/clip@{commit}"


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (
            ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"],
            ["open_clip_model.safetensors"],
        ),
    ],
)
def test_one_file_of_weights_is_downloaded_safetensors_before_others(hub, files, taken):
    hub.put("user/clip", dict.fromkeys(files, BIG) | {"config.json": SETTINGS})
    folder = pathlib.Path(local_path("hf:user/clip"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(["config.json", *taken])


def test_shards_come_with_their_index(hub):
    index = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode()
    shards = {"m-1.safetensors": BIG, "m-2.safetensors": BIG + b"2", "m-3.safetensors": BIG}
    hub.put("user/clip", shards | {"model.safetensors.index.json": index})
    found = {path.name for path in pathlib.Path(local_path("hf:user/clip")).iterdir()}
    assert found == {"model.safetensors.index.json", "m-1.safetensors", "m-2.safetensors"}


@pytest.mark.parametrize("content", [b'{"weight_map": [1]}', b"{}", b'{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_refused_by_who_reads_it(hub, content):
    hub.put("user/clip", {"model.safetensors.index.json": content})
    with pytest.raises(ValueError, match=r"index\.json: expected weight_map, an object of file"):
        maft_jax.load("hf:user/clip")


@pytest.mark.parametrize("shard", ["../../outside", "/tmp/outside"])
def test_shards_elsewhere_are_not_asked_for_and_refused_by_who_reads_the_index(hub, shard):
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    hub.put("user/clip", {"model.safetensors.index.json": index})
    with pytest.raises(ValueError, match=r"the shard .*outside' is not a file beside it"):
        maft_jax.load("hf:user/clip")
    assert not hub.asked("outside")


def test_a_file_is_named_behind_the_repository_and_brings_what_lies_beside_it(hub):
    files = {"a/tips_vision.npz": BIG, "a/tips_text.npz": BIG + b"t", "a/config.json": SETTINGS}
    hub.put("user/clips", files | {"config.json": b"{}", "other.npz": BIG})
    path = pathlib.Path(local_path("hf:user/clips/a/tips_vision.npz"))
    assert path.read_bytes() == BIG
    assert {beside.name for beside in path.parent.iterdir()} == {
        "tips_vision.npz",
        "tips_text.npz",
        "config.json",
    }
    assert not (path.parents[1] / "config.json").exists()


def test_what_is_cached_is_used_without_the_network(hub, no_sockets):
    commit = hub.put("user/clip", {"pytorch_model.bin": BIG, "config.json": SETTINGS})
    first = local_path("hf:user/clip")
    asked = len(hub.requests)
    no_sockets()
    assert local_path("hf:user/clip") == first == local_path(f"hf:user/clip@{commit}")
    assert local_path("hf:user/clip@main") == first
    assert len(hub.requests) == asked


def test_a_branch_stays_what_it_was_and_a_commit_is_always_the_same(hub):
    old = hub.put("user/clip", {"model.safetensors": BIG, "config.json": SETTINGS})
    first = local_path("hf:user/clip")
    new = hub.put("user/clip", {"model.safetensors": BIG + b"!", "config.json": SETTINGS})
    assert local_path("hf:user/clip") == first
    assert local_path(f"hf:user/clip@{new}") != first
    assert local_path(f"hf:user/clip@{old}") == first
    hub.put("user/clip", {"model.safetensors": BIG + b"?"}, "try/this")
    assert digests("hf:user/clip@try%2Fthis") != digests("hf:user/clip")


def test_files_are_of_one_commit_though_somebody_pushes_meanwhile(hub):
    commit = hub.put("user/clip", {"model.safetensors": BIG, "config.json": SETTINGS})
    hub.pushed_later = {"model.safetensors": BIG + b"!", "config.json": b"{}"}
    assert pinned("hf:user/clip") == f"hf:user/clip@{commit}"
    assert set(digests("hf:user/clip")) == {"model.safetensors", "config.json"}


def test_the_digests_are_those_of_the_contents_and_a_damaged_cache_is_noticed(hub):
    hub.put("user/clip", {"model.safetensors": BIG, "config.json": SETTINGS})
    found = digests("hf:user/clip")
    contents = {"model.safetensors": BIG, "config.json": SETTINGS}
    assert found == {name: hashlib.sha256(x).hexdigest() for name, x in contents.items()}
    blob = (pathlib.Path(local_path("hf:user/clip")) / "model.safetensors").resolve()
    blob.write_bytes(BIG[:-1] + b"x")
    with pytest.raises(OSError, match=r"model\.safetensors: damaged: its SHA-256.*delete"):
        digests("hf:user/clip")


def test_a_connection_that_is_cut_goes_on_where_it_was(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.put("user/clip", {"model.safetensors": BIG})
    hub.cuts = [1000, 500]
    path = pathlib.Path(local_path("hf:user/clip")) / "model.safetensors"
    assert path.read_bytes() == BIG
    ranges = [headers.get("Range") for _, at, headers in hub.requests if at.startswith("/cdn")]
    assert ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_the_token_goes_to_the_hub_and_not_to_where_files_lie(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put("user/clip", {"model.safetensors": BIG})
    hub.gated.add("user/clip")
    local_path("hf:user/clip")
    sent = {at[:5]: "authorization" in map(str.lower, h) for _, at, h in hub.requests}
    assert sent == {"/user": True, "/cdn/": False}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hf:user/gated", ValueError, r"accept the conditions at http.*user/gated.*hf auth login"),
        ("hf:user/absent", ValueError, "no such repository at http.*, or a private one"),
        ("hf:user/clip@v9", ValueError, "the repository has no revision v9"),
        ("hf:user/clip/b.pt", ValueError, r"no such file; the repository has a\.pt, b/c\.npz"),
        ("hf:user/clip", ValueError, r"name the file that you mean: hf:user/clip/a\.pt, hf:user/"),
        ("hf:user/empty", ValueError, "expected one of model.safetensors.index.*has no weights"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(hub, name, error, message):
    hub.put("user/gated", {"model.safetensors": BIG})
    hub.gated.add("user/gated")
    hub.put("user/clip", {"a.pt": BIG, "b/c.npz": BIG, "README.md": b"#"})
    hub.put("user/empty", {"README.md": b"#"})
    with pytest.raises(error, match=message):
        local_path(name)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (503, OSError, "answers with 503; try again later"),
        (403, ValueError, r"refuses the token \(403\): log in again"),
    ],
)
def test_a_hub_that_is_ill_is_said_to_be(hub, status, error, message):
    hub.status = status
    with pytest.raises(error, match=message):
        local_path("hf:user/clip")


def test_without_network_the_message_says_so_and_offline_mode_is_obeyed(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="hf:user/clip: not in the cache, and HF_HUB_OFFLINE forbids"):
        local_path("hf:user/clip")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    template = f"{closed}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(OSError, match=f"{closed} cannot be used .*check the connect"):
        local_path("hf:user/clip")


def test_without_network_what_another_program_cached_is_taken_with_a_warning(
    hub, monkeypatch, caplog
):
    hub.put("user/clip", {"model.safetensors": BIG, "config.json": SETTINGS})
    for file in ("config.json", "model.safetensors"):
        path = huggingface_hub.hf_hub_download("user/clip", file)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING):
        assert local_path("hf:user/clip") == os.path.dirname(path)
    assert "taken from the cache as it is" in caplog.text


def test_a_login_in_the_address_of_a_mirror_is_not_printed(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:secret@mirror/hub")
    said = [
        explained(ConnectionError("at http://me:secret@mirror/hub/a"), HubName("a/b")),
        explained(RuntimeError("no"), HubName("a/b")),
    ]
    assert all("http://mirror/hub cannot be used" in str(error) for error in said)
    assert "secret" not in str(said)


def test_generators_are_named_likewise(hub):
    files = {path.name: path.read_bytes() for path in GENERATOR.iterdir()}
    hub.put("user/generator", files)
    there, here = (
        make_generator(ProposalsConfig("mask2former", path=path), ["a"])
        for path in ("hf:user/generator", "built-in:shapes_world")
    )
    assert there.fingerprint == here.fingerprint
    settings = {"config.json": b'{"model_type": "mask2former"}', "preprocessor_config.json": b"{}"}
    hub.put("user/theirs", settings | {"model.safetensors": BIG})
    theirs = make_generator(ProposalsConfig("transformers", path="hf:user/theirs"), ["a"])
    assert {path.name for path in theirs.path.iterdir()} == {*settings, "model.safetensors"}


def test_what_a_system_reads_masks_with_is_named_likewise(hub, tmp_path):
    here = write_checkpoint(tmp_path / "maft_plus.pth", maft_plus_tensors())
    hub.put("user/system", {"maft_plus.pth": here.read_bytes()})
    expected, found = read_modules(here), read_modules("hf:user/system/maft_plus.pth")
    assert list(found) == ["transfer"]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("generator", ["mask2former", "transformers", "fcclip"])
def test_a_generators_name_without_its_prefix_is_asked_about(generator):
    name = "facebook/mask2former-swin-large"
    with pytest.raises(ValueError, match=f"did you mean hf:{name}, which is downloaded once"):
        make_generator(ProposalsConfig(generator, path=name), ["a"])


def test_without_the_client_the_message_has_the_line_that_installs_it(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.partition(".")[0] == "huggingface_hub":
            raise ImportError("No module named 'huggingface_hub'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"hf:a/b: .*pip install 'maft_jax\[hub\]'"):
        fetch(HubName("a/b"))


def test_a_command_obeys_the_variables_of_the_client(hub, tmp_path):
    folder = library_models.transformers_clip().save(tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    hub.put("user/clip", files)
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment = {name: value for name, value in os.environ.items() if name[:3] != "HF_"}
    command = [sys.executable, "-m", "maft_jax.cli.convert_weights", "hf:user/clip", "--inspect"]
    done = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "home/hub/models--user--clip") in done.stdout
    assert "visual_projection.weight" in done.stdout
