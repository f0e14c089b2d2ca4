"""ONNX: a traced program whose primitives become ONNX's nodes, one after the other.

Why not jax2onnx: docs/export.md.
"""

import logging
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper

from maft_jax.export.onnx_graph import OPSET, Graph, Value, is_known, onnx_type, same_sizes
from maft_jax.export.onnx_rules import RULES, known_shape
from maft_jax.export.programs import Program

INSIDE = 2**31 - 2**26
"""Bytes of weights up to which they lie in the file, whose format ends at 2 GiB."""
_IR_VERSION = 9
"""Of the file; onnxruntime 1.15 and newer read it."""
_LARGEST_FOLDED = 2**16
"""Bytes that a constant may grow to. Larger ones, such as weights that are stored in 16 bits, are
widened when the program runs."""
_AS_THEY_ARE = {"copy", "copy_p", "name", "stop_gradient", "optimization_barrier"}
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "remat": "jaxpr"}

logger = logging.getLogger(__name__)


def write(program: Program, path: pathlib.Path) -> None:
    """One file; weights that are too large for it beside it, in a file of that name with .data."""
    model = convert(program)
    if program.num_bytes <= INSIDE:
        path.write_bytes(model.SerializeToString())
        return
    beside = f"{path.name}.data"
    logger.info("%s: weights of more than 2 GiB, beside it as %s", path.name, beside)
    onnx.save(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=beside
    )


def convert(program: Program) -> onnx.ModelProto:
    """The program as a model, whose weights are constants.

    Raises:
        ValueError: it has a primitive of which there is no rule, or one is used in a way of which
            there is none.
    """
    specs = program.specs()
    traced, shapes = jax.make_jaxpr(program.function, return_shape=True)(program.parameters, *specs)
    graph = Graph()
    weights = jax.tree.leaves(program.parameters)
    values = [Value(leaf.shape, np.asarray(leaf)) for leaf in weights]
    for argument, spec in zip(program.inputs, specs, strict=True):
        graph.name_axes(argument.name, argument.shape)
        values.append(Value(spec.shape, name=argument.name))
    results = _convert(graph, traced.jaxpr, traced.consts, values)
    # jax sorts dictionaries by key, and so does return_shape
    for name, result in zip(shapes, results, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.ref(result)], [name]))
    inputs = [
        helper.make_tensor_value_info(each.name, onnx_type(each.dtype), each.shape)
        for each in program.inputs
    ]
    outputs = [
        helper.make_tensor_value_info(name, onnx_type(of.dtype), [str(side) for side in of.shape])
        for name, of in shapes.items()
    ]
    made = helper.make_graph(graph.nodes, program.name, inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="maft_jax"
    )


def opened(path: pathlib.Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """What runs it: onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _convert(graph: Graph, jaxpr, consts, arguments: list[Value]) -> list[Value]:
    values = {}

    def read(atom) -> Value:
        if isinstance(atom, core.Literal):
            return Value(np.shape(atom.val), np.asarray(atom.val, atom.aval.dtype))
        return values[atom]

    constants = [Value(np.shape(each), np.asarray(each)) for each in consts]
    values.update(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        results = _convert_equation(graph, eqn, [read(each) for each in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(each) for each in jaxpr.outvars]


def _convert_equation(graph: Graph, eqn, inputs: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name in _AS_THEY_ARE:
        return inputs
    if name in _CALLS:
        called = eqn.params[_CALLS[name]]
        return _convert(graph, called.jaxpr, called.consts, inputs)
    if name == "platform_index":
        return [Value((), np.array(_place_of_cpu(eqn.params["platforms"]), np.int32))]
    if name == "cond" and inputs[0].array is not None:
        chosen = eqn.params["branches"][int(inputs[0].array)]
        return _convert(graph, chosen.jaxpr, chosen.consts, inputs[1:])
    if name == "broadcast_in_dim":
        return [_broadcast_in_dim(graph, eqn, inputs[0])]
    if _is_folded(eqn, inputs):
        return _folded(eqn, inputs)
    if name not in RULES:
        raise ValueError(
            f"{name}: a primitive that maft_jax.export.onnx_rules has no rule for; export to "
            "stablehlo or savedmodel, which take everything"
        )
    made = RULES[name](graph, eqn, inputs)
    names = [made] if isinstance(made, str) else made
    return [
        Value(each.aval.shape, name=name) for each, name in zip(eqn.outvars, names, strict=True)
    ]


def _place_of_cpu(platforms) -> int:
    """The branch that is for the CPU, or for all else."""
    return next(i for i, names in enumerate(platforms) if names is None or "cpu" in names)


def _broadcast_in_dim(graph: Graph, eqn, value: Value) -> Value:
    """Axes of 1 that elementwise nodes repeat by themselves."""
    shape, places = tuple(eqn.outvars[0].aval.shape), eqn.params["broadcast_dimensions"]
    if value.name is not None and value.small:
        value = Value(value.shape, name=graph.ref(value))
    sides = [1] * len(shape)
    own = value.shape if value.array is None else value.array.shape
    for place, side in zip(places, own, strict=True):
        sides[place] = side
    small = not same_sizes(sides, shape)
    if value.array is not None:
        return Value(shape, value.array.reshape(sides), small=small)
    in_place = tuple(places) == tuple(range(len(shape)))
    name = value.name if in_place else graph.reshaped(value.name, sides)
    return Value(shape, name=name, small=small)


def _is_folded(eqn, inputs: list[Value]) -> bool:
    """Whether an equation is computed now."""
    if any(each.array is None or not is_known(each.shape) for each in inputs):
        return False
    if not known_shape(eqn) or "dim" in eqn.params:  # dim: the value is that of a symbolic size
        return False
    before = max((each.array.nbytes for each in inputs), default=0)
    after = sum(int(np.prod(each.aval.shape)) * each.aval.dtype.itemsize for each in eqn.outvars)
    return after <= max(before, _LARGEST_FOLDED)


def _folded(eqn, inputs: list[Value]) -> list[Value]:
    arrays = [np.broadcast_to(each.array, each.shape) for each in inputs]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        made = eqn.primitive.bind(*map(jax.numpy.asarray, arrays), **eqn.params)
    made = made if eqn.primitive.multiple_results else [made]
    return [Value(each.shape, np.asarray(each)) for each in made]
