import io
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from input_pipeline import file_trees
from input_pipeline.file_trees import open_tree

FILES = {
    "train/b.jpg": b"second",
    "train/a.jpg": b"first",
    "train/deep/größe 1.png": b"\x00" * 70_000,
    "train2/c.jpg": b"",
    "list.txt": b"a\nb\n",
}


def write_folder(root, files=FILES):
    for name, content in files.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path, files=FILES, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files=FILES, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _half(files, start):
    return {name: content for name, content in files.items() if name.startswith(start)}


def _joined(path):
    path.mkdir()
    write_folder(path, _half(FILES, "list"))
    write_zip(path / "one.zip", _half(FILES, "train/"))
    write_tar(path / "two.TAR", _half(FILES, "train2/"))
    return path


KINDS = {
    "folder": lambda path: write_folder(path / "root"),
    "stored zip": lambda path: write_zip(path / "x.zip"),
    "deflated zip": lambda path: write_zip(path / "x.ZIP", compression=zipfile.ZIP_DEFLATED),
    "tar": lambda path: write_tar(path / "x.tar"),
    "gzip": lambda path: write_tar(path / "x.tar.gz", mode="w:gz"),
    "tgz": lambda path: write_tar(path / "x.tgz", mode="w:gz"),
    "bzip2": lambda path: write_tar(path / "x.tar.bz2", mode="w:bz2"),
    "xz": lambda path: write_tar(path / "x.tar.xz", mode="w:xz"),
    "joined": lambda path: _joined(path / "root"),
}


@pytest.fixture(params=KINDS)
def tree(request, tmp_path):
    return open_tree(KINDS[request.param](tmp_path))


def test_lists_all_files_in_order(tree):
    names = [
        name for name in tree.names() if not name.lower().endswith(file_trees.ARCHIVE_SUFFIXES)
    ]
    assert names == sorted(FILES)
    assert tree.names("train") == ["train/a.jpg", "train/b.jpg", "train/deep/größe 1.png"]
    assert tree.names("train/deep/") == ["train/deep/größe 1.png"]
    assert tree.names("trai") == []


def test_reads_the_content(tree):
    assert {name: tree.read(name) for name in FILES} == FILES


def test_knows_files_and_folders_that_exist(tree):
    assert all(tree.exists(path) for path in ("", "train", "train/", "train/deep", *FILES))
    assert not any(tree.exists(path) for path in ("trai", "train/z.jpg", "deep"))


def test_missing_file_is_an_error_that_names_it(tree):
    for access in (tree.read, tree.stamp):
        with pytest.raises(ValueError, match=r"train.z\.jpg"):
            access("train/z.jpg")


def test_reads_from_another_process_and_from_threads(tree):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert list(pool.map(tree.read, FILES)) == list(FILES.values())
    names = list(FILES) * 50
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tree.read, names)) == [FILES[name] for name in names]


def test_copy_has_the_same_stamps(tree):
    copy = pickle.loads(pickle.dumps(tree))
    assert [copy.stamp(name) for name in FILES] == [tree.stamp(name) for name in FILES]
    assert len({tree.stamp(name) for name in FILES}) == len(FILES)


