"""The one way in for weights of generators: a path to an architecture and its parameters.

Read are folders of `transformers` (Mask2Former, MaskFormer) and checkpoints of the official
repositories (both; FreeSeg, and MAFT's, which hold FreeSeg's generator; FC-CLIP, and MAFT+'s, which
hold FC-CLIP's).
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax

from maft_jax.convert import fcclip, rules
from maft_jax.convert import generators_official as official
from maft_jax.convert import generators_transformers as transformers
from maft_jax.convert.foreign_format import WeightsSource
from maft_jax.convert.prefixes import find_prefixes, without_torch_wrappers
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.convert.stored_tensor import StoredTensor
from maft_jax.convert.weights_source import open_tensors
from maft_jax.hub.local_files import local_path
from maft_jax.models.generators.fcclip import FcClipConfig
from maft_jax.models.generators.image_preparation import FCCLIP_PREPARATION, ImagePreparation
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.maskformer import MaskFormerConfig
from maft_jax.runtime.json_files import read_json

SETTINGS = "config.json"
PREPARATION = "preprocessor_config.json"
"""What a folder of `transformers` has beside the weights."""

BUILT_IN = {"built-in:shapes_world": pathlib.Path(__file__).parents[1] / "shapes_world/generator"}
"""Generators that come with the package; maft_jax.cli.shapes_world_study trained them."""

GeneratorConfig = Mask2FormerConfig | MaskFormerConfig | FcClipConfig


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedGenerator:
    """A generator's weights, of which nothing but names, shapes and settings was read."""

    config: GeneratorConfig
    leaves: Mapping[str, StoredTensor]
    """Every parameter by its path, read when asked for."""
    preparation: ImagePreparation
    """How an image becomes its input, and its masks become masks of the image."""
    layout: str
    """`official` or `transformers`."""

    def parameters(self) -> dict:
        """All of them, read: float32 arrays in nested dictionaries."""
        return rules.materialised(self.leaves)


def path_of(source: str | os.PathLike) -> pathlib.Path:
    """Where the file or folder that is called so lies."""
    return BUILT_IN.get(os.fspath(source)) or pathlib.Path(local_path(os.fspath(source)))


def open_generator(path: str | os.PathLike) -> OpenedGenerator:
    """Opens weights of a generator, whatever their layout: a file, a folder, a name of BUILT_IN or
    of the hub.

    Raises:
        ValueError: detectron2's .pkl, absent, corrupt, another model, or tensors unknown, missing
            or misshapen, all of which are listed.
    """
    path = path_of(path)
    if path.suffix == ".pkl":
        raise ValueError(
            f"{path}: a pickle of detectron2 is a program, which would run; it is not read. Where "
            "you trust it, make tensors of it: content = pickle.load(open('model.pkl', 'rb')); "
            "torch.save({name: torch.as_tensor(value) for name, value in "
            "content['model'].items()}, 'model.pth')"
        )
    source = open_tensors(path)
    tensors = without_torch_wrappers(source.tensors)
    below = find_prefixes(tensors, official.is_official)
    if len(below) == 1:
        ((names,),) = (below.values(),)
        return _open_official(path, {name: tensors[whole] for name, whole in names.items()})
    if below:
        raise ValueError(f"{path}: several generators, below {list(below)}; expected one")
    if SETTINGS in source.settings:
        return _open_transformers(path, tensors, source.settings[SETTINGS]())
    raise ValueError(
        f"{path}: no generator: {len(tensors)} tensors, such as {sorted(tensors)[:3]}; expected a "
        "checkpoint of Mask2Former, MaskFormer, FreeSeg, MAFT, FC-CLIP or MAFT+, or the folder of "
        "a Mask2Former or MaskFormer of transformers, with its config.json"
    )


def _open_official(path: pathlib.Path, tensors: Mapping[str, StoredTensor]) -> OpenedGenerator:
    if fcclip.is_fcclip(tensors):
        config = _infer(path, fcclip.infer_generator, WeightsSource(os.fspath(path), tensors))
        table, ignored = fcclip.GENERATOR_RULES, fcclip.GENERATOR_IGNORED
        leaves = _leaves(path, config, tensors, table, ignored)
        return OpenedGenerator(config, leaves, FCCLIP_PREPARATION, "official")
    tensors = official.with_current_names(tensors)
    config = _infer(path, official.infer_config, WeightsSource(os.fspath(path), tensors))
    leaves = _leaves(path, config, tensors, official.rules_of(config), official.IGNORED)
    return OpenedGenerator(config, leaves, official.preparation_of(config), "official")


def _open_transformers(
    path: pathlib.Path, tensors: Mapping[str, StoredTensor], settings: Mapping
) -> OpenedGenerator:
    folder = path if path.is_dir() else path.parent
    config = _infer(path, transformers.infer_config, settings, f"{folder / SETTINGS}")
    tensors = transformers.with_older_names(tensors)
    table = transformers.rules_of(config)
    leaves = _leaves(path, config, tensors, table, transformers.IGNORED)
    beside = folder / PREPARATION
    stated = read_json(beside) if beside.is_file() else {}
    preparation = ImagePreparation.of_transformers(stated, os.fspath(beside))
    return OpenedGenerator(config, leaves, preparation, "transformers")


def _infer(path: pathlib.Path, infer: Callable[..., GeneratorConfig], *given) -> GeneratorConfig:
    """The architecture, or an error that names the path; that of sizes alone does not."""
    try:
        return infer(*given)
    except ValueError as error:
        if os.fspath(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _leaves(
    path: pathlib.Path,
    config: GeneratorConfig,
    tensors: Mapping[str, StoredTensor],
    table: Sequence[Rule],
    ignored: Sequence[Ignored],
) -> dict[str, StoredTensor]:
    expected = jax.eval_shape(functools.partial(config.init, jax.random.key(0)))
    return rules.stored_as_ours(tensors, expected, table, ignored, source=os.fspath(path))
