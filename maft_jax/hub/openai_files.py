"""OpenAI's own files of CLIP, kept where OpenAI's own client keeps them: ~/.cache/clip."""

import functools
import hashlib
import http.client
import logging
import os
import pathlib
import urllib.error
import urllib.request

from tqdm import tqdm

from input_pipeline.write_errors import naming
from maft_jax.hub.names import OPENAI, OPENAI_SHA256, openai_file
from maft_jax.runtime import stop_requests
from maft_jax.runtime.only_writer import only_writer

_URL = "https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
_FOLDER = "~/.cache/clip"
_CHUNK = 1 << 20
_TIMEOUT = 30.0
"""Seconds without a byte."""
_PATIENCE = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait after failures that follow on each other."""
_CUTS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)

logger = logging.getLogger(__name__)


def fetch_openai(name: str) -> pathlib.Path:
    """The file of openai:MODEL, downloaded if it is not there or is another one.

    Raises:
        ValueError: OpenAI published no such model that can be read here.
        OSError: it cannot be downloaded; what has come is kept, and goes on from there.
    """
    model = name.removeprefix(OPENAI)
    if model not in OPENAI_SHA256:
        known = ", ".join(f"{OPENAI}{known}" for known in OPENAI_SHA256)
        raise ValueError(f"{name}: expected one of {known}; OpenAI's ResNets are not read here")
    folder, sha256 = pathlib.Path(_FOLDER).expanduser(), OPENAI_SHA256[model]
    path = folder / openai_file(model)
    if _is_intact(path, sha256):
        return path
    with only_writer(folder, _FOLDER, wait=True, part=f".{path.stem}"):
        if not _is_intact(path, sha256):  # or another process was faster
            if path.exists():
                logger.warning("%s is not the file that OpenAI published; downloading it", path)
            _download(_URL.format(sha256=sha256, file=path.name), path, sha256)
    return path


def _is_intact(path: pathlib.Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def sha256_of(path: pathlib.Path) -> str:
    """Of a file's content; of one that does not change it is computed once."""
    state = path.stat()
    return _sha256(path, state.st_mtime_ns, state.st_size)


@functools.cache
def _sha256(path: pathlib.Path, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: pathlib.Path, sha256: str) -> None:
    part = path.with_name(f"{path.name}.part")
    logger.info("downloading %s to %s", url, path)
    failures = 0
    while True:
        before = _size(part)
        try:
            _go_on(url, part)
            break
        except _CUTS as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise OSError(f"{url}: the server answers with {error.code}") from error
            failures = 1 if _size(part) > before else failures + 1
            reason = getattr(error, "reason", None) or error
            if failures > len(_PATIENCE):
                raise OSError(
                    f"{url}: cannot be downloaded ({reason}); check the connection and repeat, "
                    f"which goes on at {_size(part) / 2**20:.0f} MiB, or put the file at {path}"
                ) from error
            logger.warning("%s: %s; going on at %.0f MiB", url, reason, _size(part) / 2**20)
            stop_requests.wait(_PATIENCE[failures - 1])
    if (found := sha256_of(part)) != sha256:
        part.unlink()
        raise OSError(
            f"{url}: expected a file of the SHA-256 {sha256}, got {found}; repeat, and if it stays "
            "so, something on the way changes what is downloaded"
        )
    os.replace(part, path)


def _go_on(url: str, part: pathlib.Path) -> None:
    """Appends what the file lacks, as far as the connection holds."""
    start = _size(part)
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is there
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        total = start + int(response.headers.get("Content-Length", 0))
        progress = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None
        )
        with open(part, "ab" if start else "wb") as file, progress:
            while chunk := response.read(_CHUNK):
                with naming(part):
                    file.write(chunk)
                progress.update(len(chunk))
                stop_requests.check()
    if _size(part) < total:
        raise ConnectionError("the connection was cut")


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0
