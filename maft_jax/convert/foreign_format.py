"""What a weight format is: how it is recognised, its architecture, and its table of rules."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from maft_jax.convert.rules import Ignored, Rule
from maft_jax.convert.stored_tensor import StoredTensor
from maft_jax.models.clip import ClipConfig
from maft_jax.models.layers import ACTIVATIONS
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.clip_vit import VisionConfig


@dataclasses.dataclass(frozen=True)
class Choices:
    """What tensors do not tell, as the caller states it; None leaves it to the file."""

    activation: str | None = None
    """Of both towers: a key of models.layers.ACTIVATIONS."""
    head_width: int | None = None
    """Of the image tower's attention."""
    tokenizer: str | None = None
    """Path of the text tower's tokenizer, for towers that do not share CLIP's."""

    def __post_init__(self):
        if self.activation not in (None, *ACTIVATIONS):
            raise ValueError(
                f"activation: expected one of {list(ACTIVATIONS)}, got {self.activation!r}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsSource:
    """A file or folder of weights, opened: nothing but names, shapes and settings is read."""

    path: str
    tensors: Mapping[str, StoredTensor]
    settings: Mapping[str, Callable[[], Mapping]] = dataclasses.field(default_factory=dict)
    """JSON files that lie beside the tensors, by name; called, they are read."""
    own: Mapping | None = None
    """The architecture that we left in a safetensors file's metadata."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def shape_of(source: WeightsSource, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that a layout always has.

    Raises:
        ValueError: it is absent, or has another number of dimensions.
    """
    shape = source.shapes.get(name, ())
    if len(shape) != rank:
        raise ValueError(
            f"{source.path}: expected a tensor {name!r} of {rank} dimensions; it is "
            f"{shape or 'absent'}. The file has {len(source.tensors)} tensors, such as "
            f"{sorted(source.tensors)[:3]}"
        )
    return shape


def heads_beside(source: WeightsSource, name: str, width: int, settings_file: str) -> int | None:
    """The width of heads by a number of them, such as num_heads, that the settings file states.

    Raises:
        ValueError: they do not divide the tower's width.
    """
    settings = source.settings[settings_file]() if settings_file in source.settings else {}
    heads = settings.get(name)
    if heads is None:
        return None
    if type(heads) is not int or heads < 1 or width % heads:
        raise ValueError(
            f"{source.path}: {settings_file} beside it: {name}: expected a divisor of the width, "
            f"{width}, got {heads!r:.40}"
        )
    return width // heads


def as_stated(config: ClipConfig, choices: Choices) -> ClipConfig:
    """An architecture that our own metadata tells, with what the caller states all the same.

    Raises:
        ValueError: a tower has no such thing.
    """
    vision = _replaced(config.vision, head_width=choices.head_width, activation=choices.activation)
    text = config.text and _replaced(config.text, activation=choices.activation)
    return dataclasses.replace(config, vision=vision, text=text)


def _replaced(tower, **stated):
    given = {name: value for name, value in stated.items() if value is not None}
    if missing := given.keys() - {field.name for field in dataclasses.fields(tower)}:
        raise ValueError(f"{sorted(missing)} has no meaning for {type(tower).__name__}")
    return dataclasses.replace(tower, **given)


@dataclasses.dataclass(frozen=True, eq=False)
class Format:
    """One foreign layout. A new one is an instance of this and an entry in formats.FORMATS."""

    name: str
    description: str
    recognise: Callable[[Collection[str]], bool]
    """Whether tensors of these names are in this layout."""
    infer_config: Callable[[WeightsSource, Choices], ClipConfig]
    """The architecture; ValueError with the source's path if we cannot represent it."""
    rules: Sequence[Rule] = ()
    ignored: Sequence[Ignored] = ()
    suffixes: tuple[str, ...] = (".safetensors", ".pt")
    """Endings under which it is written as one file; none: only as a folder."""
    settings_file: str | None = None
    """The JSON file that lies beside the tensors, if this format has one."""
    folder_tensors: str | None = None
    """Name of the tensors' file if it is written as a folder."""
    make_settings: Callable[[ClipConfig, np.dtype], Mapping] = lambda config, dtype: {}
    """Content of the settings file, for tensors of this dtype."""
    make_more_files: Callable[[ClipConfig], Mapping[str, str]] = lambda config: {}
    """What else lies in the folder, text by name."""
    why_not: Callable[[ClipConfig], str | None] = lambda config: None
    """Why an image tower of `tower`'s kind cannot be written in this format, or None."""
    as_stated: Callable[[ClipConfig, Choices], ClipConfig] = as_stated
    """Architectures of this format with what the caller states."""
    rules_for: Callable[[ClipConfig], Sequence[Rule]] = lambda config: ()
    """Further rules, of layouts whose names depend on the architecture."""
    split_files: Callable[[pathlib.Path, Collection[str]], Mapping[pathlib.Path, list[str]]] = (
        lambda path, names: {path: list(names)}
    )
    """Which tensors go into which file, where the layout has several beside each other."""
    tower: type = VisionConfig
    """The architecture of the image towers that it holds."""
    text_tower: type = TextConfig
    """Of its text towers."""

    def config_of(self, source: WeightsSource, choices: Choices) -> ClipConfig:
        """What `infer_config` says; what it looks up in vain is said to be absent."""
        try:
            return self.infer_config(source, choices)
        except KeyError as error:
            raise ValueError(
                f"{source.path}: expected {error} among its tensors or settings, as the format "
                f"{self.name} has; it is absent"
            ) from error

    def table(self, config: ClipConfig) -> list[Rule]:
        """All rules for weights of this architecture."""
        return [*self.rules, *self.rules_for(config)]

    def refuses(self, config: ClipConfig) -> str | None:
        """Why this architecture cannot be written in this format, or None."""
        if not isinstance(config.vision, self.tower):
            return f"holds image towers of {self.tower.__name__}, not {config.vision!r}"
        if config.text is not None and not isinstance(config.text, self.text_tower):
            return f"holds text towers of {self.text_tower.__name__}, not {config.text!r}"
        return self.why_not(config)
