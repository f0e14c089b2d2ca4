"""Whom the page answers, and what: requests that name it as it was opened, of bounded size."""

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

_LOCAL = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?")
"""A name or an address in small letters, and a port: nothing that a URL could have around them."""
_TUNNEL = ".gradio.live"
_MOST_BYTES = 4 * 2**20
"""Of a request's body: names of classes, which gradio takes into memory as a whole."""
_MOST_UPLOADED = 65 * 2**20
"""Of an upload's: a file as large as gradio is told to take, and what is around it."""
_FETCHES = re.compile(r"/(?:proxy=|file=\s*https?:)", re.IGNORECASE)
"""Paths for which gradio's server would ask another server."""

Refusal = tuple[int, str]


class RequestGuard:
    """ASGI middleware that refuses what a page elsewhere can make a browser send here, and floods.

    Such a page either sends its own Origin, or lets its own name point to this machine (DNS
    rebinding) and then sends that name as Host. Scripts, which send no Origin, are let in. Bodies
    say how large they are, and are at most as large as the page's own; nothing is fetched from
    other servers.

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
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, why = refusal
            # The rest of a body that nobody reads is no next request.
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            body = f"{status}: {why}; see docs/web_page.md".encode()
            await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Mapping) -> Refusal | None:
        """The status and reason of a request that is not answered."""
        if not self._lets_in(scope["headers"]):
            return 403, "this page is not for requests of other names or other pages"
        if _FETCHES.search(scope["path"]):
            return 403, "this page fetches nothing from elsewhere"
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers:
            return 411, "expected a body that says how large it is"
        length = headers.get(b"content-length", b"0")
        most = _MOST_UPLOADED if scope["path"].rstrip("/").endswith("/upload") else _MOST_BYTES
        if not length.isdigit() or len(length) > 15 or int(length) > most:
            return 413, f"expected at most {most} bytes"
        return None

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