def test_zip_is_read_on_both_sides_of_a_fork(tmp_path):
    """Parent and child share open files; reading through one would move the other's position."""
    files = {f"{i}.bin": bytes([i]) * 100_000 for i in range(20)}
    path = write_zip(tmp_path / "x.zip", files)
    code = f"""
import os
from input_pipeline.file_trees import open_tree
tree = open_tree({str(path)!r})
tree.read("0.bin")
child = os.fork()
for _ in range(50):
    for i in range(20):
        assert tree.read(f"{{i}}.bin") == bytes([i]) * 100_000
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["stored zip", "tar", "gzip"])
def test_archive_that_changes_while_in_use_is_an_error(tmp_path, kind):
    path = KINDS[kind](tmp_path)
    tree = open_tree(path)
    assert tree.read("train/a.jpg") == b"first"
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(ValueError, match="the archive was changed while it was in use"):
        tree.read("train/a.jpg")


def test_stamp_of_a_file_changes_with_it(tmp_path):
    before = open_tree(write_folder(tmp_path)).stamp("list.txt")
    os.utime(tmp_path / "list.txt", (1, 1))
    touched = open_tree(tmp_path).stamp("list.txt")
    (tmp_path / "list.txt").write_bytes(b"longer than before")
    assert len({before, touched, open_tree(tmp_path).stamp("list.txt")}) == 3


def test_stamp_of_an_archive_member_changes_with_its_content_alone(tmp_path):
    before = open_tree(write_zip(tmp_path / "x.zip"))
    after = open_tree(write_zip(tmp_path / "x.zip", FILES | {"train/a.jpg": b"other"}))
    assert after.stamp("train/a.jpg") != before.stamp("train/a.jpg")
    assert after.stamp("train/b.jpg") == before.stamp("train/b.jpg")


def test_tar_rewritten_with_equal_sizes_has_other_stamps(tmp_path):
    before = open_tree(write_tar(tmp_path / "x.tar")).stamp("train/a.jpg")
    write_tar(tmp_path / "x.tar", FILES | {"train/a.jpg": b"FIRST"})
    os.utime(tmp_path / "x.tar", (1, 1))
    assert open_tree(tmp_path / "x.tar").stamp("train/a.jpg") != before


def test_extracted_file_comes_before_an_archived_one(tmp_path):
    write_zip(tmp_path / "b.zip", {"train/a.jpg": b"b.zip", "train/b.jpg": b"b.zip"})
    write_zip(tmp_path / "a.zip", {"train/b.jpg": b"a.zip"})
    write_folder(tmp_path, {"train/a.jpg": b"extracted"})
    tree = open_tree(tmp_path)
    assert tree.names("train") == ["train/a.jpg", "train/b.jpg"]
    assert [tree.read(name) for name in tree.names("train")] == [b"extracted", b"a.zip"]
    assert tree.locate("train/a.jpg") == str(tmp_path / "train/a.jpg")
    assert tree.locate("train/b.jpg") == f"{tmp_path / 'a.zip'}:train/b.jpg"
    assert "a.zip, b.zip" in tree.describe()


def test_folders_of_one_name_are_united_over_folder_and_archive(tmp_path):
    """COCO's images and its stuffthingmaps archive both have a folder train2017."""
    write_folder(tmp_path, {"train2017/1.jpg": b"image"})
    write_zip(tmp_path / "stuffthingmaps_trainval2017.zip", {"train2017/1.png": b"label"})
    assert open_tree(tmp_path).names("train2017") == ["train2017/1.jpg", "train2017/1.png"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_names_that_lead_out_of_an_archive_are_left_out(tmp_path, write):
    files = {"../evil.txt": b"1", "/abs.txt": b"2", "a/../../b.txt": b"3", "./ok//c.txt": b"4"}
    tree = open_tree(write(tmp_path / f"x.{write.__name__.removeprefix('write_')}", files))
    assert tree.names() == ["ok/c.txt"]
    assert tree.read("ok/c.txt") == b"4"
    assert not tree.exists("../evil.txt") and not tree.exists("/abs.txt")


@pytest.mark.parametrize("kind", ["folder", "stored zip"])
def test_hidden_files_are_not_listed(tmp_path, kind):
    hidden = {"train/._a.jpg": b"", "train/.thumbnails/a.jpg": b"", ".DS_Store": b""}
    files = FILES | hidden
    path = tmp_path / "x"
    tree = open_tree(
        write_folder(path, files) if kind == "folder" else write_zip(f"{path}.zip", files)
    )
    assert tree.names("train") == ["train/a.jpg", "train/b.jpg", "train/deep/größe 1.png"]


def test_backslashes_of_windows_archives_are_separators(tmp_path):
    tree = open_tree(write_zip(tmp_path / "x.zip", {"train\\a.jpg": b"1"}))
    assert tree.names("train") == ["train/a.jpg"] and tree.read("train/a.jpg") == b"1"


def test_hard_links_in_a_tar_have_the_content_of_their_target(tmp_path):
    with tarfile.open(write_tar(tmp_path / "x.tar"), "a") as archive:
        link = tarfile.TarInfo("linked.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "train/a.jpg"
        archive.addfile(link)
    assert open_tree(tmp_path / "x.tar").read("linked.jpg") == b"first"


def test_linked_folders_are_followed_even_in_circles(tmp_path):
    write_folder(tmp_path / "disk", {"a.jpg": b"1"})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "disk")
    tree = open_tree(tmp_path / "root")
    assert tree.names() == tree.names("train") == ["train/a.jpg"]


@pytest.mark.parametrize("kind", ["stored zip", "deflated zip", "tar", "gzip", "bzip2", "xz"])
def test_truncated_archive_is_an_error_at_every_length(tmp_path, kind):
    path = KINDS[kind](tmp_path)
    whole = path.read_bytes()
    end_of_content = len(whole.rstrip(b"\0")) if kind == "tar" else len(whole) - 1
    for length in random.Random(0).sample(range(end_of_content), 30):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=f"{path.name}: cannot be read as a .*download it again"
        ):
            open_tree(path)


