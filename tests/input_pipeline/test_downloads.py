import contextlib
import dataclasses
import http.server
import io
import threading
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from input_pipeline import downloads
from input_pipeline.dataset_specs import SPECS, Download
from input_pipeline.downloads import download, download_dataset, missing_downloads

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Sends `state.files`, breaking off after the next of `state.break_after` bytes."""

    def do_GET(self):
        state = self.server.state
        asked = self.headers["Range"]
        state.requests.append((self.path, asked))
        if state.errors:
            return self.send_error(state.errors.pop(0))
        content = state.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked and state.has_ranges:
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
            self.send_response(206)
            start += state.range_offset
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            start = 0
            self.send_response(200)
        body = content[start:]
        if state.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked may have heard enough
            self.wfile.write(body[: state.break_after.pop(0)] if state.break_after else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    instance = http.server.ThreadingHTTPServer(("localhost", 0), _Handler)
    instance.state = SimpleNamespace(
        files={"/data.zip": CONTENT},
        requests=[],
        errors=[],
        break_after=[],
        has_ranges=True,
        range_offset=0,
        tells_length=True,
    )
    instance.state.url = f"http://localhost:{instance.server_port}"
    thread = threading.Thread(target=instance.serve_forever, args=(0.01,))
    thread.start()
    yield instance.state
    instance.shutdown()
    thread.join()
    instance.server_close()


def _download(server, target):
    download(f"{server.url}/data.zip", target, retry_seconds=0)


def _ranges(server):
    return [asked for _, asked in server.requests]


@pytest.mark.parametrize("tells_length", [True, False])
def test_file_arrives_whole_under_its_name(server, tmp_path, capsys, tells_length):
    server.tells_length = tells_length
    _download(server, tmp_path / "new" / "data.zip")
    assert (tmp_path / "new" / "data.zip").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data.zip"]
    assert "data.zip: " in capsys.readouterr().err


def test_file_that_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / "data.zip").write_bytes(b"mine")
    _download(server, tmp_path / "data.zip")
    assert server.requests == [] and (tmp_path / "data.zip").read_bytes() == b"mine"


def test_broken_connections_are_continued_where_they_ended(server, tmp_path):
    server.break_after = [1_000_000, 0, 500_000]
    _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert _ranges(server) == [None, "bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]


def test_slow_progress_is_not_given_up(server, tmp_path):
    server.break_after = [100_000] * 12
    _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_part_of_a_killed_run_is_continued(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:12345])
    _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert _ranges(server) == ["bytes=12345-"]


def test_run_killed_just_before_the_renaming_is_completed(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT and len(server.requests) == 1


def test_part_longer_than_the_file_is_started_anew(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT + b"more")
    _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_server_without_ranges_starts_from_the_beginning(server, tmp_path):
    server.has_ranges, server.break_after = False, [1_000_000, 2_000_000]
    _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_bytes_that_were_not_asked_for_are_refused(server, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:1000])
    server.range_offset = 5
    with pytest.raises(ValueError, match="asked for the bytes from 1000 on"):
        _download(server, tmp_path / "data.zip")
    assert not (tmp_path / "data.zip").exists()


def test_passing_errors_of_the_server_are_tried_again(server, tmp_path):
    server.errors = [503, 429, 500]
    _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_missing_file_is_an_error_at_once(server, tmp_path):
    with pytest.raises(ValueError, match=r"/no\.zip: .* 404 Not Found; .* put it at .*no\.zip$"):
        download(f"{server.url}/no.zip", tmp_path / "no.zip", retry_seconds=0)
    assert len(server.requests) == 1 and list(tmp_path.iterdir()) == []


def test_lasting_failure_is_an_error_that_keeps_what_came(server, tmp_path):
    server.break_after = [1000] + [0] * 20
    with pytest.raises(ValueError, match="ended after 1000 of 3000000 bytes; call again to contin"):
        _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip.part").stat().st_size == 1000
    assert not (tmp_path / "data.zip").exists()
    server.break_after = []
    _download(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_server_that_does_not_answer_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"localhost:1/x\.zip: the download failed"):
        download("http://localhost:1/x.zip", tmp_path / "x.zip", retry_seconds=0)


def _zip(suffix, pixels, splits):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for split in splits:
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, "JPEG" if suffix == "jpg" else "PNG")
            archive.writestr(f"{split}/000000000001.{suffix}", image.getvalue())
    return content.getvalue()


@pytest.fixture
def coco_server(server, monkeypatch):
    rgb, grey = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)
    server.files = {
        "/train2017.zip": _zip("jpg", rgb, ["train2017"]),
        "/val2017.zip": _zip("jpg", rgb, ["val2017"]),
        "/labels.zip": _zip("png", grey, ["train2017", "val2017"]),
    }
    parts = zip(("train images", "val images", "labels"), server.files.items(), strict=True)
    ours = {part: Download(f"{server.url}{path}", len(content)) for part, (path, content) in parts}
    spec = dataclasses.replace(SPECS["coco_stuff"], downloads=ours)
    monkeypatch.setitem(SPECS, "coco_stuff", spec)
    return server


def test_what_is_missing_is_known_before_it_is_fetched(coco_server, tmp_path):
    names = [item.file_name for item in missing_downloads("coco_stuff", tmp_path / "new", "val")]
    assert names == ["val2017.zip", "labels.zip"] and coco_server.requests == []


def test_data_set_is_fetched_and_readable(coco_server, tmp_path):
    fetched = download_dataset("coco_stuff", tmp_path, "val")
    assert [path.name for path in fetched] == ["val2017.zip", "labels.zip"]
    assert missing_downloads("coco_stuff", tmp_path, "val") == ()
    assert [path.name for path in download_dataset("coco_stuff", tmp_path)] == ["train2017.zip"]
    assert len(coco_server.requests) == 3


def test_what_is_extracted_is_not_fetched(coco_server, tmp_path):
    for split in ("train2017", "val2017"):
        (tmp_path / "images" / split).mkdir(parents=True)
        image = Image.new("RGB", (5, 4))
        image.save(tmp_path / "images" / split / "000000000001.jpg")
    assert [path.name for path in download_dataset("coco_stuff", tmp_path)] == ["labels.zip"]


def test_archive_without_the_expected_files_is_an_error(coco_server, tmp_path):
    with zipfile.ZipFile(tmp_path / "labels.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(ValueError, match=r"labels\.zip: it is there, yet coco_stuff val is not"):
        download_dataset("coco_stuff", tmp_path, "val")


def test_archive_as_root_is_not_downloaded_into(coco_server, tmp_path):
    with zipfile.ZipFile(tmp_path / "labels.zip", "w") as archive:
        archive.writestr("train2017/000000000001.png", b"")
    with pytest.raises(ValueError, match=r"labels\.zip: expected a folder to put train2017\.zip"):
        download_dataset("coco_stuff", tmp_path / "labels.zip", "train")


def test_too_little_space_is_an_error_before_the_download(coco_server, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=10)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"val2017\.zip needs .* 0\.0 GB are free; choose another"):
        download_dataset("coco_stuff", tmp_path, "val")
    assert coco_server.requests == []


def test_what_needs_a_registration_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="ADE20K_2021_17_01"):
        download_dataset("ade20k_full", tmp_path)


def test_unknown_data_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="dataset 'folder': nothing to download; known are"):
        download_dataset("folder", tmp_path)
