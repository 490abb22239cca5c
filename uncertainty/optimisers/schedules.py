"""Learning-rate schedules as multiples of the base rate: functions of the step, 1 at their peak.

Every schedule takes `total_steps` (from the config's `steps`) and `warmup_steps`, a linear warm-up
before it.

Differences from the published schedules (optax, vision_transformer, vmoe, uncertainty-baselines): a
warm-up of W steps starts at 1 / W rather than 0, so that no step is lost, and reaches 1 at step W -
1, where they have 1 - 1 / W.
"""

from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp
import optax

from uncertainty.optimisers.cycles import share


def constant(total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """1 throughout.

    Args:
      warmup_steps: of the linear warm-up before it.
    """
    return _after_warmup(optax.constant_schedule(1.0), total_steps, warmup_steps)


def cosine(total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> optax.Schedule:
    """Half a cosine from 1 down to `final` (Loshchilov & Hutter 2017, without restarts).

    Args:
      warmup_steps: of the linear warm-up before it.
      final: the last value.
    """
    steps = max(total_steps - warmup_steps, 1)
    return _after_warmup(optax.cosine_decay_schedule(1.0, steps, final), total_steps, warmup_steps)


def linear(total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> optax.Schedule:
    """A straight line from 1 down to `final`.

    Args:
      warmup_steps: of the linear warm-up before it.
      final: the last value.
    """
    steps = max(total_steps - warmup_steps, 1)
    return _after_warmup(optax.linear_schedule(1.0, final, steps), total_steps, warmup_steps)


def step(
    total_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[float] = (0.3, 0.6, 0.8),
    factor: float = 0.2,
) -> optax.Schedule:
    """Times `factor` at each of `boundaries`, given as fractions of the whole run in (0, 1).

    Args:
      warmup_steps: of the linear warm-up before it.
      boundaries: fractions of the whole run in (0, 1).
      factor: at each of them.
    """
    if not all(0 < b < 1 for b in boundaries):
        raise ValueError(f"boundaries: {tuple(boundaries)}; fractions of the run in (0, 1)")
    # Exact in decimal: 0.575 of 100 steps is 57.5, not 57.49999999999999.
    at = [round(Fraction(str(b)) * total_steps) - warmup_steps for b in boundaries]
    if min(at, default=0) < 0:
        raise ValueError(f"boundaries: {tuple(boundaries)} begin before warm-up ends")

    def multiple(t):
        return factor ** jnp.sum(t >= jnp.asarray(at), dtype=jnp.float32)

    return _after_warmup(multiple, total_steps, warmup_steps)


def cyclical(
    total_steps: int, warmup_steps: int = 0, cycles: int = 4, final: float = 0.0
) -> optax.Schedule:
    """Half a cosine from 1 down to `final`, `cycles` times in a run; the first has the warm-up.

    Source: Loshchilov & Hutter 2017, with restarts; Zhang et al. 2020, "Cyclical stochastic
    gradient MCMC", eq. 1, whose noise begins only in the later part of each cycle. If `cycles` does
    not divide the steps, cycle c starts at the first step from c total_steps / cycles on.

    Args:
      warmup_steps: of the linear warm-up before it.
      cycles: their number in a run.
      final: the last value of each.
    """
    if not 1 <= cycles <= total_steps:
        raise ValueError(f"cycles: {cycles}; between 1 and the {total_steps} steps")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps: {warmup_steps}; between 0 and the {total_steps} steps")

    def multiple(t):
        done = share(t, total_steps, cycles)
        value = final + (1 - final) * (1 + jnp.cos(jnp.pi * done)) / 2
        return value * jnp.minimum((t + 1) / max(warmup_steps, 1), 1.0)

    return multiple


def _after_warmup(schedule: optax.Schedule, total_steps: int, warmup_steps: int) -> optax.Schedule:
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps: {warmup_steps}; between 0 and the {total_steps} steps")
    if not warmup_steps:
        return schedule
    # Step 0 uses 1 / warmup_steps of the rate rather than 0.
    rise = optax.linear_schedule(1 / warmup_steps, 1.0, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, schedule], [warmup_steps])
