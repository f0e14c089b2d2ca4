"""What the hook of mkdocs.yml makes of the pages; .ci/run builds the site itself, strictly."""

import ast
import importlib.util
import json
import re

import pytest

from tests.snippets import REPOSITORY, blocks

DOCS = REPOSITORY / "docs"
OURS = {"maft_jax", "input_pipeline"}
_SPEC = importlib.util.spec_from_file_location("site_pages", DOCS / "site_pages.py")
site_pages = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(site_pages)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "docs/predict.md#names", "predict.md#names"),
        ("README.md", "docs/README.md", "pages.md"),
        ("README.md", "docs/web_page.png", "web_page.png"),
        ("docs/method.md", "../README.md", "index.md"),
        ("docs/method.md", "../maft_jax/main.py", "source/maft_jax/main.py.md"),
        ("docs/method.md", "first_steps.ipynb", "first_steps.md"),
        ("docs/method.md", "#notation", "#notation"),
        ("CONTRIBUTING.md", "docs/shapes_world/runs.json", "source/docs/shapes_world/runs.json.md"),
        ("docs/method.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_lead_to_the_same_files_in_the_site(page, link, expected):
    assert site_pages.with_site_links(page, f"[a]({link})") == f"[a]({expected})"


def test_navigation_is_that_of_the_index():
    index = "# All\n\n## One\n\n|---|---|\n| [a.md](a.md#x) | a |\n| [b](../README.md) | |\n"
    index += "\n## Two\n\n| page | |\n|---|---|\n| [n](n.ipynb) | |\n| [a.md](a.md) | |\n"
    assert site_pages.navigation(index) == [
        "index.md",
        "pages.md",
        {"One": ["a.md"]},
        {"Two": ["n.md"]},
    ]


def test_cells_of_notebooks_are_shown_with_what_they_print():
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "b"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [{"text": ["1\n"]}, {"data": {"image/png": "aGk=\n"}}],
        },
    ]
    page = site_pages.notebook_page(json.dumps({"cells": cells}))
    assert "# A\nb\n\n```python\nprint(1)\n```\n\n```text\n1\n\n```" in page
    assert 'src="data:image/png;base64,aGk="' in page


def test_page_that_a_host_reads_otherwise_is_found():
    markdown, page = "1. a\n\n       code\n", "<ol><li><p>a</p><p>code</p></li></ol>"
    assert site_pages.differences(markdown, page) == ["pre: 1 there, 0 here"]
    formula = "```math\nx\n```\n"
    assert not site_pages.differences(formula, '<div class="arithmatex">x</div>')


def test_reference_has_what_snippets_import():
    named = set(re.findall(r"^\* \[`([\w.]+)`\]", (DOCS / "api.md").read_text(), re.MULTILINE))
    for block in blocks():
        for node in ast.walk(ast.parse(block.text)) if block.is_python else ():
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
                for name in {alias.name for alias in node.names} - {"IGNORE"}:
                    assert {node.module, f"{node.module}.{name}"} & named, f"{block.page}: {name}"
