"""A hub of the tests' own: what huggingface_hub asks of huggingface.co, over HTTP, with faults.

Large files are answered with a redirect to another origin, as the real hub does; in this one every
file of at least `LARGE` bytes is. OpenAI's files are served below /openai, with ranges.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

LARGE = 2000
TOKEN = "hf_a_token_of_the_tests"

_RESOLVE = re.compile(r"/(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_TREE = re.compile(r"/api/models/(?P<name>[\w.-]+/[\w.-]+)/tree/(?P<revision>[^/]+)")
_MODEL = re.compile(r"/api/models/(?P<name>[\w.-]+/[\w.-]+)")
_UPLOAD = re.compile(
    r"/(api/models/)?(?P<name>[\w.-]+/[\w.-]+?)(\.git/info/lfs/objects/batch|/preupload/main|"
    r"/commit/main)"
)


def commit_of(files: dict[str, bytes]) -> str:
    """A commit's name, by its content."""
    content = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())]
    return hashlib.sha1(repr(content).encode()).hexdigest()


@dataclass
class Hub:
    """Repositories, and what is to go wrong."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    openai: dict[str, bytes] = field(default_factory=dict)
    """By file, whatever SHA-256 the address has."""
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    status: int | None = None
    """That everything is answered with."""
    cuts: list[int] = field(default_factory=list)
    """For each of the next answers with a large file, after how many bytes it ends."""
    ignores_ranges: bool = False
    full: bool = False
    """Whether there is no room for uploads."""
    pushed_later: dict[str, bytes] | None = None
    """What somebody pushes to user/clip once its config.json was read."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers."""
    uploaded: dict[str, bytes] = field(default_factory=dict)

    def put(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit with these files alone."""
        commit = commit_of(files)
        self.commits.setdefault(name, {})[commit] = files
        self.refs.setdefault(name, {})[branch] = commit
        return commit

    def asked(self, part: str = "", method: str | None = None) -> list[str]:
        """Paths of the requests so far."""
        return [p for m, p, _ in self.requests if part in p and method in (None, m)]


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self):
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, dict(self.headers)))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        if self.hub.status is not None:
            self._send(self.hub.status)
        elif found := _RESOLVE.fullmatch(path):
            self._resolve(**found.groupdict())
        elif found := _TREE.fullmatch(path):
            self._tree(**found.groupdict())
        elif path.startswith(("/cdn/", "/openai/")):
            self._large(path)
        elif path == "/api/whoami-v2":
            who = {"type": "user", "name": "user", "orgs": []}
            self._json(who) if self._knows_token() else self._send(401)
        elif found := _MODEL.fullmatch(path):
            if self._refuse(found["name"], "main") is not None:
                self._json({"id": found["name"], "private": found["name"] in self.hub.private})
        elif path == "/api/repos/create":
            self._create()
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.startswith("/upload/"):
            self.hub.uploaded[path.removeprefix("/upload/")] = self.body
            self._send(507 if self.hub.full else 200)
        elif found := _UPLOAD.fullmatch(path):
            self._upload(found["name"], path)
        else:
            self._send(404)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, status: int, headers: dict | None = None, body: bytes = b""):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, status: int = 200):
        self._send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _knows_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _refuse(self, name: str, revision: str) -> str | None:
        """The commit, or None where the request was answered with an error."""
        hub = self.hub
        if name not in hub.commits or (name in hub.private and not self._knows_token()):
            self._send(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        elif name in hub.gated and not self._knows_token():
            self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
        elif (commit := hub.refs[name].get(unquote(revision), revision)) not in hub.commits[name]:
            self._send(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such"})
        else:
            return commit
        return None

    def _resolve(self, name: str, revision: str, file: str):
        commit = self._refuse(name, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit}
        content = self.hub.commits[name][commit].get(unquote(file))
        if content is None:
            self._send(404, headers | {"X-Error-Code": "EntryNotFound"})
        elif len(content) < LARGE:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            length = {"Content-Length": str(len(content))}
            self._send(200, headers | length | {"ETag": f'"{etag}"'}, content)
            if file == "config.json" and self.hub.pushed_later and self.command == "GET":
                self.hub.put("user/clip", self.hub.pushed_later)
        else:
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            there = self.hub.url.replace("127.0.0.1", "localhost")  # another origin
            self._send(302, headers | {"Location": f"{there}/cdn/{digest}"})

    def _tree(self, name: str, revision: str):
        commit = self._refuse(name, revision)
        if commit is not None:
            files = self.hub.commits[name][commit]
            self._json(
                [{"type": "file", "path": p, "size": len(x), "oid": p} for p, x in files.items()]
            )

    def _large(self, path: str):
        wanted, contents = path.rpartition("/")[2], self.hub.openai
        if path.startswith("/cdn/"):
            contents = {
                hashlib.sha256(x).hexdigest(): x
                for commits in self.hub.commits.values()
                for files in commits.values()
                for x in files.values()
            }
        content = contents.get(wanted)
        if content is None:
            return self._send(404)
        begin, status = 0, 200
        if (asked := self.headers.get("Range")) and not self.hub.ignores_ranges:
            begin, status = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206
            if begin >= len(content):
                return self._send(416)
        body = content[begin:]
        length = {"Content-Length": str(len(body))}
        if status == 206:
            length["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and self.hub.cuts:
            body = body[: self.hub.cuts.pop(0)]
            self.close_connection = True
        self._send(status, length, body)

    def _create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization'] or 'user'}/{asked['name']}"
        if not self._knows_token():
            return self._send(401)
        status = 409 if name in self.hub.commits else 200
        if status == 200:
            self.hub.put(name, {})
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(name)
        self._json({"url": f"{self.hub.url}/{name}", "id": name, "name": name}, status)

    def _upload(self, name: str, path: str):
        if not self._knows_token() or self._refuse(name, "main") is None:
            return self._send(403)
        if path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self._json({"files": modes})
        elif path.endswith("/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}"}}}
                for item in json.loads(self.body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        else:
            self._commit(name)

    def _commit(self, name: str):
        files = dict(self.hub.commits[name][self.hub.refs[name]["main"]])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        commit = self.hub.put(name, files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub that listens on this machine alone."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_hub(patch: pytest.MonkeyPatch, hub: Hub, cache: str) -> None:
    """Lets this process's client talk to the hub, as HF_ENDPOINT does before it is imported."""
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", cache)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage has another protocol
    patch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/token")
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", f"{cache}/tokens")
    patch.setattr(_http.time, "sleep", lambda seconds: None)
    patch.delenv("HF_TOKEN", raising=False)
