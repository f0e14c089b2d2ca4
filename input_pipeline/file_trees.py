"""Files below one root, whether extracted or still inside zip and tar archives.

Nothing is ever written: members of archives are read in place.
"""

import bz2
import functools
import gzip
import io
import logging
import lzma
import os
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from input_pipeline.limits import MAX_UNPACKED_BYTES, check_limit
from input_pipeline.zip_directory import check_all_listed

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A compressed tar has no random access: it is decompressed into memory, so it has to be small.
MAX_COMPRESSED_TAR_BYTES = 256 * 2**20
_TAR_BLOCK = 512
_CHUNK = 2**22
_READ_AGAIN = "download it again, or remove it if it is not part of the data set"
_UNREADABLE = Exception
"""Of corrupt bytes: zipfile, tarfile and the decompressors raise many kinds, IndexError too."""

logger = logging.getLogger(__name__)


class FileTree(Protocol):
    """Read access to files named by '/'-separated paths relative to the root.

    Picklable, and safe to read from several threads and after a fork. Hidden files and folders
    (names that begin with a dot) are not listed.
    """

    where: str

    def names(self, folder: str = "") -> list[str]:
        """Sorted paths, relative to the root, of the files in `folder` and below; maybe none."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder of this name."""
        ...

    def read(self, path: str) -> bytes:
        """Content of a file. ValueError says which is missing or corrupt."""
        ...

    def stamp(self, path: str) -> str:
        """A string that changes when the file's content may have changed."""
        ...

    def locate(self, path: str) -> str:
        """Where the file is, for messages: a path, or archive:member."""
        ...

    def describe(self) -> str:
        """One line for messages: what the tree is made of."""
        ...


def open_tree(root: str | Path) -> FileTree:
    """Opens a folder, an archive, or a folder some of whose sub-trees are archives in it.

    Archives directly in the folder are read as if they had been extracted there.
    Raises ValueError for a missing root and for corrupt archives.
    """
    path = Path(root).expanduser()
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if _is_archive(entry))
        return JoinedTree(path, found) if found else DirectoryTree(path)
    if _is_archive(path):
        return _open_archive(path)
    hint = "; mount remote storage, or copy the data set to a disk" if "://" in str(root) else ""
    raise ValueError(
        f"{root}: expected a folder or an archive ({' '.join(ARCHIVE_SUFFIXES)}), there is "
        f"{'a file of another kind' if path.exists() else 'none'}{hint}"
    )


class DirectoryTree:
    """Files of a folder, symbolic links followed."""

    def __init__(self, root: str | Path):
        self.where = str(root)

    def names(self, folder: str = "") -> list[str]:
        top = self.locate(folder)
        found, visited = [], set()
        for current, folders, files in os.walk(top, followlinks=True):
            real = os.path.realpath(current)
            if real in visited:  # a link that leads back up
                folders.clear()
                continue
            visited.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = os.path.relpath(current, top).replace(os.sep, "/")
            prefix = _join(folder, "" if below == "." else below)
            found += [_join(prefix, name) for name in files if not name.startswith(".")]
        return sorted(found)

    def exists(self, path: str) -> bool:
        return os.path.exists(self.locate(path))

    def read(self, path: str) -> bytes:
        try:
            return Path(self.locate(path)).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.locate(path)}: cannot be read: {error.strerror}") from error

    def stamp(self, path: str) -> str:
        try:
            status = os.stat(self.locate(path))
        except OSError as error:
            raise ValueError(f"{self.locate(path)}: cannot be read: {error.strerror}") from error
        return f"{path}:{status.st_size}:{status.st_mtime_ns}"

    def locate(self, path: str) -> str:
        return os.path.join(self.where, path) if path else self.where

    def describe(self) -> str:
        return f"folder {self.where}"


class _Member(NamedTuple):
    """What an index keeps of one file: its key in the archive, and what its content goes by."""

    key: str | int
    size: int
    version: str


