"""Links of the documents lead somewhere, and the index has every page."""

import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
AT_THE_ROOT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
DOCUMENTS = [REPOSITORY / name for name in AT_THE_ROOT] + PAGES

LINK = re.compile(r"\]\(([^()\s]+)\)")
"""The target of a link or an image."""


def without_fences(document: pathlib.Path) -> str:
    """The text less what stands between lines of three backticks."""
    text = document.read_text(encoding="utf-8")
    return re.sub("^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def links(document: pathlib.Path) -> list[str]:
    """Targets inside the repository."""
    found = LINK.findall(without_fences(document))
    return [target for target in found if not re.match("[a-z]+:", target)]


def anchors(document: pathlib.Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall("^#+ (.*)$", without_fences(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document):
    for target in links(document):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.is_relative_to(REPOSITORY), f"{target} leads out of the repository"
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def test_index_lists_every_page():
    listed = {target.partition("#")[0] for target in links(DOCS / "README.md")}
    assert {page.name for page in PAGES} - {"README.md"} <= listed
