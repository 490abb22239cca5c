"""How the particles of one device run; results are equal up to rounding.

`vmap`, `unroll` and `scan` map a function over particles inside one compiled program. `loop` calls
one compiled update for each particle in turn, which needs a separable inference. `auto` chooses
one. Sharding particles over devices (`experiments/runtime/execution.py`) works with each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.inference import examples
from uncertainty.types import Batch, Inference, Metrics, State

NAMES = ("auto", "vmap", "unroll", "scan", "loop")
SMALL = 10_000  # parameters of a particle: 64-64-64-10 has 9,000


def vmap(fn: Callable) -> Callable:
    """Maps fn(particle, shared) over the leading axis of `particles`, all at once as a batch."""
    return jax.vmap(fn, in_axes=(0, None))


def unroll(fn: Callable) -> Callable:
    """One after the other, each with its own code: compile time grows with P."""

    def mapped(particles: Any, shared: Any) -> Any:
        P = _size(particles)
        results = [fn(jax.tree.map(lambda a, p=p: a[p], particles), shared) for p in range(P)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return mapped


def scan(fn: Callable) -> Callable:
    """One after the other with the same code: least memory and shortest to compile."""
    return lambda particles, shared: jax.lax.map(lambda p: fn(p, shared), particles)


def auto(fn: Callable) -> Callable:
    """The best executor for the backend and the layers, chosen when the function is traced.

    On accelerators `vmap`. For MLPs, LeNet5 and a small ViT, the compiler for TPU estimates 0.4 to
    0.8 times the cycles of `scan`, and both compile as fast (`benchmarks/tpu.py`); but `vmap` holds
    the activations of all particles, and `scan` is for those that do not fit.

    On CPU (`benchmarks/executors.py`) `unroll` for XLA's convolutions, which take 3 times as long
    vmapped, as grouped convolutions, and 15 times inside `scan`, off the fast path; otherwise
    `scan`, which is up to a fifth faster than `vmap` and keeps only one particle's activations in
    memory; but `vmap` for particles so small that the overhead of a scan's steps dominates.
    """

    def mapped(particles: Any, shared: Any) -> Any:
        one = jax.tree.map(lambda a: a[0], particles)
        if not cpu.enabled():
            over = vmap
        elif _size(particles) == 1 or has_convolution(jax.make_jaxpr(fn)(one, shared).jaxpr):
            over = unroll
        else:
            over = vmap if _floats(one) < SMALL else scan
        return over(fn)(particles, shared)

    return mapped


def mapping(name: str) -> Callable[[Callable], Callable]:
    """The executor of that name; for `loop`, where each call has one particle, `auto`.

    Raises:
      ValueError: an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"executor: {name!r} is not one of {', '.join(NAMES)}")
    return {"vmap": vmap, "unroll": unroll, "scan": scan}.get(name, auto)


class Loop:
    """An update from Python: one particle at a time, in place, with one program for any P.

    A host function: under `jax.jit` it would be unrolled. The state is donated.

    Raises:
      ValueError: the particles interact.
    """

    def __init__(self, inference: Inference):
        if not inference.separable:
            raise ValueError(
                "executor: 'loop' updates one particle at a time, but these particles interact; "
                "use 'auto', 'vmap', 'unroll' or 'scan'"
            )

        def one(state: State, p: jax.Array | int, batch: Batch) -> tuple[State, Metrics]:
            step = state.step
            arrays = state.replace(step=None)
            take = lambda a: jax.lax.dynamic_slice_in_dim(a, p, 1)  # noqa: E731
            mine = jax.tree.map(take, arrays)
            batch = examples.each(take, batch, inference.own_examples)
            new, metrics = inference.update(mine.replace(step=step), batch)
            arrays = jax.tree.map(
                lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, p, 0),
                arrays,
                new.replace(step=None),
            )
            return arrays.replace(step=step), metrics

        def join(step: jax.Array, metrics: list[Metrics]) -> tuple[jax.Array, Metrics]:
            return step + 1, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *metrics)

        self._one, self._join = jax.jit(one, donate_argnums=0), jax.jit(join)

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        # Once, not once for each particle; arrays of several processes are where they have to be.
        batch = jax.tree.map(lambda a: a if isinstance(a, jax.Array) else jax.device_put(a), batch)
        metrics = []
        for p in range(_size(state.key)):
            state, m = self._one(state, p, batch)
            metrics.append(m)
        step, joined = self._join(state.step, metrics)
        return state.replace(step=step), joined

    def trace(self, state: State, batch: Batch) -> Any:
        """The traced program of a particle, as of a jitted function; calls do not trace again."""
        return self._one.trace(state, 0, batch)


def has_convolution(jaxpr: Any) -> bool:
    """Whether there is a convolution in a jaxpr, or in one of those within it."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(map(has_convolution, jaxprs(equation.params)))
        for equation in jaxpr.eqns
    )


def jaxprs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters, closed or not, alone or in a sequence."""
    values = [v for p in params.values() for v in (p if isinstance(p, list | tuple) else [p])]
    values = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in values if hasattr(value, "eqns")]


def _size(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _floats(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
