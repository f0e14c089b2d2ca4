"""What is exported: an image tower that reads masks, a text tower, and label maps of masks.

A program is a pure function of parameters and arrays. Its sizes are numbers, or names of sizes that
whoever runs it chooses: batch, proposals, classes, height, width.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jaxtyping import Array, Float, Int, UInt8

from maft_jax.inference.clip import Clip
from maft_jax.models.encoder import ImageEncoder, TextArchitecture
from maft_jax.models.mask_reader import Modules, cut, taken_apart
from maft_jax.models.pixel_labels import IGNORE

DTYPES = ("float32", "bfloat16", "float16")
"""Of stored weights; all arithmetic is in float32."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One input of a program."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str

    def sized(self, sizes: Mapping[str, int]) -> tuple[int | str, ...]:
        """Its shape, the names replaced."""
        return tuple(sizes.get(side, side) for side in self.shape)


@dataclasses.dataclass(frozen=True)
class Program:
    """A function with its parameters, and what its inputs and outputs mean."""

    name: str
    function: Callable[..., dict[str, Array]]
    """Of parameters and the inputs, in their order."""
    parameters: Any
    """A tree of numpy arrays, of which some are stored in fewer bits than they are used in."""
    inputs: tuple[Argument, ...]
    outputs: Mapping[str, str]
    """What each output means."""

    @property
    def num_bytes(self) -> int:
        """Of its parameters."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.parameters))

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the sizes that are not numbers, in order."""
        names = [side for each in self.inputs for side in each.shape if isinstance(side, str)]
        return tuple(dict.fromkeys(names))

    def of_sizes(self, sizes: Mapping[str, int]) -> "Program":
        """The same with these sizes fixed."""
        inputs = [dataclasses.replace(each, shape=each.sized(sizes)) for each in self.inputs]
        return dataclasses.replace(self, inputs=tuple(inputs))

    def specs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the inputs, for tracing."""
        scope = export.SymbolicScope()
        return [
            jax.ShapeDtypeStruct(
                export.symbolic_shape(", ".join(map(str, each.shape)), scope=scope), each.dtype
            )
            for each in self.inputs
        ]


def image_program(
    clip: Clip, rows: Float[np.ndarray, "c e"] | None, dtype: str, mask_size: int | None = None
) -> Program:
    """Embeddings of proposals; with rows of class names instead their logits and probabilities.

    Args:
        dtype: one of DTYPES, of the tower's matrices.
        mask_size: rows and columns of the masks that it is given; by default the image's.

    Raises:
        ValueError: without rows, weights that adapt these to each image; or images whose ratio of
            sides is to be kept.
    """
    if clip.image_aspect != "squash":
        raise ValueError(
            f"image_aspect={clip.image_aspect}: exported programs read squares; expected squash"
        )
    visual, modules = taken_apart(clip.tower)
    if rows is None and modules.reader.adapts_text:
        raise ValueError(
            "these weights adapt the rows of class names to each image, so that embeddings alone "
            "are half an answer; give --classes, or the run's tuned.safetensors, its tower alone"
        )
    encoder = dataclasses.replace(clip, compute_dtype="float32").make_encoder(attention="xla")
    size, of_masks = clip.image_size, mask_size or clip.image_size
    encoder.grid((size, size))
    parameters = stored({"visual": visual, "modules": modules.parameters}, dtype)
    inputs = (
        Argument(
            "images",
            "uint8",
            ("batch", size, size, 3),
            "RGB, 0 to 255, the whole picture resized to this square; normalised inside",
        ),
        Argument(
            "masks",
            "float32",
            ("batch", "proposals", of_masks, of_masks),
            "0 to 1, each over the whole picture, resized likewise",
        ),
    )
    if rows is None:
        outputs = {"embeddings": "[batch, proposals, width] float32, L2-normalised"}
    else:
        parameters["text"] = rows
        outputs = {
            "logits": "[batch, proposals, classes] float32, scaled similarities",
            "probabilities": "[batch, proposals, classes] float32 of these",
        }
    function = functools.partial(_read_masks, encoder, modules)
    return Program("image_encoder", function, parameters, inputs, outputs)


def text_program(config: TextArchitecture, parameters: Mapping, dtype: str) -> Program:
    """Embeddings of tokens."""
    length = config.tokenize(["a"]).shape[1]
    tokens = Argument("tokens", "int32", ("batch", length), "of one text each, from the tokenizer")
    return Program(
        "text_encoder",
        functools.partial(_embed_tokens, config),
        stored(parameters, dtype),
        (tokens,),
        {"embeddings": "[batch, width] float32, L2-normalised"},
    )


def label_program(num_classes: int | None = None, num_background: int = 0) -> Program:
    """The best class of every pixel of the masks, as maft_jax.segment takes it.

    Args:
        num_classes, num_background: of the columns of probabilities, the background's last, which
            leave pixels unlabelled; None: any number, without background.
    """
    columns = "classes" if num_classes is None else num_classes + num_background
    return Program(
        "label_maps",
        functools.partial(_label_masks, num_classes),
        {},
        (
            Argument("probabilities", "float32", ("batch", "proposals", columns), "of each mask"),
            Argument("masks", "float32", ("batch", "proposals", "height", "width"), "0 to 1"),
        ),
        {
            "label_map": f"[batch, height, width] int32, index of the class, {IGNORE} = none",
            "score": "[batch, height, width] float32, 0 to 1: the winner's share at this pixel",
        },
    )


def stored(parameters: Any, dtype: str) -> Any:
    """Matrices in `dtype`; biases, scales of norms and all else in float32."""

    def store(leaf):
        leaf = np.asarray(leaf, np.float32)
        return leaf.astype(jnp.dtype(dtype)) if leaf.ndim > 1 else leaf

    return jax.tree.map(store, parameters)


def draw_inputs(
    program: Program, sizes: Mapping[str, int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Random inputs: pixels, soft masks of a few large cells, probabilities, tokens."""
    return {each.name: _draw(each, each.sized(sizes), rng) for each in program.inputs}


