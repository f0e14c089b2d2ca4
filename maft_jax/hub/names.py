"""Names of weights that lie elsewhere: hf:OWNER/NAME[@REVISION][/FILE] and openai:MODEL."""

import os
import pathlib
import re
from dataclasses import dataclass
from urllib.parse import unquote

HF, OPENAI = "hf:", "openai:"

OPENAI_SHA256 = {
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
"""Of the files that OpenAI published, without its ResNets, whose towers nothing here reads."""

_HF_NAME = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?"
    r"(?:/(?P<file>[^/].*))?"
)
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")


@dataclass(frozen=True)
class HubName:
    """Files of a repository of the Hugging Face hub; `str` gives the name."""

    repository: str
    """OWNER/NAME."""
    revision: str | None = None
    """A branch, a tag or a commit; None is the default branch as it was first seen here."""
    file: str | None = None
    """One file of weights, where the repository has several."""

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        if not revision.startswith("@refs/"):
            revision = revision.replace("/", "%2F")
        return f"{HF}{self.repository}{revision}" + ("" if self.file is None else f"/{self.file}")


def parse_hub_name(name: str) -> HubName:
    """The parts of hf:OWNER/NAME[@REVISION][/FILE]; %2F in a revision stands for a slash.

    Raises:
        ValueError: it is none.
    """
    found = _HF_NAME.fullmatch(name)
    if found is None or not {".", ".."}.isdisjoint(re.split("[:/@]", unquote(name))):
        raise ValueError(
            f"{name}: expected hf:OWNER/NAME, perhaps with @REVISION and /FILE, such as "
            "hf:openai/clip-vit-base-patch16 or hf:OWNER/NAME@main/weights.safetensors"
        )
    revision = found["revision"]
    return HubName(found["repository"], revision and unquote(revision), found["file"])


def is_hub_name(source: str | os.PathLike) -> bool:
    """Whether it begins as the name of something that may have to be downloaded."""
    return os.fspath(source).startswith((HF, OPENAI))


def meant_name(source: str) -> str | None:
    """The name of the hub or of OpenAI that a path may be meant as, which is not there."""
    if os.path.exists(source) or source.endswith(_SUFFIXES):
        return None
    for model in OPENAI_SHA256:
        if source in (model, pathlib.PurePath(openai_file(model)).stem):
            return f"{OPENAI}{model}"
    name = source.removeprefix("hf-hub:").removeprefix("hf://")
    return f"{HF}{name}" if re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w.-]+)?", name) else None


def did_you_mean(source: str) -> str:
    """The end of a message about a path that is not there; empty where no name is meant."""
    meant = meant_name(source)
    return "" if meant is None else f"; did you mean {meant}, which is downloaded once and kept?"


def openai_file(model: str) -> str:
    """The name that OpenAI gave the file of its model."""
    return model.replace("/", "-").replace("@", "-") + ".pt"
