"""The web page as a person has it: a server of its own, and a real browser without a window.

The browser is what MAFT_JAX_BROWSER names, else Chromium or Chrome of this machine, else the one
that `playwright install chromium` fetched. MAFT_JAX_BROWSER may also name the package that
`npm pack @sparticuz/chromium` fetches, which needs no libraries of the system and no rights.
"""

import contextlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator

import brotli

REPOSITORY = pathlib.Path(__file__).parents[2]
_ON_PATH = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
_STARTS_IN = 120  # seconds, on a machine that does other things too


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The command on a free port: its address and its process, which ends with the block."""
    command = [sys.executable, "-m", "maft_jax.cli.web_page", *flags]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".jax_cache"), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | cache,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = threading.Timer(_STARTS_IN, process.kill)
    deadline.start()
    try:
        said = process.stdout.readline()
        deadline.cancel()
        if not said.startswith("open "):
            raise RuntimeError(f"{command}: {said}{process.communicate()[1]}")
        yield said.split()[1], process
    finally:
        deadline.cancel()
        process.terminate()  # it removes its folder
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def browser_page(width: int = 1280, height: int = 800) -> Iterator:
    """A tab of playwright's in a window of this size."""
    from playwright.sync_api import sync_playwright

    with _executable() as (path, environment), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            env=os.environ | environment,
            args=["--no-sandbox"],  # it opens our own page alone, and cannot start as root else
        )
        yield browser.new_page(viewport={"width": width, "height": height})
        browser.close()


@contextlib.contextmanager
def _executable() -> Iterator[tuple[str | None, dict[str, str]]]:
    """Path of a browser, None for playwright's own, and the environment that it needs."""
    candidates = [os.environ.get("MAFT_JAX_BROWSER"), *map(shutil.which, _ON_PATH)]
    named = next(filter(None, candidates), None)
    if named is None or not named.endswith(".tgz"):
        yield named, {}
        return
    with tempfile.TemporaryDirectory() as folder, tarfile.open(named) as package:
        path = pathlib.Path(folder, "chromium")
        path.write_bytes(_member(package, "chromium.br"))
        path.chmod(0o755)
        for name in ("al2023", "swiftshader", "fonts"):
            with tarfile.open(fileobj=io.BytesIO(_member(package, f"{name}.tar.br"))) as files:
                files.extractall(path.parent / name, filter="data")
        fonts = path.with_name("fonts.conf")
        fonts.write_text(
            f"<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/cache</cachedir></fontconfig>"
        )
        libraries = path.parent / "al2023" / "lib"
        yield str(path), {"LD_LIBRARY_PATH": str(libraries), "FONTCONFIG_FILE": str(fonts)}


def _member(package: tarfile.TarFile, name: str) -> bytes:
    return brotli.decompress(package.extractfile(f"package/bin/{name}").read())
