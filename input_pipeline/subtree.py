"""A folder of a tree as a tree: zip programs pack a data set as one folder at the top."""

import posixpath

from input_pipeline.file_trees import FileTree

_OF_MACOS = "__MACOSX"


class SubTree:
    """The files below a folder of a FileTree, under names relative to it."""

    def __init__(self, tree: FileTree, folder: str):
        self.where = tree.locate(folder)
        self._tree, self.folder = tree, folder

    def names(self, folder: str = "") -> list[str]:
        return [name[len(self.folder) + 1 :] for name in self._tree.names(self._inside(folder))]

    def exists(self, path: str) -> bool:
        return self._tree.exists(self._inside(path))

    def read(self, path: str) -> bytes:
        return self._tree.read(self._inside(path))

    def stamp(self, path: str) -> str:
        return self._tree.stamp(self._inside(path))

    def locate(self, path: str) -> str:
        return self._tree.locate(self._inside(path))

    def describe(self) -> str:
        return f"{self._tree.describe()}, of which its only folder, {self.folder}"

    def _inside(self, path: str) -> str:
        return posixpath.join(self.folder, path) if path else self.folder


def only_folder(tree: FileTree) -> SubTree | None:
    """The one folder in which everything lies but files at the top; None if there are others."""
    tops = {name.partition("/")[0] for name in tree.names() if "/" in name} - {_OF_MACOS}
    return SubTree(tree, tops.pop()) if len(tops) == 1 else None
