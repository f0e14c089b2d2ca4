"""OpenAI's files by the names of its models, from a server of the tests' own."""

import hashlib
import logging
import socket

import numpy as np
import open_clip.pretrained
import pytest

import maft_jax
from maft_jax.hub import names, openai_files
from maft_jax.hub.local_files import digests, local_path, pinned
from maft_jax.weights import is_here
from tests.convert import library_models

NAME, FILE = "openai:ViT-B/16", "ViT-B-16.pt"
CONTENT = np.random.default_rng(0).bytes(5_000_000)


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    server.__init__(url=server.url)
    publish(server, monkeypatch, CONTENT)
    monkeypatch.setattr(openai_files, "_URL", f"{server.url}/openai/{{sha256}}/{{file}}")
    monkeypatch.setattr(openai_files.stop_requests, "wait", lambda seconds: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    return server


def publish(hub, patch, content: bytes) -> None:
    """As the file of NAME, with its SHA-256."""
    hub.openai[FILE] = content
    patch.setitem(names.OPENAI_SHA256, "ViT-B/16", hashlib.sha256(content).hexdigest())


def cache(tmp_path):
    return tmp_path / ".cache/clip" / FILE


def test_addresses_are_those_that_open_clip_knows():
    assert len(names.OPENAI_SHA256) == 4
    for model, sha256 in names.OPENAI_SHA256.items():
        theirs = model.replace("/", "-").replace("@336px", "-336")
        url = open_clip.pretrained.get_pretrained_url(theirs, "openai")
        assert openai_files._URL.format(sha256=sha256, file=names.openai_file(model)) == url


def test_a_file_is_downloaded_once_to_where_openais_client_keeps_it(hub, tmp_path, monkeypatch):
    assert is_here(NAME) and pinned(NAME) == NAME
    assert local_path(NAME) == str(cache(tmp_path))
    assert cache(tmp_path).read_bytes() == CONTENT
    assert [path.name for path in cache(tmp_path).parent.iterdir()] == [FILE]
    monkeypatch.setattr(socket, "socket", None)
    assert local_path(NAME) == str(cache(tmp_path))
    assert digests(NAME) == {FILE: hashlib.sha256(CONTENT).hexdigest()}
    assert len(hub.requests) == 1


def test_weights_are_those_of_the_file(hub, tmp_path, monkeypatch):
    file = library_models.openai().save(tmp_path)
    publish(hub, monkeypatch, file.read_bytes())
    there, here = (maft_jax.load(x, activation="quick_gelu") for x in (NAME, file))
    np.testing.assert_equal(there.parameters, here.parameters)


def test_a_download_goes_on_after_cuts_and_after_another_process_was_killed(hub, tmp_path, caplog):
    cache(tmp_path).parent.mkdir(parents=True)
    cache(tmp_path).with_name(f"{FILE}.part").write_bytes(CONTENT[:1000])
    hub.cuts = [2_000_000, 10]
    with caplog.at_level(logging.WARNING):
        local_path(NAME)
    assert cache(tmp_path).read_bytes() == CONTENT
    ranges = [headers["Range"] for _, _, headers in hub.requests]
    assert ranges == ["bytes=1000-", "bytes=2001000-", "bytes=2001010-"]
    assert "the connection was cut; going on at 2 MiB" in caplog.text


def test_all_of_it_was_there_but_its_name(hub, tmp_path):
    cache(tmp_path).parent.mkdir(parents=True)
    cache(tmp_path).with_name(f"{FILE}.part").write_bytes(CONTENT)
    local_path(NAME)
    assert cache(tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_from_the_beginning(hub, tmp_path):
    cache(tmp_path).parent.mkdir(parents=True)
    cache(tmp_path).with_name(f"{FILE}.part").write_bytes(b"x" * 1000)
    hub.ignores_ranges = True
    local_path(NAME)
    assert cache(tmp_path).read_bytes() == CONTENT


def test_another_file_of_that_name_is_replaced_and_other_content_is_refused(hub, tmp_path, caplog):
    cache(tmp_path).parent.mkdir(parents=True)
    cache(tmp_path).write_bytes(b"something else")
    local_path(NAME)
    assert "is not the file that OpenAI published" in caplog.text
    cache(tmp_path).unlink()
    hub.openai[FILE] = CONTENT[:-1] + b"?"
    with pytest.raises(OSError, match=r"expected a file of the SHA-256 .*, got"):
        local_path(NAME)
    assert not list(cache(tmp_path).parent.iterdir())


def test_a_full_disk_is_told_with_the_file(hub, tmp_path):
    cache(tmp_path).parent.mkdir(parents=True)
    cache(tmp_path).with_name(f"{FILE}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*ViT-B-16\.pt\.part"):
        local_path(NAME)


def test_failures_say_what_to_do(hub):
    hub.cuts = [1_500_000, *[0] * 9]
    with pytest.raises(OSError, match=r"repeat, which goes on at 1 MiB, or put the file at .*B-16"):
        local_path(NAME)
    hub.cuts, hub.status = [], 503
    with pytest.raises(OSError, match=r"cannot be downloaded \(Service Unavailable\); check the"):
        local_path(NAME)
    hub.status = 404
    with pytest.raises(OSError, match=r"ViT-B-16\.pt: the server answers with 404"):
        local_path(NAME)
    with pytest.raises(ValueError, match=r"openai:RN50: expected one of openai:ViT-B/32, .*ResNet"):
        local_path("openai:RN50")
