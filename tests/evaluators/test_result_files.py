"""Files of what was found: kept in parts, written whole, and never taken for those of others."""

import base64
import json

import pytest
from etils import epath

from maft_jax.evaluators.result_files import ResultFiles, decode_found, encode_found


def found_in(number: int, png: bytes | None = b"png") -> dict:
    annotation = {"image_id": number, "file_name": f"a/{number}.png", "segments_info": []}
    encoded = None if png is None else base64.b64encode(png + b"%d" % number).decode()
    row = {"id": number, "file_name": f"a/{number}.jpg"}
    picture = encoded if number == 0 else None
    return {
        "number": number,
        "image": row,
        "annotations": [annotation],
        "png": encoded,
        "picture": picture,
    }


def files_of(folder, key="key", has_pngs=True) -> ResultFiles:
    return ResultFiles(epath.Path(folder), "set_panoptic", key, has_pngs)


def keep_three(files: ResultFiles) -> None:
    parts = encode_found([found_in(2), found_in(1)]), encode_found([found_in(0)])
    files.keep(0, 2, encode_found(decode_found(*parts)))  # of two processes
    files.keep(2, 3, encode_found([found_in(3)]))


def test_document_and_pngs_are_of_all_parts_in_order(tmp_path):
    files = files_of(tmp_path)
    keep_three(files)
    assert files.has_kept(3) and files.digest() is None
    digest = files.write({"categories": []}, 4)
    assert digest == files.digest()
    document = json.loads(files.document.read_text())
    assert [row["image_id"] for row in document["annotations"]] == [0, 1, 2, 3]
    assert [row["id"] for row in document["images"]] == [0, 1, 2, 3]
    assert list(document) == ["categories", "images", "annotations"]
    pngs = sorted((tmp_path / "set_panoptic_results/a").iterdir())
    assert [path.read_bytes() for path in pngs] == [b"png0", b"png1", b"png2", b"png3"]
    assert (tmp_path / "set_panoptic_pictures/a/0.png").read_bytes() == b"png0"
    files.remove_kept()
    (tmp_path / "set_panoptic_results").rename(tmp_path / "elsewhere")
    assert files.digest() is None, "its PNGs are gone"


def test_instances_are_a_list(tmp_path):
    files = files_of(tmp_path, has_pngs=False)
    files.keep(0, 1, encode_found([found_in(0, None), found_in(1, None)]))
    files.write({}, 2)
    assert [row["image_id"] for row in json.loads(files.document.read_text())] == [0, 1]
    assert not (tmp_path / "set_panoptic_results").exists()


def test_what_lies_beyond_the_last_save_is_removed(tmp_path):
    files = files_of(tmp_path)
    keep_three(files)
    files.keep(3, 5, encode_found([found_in(4)]))
    (tmp_path / "set_panoptic.unfinished/.00000003-00000005.0123abcd").touch()
    assert files.has_kept(3)
    names = sorted(path.name for path in (tmp_path / "set_panoptic.unfinished").iterdir())
    assert names == ["00000000-00000002", "00000002-00000003"]


@pytest.mark.parametrize("what", ["gone", "damaged", "another's"])
def test_parts_that_are_not_there_are_noticed(tmp_path, what):
    files = files_of(tmp_path)
    keep_three(files)
    path = tmp_path / "set_panoptic.unfinished/00000000-00000002"
    if what == "gone":
        path.unlink()
    elif what == "damaged":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        files = files_of(tmp_path, key="other")
    if what != "gone":
        with pytest.raises(ValueError, match=r"is damaged; remove .*unfinished and evaluate again"):
            files.write({"categories": []}, 4)
        assert not files.document.exists()
    assert not files.has_kept(3)


def test_pngs_that_are_not_there_or_cut_are_noticed(tmp_path):
    files = files_of(tmp_path)
    keep_three(files)
    whole = files.write({"categories": []}, 3)
    assert files.digest() == whole
    png = next((tmp_path / "set_panoptic_results").glob("**/*.png"))
    for damage in (lambda: png.write_bytes(b""), png.unlink):
        damage()
        assert files.digest() not in (whole, None)