def _draw(argument: Argument, shape: Sequence[int | str], rng: np.random.Generator) -> np.ndarray:
    if argument.name == "images":
        return rng.integers(0, 256, shape, np.uint8)
    if argument.name == "tokens":
        return rng.integers(1, 100, shape, np.int32)
    if argument.name == "probabilities":
        return rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
    cells = rng.uniform(0, 1, (*shape[:2], 8, 8)).astype(np.float32)
    rows, columns = (np.arange(side) * 8 // side for side in shape[2:])
    return cells[:, :, rows[:, None], columns]


def _in_float32(parameters):
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, jnp.float32), parameters)


def _read_masks(
    encoder: ImageEncoder,
    modules: Modules,
    parameters: Mapping,
    images: UInt8[Array, "b h w 3"],
    masks: Float[Array, "b n mask_h mask_w"],
) -> dict[str, Array]:
    parameters, reader = _in_float32(parameters), modules.reader
    pixels = encoder.normalise(images)
    masks = cut(masks, reader.mask_threshold)
    read = reader.read(encoder, parameters["visual"], parameters["modules"], pixels, masks)
    if "text" not in parameters:
        return {"embeddings": read}
    logits = reader.logits(encoder, parameters["modules"], read, parameters["text"])
    return {"logits": logits, "probabilities": encoder.probabilities(logits)}


def _embed_tokens(
    config: TextArchitecture, parameters: Mapping, tokens: Int[Array, "b length"]
) -> dict[str, Array]:
    return {"embeddings": config.encode(_in_float32(parameters), tokens)}


def _label_masks(
    num_classes: int | None,
    parameters: Mapping,
    probabilities: Float[Array, "b n c"],
    masks: Float[Array, "b n h w"],
) -> dict[str, Array]:
    """models.pixel_labels.label_pixels of masks that lie on the picture's own pixels."""
    exact = lax.Precision.HIGHEST
    scores = jnp.einsum("bnc,bnhw->bchw", probabilities, masks, precision=exact)
    total = jnp.sum(scores, axis=1)
    covered = total > 0
    labels = jnp.argmax(scores, axis=1).astype(jnp.int32)
    named = covered if num_classes is None else covered & (labels < num_classes)
    share = jnp.max(scores, axis=1) / jnp.where(covered, total, 1.0)
    return {
        "label_map": jnp.where(named, labels, IGNORE),
        "score": jnp.where(covered, jnp.minimum(share, 1.0), 0.0),
    }
