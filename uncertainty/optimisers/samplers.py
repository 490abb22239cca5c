"""Stochastic-gradient Markov chains: optimisers with noise, whose particles are samples.

They take the place of an optimiser, `optimiser=dict(name='sgld', learning_rate=...)`, and sample
the posterior of `inference` (its prior and temperature). Everything is per example: with g the
gradient of -1/N log p(D, theta), eta the learning rate times its schedule, and T the temperature, a
step eta here is the step size 2 eta / N of the papers, whose gradient is N g.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from uncertainty import cpu
from uncertainty.cpu import noise as threefry
from uncertainty.types import Params


class Sampler(NamedTuple):
    """A transformation that needs the learning rate of each step, on which its noise depends.

    `make(rate)` is an optax transformation whose updates are final, the learning rate included, and
    whose `update` takes `noise`, normal draws of variance T / N of the shape of the parameters.
    """

    make: Callable[[optax.Schedule], optax.GradientTransformationExtraArgs]
    plain: bool = False  # no state except the step, so that a direction's diffusion may be used
    bounded: bool = False  # see `Transformation`


class SamplingTransformation(NamedTuple):
    """An optimiser that needs `noise`; see `Sampler`."""

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any]]
    plain: bool
    decays: tuple[str, ...] = ()
    bounded: bool = False


class Transformation(NamedTuple):
    """An optimiser.

    Attributes:
      init, update: as in optax.
      decays: the fields that set a decay to 0. It changes the fixed point, so it conflicts with a
        posterior that is defined elsewhere.
      bounded: whether a gradient (and noise) whose norm is finite, in float32, always gives finite
        updates, if the schedule is at most 1. So a step needs no test of all of them.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any]]
    decays: tuple[str, ...] = ()
    bounded: bool = False


class Bounded(optax.GradientTransformation):
    """An optax transformation of gradients below 2^64 to directions below 2^100."""


def sgld() -> Sampler:
    """theta <- theta - eta g + sqrt(2 eta T / N) xi, xi ~ N(0, I) (Welling & Teh 2011).

    With a direction that has a diffusion (SVGD in weight space, K / P), g and xi are that
    direction's: stochastic SVGD, which needs a kernel with a fixed bandwidth, see
    `inference/directions/svgd.py`.
    """

    def step(t, rate, g, memory, noise):
        return jax.tree.map(lambda g, xi: -rate * g + jnp.sqrt(2 * rate) * xi, g, noise), memory

    return _sampler(lambda params: (), step, plain=True)


def psgld(decay: float = 0.99, eps: float = 1e-5, adapt_steps: int | None = None) -> Sampler:
    """theta <- theta - eta G g + sqrt(2 eta T / N G) xi, G = 1 / (eps + sqrt(V)) (Li et al. 2016).

    V <- decay V + (1 - decay) g^2 is that of RMSProp. Differences from the paper: the term Gamma,
    the divergence of G, is left out, as in its own experiments; V starts with g^2 of the first
    step, not with 0; `adapt_steps` is new: G is constant after this many steps, so later samples
    are not biased by its changes.

    Args:
      decay: in [0, 1).
      eps: a floor of sqrt(V), in units of g.
      adapt_steps: steps in which V is updated; None for all.

    Raises:
      ValueError: a number out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: {decay}; at least 0, below 1")
    if not eps > 0:
        raise ValueError(f"eps: {eps}; a positive number")
    if adapt_steps is not None and adapt_steps < 1:
        raise ValueError(f"adapt_steps: {adapt_steps}; at least 1, or None")

    def step(t, rate, g, V, noise):
        keep = jnp.where(t == 0, 0.0, decay)
        if adapt_steps is not None:
            keep = jnp.where(t < adapt_steps, keep, 1.0)
        V = jax.tree.map(lambda V, g: keep * V + (1 - keep) * g**2, V, g)

        def move(g, V, xi):
            G = 1 / (eps + jnp.sqrt(V))
            return -rate * G * g + jnp.sqrt(2 * rate * G) * xi

        return jax.tree.map(move, g, V, noise), V

    start = lambda params: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    return _sampler(start, step, bounded=eps >= 1e-12)


def sghmc(friction: float = 0.1) -> Sampler:
    """v <- (1 - a) v - eta g + sqrt(2 a eta T / N) xi; theta <- theta + v.

    Source: Chen, Fox & Guestrin 2014, eq. 15. a is the friction, 1 minus the momentum of SGD.
    Differences from the paper: the estimate of the gradient noise is 0, as in its experiments.

    Args:
      friction: a, in (0, 1]; 1 is SGLD.

    Raises:
      ValueError: a friction out of range.
    """
    if not 0 < friction <= 1:
        raise ValueError(f"friction: {friction}; above 0, at most 1")

    def step(t, rate, g, v, noise):
        def move(v, g, xi):
            return (1 - friction) * v - rate * g + jnp.sqrt(2 * friction * rate) * xi

        v = jax.tree.map(move, v, g, noise)
        return v, v

    return _sampler(lambda params: jax.tree.map(jnp.zeros_like, params), step)


class SamplerState(NamedTuple):
    count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
    memory: Any


def _sampler(start: Callable, step: Callable, plain: bool = False, bounded: bool = True) -> Sampler:
    """The Sampler of step(t, rate, g, memory, noise) -> updates, memory."""

    def make(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
        def init(params: Params) -> SamplerState:
            return SamplerState(jnp.zeros((), jnp.int32), start(params))

        def update(g, state, params=None, *, noise, **extra):
            t = state.count
            updates, memory = step(t, rate(t), g, state.memory, noise)
            return updates, SamplerState(t + 1, memory)

        return optax.GradientTransformationExtraArgs(init, update)

    return Sampler(make, plain, bounded)


def normal(keys: jax.Array, params: Params) -> Params:
    """Standard normal numbers of the parameters' shapes [P, ...], from the key of each particle."""

    def one(key: jax.Array, params: Params) -> Params:
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        noise = [
            _normal(k, leaf.size).reshape(leaf.shape).astype(leaf.dtype)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, noise)

    return jax.vmap(one)(keys, params)


def _normal(key: jax.Array, n: int) -> jax.Array:
    """Standard normal numbers [n]; on CPU by a faster generator, with other draws."""
    return threefry.normal(key, n) if cpu.enabled() else jax.random.normal(key, (n,))