class _ArchiveTree:
    """What zip and tar archives share: an index of names that is built once."""

    def __init__(self, archive: str | Path):
        self.where = str(archive)
        self._state = _size_and_time(archive)
        self._index = self._build_index()

    def _build_index(self) -> dict[str, _Member]:
        raise NotImplementedError

    def _read_member(self, member: _Member) -> bytes:
        raise NotImplementedError

    @functools.cached_property
    def _folders(self) -> frozenset[str]:
        return frozenset(
            name[:end] for name in self._index for end, sign in enumerate(name) if sign == "/"
        )

    def names(self, folder: str = "") -> list[str]:
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        return sorted(
            name
            for name in self._index
            if name.startswith(prefix) and not _is_hidden(name[len(prefix) :])
        )

    def exists(self, path: str) -> bool:
        return not path or path in self._index or path.rstrip("/") in self._folders

    def read(self, path: str) -> bytes:
        member = self._member(path)
        self._check_unchanged()
        try:
            data = self._read_member(member)
        except _UNREADABLE as error:
            raise ValueError(
                f"{self.locate(path)}: this part of the archive is corrupt: {error}; {_READ_AGAIN}"
            ) from error
        if len(data) != member.size:
            raise ValueError(
                f"{self.locate(path)}: expected {member.size} bytes, the archive holds "
                f"{len(data)}; {_READ_AGAIN}"
            )
        return data

    def stamp(self, path: str) -> str:
        member = self._member(path)
        name = os.path.basename(self.where)
        return f"{name}:{path}:{member.size}:{member.version}"

    def locate(self, path: str) -> str:
        return f"{self.where}:{path}" if path else self.where

    def describe(self) -> str:
        return f"archive {self.where}"

    def _check_unchanged(self) -> None:
        try:
            unchanged = _size_and_time(self.where) == self._state
        except OSError as error:
            raise ValueError(f"{self.where}: cannot be read: {error.strerror}") from error
        if not unchanged:
            raise ValueError(
                f"{self.where}: the archive was changed while it was in use; start again"
            )

    def _member(self, path: str) -> _Member:
        if path not in self._index:
            raise ValueError(f"{self.locate(path)}: there is no such file in the archive")
        return self._index[path]


class ZipTree(_ArchiveTree):
    """Files of a zip archive; their CRCs are checked when they are read."""

    def _build_index(self) -> dict[str, _Member]:
        try:
            with zipfile.ZipFile(self.where) as archive:
                check_all_listed(archive)
                members = [info for info in archive.infolist() if not info.is_dir()]
        except _UNREADABLE as error:
            raise ValueError(
                f"{self.where}: cannot be read as a zip archive: {error}; {_READ_AGAIN}"
            ) from error
        named = ((info.filename.replace("\\", "/"), info) for info in members)
        return _safely_named(
            (name, _Member(info.filename, info.file_size, f"{info.CRC:08x}"))
            for name, info in named
        )

    def _read_member(self, member: _Member) -> bytes:
        check_limit(MAX_UNPACKED_BYTES, member.size, "bytes of the unpacked member")
        with _zip_handle(self.where, self._state, os.getpid()).open(member.key) as file:
            data = file.read(member.size)
            file.read(1)  # at the end, where zipfile compares the checksum
            return data


class TarTree(_ArchiveTree):
    """Files of a tar archive; a small compressed one is kept in memory."""

    def __init__(self, archive: str | Path):
        self._is_compressed = not str(archive).lower().endswith(".tar")
        if _is_too_large(Path(archive)):
            raise ValueError(
                f"{archive}: a compressed tar of more than {MAX_COMPRESSED_TAR_BYTES >> 20} MiB "
                "cannot be read in place; extract it in its folder: tar -xf "
                f"{os.path.basename(archive)}"
            )
        super().__init__(archive)

    def _build_index(self) -> dict[str, _Member]:
        try:
            content = _decompressed(self.where, self._state) if self._is_compressed else None
            if content:
                content.seek(0)
            with tarfile.open(self.where, "r:", content, encoding="utf-8") as archive:
                members = archive.getmembers()
                _check_end_of_tar(archive)
        except _UNREADABLE as error:
            raise ValueError(
                f"{self.where}: cannot be read as a tar archive: {error}; {_READ_AGAIN}"
            ) from error
        # A tar has no checksums of its members' content.
        version = "-".join(map(str, self._state))
        files = {
            info.name: _Member(info.offset_data, info.size, version)
            for info in members
            if info.isreg()
        }
        most = len(content.getbuffer()) if content else self._state[0]
        if cut := [name for name, file in files.items() if file.key + file.size > most]:
            raise ValueError(f"{self.locate(cut[0])}: cut off: the archive ends before it does")
        links = {
            info.name: files[info.linkname]
            for info in members
            if info.islnk() and info.linkname in files
        }
        return _safely_named((files | links).items())

    def _read_member(self, member: _Member) -> bytes:
        if self._is_compressed:
            whole = _decompressed(self.where, self._state).getbuffer()
            return bytes(whole[member.key : member.key + member.size])
        with open(self.where, "rb") as file:
            file.seek(member.key)
            return file.read(member.size)


