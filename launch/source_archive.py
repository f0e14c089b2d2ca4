"""The checkout as one file, as it stands: edits that are not committed included."""

import gzip
import hashlib
import io
import pathlib
import tarfile

from launch.runner import LaunchError, Runner

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
_NEEDED = [
    "README.md",
    "LICENSE",
    "setup.py",
    "pyproject.toml",
    "configs",
    "input_pipeline",
    "launch",
    "maft_jax",
]


def list_sources(runner: Runner, repository: pathlib.Path = REPOSITORY) -> list[str]:
    """Files that git knows or would take, of those that a VM needs.

    Raises:
        LaunchError: this is no git checkout.
    """
    argv = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    done = runner.run(["git", "-C", str(repository), *argv, *_NEEDED])
    if done.exit_code:
        raise LaunchError(
            f"{repository}: the code to copy is what git lists, and git said: {done.stderr.strip()}"
        )
    names = {name for name in done.stdout.split("\0") if name}
    return sorted(name for name in names if (repository / name).is_file())


def pack(names: list[str], repository: pathlib.Path = REPOSITORY) -> tuple[bytes, str]:
    """A .tar.gz and the digest of its content; equal files make equal bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            data = (repository / name).read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o755 if (repository / name).stat().st_mode & 0o100 else 0o644
            tar.addfile(entry, io.BytesIO(data))
    digest = hashlib.sha256(content.getvalue()).hexdigest()[:16]
    return gzip.compress(content.getvalue(), mtime=0), digest
