"""The code in the documents: what is Python, and what is typed into a shell."""

import ast
import dataclasses
import functools
import pathlib
import re
import shlex

from markdown_it import MarkdownIt

REPOSITORY = pathlib.Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))

OTHER_PROGRAMS = {".", "cp", "docker", "eval", "gcloud", "kubectl", "npm", "pip", "pytest"}
OTHER_PROGRAMS |= {"python", "python3", "maft-jax", "sky", "ssh-add", "tensorboard", "wait"}
"""First words of command lines."""

OF_LOOPS = {"for", "do", "done"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code: its page, from the repository's root on, the line it begins at, its text."""

    page: str
    line: int
    text: str
    language: str

    @property
    def is_python(self) -> bool:
        """It says so, or it is Python with calls or assignments."""
        if self.language:
            return self.language == "python"
        if re.search(r"^(import \w|from [\w.]+ import)", self.text, flags=re.MULTILINE):
            return True
        try:
            nodes = {type(node) for node in ast.walk(ast.parse(self.text))}
        except SyntaxError:
            return False
        return bool(nodes & {ast.Call, ast.Assign})


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page: its program, and its arguments as a shell would hand them over."""

    page: str
    line: int
    program: str
    arguments: tuple[str, ...]

    @property
    def is_abridged(self) -> bool:
        """The reader is to fill something in."""
        return any("..." in argument or argument[0] == "[" for argument in self.arguments)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join((self.program, *self.arguments))}"


@functools.cache
def blocks() -> list[Block]:
    """Of all pages, fenced and indented, also in lists."""
    found = []
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            if token.type in ("fence", "code_block"):
                line = token.map[0] + 1 + (token.type == "fence")
                name = str(page.relative_to(REPOSITORY))
                found.append(Block(name, line, token.content, token.info.strip()))
    return found


@functools.cache
def commands() -> list[Command]:
    """Of all blocks, in which a line of settings alone is given to `maft_jax.main`."""
    found = []
    for block in blocks():
        if block.is_python or block.language not in ("", "bash", "sh"):
            continue
        for line, text in _logical_lines(block):
            if text.startswith("--config."):
                text = f"python -m maft_jax.main ... {text}"
            for words in _simple_commands(text):
                if words[0] in OTHER_PROGRAMS:
                    found.append(Command(block.page, line, words[0], tuple(words[1:])))
                elif block.language:
                    raise ValueError(f"{block.page}:{line}: unknown program {words[0]}")
    return found


def _logical_lines(block: Block) -> list[tuple[int, str]]:
    """Lines with those that continue them, less their indentation, with their numbers."""
    lines = []
    number = block.line
    for text in re.split(r"(?<!\\)\n", block.text):
        lines.append((number, re.sub(r"\\\n\s*", "", text).strip()))
        number += text.count("\n") + 1
    return lines


def _simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a line, without assignments before it and loops around it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quotation mark without a second one: prose
        return []
    found: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("&;|"):
            found.append([])
        elif found[-1] or not (word in OF_LOOPS or re.match(r"[A-Z_]+=", word)):
            found[-1].append(word)
    if words[:1] == ["timeout"]:
        found[0] = found[0][found[0].index("python") :]
    return [command for command in found if command]
