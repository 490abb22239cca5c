"""Hyper-parameters that differ between particles: name -> [P], a part of the State.

A factor multiplies the config's value; a value replaces it.

  learning_rate    factor of every step, decay included
  prior_scale      factor of the scale of `inference.prior`
  weight_decay     factor of every rule of `optimiser.weight_decay`
  l2               factor of every rule of `optimiser.l2`
  label_smoothing  value, in place of `objective.rate`
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.keys import Use

DECAYS = ("weight_decay", "l2")
HYPER = ("learning_rate", "prior_scale", *DECAYS, "label_smoothing")


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
        zero = name in (*DECAYS, "label_smoothing") and not ranged
        fits = listed and all(
            isinstance(v, int | float)
            and (v > 0 or (zero and v == 0))
            and (v < 1 or name != "label_smoothing")
            for v in numbers
        )
        ordered = not ranged or (set(values) == {"low", "high"} and values["low"] <= values["high"])
        if not (fits and ordered):
            which = "positive numbers" if not zero else "numbers from 0"
            which += " and below 1" * (name == "label_smoothing")
            raise ValueError(f"hyper.{name}: {values!r}; a list of {which}, or dict(low=, high=)")


_NEEDS = {
    "prior_scale": "needs a prior; set inference.prior",
    "weight_decay": "needs rules to scale; set optimiser.weight_decay",
    "l2": "needs rules to scale; set optimiser.l2",
    "label_smoothing": "needs objective.name='label_smoothing'",
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