@pytest.mark.parametrize("kind", ["stored zip", "deflated zip", "gzip", "bzip2", "xz"])
def test_flipped_bytes_never_change_content_silently(tmp_path, kind):
    path = KINDS[kind](tmp_path)
    whole = path.read_bytes()
    draw = random.Random(0)
    places = [i for i, byte in enumerate(whole) if byte]
    num_refused = 0
    for _ in range(150):
        data = bytearray(whole)
        data[draw.choice(places)] = draw.randrange(256)
        path.write_bytes(data)
        try:
            tree = open_tree(path)
            content = {name: tree.read(name) for name in tree.names()}
        except ValueError as error:
            assert str(error).startswith(str(path))
            num_refused += 1
        else:
            assert content == FILES
    assert num_refused > 75


def test_flipped_byte_in_a_zip_is_an_error_that_names_archive_and_member(tmp_path):
    path = write_zip(tmp_path / "x.zip")
    path.write_bytes(path.read_bytes().replace(b"first", b"fIrst", 1))
    tree = open_tree(path)
    with pytest.raises(ValueError, match=r"x\.zip:train/a\.jpg: .*corrupt.*CRC.*download it again"):
        tree.read("train/a.jpg")
    assert tree.read("train/b.jpg") == b"second"


def test_flipped_byte_in_a_tar_header_is_an_error(tmp_path):
    """tarfile itself would list the members before it and say nothing."""
    path = write_tar(tmp_path / "x.tar")
    data = bytearray(path.read_bytes())
    data[data.index(b"train2/c.jpg")] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"x\.tar: cannot be read as a tar .*corrupt or ends early"
    ):
        open_tree(path)


def test_tar_without_an_end_mark_is_read_with_a_warning(tmp_path, caplog):
    path = write_tar(tmp_path / "x.tar", {"a.txt": b"1" * 512})
    path.write_bytes(path.read_bytes()[:1024])
    assert open_tree(path).read("a.txt") == b"1" * 512
    assert "x.tar: has no end mark; it may have been cut off" in caplog.text


def test_encrypted_zip_is_an_error(tmp_path):
    path = write_zip(tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(sign) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.zip:train/b\.jpg: .*encrypted"):
        open_tree(path).read("train/b.jpg")


def test_large_compressed_tar_is_to_be_extracted(tmp_path, monkeypatch):
    monkeypatch.setattr(file_trees, "MAX_COMPRESSED_TAR_BYTES", 10)
    path = KINDS["tgz"](tmp_path)
    with pytest.raises(ValueError, match=r"cannot be read in place; extract .*: tar -xf x\.tgz"):
        open_tree(path)
    assert "not read, because compressed and large: x.tgz" in open_tree(tmp_path).describe()


def test_missing_root_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"nowhere: expected a folder or an archive .* there is none"
    ):
        open_tree(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match="a file of another kind"):
        open_tree(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="mount remote storage"):
        open_tree("gs://bucket/data")
