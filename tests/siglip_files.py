"""The golden SigLIP: its files as users have them."""

import gzip
import pathlib

GOLDEN = pathlib.Path(__file__).parent / "golden/siglip"


def unpacked(folder: str, name: str, where: pathlib.Path) -> pathlib.Path:
    """A golden tokenizer as a file of this name in `where`."""
    path = where / name
    path.write_bytes(gzip.decompress((GOLDEN / folder / f"{name}.gz").read_bytes()))
    return path
