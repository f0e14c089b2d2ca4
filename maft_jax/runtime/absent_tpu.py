"""Keeps libtpu, which planning needs, from looking for TPUs on machines that have none.

JAX loads it wherever it is installed, and libtpu writes pages about what it misses straight to
stderr. It does not where the environment already says what it looks for.
"""

import os
from glob import glob
from pathlib import Path

_ALREADY_FOUND = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_GOOGLE = "0x1ae0"
"""As a vendor of PCI devices."""


def stop_the_search_for_tpus() -> None:
    """Answers libtpu's questions in the environment, unless a TPU may be attached."""
    if not tpu_may_be_attached():
        for name, value in _ALREADY_FOUND.items():
            os.environ.setdefault(name, value)


def tpu_may_be_attached(root: str = "/") -> bool:
    """Whether a PCI device is Google's and has a file through which libtpu could open it."""
    vendors = glob(f"{root}/sys/bus/pci/devices/*/vendor")
    files = [name for pattern in ("accel*", "vfio/*") for name in glob(f"{root}/dev/{pattern}")]
    return bool(files) and any(Path(path).read_text().strip() == _GOOGLE for path in vendors)
