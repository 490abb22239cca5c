"""Hyper-parameters that differ between particles: name -> [P], a part of the State.

A factor multiplies the config's value; a value replaces it.

  learning_rate    factor of every step, decay included
  prior_scale      factor of the scale of `inference.prior`
  weight_decay     factor of every rule of `optimiser.weight_decay`
  l2               factor of every rule of `optimiser.l2`
  label_smoothing  value, in place of `objective.rate`
  contrast, invariance, equivariance
                   values, in place of the fields of objective 'contrastive'
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.keys import Use

DECAYS = ("weight_decay", "l2")
FROM_ZERO = (*DECAYS, "label_smoothing", "contrast", "invariance", "equivariance")
HYPER = ("learning_rate", "prior_scale", *FROM_ZERO)
LIMITS = {"label_smoothing": "below 1", "invariance": "at most 1"}


def check(hyper: Mapping[str, Any], read: Sequence[str]) -> None:
    """Refuses hyper-parameters that particles cannot differ in.

    Args:
      hyper: name -> values, or dict(low=, high=).
      read: names that the run depends on.

    Raises:
      ValueError: an unknown or unused name, or values out of range.
    """
    for name, values in hyper.items():
        if name not in HYPER:
            raise ValueError(f"hyper.{name}: not one of {', '.join(HYPER)}")
        if name not in read:
            raise ValueError(f"hyper.{name}: {_NEEDS[name]}")
        ranged = isinstance(values, Mapping)
        numbers = list(values.values()) if ranged else values
        listed = isinstance(numbers, list | tuple) and len(numbers) > 0
        zero = name in FROM_ZERO and not ranged
        limit = LIMITS.get(name, "")
        fits = listed and all(
            isinstance(v, int | float)
            and (v > 0 or (zero and v == 0))
            and (not limit or v < 1 or (v == 1 and limit == "at most 1"))
            for v in numbers
        )
        ordered = not ranged or (set(values) == {"low", "high"} and values["low"] <= values["high"])
        if not (fits and ordered):
            which = "positive numbers" if not zero else "numbers from 0"
            which += f" and {limit}" if limit else ""
            raise ValueError(f"hyper.{name}: {values!r}; a list of {which}, or dict(low=, high=)")


_NEEDS = {
    "prior_scale": "needs a prior; set inference.prior",
    "weight_decay": "needs rules to scale; set optimiser.weight_decay",
    "l2": "needs rules to scale; set optimiser.l2",
    "label_smoothing": "needs objective.name='label_smoothing'",
    "contrast": "needs objective.name='contrastive'",
    "invariance": "needs objective.invariance of 'contrastive', a number such as 0.5",
    "equivariance": "needs objective.equivariance of 'contrastive', a number such as 0.4",
}


def draw(hyper: Mapping[str, Any], keys: Sequence[jax.Array]) -> dict[str, jax.Array]:
    """name -> values [P] for the particles with these keys; `hyper` has passed `check`.

    Values of lists are dealt to the particles in turn; ranges are sampled log-uniformly.
    """
    draws = {}
    for i, (name, values) in enumerate(sorted(hyper.items())):
        if isinstance(values, Mapping):
            low, high = jnp.log(values["low"]), jnp.log(values["high"])
            per_particle = [
                jnp.exp(
                    jax.random.uniform(
                        jax.random.fold_in(key, Use.HYPER + i), (), minval=low, maxval=high
                    )
                )
                for key in keys
            ]
        else:
            per_particle = [jnp.float32(values[p % len(values)]) for p in range(len(keys))]
        draws[name] = jnp.stack(per_particle)
    return draws
