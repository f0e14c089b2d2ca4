"""Programs on machines without TPUs begin in silence, libtpu being installed for planning."""

import os
import subprocess
import sys

import pytest

from maft_jax.runtime.absent_tpu import tpu_may_be_attached
from tests.runs import REPOSITORY


def test_devices_are_found_without_a_word_about_tpus():
    program = "import maft_jax, jax, libtpu; print(jax.devices()[0].platform)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TPU_"))}
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.strip()


@pytest.mark.parametrize(
    ("vendors", "files", "attached"),
    [
        ([], [], False),
        (["0x8086", "0x1ae0"], ["accel0"], True),
        (["0x1ae0"], ["vfio/0"], True),
        (["0x1ae0"], [], False),  # a network card of Google's cloud
        (["0x10de"], ["vfio/vfio"], False),  # a GPU given to a virtual machine
    ],
)
def test_a_tpu_is_a_device_of_googles_that_can_be_opened(tmp_path, vendors, files, attached):
    for number, vendor in enumerate(vendors):
        device = tmp_path / f"sys/bus/pci/devices/{number}"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
    for name in files:
        (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / name).touch()
    assert tpu_may_be_attached(str(tmp_path)) is attached
