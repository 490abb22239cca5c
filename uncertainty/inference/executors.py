"""How the particles of one device run; results are equal up to rounding.

`vmap`, `unroll` and `scan` map a function over particles inside one compiled program. `loop` calls
one compiled update for each particle, which needs a separable inference. `auto` chooses
one. Sharding particles over devices (`experiments/runtime/execution.py`) works with each.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.inference import examples
from uncertainty.types import Batch, Inference, Metrics, State

NAMES = ("auto", "vmap", "unroll", "scan", "loop")
# Parameters of a particle, on CPU with one core and with several: 784-64-64-10 has 55,050, and
# 784-100-10 has 79,510.
SMALL = (60_000, 100_000)


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
    `vmap` for small particles, up to a third faster where several cores share the work, and `scan`
    for others: up to a fifth faster, with only one particle's activations in memory.
    """

    def mapped(particles: Any, shared: Any) -> Any:
        one = jax.tree.map(lambda a: a[0], particles)
        if not cpu.enabled():
            over = vmap
        elif _size(particles) == 1 or has_convolution(jax.make_jaxpr(fn)(one, shared).jaxpr):
            over = unroll
        else:
            over = vmap if _floats(one) < SMALL[cpu.cores() > 1] else scan
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


class Separate(NamedTuple):
    """A State as P states of one particle each, with arrays of their own."""

    particles: tuple[State, ...]


class Loop:
    """An update from Python: particles one by one, in place, with one program for any P.

    It returns a Separate state, which `whole` joins; so a step neither takes a particle's arrays
    out of those of all particles nor writes them back. A host function: under `jax.jit` it would be
    unrolled. The state is donated.

    Args:
      inference: its particles are separable.
      threads: how many particles are updated at the same time, for CPU: their programs have one
        thread each, which small operations use better than all threads one operation.

    Raises:
      ValueError: the particles interact.
    """

    def __init__(self, inference: Inference, threads: int = 1):
        if not inference.separable:
            raise ValueError(
                "executor: 'loop' updates one particle at a time, but these particles interact; "
                "use 'auto', 'vmap', 'unroll' or 'scan'"
            )

        def one(state: State, p: jax.Array | int, batch: Batch) -> tuple[State, Metrics]:
            take = lambda a: jax.lax.dynamic_slice_in_dim(a, p, 1)  # noqa: E731
            return inference.update(state, examples.each(take, batch, inference.own_examples))

        def split(state: State) -> Separate:
            arrays = state.replace(step=None)
            each = (jax.tree.map(lambda a, p=p: a[p : p + 1], arrays) for p in range(_size(arrays)))
            return Separate(tuple(one.replace(step=jnp.copy(state.step)) for one in each))

        def join(each: Sequence[Any]) -> Any:
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each)

        options = {"xla_cpu_multi_thread_eigen": False} if threads > 1 else None
        self._one = jax.jit(one, donate_argnums=0, compiler_options=options)
        self._split, self._join = jax.jit(split), jax.jit(join)
        self._map = futures.ThreadPoolExecutor(threads).map if threads > 1 else map

    def __call__(self, state: State | Separate, batch: Batch) -> tuple[Separate, Metrics]:
        # Once, not once for each particle; arrays of several processes are where they have to be.
        batch = jax.tree.map(lambda a: a if isinstance(a, jax.Array) else jax.device_put(a), batch)
        if isinstance(state, Separate):
            before = state
        else:
            before = self._split(state)
            for array in jax.tree.leaves(state):  # no argument of a jitted function takes its place
                if isinstance(array, jax.Array):
                    array.delete()

        def update(p: int) -> tuple[State, Metrics]:
            return self._one(before.particles[p], p, batch)

        alone = 0 if isinstance(state, Separate) else 1  # at first, so that one thread compiles
        made = [update(p) for p in range(alone)]
        made += self._map(update, range(alone, len(before.particles)))
        return Separate(tuple(one for one, _ in made)), self._join([m for _, m in made])

    def whole(self, state: State | Separate) -> State:
        """All particles in one State."""
        if isinstance(state, State):
            return state
        arrays = self._join([one.replace(step=None) for one in state.particles])
        return arrays.replace(step=jnp.copy(state.particles[0].step))

    def trace(self, state: State, batch: Batch) -> Any:
        """The traced program of a particle, as of a jitted function; calls do not trace again."""

        def one(a: Any) -> jax.ShapeDtypeStruct:
            sharding = getattr(a, "sharding", None)
            return jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype, sharding=sharding)

        first = jax.tree.map(one, state.replace(step=None)).replace(step=state.step)
        return self._one.trace(first, 0, batch)


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