class JoinedTree:
    """A folder and the archives in it, as if they had been extracted there.

    A file that is in several places is taken from the folder first, then from the archives in
    order of their names.
    """

    def __init__(self, root: Path, archives: Iterable[Path]):
        self.where = str(root)
        self._trees: list[FileTree] = [DirectoryTree(root)]
        self._too_large = []
        for archive in archives:
            if _is_too_large(archive):  # need not belong to the data set, so not an error
                self._too_large.append(archive.name)
            else:
                self._trees.append(_open_archive(archive))

    def names(self, folder: str = "") -> list[str]:
        return sorted({name for tree in self._trees for name in tree.names(folder)})

    def exists(self, path: str) -> bool:
        return any(tree.exists(path) for tree in self._trees)

    def read(self, path: str) -> bytes:
        return self._tree_of(path).read(path)

    def stamp(self, path: str) -> str:
        return self._tree_of(path).stamp(path)

    def locate(self, path: str) -> str:
        return self._tree_of(path).locate(path)

    def describe(self) -> str:
        archives = [os.path.basename(tree.where) for tree in self._trees[1:]]
        text = f"folder {self.where} with the archives {', '.join(archives) or '(none)'} in it"
        if self._too_large:
            names = ", ".join(self._too_large)
            text += f" (not read, because compressed and large: {names}; extract them)"
        return text

    def _tree_of(self, path: str) -> FileTree:
        return next((tree for tree in self._trees if tree.exists(path)), self._trees[0])


def _open_archive(path: Path) -> FileTree:
    return ZipTree(path) if path.suffix.lower() == ".zip" else TarTree(path)


def _is_archive(path: Path) -> bool:
    lower = path.name.lower()
    return lower.endswith(ARCHIVE_SUFFIXES) and not lower.startswith(".") and path.is_file()


def _is_too_large(path: Path) -> bool:
    compressed_tar = path.suffix.lower() not in (".zip", ".tar")
    return compressed_tar and path.stat().st_size > MAX_COMPRESSED_TAR_BYTES


def _size_and_time(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _is_hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if folder and name else folder or name


def _safely_named(members: Iterable[tuple[str, _Member]]) -> dict[str, _Member]:
    """Leaves out names that lead out of the archive; './a' and 'a//b' become 'a' and 'a/b'."""
    index = {}
    for name, member in members:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if parts and ".." not in parts and not name.startswith("/"):
            index["/".join(parts)] = member
    return index


def _check_end_of_tar(archive: tarfile.TarFile) -> None:
    """tarfile takes a corrupt header for the end of the archive; a real end is a block of zeros."""
    archive.fileobj.seek(archive.offset)
    end = archive.fileobj.read(_TAR_BLOCK)
    if not end:  # some programs write no such block
        logger.warning("%s: has no end mark; it may have been cut off", archive.name)
    elif end != bytes(_TAR_BLOCK):
        raise tarfile.ReadError(f"it is corrupt or ends early, at byte {archive.offset}")


# Keyed by process too: after a fork, parent and child would move the same file offset.
@functools.lru_cache(maxsize=16)
def _zip_handle(path: str, state: tuple[int, int], process_id: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@functools.lru_cache(maxsize=2)
def _decompressed(path: str, state: tuple[int, int]) -> io.BytesIO:
    opener = {".bz2": bz2.open, ".xz": lzma.open}.get(Path(path).suffix.lower(), gzip.open)
    content = io.BytesIO()
    with opener(path) as file:
        while part := file.read(_CHUNK):
            content.write(part)
            check_limit(MAX_UNPACKED_BYTES, content.tell(), "bytes of the unpacked archive")
    return content
