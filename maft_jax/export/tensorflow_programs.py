"""SavedModels and TFLite files: StableHLO inside TensorFlow's formats, by jax2tf."""

import pathlib
import warnings
from collections.abc import Callable

import tensorflow as tf
from jax.experimental import jax2tf

from maft_jax.export.formats import Run
from maft_jax.export.programs import Program


def write_saved_model(program: Program, path: pathlib.Path) -> None:
    """A folder with one signature, serving_default, for any platform."""
    module, function = _module(program, ("cpu", "cuda", "rocm", "tpu"))
    tf.saved_model.save(module, str(path), signatures=function)


def open_saved_model(path: pathlib.Path) -> Run:
    """What runs it."""
    module = tf.saved_model.load(str(path))
    signature = module.signatures["serving_default"]

    def run(inputs):
        found = signature(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in found.items()}

    run.module = module  # which its signatures do not keep alive
    return run


def write_tflite(program: Program, path: pathlib.Path) -> None:
    """One file of fixed sizes, with the signature serving_default."""
    module, function = _module(program, ("cpu",))
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    )
    path.write_bytes(converter.convert())


def open_tflite(path: pathlib.Path) -> Run:
    """What runs it, on as many threads as TensorFlow chooses."""
    with warnings.catch_warnings():  # which says that the class moves to another package
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
        interpreter = tf.lite.Interpreter(str(path))
    run = interpreter.get_signature_runner()
    return lambda inputs: run(**inputs)


def _module(program: Program, platforms: tuple[str, ...]) -> tuple[tf.Module, Callable]:
    """A module with the weights as variables, and its function."""
    polymorphic = [f"({', '.join(map(str, each.shape))})" for each in program.inputs]
    converted = jax2tf.convert(
        program.function,
        polymorphic_shapes=[None, *polymorphic],
        with_gradient=False,
        native_serialization_platforms=platforms,
    )
    module = tf.Module()
    module.weights = tf.nest.map_structure(
        lambda leaf: tf.Variable(leaf, trainable=False), program.parameters
    )
    signature = [
        tf.TensorSpec(
            [side if isinstance(side, int) else None for side in each.shape],
            each.dtype,
            each.name,
        )
        for each in program.inputs
    ]

    def call(*inputs):
        return converted(module.weights, *inputs)

    module.call = tf.function(call, autograph=False, jit_compile=True, input_signature=signature)
    return module, module.call
