"""Whom the page answers: requests that name it as it was opened, from no other page."""

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

_LOCAL = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?")
"""A name or an address in small letters, and a port: nothing that a URL could have around them."""
_TUNNEL = ".gradio.live"
_REFUSED = b"403: this page is not for requests of other names or other pages; see docs/web_page.md"


class HostGuard:
    """ASGI middleware that refuses what a page elsewhere can make a browser send here.

    Such a page either sends its own Origin, or lets its own name point to this machine (DNS
    rebinding) and then sends that name as Host. Scripts, which send no Origin, are let in.

    Args:
        host: what the server listens at; all addresses: any address, and this machine's names.
        share: whether the names of gradio's tunnels are the page's, too.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], host: str, share: bool):
        self._app = app
        self._names = {*_LOCAL, host.lower()}
        self._suffixes = (_TUNNEL,) if share else ()
        self._any_address = is_open_to_all(host)
        if self._any_address:
            own = socket.gethostname().lower()
            self._names |= {own, f"{own.partition('.')[0]}.local"}

    async def __call__(self, scope: Mapping, receive: Callable, send: Callable) -> None:
        if scope["type"] not in ("http", "websocket") or self._lets_in(scope["headers"]):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            text = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": text})
            await send({"type": "http.response.body", "body": _REFUSED})

    def _lets_in(self, headers: list[tuple[bytes, bytes]]) -> bool:
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]
        try:
            of_origins = [urlsplit(origin).netloc for origin in origins]
        except ValueError:
            return False
        named = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if named is None or any(origin != hosts[0] for origin in of_origins):
            return False
        return self._is_own(named[1] or named[2])

    def _is_own(self, name: str) -> bool:
        if name in self._names or (self._suffixes and name.endswith(self._suffixes)):
            return True
        return self._any_address and _is_address(name)


def is_open_to_all(host: str) -> bool:
    """Whether this stands for all addresses of the machine."""
    return _is_address(host) and ipaddress.ip_address(host).is_unspecified


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
