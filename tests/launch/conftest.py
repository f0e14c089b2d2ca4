"""Clouds that leave no process behind."""

import subprocess

import pytest

from tests.launch.fake_cloud import FakeCloud, make_checkout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """See make_checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    make_checkout(folder)
    return folder


@pytest.fixture
def make_cloud(tmp_path, checkout):
    """Makes a FakeCloud of a scenario; ends what still trains there."""
    yield lambda **scenario: FakeCloud(tmp_path, checkout, **scenario)
    for supervisor in (tmp_path / "vm").glob("*/maft_jax_run/job/supervisor"):
        subprocess.run(
            ["kill", "-KILL", "--", f"-{supervisor.read_text().strip()}"], capture_output=True
        )
