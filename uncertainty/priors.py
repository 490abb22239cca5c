"""Priors on the weights: potentials, and draws."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty import rules as rules_lib
from uncertainty.types import Params, Prior

Rules = Sequence[tuple[str, Any]]


def gaussian(scale: float = 1.0, rules: Rules = ()) -> Prior:
    """w ~ N(0, scale^2), independent: -log p(w) = sum w^2 / (2 scale^2) + constant.

    Args:
      scale: standard deviation.
      rules: pairs (path pattern, standard deviation) for parameters with another scale.

    Raises:
      ValueError: a scale that is not positive, or (when used) a pattern that matches nothing.
    """
    return _prior(scale, rules, lambda w: w**2 / 2, jax.random.normal)


def laplace(scale: float = 1.0, rules: Rules = ()) -> Prior:
    """w ~ Laplace(0, scale): -log p(w) = sum |w| / scale + constant. Arguments as `gaussian`'s.

    Args:
      scale: mean of |w|.
      rules: pairs (path pattern, scale) for parameters with another one.
    """
    return _prior(scale, rules, jnp.abs, jax.random.laplace)


def _prior(scale: float, rules: Rules, energy: Callable, draw: Callable) -> Prior:
    rules_lib.check(rules, "rules")
    for field, value in [("scale", scale), *((f"rules: {p!r}", v) for p, v in rules)]:
        if not value > 0:
            raise ValueError(f"{field}: {value}; a positive scale is needed")

    def scales(params: Params) -> Params:
        return rules_lib.match(rules, params, field="prior.rules", default=scale)

    def potential(params: Params) -> jax.Array:
        terms = jax.tree.map(lambda w, s: jnp.sum(energy(w / s)), params, scales(params))
        return sum(jax.tree.leaves(terms), start=jnp.zeros(()))

    def sample(key: jax.Array, params: Params) -> Params:
        leaves, tree = jax.tree.flatten(params)
        keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
        return jax.tree.map(
            lambda k, w, s: s * draw(k, w.shape, w.dtype), keys, params, scales(params)
        )

    return Prior(potential, sample)
