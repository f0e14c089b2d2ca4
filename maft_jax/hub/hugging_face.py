"""Files of the Hugging Face hub, by its own client: its cache, tokens, mirrors and offline mode.

What is in the cache is used without asking the network, be it ours or another program's doing. The
client notes there which files a repository does not have, too, so that nothing is asked twice.
"""

import logging
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from maft_jax.hub.names import HubName
from maft_jax.models.text.sentencepiece_tokenizer import TOKENIZER_FILES
from maft_jax.runtime.addresses import without_logins
from maft_jax.runtime.console import drawing
from maft_jax.runtime.json_files import read_json

WEIGHTS_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""What a folder of transformers or open_clip may hold, in the order in which it is preferred."""
_BESIDE = (
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_OTHER_TOWER = (("_vision.npz", "_text.npz"), ("_text.npz", "_vision.npz"))
"""Endings of the two files of TIPS."""
_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".ckpt")
FAILURES = (ConnectionError, RuntimeError)
"""Of the client, beside its HTTPError; RuntimeError wraps the failure of one of several files."""
INSTALL = "pip install 'maft_jax[hub]' (or huggingface_hub)"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """What a name stands for on this machine."""

    name: HubName
    """With the commit as its revision."""
    path: pathlib.Path
    """The file that the name says, or the folder with all of them."""
    files: dict[str, pathlib.Path]
    """All that were asked for and are there, by their names in the repository."""


def fetch(name: HubName) -> Fetched:
    """Where the files are, downloaded if the client's cache does not have them.

    Raises:
        ValueError: the client is not installed; there is no such repository, revision or file; or
            it wants somebody who may read it.
        OSError: what is not in the cache cannot be downloaded now.
    """
    check_client(name)
    try:
        return _select(name, _InCache(name))
    except _Unknown:
        logger.info("looking for %s on the hub", name)
    download = _Download(name)
    with drawing():
        fetched = _select(name, download)
    if download.unreachable is not None:
        logger.warning(
            "%s: taken from the cache as it is, for the hub cannot be asked for more: %s",
            name,
            download.unreachable,
        )
    return fetched


def check_client(name: object) -> None:
    """Looks for the package huggingface_hub; `name` is what it is needed for.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{name}: the Hugging Face hub needs its client ({error}): {INSTALL}"
        ) from None


class _Unknown(Exception):
    """The cache alone does not answer."""


@dataclass
class _InCache:
    """Where files are on this machine, None of those that the repository lacks; asks nobody."""

    name: HubName

    def __call__(self, file: str) -> pathlib.Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name.repository, file, revision=self.name.revision)
        if found is None:
            raise _Unknown
        return pathlib.Path(found) if isinstance(found, str) else None

    def why_none(self, name: HubName) -> Exception:
        return _Unknown()


@dataclass
class _Download:
    """The same, downloaded; the first answer decides which commit is meant."""

    name: HubName
    unreachable: Exception | None = None
    """Why the hub could not be asked: from then on the cache alone is."""

    def __post_init__(self):
        self._revision = self.name.revision

    def __call__(self, file: str) -> pathlib.Path | None:
        from huggingface_hub import errors, hf_hub_download

        try:
            path = hf_hub_download(
                self.name.repository,
                file,
                revision=self._revision,
                local_files_only=self.unreachable is not None,
            )
        except errors.LocalEntryNotFoundError as error:
            self.unreachable = self.unreachable or explained(error, self.name)
            return None
        except errors.EntryNotFoundError:
            return None
        except (errors.HTTPError, *FAILURES) as error:
            raise explained(error, self.name) from error
        path = pathlib.Path(path)
        self._revision = path.parents[file.count("/")].name
        return path

    def why_none(self, name: HubName) -> Exception:
        if self.unreachable is not None:
            return self.unreachable
        listed = [file for file in _list_files(name) if file.endswith(_WEIGHTS_SUFFIXES)]
        if name.file:
            return ValueError(f"{name}: no such file; the repository has {_shown(listed)}")
        found = [str(replace(name, file=file)) for file in listed]
        return ValueError(
            f"{name}: expected one of {', '.join(WEIGHTS_FILES)} in the repository; "
            + (f"name the file that you mean: {_shown(found)}" if found else "it has no weights")
        )


def _select(name: HubName, look: _InCache | _Download) -> Fetched:
    """Settings and tokenizers first, then one file of weights, with its shards."""
    folder, _, file = (name.file or "").rpartition("/")
    prefix = f"{folder}/" if folder else ""
    found = {beside: look(beside) for beside in (prefix + beside for beside in _BESIDE)}
    candidates = (name.file,) if name.file else WEIGHTS_FILES
    weights = None
    for candidate in candidates:
        found[candidate] = weights = look(candidate)
        if weights is not None:
            break
    if weights is None:
        raise look.why_none(name)
    for ending, other in _OTHER_TOWER:
        if file.endswith(ending):
            companion = prefix + file.removesuffix(ending) + other
            found[companion] = look(companion)
    if candidate.endswith(".index.json"):
        for shard in _shards(weights):
            found[prefix + shard] = look(prefix + shard)
            if found[prefix + shard] is None:
                raise look.why_none(replace(name, file=prefix + shard))
    snapshot = weights.parents[candidate.count("/")]
    pinned = replace(name, revision=snapshot.name)
    path = weights if name.file else snapshot
    return Fetched(pinned, path, {key: path for key, path in found.items() if path is not None})


def _shards(index: pathlib.Path) -> list[str]:
    """Names of files; what is no index, or leads elsewhere, its reader will refuse."""
    where = read_json(index).get("weight_map")
    names = where.values() if isinstance(where, Mapping) else ()
    return sorted({x for x in names if isinstance(x, str) and re.fullmatch(r"\w[\w.-]*", x)})


def _list_files(name: HubName) -> list[str]:
    from huggingface_hub import HfApi, errors

    try:
        files = HfApi().list_repo_files(name.repository, revision=name.revision)
    except (errors.HTTPError, *FAILURES) as error:
        raise explained(error, name) from error
    return list(files)


def _shown(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "no weights"


def explained(error: Exception, name: HubName) -> Exception:
    """The client's error as a ValueError or OSError that says what to do."""
    from huggingface_hub import constants, errors

    where, repository = without_logins(constants.ENDPOINT), name.repository
    if isinstance(error, errors.GatedRepoError):
        return ValueError(
            f"{name}: its owner asks for consent: accept the conditions at {where}/{repository}, "
            "then log in with `hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"{name}: the repository has no revision {name.revision}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(
            f"{name}: no such repository at {where}, or a private one: check the name; to read a "
            "private one log in with `hf auth login`, or set HF_TOKEN"
        )
    wraps = isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError))
    cause = error.__cause__ if wraps else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return ValueError(
            f"{name}: {where} refuses the token ({status}): log in again with `hf auth login`, or "
            "set HF_TOKEN to one that may do this"
        )
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return OSError(f"{name}: not in the cache, and HF_HUB_OFFLINE forbids to download it")
    if status is not None:
        return OSError(f"{name}: {where} answers with {status}; try again later")
    return OSError(
        f"{name}: {where} cannot be used ({type(cause or error).__name__}: "
        f"{without_logins(cause or error)}); check the connection and repeat"
    )
