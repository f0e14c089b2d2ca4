"""docs/first_steps.ipynb, cell by cell; `python -m tests.test_notebook` keeps what cells show."""

import os
import pathlib
import sys

import nbclient
import nbformat
import pytest

from tests.snippets import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "first_steps.ipynb"


def run(folder: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that its cells have in `folder`."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = os.environ | {
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "PYTHONPATH": str(REPOSITORY),
        "IPYTHONDIR": str(folder / ".ipython"),
    }
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", coalesce_streams=True
    )
    metadata = dict(notebook.metadata)
    client.execute(cwd=str(folder), env=environment)
    notebook.metadata = nbformat.from_dict(metadata)
    for cell in notebook.cells:
        cell.metadata.clear()  # times
    return notebook


def shown(notebook: nbformat.NotebookNode) -> list[list[nbformat.NotebookNode]]:
    """Outputs of the cells with code."""
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_notebook_runs_from_photos_to_tuned_weights(tmp_path):
    _install, draw, frozen, tune, evaluate, export, tuned = shown(run(tmp_path))
    assert not tune and "unseen" in evaluate[0].text and "model.safetensors" in str(export)
    pictures = [outputs[-1].data["image/png"] for outputs in (draw, frozen, tuned)]
    assert len(set(pictures)) == 3


def test_notebook_is_small_and_has_its_outputs():
    assert len(NOTEBOOK.read_bytes()) < 300_000
    outputs = [output for cell in shown(nbformat.read(NOTEBOOK, as_version=4)) for output in cell]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 3


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(run(pathlib.Path(folder)), NOTEBOOK)
