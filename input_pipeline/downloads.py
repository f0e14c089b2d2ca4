"""Official archives fetched into a data root: resumed when interrupted, complete or not there."""

import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from input_pipeline.dataset_specs import SPECS, DatasetSpec, Download
from input_pipeline.layouts import open_dataset
from input_pipeline.layouts.base import MissingFiles

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**20
_FAILURES = 5
_TIMEOUT_SECONDS = 60
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416
_PASSING_CLIENT_ERRORS = (408, 429)


def missing_downloads(dataset: str, root: str | Path, split: str) -> tuple[Download, ...]:
    """The archives that would complete a split below `root`; none when it can be read.

    `root` is created if there is none.
    Raises ValueError for missing files that cannot be downloaded, and for corrupt ones.
    """
    _spec_of(dataset)
    if not Path(root).exists():
        Path(root).mkdir(parents=True)
    try:
        open_dataset(dataset, root, split)
    except MissingFiles as error:
        if not error.downloads:
            raise
        return error.downloads
    return ()


def download_dataset(dataset: str, root: str | Path, split: str | None = None) -> list[Path]:
    """Fetches what is missing of a split (of both unless given) into `root`; returns the archives.

    They are left as they are: `open_dataset` reads them in place. Raises ValueError for parts
    without a stable address (the message says where to get them), for too little space, and for
    downloads that fail.
    """
    fetched: list[Path] = []
    parts = (split,) if split else _spec_of(dataset).splits
    for part in parts:
        for item in missing_downloads(dataset, root, part):
            if not Path(root).is_dir():
                raise ValueError(
                    f"{root}: expected a folder to put {item.file_name} into, it is a file; give "
                    "the folder in which it lies"
                )
            target = Path(root) / item.file_name
            if target.exists():
                raise ValueError(
                    f"{target}: it is there, yet {dataset} {part} is not complete with it; remove "
                    f"it, so that it is downloaded again from {item.url}"
                )
            _check_space(item, target)
            download(item.url, target)
            fetched.append(target)
    for part in parts:
        open_dataset(dataset, root, part)
    return fetched


def _spec_of(dataset: str) -> DatasetSpec:
    if dataset not in SPECS:
        raise ValueError(f"dataset {dataset!r}: nothing to download; known are {list(SPECS)}")
    return SPECS[dataset]


def download(url: str, target: str | Path, retry_seconds: float = 5.0) -> None:
    """Downloads a file with a progress bar; what is there already is continued.

    The bytes go to `target` + ".part", which is renamed when it has the length that the server
    told. Lost connections are tried again, `retry_seconds` apart, until several in a row brought
    nothing new. Raises ValueError naming URL and reason; the part file is kept, so that calling
    again continues.
    """
    target = Path(target)
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    most, failures = _num_bytes(part), 0
    while reason := _try_to_continue(url, part):
        failures = 0 if _num_bytes(part) > most else failures + 1
        most = max(most, _num_bytes(part))
        if failures == _FAILURES:
            raise ValueError(
                f"{url}: the download failed, at last with: {reason}; call again to continue, or "
                f"get the file by other means and put it at {target}"
            )
        logger.warning("%s: %s; trying again in %g s", url, reason, retry_seconds)
        time.sleep(retry_seconds)
    part.rename(target)


def _try_to_continue(url: str, part: Path) -> str:
    """Why one more connection did not complete the part file; empty when it did."""
    try:
        _continue_download(url, part)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"the server answered {error.code} {error.reason}"
        if error.code == _RANGE_NOT_SATISFIABLE:
            # Nothing is left to send, or the file is another one than before.
            if error.headers.get("Content-Range", "") == f"bytes */{_num_bytes(part)}":
                return ""
            part.unlink()
        elif error.code < 500 and error.code not in _PASSING_CLIENT_ERRORS:
            raise ValueError(
                f"{url}: {reason}; get the file by other means and put it at {part.with_suffix('')}"
            ) from error
        return reason
    except (OSError, HTTPException) as error:
        return str(error) or type(error).__name__
    return ""


def _continue_download(url: str, part: Path) -> None:
    """One connection; raises OSError when it ends early."""
    have = _num_bytes(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        if response.status != _PARTIAL_CONTENT:  # a server without ranges sends everything
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise ConnectionError(f"asked for the bytes from {have} on, the server sent others")
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with bar, open(part, "ab" if have else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have != total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _num_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(item: Download, target: Path) -> None:
    have = _num_bytes(target.with_name(f"{target.name}.part"))
    free = shutil.disk_usage(target.parent).free
    if item.num_bytes - have > free:
        raise ValueError(
            f"{target.parent}: {item.file_name} needs {item.num_bytes / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; choose another data root or make space"
        )
