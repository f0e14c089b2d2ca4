"""Images by the names that other programs gave them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from input_pipeline.file_names import composed, portable_path, shorten
from input_pipeline.label_maps.data_folder import DataFolder, example_id, logger

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL_FILES = "/data/local-files/?d="
_OF_ELSEWHERE = re.compile(r"/|\.\./|[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]+:/")
"""Absolute paths, those that lead out of a folder, and URLs (of which // became /)."""
_PREFIX_OF_UPLOADS = re.compile(r"[0-9a-f]{8}-(?=.)")


def find_images(folder: DataFolder, names: Sequence[str], where: str) -> list[PurePosixPath | None]:
    """The image of each name, relative to the folder of images; None where there is none.

    Names may be paths of other systems and URLs; endings do not count. Where a relative name and
    an image both have folders, these must agree. What has no partner is counted and named in a
    warning.
    Raises ValueError where two names are one image, one name may be several, or none is found.
    """
    finder = _Finder(folder.paths)
    found = [finder.find(name) for name in names]
    first: dict[PurePosixPath, str] = {}
    for name, path in zip(names, found, strict=True):
        if path is not None and first.setdefault(path, name) is not name:
            raise ValueError(
                f"{where}: {first[path]!r} and {name!r} are the same image, "
                f"{folder.tree.locate(folder.images)}/{path}; leave one entry for it"
            )
    absent = [name for name, path in zip(names, found, strict=True) if path is None]
    if len(absent) == len(names):
        raise ValueError(
            f"{where}: none of its {len(names)} images is in {folder.tree.locate(folder.images)}: "
            f"expected {shorten(absent)}, found {shorten(folder.paths)}; set config.data.images "
            "to their folder"
        )
    if absent:
        logger.warning(
            "%s: %d images are not in %s and are left out: %s",
            where,
            len(absent),
            folder.tree.locate(folder.images),
            shorten(absent),
        )
    if others := [path for path in folder.paths if path not in first]:
        logger.warning(
            "%s: %d images are not in %s and are left out: %s",
            folder.tree.locate(folder.images),
            len(others),
            where,
            shorten(others),
        )
    return found


class _Finder:
    """Images by their paths and names; with the ending they go before those of others without."""

    def __init__(self, paths: Iterable[PurePosixPath]):
        self._paths: dict[str, PurePosixPath] = {}
        self._names: dict[str, list[str]] = {}
        for spell in (example_id, PurePosixPath.as_posix):
            spelled = {composed(spell(path)): path for path in paths}
            names = defaultdict(list)
            for name in spelled:
                names[name.rpartition("/")[2]].append(name)
            self._paths |= spelled
            self._names |= names

    def find(self, name: str) -> PurePosixPath | None:
        for spelling in dict.fromkeys((name, *_paths_of_url(name))):
            path = portable_path(spelling)
            if not path.name:
                continue
            is_foreign = bool(_OF_ELSEWHERE.match(path.as_posix())) or spelling != name
            for candidate in (path, path.with_suffix("")):
                if found := self._find_path(candidate, is_foreign):
                    return found
        return None

    def _find_path(self, path: PurePosixPath, is_foreign: bool) -> PurePosixPath | None:
        """Where both have folders they must be the same, but for those of another computer."""
        folders = [part for part in path.parts[:-1] if part not in ("/", "..")]
        for name in dict.fromkeys((path.name, _PREFIX_OF_UPLOADS.sub("", path.name, count=1))):
            parts = [*folders, name]
            for start in range(len(parts)):
                if found := self._paths.get("/".join(parts[start:])):
                    return found
            end = "/" + "/".join(parts)
            found = [key for key in self._names.get(name, ()) if is_foreign or key.endswith(end)]
            if len(found) > 1:
                raise ValueError(
                    f"{path}: expected one image of this name, found {shorten(found)}; name the "
                    "folder, too"
                )
            if found:
                return self._paths[found[0]]
        return None


def _paths_of_url(name: str) -> list[str]:
    """What may be the path: Label Studio's local files, URLs, and names with %20."""
    if _LOCAL_FILES in name:
        return [unquote(name.split(_LOCAL_FILES, 1)[1])]
    if _URL.match(name):
        return [unquote(urlsplit(name).path)]
    return [unquote(name)]
