import io
import logging
import zipfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.file_trees import open_tree
from input_pipeline.layouts import open_dataset
from input_pipeline.layouts.base import MissingFiles
from input_pipeline.subtree import SubTree, only_folder


def _png(*values):
    content = io.BytesIO()
    Image.fromarray(np.array([values] * 2, np.uint8)).save(content, "PNG")
    return content.getvalue()


FILES = {
    "JPEGImages/2007_000033.jpg": _png(1, 2),
    "SegmentationClass/2007_000033.png": _png(15, 255),
    "ImageSets/Segmentation/val.txt": b"2007_000033\n",
}
BESIDE = {"read me.txt": b"", "__MACOSX/my voc/._x": b""}


@pytest.fixture
def packed(tmp_path):
    with zipfile.ZipFile(tmp_path / "my voc.zip", "w") as archive:
        for path, content in FILES.items():
            archive.writestr(f"my voc/{path}", content)
        for path, content in BESIDE.items():
            archive.writestr(path, content)
    return tmp_path / "my voc.zip"


def test_a_folder_of_a_tree_is_like_the_folder_itself(tmp_path, packed):
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "read me.txt").unlink()
    plain, below = open_tree(tmp_path / "my voc"), SubTree(open_tree(packed), "my voc")
    assert below.names() == plain.names() == sorted(FILES)
    assert below.names("JPEGImages") == plain.names("JPEGImages")
    assert all(below.read(name) == plain.read(name) == FILES[name] for name in FILES)
    assert below.exists("ImageSets/Segmentation") and below.exists("") and not below.exists("x")
    assert below.locate("a.png") == f"{packed}:my voc/a.png"


@pytest.mark.parametrize("where", ["archive", "folder with the archive"])
def test_official_layout_is_found_in_the_only_folder(packed, where, caplog):
    caplog.set_level(logging.INFO)
    source = open_dataset("voc2012", packed if where == "archive" else packed.parent, "val")
    assert source.example_ids == ("2007_000033",)
    assert source[0].label_map.tolist() == [[14, -1]] * 2
    assert "reading its only folder" in caplog.text


def test_what_is_in_no_folder_is_missing_from_where_it_was_looked_for(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday/photo.jpg").write_bytes(_png(1))
    assert only_folder(open_tree(tmp_path)).names() == ["photo.jpg"]
    with pytest.raises(MissingFiles, match=f"folder {tmp_path}"):
        open_dataset("voc2012", tmp_path, "val")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/photo.jpg").write_bytes(_png(1))
    assert only_folder(open_tree(tmp_path)) is None
