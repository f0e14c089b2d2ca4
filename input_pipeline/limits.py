"""How large what files say of themselves may be: it is checked before memory is taken.

A file of a few bytes can announce an image, an archive or a mask of any size. Each limit is an
environment variable, for those whose files are larger: docs/input_pipeline.md lists them.
"""

import os

MAX_PIXELS = "MAFT_JAX_MAX_PIXELS"
MAX_SIDE = "MAFT_JAX_MAX_SIDE"
MAX_UNPACKED_BYTES = "MAFT_JAX_MAX_UNPACKED_BYTES"
MAX_JSON_BYTES = "MAFT_JAX_MAX_JSON_BYTES"
MAX_CLASS_LIST_BYTES = "MAFT_JAX_MAX_CLASS_LIST_BYTES"

DEFAULTS = {
    MAX_PIXELS: 50_000_000,  # of an image, a label map or a mask
    MAX_SIDE: 2**16,  # pixels of its longer side, since arrays are padded along the shorter one
    MAX_UNPACKED_BYTES: 2**30,  # of a member of an archive, of a compressed tar, of record masks
    MAX_JSON_BYTES: 2**25,  # of a document, or of one element of a file that is read in a stream
    MAX_CLASS_LIST_BYTES: 2**20,
}


def check_limit(name: str, found: int, what: str) -> None:
    """Raises ValueError, which begins with `what` and names the setting, where `found` is more."""
    text = os.environ.get(name, "")
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"{name}: expected an integer, got {text!r:.80}")
    largest = int(text) if text else DEFAULTS[name]
    if found > largest:
        raise ValueError(
            f"{what}: expected at most {largest}, got {found}; if the file is meant to be that "
            f"large, set the environment variable {name}"
        )
