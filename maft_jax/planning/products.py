"""Arithmetic of matrix products and convolutions in a function, whatever device it is for."""

import math
from collections.abc import Callable, Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def product_flops(function: Callable, *shapes) -> int:
    """Of one call with arguments of these shapes; a multiplication and an addition are 2.

    Loops of known length count with all iterations, of branches the cheapest alone, and kernels
    not at all: where an operation has one for some devices, it counts as on others.
    """
    return _flops(jax.make_jaxpr(function)(*shapes).jaxpr)


def _flops(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size // outputs
    if name == "pallas_call":
        return 0
    inner = list(_inner(equation))
    if name == "cond":
        return min(map(_flops, inner))
    times = parameters["length"] if name == "scan" else 1
    return times * sum(map(_flops, inner))


def _inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
