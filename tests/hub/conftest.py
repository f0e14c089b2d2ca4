"""A hub on this machine, as it was begun, and a cache of its files that is empty."""

import pytest

from tests.hub_server import serve_hub, use_hub


@pytest.fixture(scope="module")
def server():
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    use_hub(monkeypatch, server, str(tmp_path / "cache"))
    server.__init__(url=server.url)
    return server
