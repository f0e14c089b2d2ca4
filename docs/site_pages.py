"""What mkdocs is told beside mkdocs.yml: the pages are written for a repository's host.

README.md is the first page, the tables of docs/README.md are the navigation, files outside of docs/
that a page links are pages as well, notebooks are shown, and formulas are MathML, which browsers
draw without a script.
"""

import html
import json
import logging
import pathlib
import posixpath
import re

log = logging.getLogger("mkdocs.hooks")

REPOSITORY = pathlib.Path(__file__).absolute().parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages that do not lie in the site as they lie in docs/."""

LINK = re.compile(r"\]\((?![a-z]+:)([^()\s#]+)(#[^()\s]*)?\)")
"""A link or picture inside of the repository: path and anchor."""


def site_path(path: str) -> str:
    """Where mkdocs finds a file of the repository.

    Args:
        path: from the repository's root on, of a page, a picture of docs/ or a source file.
    """
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    folder, name = posixpath.split(path)
    if folder.split("/")[0] != "docs" or name.endswith((".py", ".json")):
        return f"source/{path}.md"
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def linked_files(path: str, text: str) -> list[str]:
    """Files of the repository, from its root on, that the page at `path` links."""
    folder = posixpath.dirname(path)
    found = {posixpath.normpath(posixpath.join(folder, link[1])) for link in LINK.finditer(text)}
    return sorted(found)


def with_site_links(path: str, text: str) -> str:
    """The page at `path` with links that lead to the same files in the site."""
    folder, here = posixpath.dirname(path), posixpath.dirname(site_path(path))

    def moved(link: re.Match) -> str:
        target = site_path(posixpath.normpath(posixpath.join(folder, link[1])))
        return f"]({posixpath.relpath(target, here or '.')}{link[2] or ''})"

    return LINK.sub(moved, text)


def navigation(index: str) -> list:
    """The first page, and what the tables of docs/README.md list, each page once."""
    seen = {"index.md"}
    sections: list = ["index.md", "pages.md"]
    for section in re.split("^## ", index, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| \[[^]]*\]\(([^()#\s]+)", section, flags=re.MULTILINE)
        paths = [site_path(posixpath.normpath(posixpath.join("docs", row))) for row in rows]
        pages = [path for path in dict.fromkeys(paths) if path not in seen]
        seen.update(pages)
        sections.append({section.splitlines()[0]: pages})
    return sections


def notebook_page(text: str) -> str:
    """The cells of a notebook's JSON as Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        language = "bash" if source.startswith("%%bash") else "python"
        is_text = cell["cell_type"] == "markdown"
        parts.append(source if is_text else f"```{language}\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append("```text\n" + "".join(output["text"]) + "\n```")
            elif "image/png" in output["data"]:
                picture = "".join(output["data"]["image/png"]).replace("\n", "")
                parts.append(f'<img alt="what it shows" src="data:image/png;base64,{picture}">')
    return "\n\n".join(parts)


def source_page(path: str) -> str:
    """A file of the repository as it is, or what a folder has, which the search leaves out."""
    file = REPOSITORY / path
    if file.is_dir():
        text = "\n".join(sorted(entry.name for entry in file.iterdir()))
    else:
        text = file.read_text(encoding="utf-8")
    language = {".py": "python", ".json": "json", ".md": "markdown"}.get(file.suffix, "text")
    return (
        f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
        f"~~~~~~ {language}\n{text.rstrip()}\n~~~~~~\n"
    )


def with_reference(text: str) -> str:
    """List items `* [name](file)` of docs/api.md as what mkdocstrings puts its reference for."""
    return re.sub(r"^\* \[`([\w.]+)`\]\([^()]*\).*$", r"::: \1", text, flags=re.MULTILINE)


def with_formulas(page: str) -> str:
    """HTML in which MathML stands for what arithmatex found between dollars."""
    from latex2mathml.converter import convert

    def drawn(formula: re.Match) -> str:
        tex = html.unescape(formula[3]).strip()
        block = formula[1] == "div"
        return convert(tex[2:-2], display="block" if block else "inline")

    return re.sub(r'<(span|div) class="(arithmatex)">(.*?)</\1>', drawn, page, flags=re.DOTALL)


def differences(markdown: str, page: str) -> list[str]:
    """Elements of which a repository's host shows another number than the site does.

    Python's Markdown wants four spaces where others want as many as the text of a list item has.
    """
    from markdown_it import MarkdownIt

    expected = MarkdownIt("commonmark").enable("table").render(markdown)
    formulas = expected.count('class="language-math"')
    return [
        f"{tag}: {there} there, {here} here"
        for tag in ("li", "ol", "ul", "pre", "table", "tr", "td", "strong")
        if (there := len(re.findall(f"<{tag}[ >]", expected)) - formulas * (tag == "pre"))
        != (here := len(re.findall(f"<{tag}[ >]", page)))
    ]


def on_config(config):
    """The navigation, by mkdocs' name for this step."""
    config.nav = navigation((REPOSITORY / "docs/README.md").read_text(encoding="utf-8"))
    return config


def on_files(files, config):
    """Adds what lies outside of docs/, and all that any page links there."""
    from mkdocs.structure.files import File

    paths = {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()}
    files.remove(files.get_file_from_path("README.md"))
    for file in [*files.media_files()]:
        if file.src_uri.endswith(".ipynb"):
            paths[file.src_uri] = f"docs/{file.src_uri}"
            files.remove(file)
    pages = [*ELSEWHERE, *(path for path in paths.values() if path not in ELSEWHERE)]
    texts = {path: (REPOSITORY / path).read_text(encoding="utf-8") for path in pages}
    linked = {target for path, text in texts.items() for target in linked_files(path, text)}
    for path in sorted({*pages, *linked}):
        to = site_path(path)
        if files.get_file_from_path(to) or not (REPOSITORY / path).exists():
            continue
        if to.startswith("source/"):
            files.append(File.generated(config, to, content=source_page(path)))
        elif path.endswith(".ipynb"):
            files.append(File.generated(config, to, content=notebook_page(texts[path])))
        else:
            files.append(File.generated(config, to, abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of a page, and the reference."""
    path = page.file.src_uri
    if path.startswith("source/"):
        return markdown
    paths = {to: path for path, to in ELSEWHERE.items()}
    text = with_site_links(paths.get(path, f"docs/{path}"), markdown)
    return with_reference(text) if path == "api.md" else text


def on_page_content(content, page, config, files):
    """Formulas, and a warning where the page looks otherwise on a repository's host."""
    path = page.file.src_uri
    if not path.startswith("source/") and path != "api.md":
        for difference in differences(page.markdown, content):
            log.warning(f"{path} is read in two ways: {difference}")
    return with_formulas(content)
