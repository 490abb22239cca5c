"""Floating point operations of matrix products and convolutions, counted in a traced program."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.interpreters import partial_eval

from uncertainty.inference.executors import jaxprs


class Operations(NamedTuple):
    """What a program computes in all devices together."""

    flops: float  # of matrix products and convolutions: 2 A B C for [A, B] and [B, C]
    unknown_loops: int  # whose number of rounds is not known; each is counted once


def count(jaxpr: Any) -> Operations:
    """The operations of a jaxpr.

    The body of a scan counts once for each of its rounds, of the branches of a condition the
    largest, and what `shard_map` runs on each device once for each of them. Products with zeros of
    padding and of dilation are left out, as in XLA's count. Rematerialised parts count as often as
    they run. Factorisations and elementwise arithmetic are not counted.
    """
    flops, unknown = 0.0, 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            flops += product(equation)
        elif name == "conv_general_dilated":
            flops += convolution(equation)
        inner = [count(each) for each in jaxprs(params)]
        if not inner:
            continue
        times = 1
        if name == "scan":
            times = params["length"]
        elif name == "while":
            unknown += 1
        elif name == "shard_map":
            axes = params.get("newly_manual_axes", params.get("manual_axes"))  # newer, older jax
            times = math.prod(params["mesh"].shape[axis] for axis in axes)
        if name == "cond":
            inner = [max(inner)]
        flops += times * sum(each.flops for each in inner)
        unknown += sum(each.unknown_loops for each in inner)
    return Operations(flops, unknown)


def product(equation: Any) -> float:
    """2 x the number of multiplications of a `dot_general`."""
    left = equation.invars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2.0 * equation.outvars[0].aval.size * math.prod(left.shape[i] for i in contracted)


def convolution(equation: Any) -> float:
    """2 x the number of multiplications of a convolution, without those with padding's zeros."""
    left, right = (v.aval for v in equation.invars)
    out, params = equation.outvars[0].aval, equation.params
    numbers = params["dimension_numbers"]
    pairs = 1
    for i in range(len(left.shape) - 2):
        low, _ = params["padding"][i]
        positions = (
            np.arange(out.shape[numbers.out_spec[2 + i]])[:, None] * params["window_strides"][i]
            + np.arange(right.shape[numbers.rhs_spec[2 + i]]) * params["rhs_dilation"][i]
            - low
        )
        dilation, size = params["lhs_dilation"][i], left.shape[numbers.lhs_spec[2 + i]]
        valid = (positions >= 0) & (positions <= (size - 1) * dilation)
        pairs *= int((valid & (positions % dilation == 0)).sum())
    batch, features = out.shape[numbers.out_spec[0]], out.shape[numbers.out_spec[1]]
    inputs = right.shape[numbers.rhs_spec[1]]  # of a group
    return 2.0 * pairs * batch * features * inputs


def of_traced(traced: jax.stages.Traced) -> Operations:
    """The operations of a traced program, without those on which no result depends."""
    jaxpr = traced.jaxpr.jaxpr
    return count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])
