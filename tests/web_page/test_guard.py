"""Requests of other names and other pages are refused, in an app of Starlette's."""

import asyncio
import socket

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from maft_jax.web_page.guard import RequestGuard


async def _talk(websocket):
    await websocket.accept()
    await websocket.close()


def _client(host="127.0.0.1", share=False):
    routes = [
        Route("/", lambda request: PlainTextResponse("in"), methods=["GET", "POST"]),
        WebSocketRoute("/talk", _talk),
    ]
    guarded = Starlette(routes=routes, middleware=[Middleware(RequestGuard, host, share)])
    return TestClient(guarded)


def _status(client, host, origin=None):
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    return client.post("/", headers=headers).status_code


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:7860", None, 200),
        ("localhost:7860", None, 200),
        ("LOCALHOST", None, 200),
        ("[::1]:7860", None, 200),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", 200),
        ("localhost:8000", "http://localhost:8000", 200),  # ssh -L 8000:localhost:7860
        ("evil.example:7860", None, 403),  # a name that points here now: DNS rebinding
        ("evil.example:7860", "http://evil.example:7860", 403),
        ("127.0.0.1.evil.example", None, 403),
        ("localhost.evil.example", None, 403),
        ("evil.example#@localhost", None, 403),
        ("evil.example@localhost", None, 403),
        ("localhost/evil.example", None, 403),
        ("localhost:evil", None, 403),
        ("192.168.1.7:7860", None, 403),
        ("[::1", None, 403),
        ("", None, 403),
        ("127.0.0.1:7860", "http://evil.example", 403),
        ("127.0.0.1:7860", "http://127.0.0.1:8000", 403),
        ("127.0.0.1:7860", "http://localhost:7860", 403),
        ("127.0.0.1:7860", "null", 403),
        ("127.0.0.1:7860", "http://[", 403),
    ],
)
def test_a_page_on_this_machine_answers_to_its_own_names(host, origin, status):
    assert _status(_client(), host, origin) == status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("192.168.1.7:7860", "http://192.168.1.7:7860", 200),
        (f"{socket.gethostname()}:7860", None, 200),
        ("evil.example:7860", "http://evil.example:7860", 403),
        ("192.168.1.7:7860", "http://6.6.6.6:7860", 403),
    ],
)
@pytest.mark.parametrize("listens_at", ["0.0.0.0", "::"])
def test_a_page_for_the_network_answers_to_addresses(listens_at, host, origin, status):
    assert _status(_client(listens_at), host, origin) == status


def test_a_shared_page_answers_to_its_link():
    origin = "https://0123abc.gradio.live"
    assert _status(_client(share=True), "0123abc.gradio.live", origin) == 200
    assert _status(_client(), "0123abc.gradio.live", origin) == 403


def test_a_name_that_host_was_given_is_its_own():
    assert _status(_client("Box.lan"), "box.lan:7860", "http://box.lan:7860") == 200


def test_websockets_are_refused_alike():
    with _client().websocket_connect("/talk", headers={"host": "localhost"}):
        pass
    with (
        pytest.raises(WebSocketDisconnect),
        _client().websocket_connect("/talk", headers={"host": "evil.example"}),
    ):
        pass


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {"content-length": str(4 * 2**20)}, 200),
        ("/", {"content-length": str(4 * 2**20 + 1)}, 413),
        ("/", {"content-length": "9" * 6000}, 413),
        ("/", {"content-length": "-5"}, 413),
        ("/", {"transfer-encoding": "chunked"}, 411),
        ("/gradio_api/upload", {"content-length": str(64 * 2**20)}, 200),
        ("/gradio_api/upload/", {"content-length": str(66 * 2**20)}, 413),
        ("/gradio_api/file=https://elsewhere.example/x", {}, 403),
        ("/gradio_api/file=HTTP://elsewhere.example/x", {}, 403),
        ("/gradio_api/proxy=https://elsewhere.example/x", {}, 403),
        ("/gradio_api/file=/tmp/gradio/http/x.png", {}, 200),
    ],
)
def test_floods_and_what_would_be_fetched_from_elsewhere_are_refused(path, headers, status):
    async def app(scope, receive, send):
        await PlainTextResponse("in")(scope, receive, send)

    sent = []

    async def send(message):
        sent.append(message)

    encoded = {"host": "localhost"} | headers
    scope = {
        "type": "http",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in encoded.items()],
    }
    asyncio.run(RequestGuard(app, "127.0.0.1", False)(scope, None, send))
    assert sent[0]["status"] == status
