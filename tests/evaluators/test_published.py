"""The page of published numbers and what fills it in."""

import numpy as np

from maft_jax.evaluators.published import PUBLISHED, reproduction_table
from maft_jax.evaluators.results import EvaluationResult, write_results
from tests.command_lines import answers
from tests.runs import REPOSITORY

PAGE = (REPOSITORY / "docs/reproduce.md").read_text()


def result_of(num_images):
    """Of three pixels of a class two are right, of the only one of the other all."""
    confusion = np.zeros((21, 21), np.int64)
    confusion[0, 0], confusion[1, 0], confusion[1, 1] = 2, 1, 1
    names = tuple(f"class {i}" for i in range(20))
    return EvaluationResult("voc2012", "val", names, (), num_images, confusion)


def test_page_has_a_line_and_a_command_for_every_number(tmp_path):
    assert reproduction_table(tmp_path) in PAGE
    for one in PUBLISHED:
        assert f"roots.{one.dataset}=" in PAGE
        assert f"runs/reproduce/{one.run}" in PAGE or one.run == "maft_l"


def test_measured_numbers_stand_beside_the_published_ones(tmp_path):
    write_results([result_of(1449)], tmp_path / "maft_b" / "evaluation")
    write_results([result_of(7)], tmp_path / "maft_l" / "evaluation")
    lines = reproduction_table(tmp_path).splitlines()
    (whole,) = (line for line in lines if "ViT-B/16 | VOC-20" in line)
    (part,) = (line for line in lines if "ViT-L/14 | VOC-20" in line)
    assert "| 90.44 | 58.33 |" in whole
    assert "| 92.14 | 58.33 of 7 images alone |" in part
    assert sum("| none |" in line for line in lines) == len(PUBLISHED) - 2


def test_a_folder_that_is_not_there_empties_no_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    mistake = {"mistyped": [f"--runs={tmp_path / 'rums'}", f"--page={page}"]}
    answer = answers("maft_jax.cli.reproduce", mistake)["mistyped"]
    assert answer.returncode == 2 and "rums: no such folder" in answer.stderr
    assert page.read_text() == PAGE
