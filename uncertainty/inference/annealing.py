"""Annealing of the driving term of particles relative to their repulsion, over the steps.

Each function returns step -> factor in [0, 1], which is 1 from `steps` on. Source: D'Angelo &
Fortuin 2021, "Annealed Stein Variational Gradient Descent": a weak drive lets particles spread
first.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uncertainty.optimisers.cycles import share

Annealing = Callable[[jax.Array], jax.Array]


def linear(steps: int, start: float = 0.0) -> Annealing:
    """a(t) = start + (1 - start) t / steps.

    Args:
      steps: of the ramp, after which a is 1.
      start: a(0).

    Raises:
      ValueError: fewer than one step, or a start outside [0, 1].
    """
    _check(steps)
    if not 0 <= start <= 1:
        raise ValueError(f"start: {start}; from 0 to 1")
    return lambda step: start + (1 - start) * _share(step, steps)


def hyperbolic(steps: int, power: float = 10.0) -> Annealing:
    """a(t) = tanh((1.3 t / steps)^power), a switch shortly before `steps`.

    Args:
      steps: of the ramp, after which a is 1.
      power: the larger, the sharper the switch.

    Raises:
      ValueError: fewer than one step, or a power that is not positive.
    """
    _check(steps, power)
    return lambda step: jnp.where(step < steps, jnp.tanh((1.3 * _share(step, steps)) ** power), 1.0)


def cyclical(steps: int, cycles: int = 5, power: float = 10.0) -> Annealing:
    """a(t) = (mod(t, steps / cycles) / (steps / cycles))^power, back to 0 with each cycle.

    Args:
      steps: of all cycles, after which a is 1.
      cycles: their number.
      power: the larger, the later in a cycle a grows.

    Raises:
      ValueError: fewer than one step or cycle, or a power that is not positive.
    """
    _check(steps, power)
    if cycles < 1:
        raise ValueError(f"cycles: {cycles}; at least 1")
    return lambda step: jnp.where(step < steps, share(step, steps, cycles) ** power, 1.0)


def _share(step: jax.Array, steps: int) -> jax.Array:
    return jnp.minimum(step / steps, 1.0)


def _check(steps: int, power: float = 1.0) -> None:
    if steps < 1:
        raise ValueError(f"steps: {steps}; at least 1")
    if not power > 0:
        raise ValueError(f"power: {power}; a positive number")
