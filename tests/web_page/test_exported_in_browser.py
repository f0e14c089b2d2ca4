"""docs/examples' page in a real browser: an exported CLIP in onnxruntime-web, from this machine.

onnxruntime-web is in the folder that MAFT_JAX_ONNXRUNTIME_WEB names, its `dist`; else npm gets it.
"""

import functools
import http.server
import os
import pathlib
import shutil
import subprocess
import tarfile
import threading

import jax
import numpy as np
import pytest

import maft_jax
from input_pipeline.sample_folder import draw_scene
from maft_jax.export.exporting import Export, export_clip
from maft_jax.export.formats import FORMATS
from maft_jax.models.preprocess import normalised
from tests.web_page.web_pages import browser_page

pytestmark = pytest.mark.browser

REPOSITORY = pathlib.Path(__file__).parents[2]
PAGE = "segment_in_the_browser.html"
VERSION = "1.30.0"
SIZE = 128
CLASSES = ("red disc", "blue square", "green triangle", "sand", "grass", "grey wall")
ALWAYS = 60_000  # milliseconds
_DROP = """async () => {
  const picture = new File([await (await fetch("photo.png")).blob()], "photo.png");
  const dropped = new DataTransfer();
  dropped.items.add(picture);
  dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, cancelable: true }));
}"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def clip():
    return maft_jax.load("built-in:shapes_world", image_size=SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    """The page, an export and the runtime, as somebody would lay them out."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(REPOSITORY / "docs/examples" / PAGE, folder)
    dist = os.environ.get("MAFT_JAX_ONNXRUNTIME_WEB")
    if dist is None:
        command = ["npm", "pack", "--silent", f"onnxruntime-web@{VERSION}"]
        subprocess.run(command, cwd=folder, check=True, timeout=300)
        with tarfile.open(folder / f"onnxruntime-web-{VERSION}.tgz") as package:
            package.extractall(folder, filter="data")
        dist = folder / "package/dist"
    (folder / "onnxruntime-web").symlink_to(dist)
    export = Export(FORMATS["onnx"], classes=CLASSES)
    list(export_clip(clip, "built-in:shapes_world", folder / "exported", export))
    return folder


@pytest.fixture(scope="module")
def address(folder):
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_picture_is_segmented_in_the_browser_alone(address, folder, clip):
    image, _ = draw_scene(np.random.default_rng(3), (320, 240))
    image.save(folder / "photo.png")
    with browser_page() as tab:
        tab.set_default_timeout(ALWAYS)
        failed, fetched = [], []
        tab.on("pageerror", lambda error: failed.append(error))
        tab.on("request", lambda request: fetched.append(request.url))
        tab.goto(address + PAGE)
        tab.wait_for_function("document.getElementById('status').textContent.startsWith('Ready')")
        tab.evaluate(_DROP)
        tab.wait_for_function("document.getElementById('status').textContent.includes('ms.')")
        entries = tab.locator("#legend span").all_inner_texts()
        if "MAFT_JAX_SCREENSHOT" in os.environ:
            tab.screenshot(path=os.environ["MAFT_JAX_SCREENSHOT"])
        names = ("rgb", "owner", "probabilities", "labels")
        rgb, owner, found, labels = (
            np.array(tab.evaluate(f"Array.from(last.{name})")) for name in names
        )
    assert not failed
    assert all(url.startswith((address, "blob:", "data:")) for url in fetched)

    # what it read is the picture, and what it found is what we find with these masks
    rgb = rgb.reshape(SIZE, SIZE, 3).astype(np.uint8)
    assert np.abs(rgb - np.asarray(image.resize((SIZE, SIZE)), float)).mean() < 8
    masks = (owner == np.arange(100)[:, None]).reshape(1, 100, SIZE, SIZE)
    embeddings = clip.encode_proposals(normalised(jax.device_put(rgb[None])), masks)[0]
    logits = clip.encoder.logit_scale * embeddings @ clip.encode_text(CLASSES).T
    expected = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(found.reshape(100, -1), expected, atol=1e-5)
    np.testing.assert_array_equal(labels, expected.argmax(1)[owner])
    shares = [float(entry.rsplit(": ", 1)[1].split()[0]) for entry in entries]
    np.testing.assert_allclose(
        shares, [100 * (labels == i).mean() for i in range(len(CLASSES))], atol=0.06
    )
