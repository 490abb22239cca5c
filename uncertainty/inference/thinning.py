"""What a run keeps of its parameters for prediction: samples after some steps, or an average."""

from fractions import Fraction
from typing import NamedTuple


class MovingAverage(NamedTuple):
    """An exponential moving average of the parameters, in the place of one sample."""

    decay: float


def moving_average(total_steps: int, decay: float = 0.999) -> MovingAverage:
    """theta_avg <- d theta_avg + (1 - d) theta, d = min(decay, (1 + t) / (10 + t)) after t steps.

    Predictions use theta_avg, with the collections (such as batch statistics) of the last step;
    `stages.batch_statistics` computes those of theta_avg itself. The warm-up of d is that of
    TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    Args:
      total_steps: of the run; the average does not depend on it.
      decay: in [0, 1).

    Raises:
      ValueError: a decay out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: {decay}; at least 0 and below 1")
    return MovingAverage(decay)


def after_burn_in(total_steps: int, size: int, burn_in: float = 0.5) -> tuple[int, ...]:
    """`size` equally spaced steps after the fraction `burn_in` of the run; the last is its end.

    Args:
      total_steps: of the run.
      size: samples S.
      burn_in: a fraction of the run, in [0, 1).

    Raises:
      ValueError: a fraction out of range, or fewer steps than samples.
    """
    return cyclical(total_steps, size, cycles=1, burn_in=burn_in)


def cyclical(total_steps: int, size: int, cycles: int = 4, burn_in: float = 0.5) -> tuple[int, ...]:
    """size / cycles equally spaced steps in each of `cycles` equal parts, after its burn-in.

    One sample per cycle is its end: a snapshot ensemble (Huang et al. 2017). The cycles are those
    of `schedules.cyclical`.

    Args:
      total_steps: of the run.
      size: samples S; a multiple of `cycles`.
      cycles: number of parts.
      burn_in: the fraction of each cycle without samples, in [0, 1).

    Raises:
      ValueError: a number out of range, or fewer steps than samples.
    """
    if not 0 <= burn_in < 1:
        raise ValueError(f"burn_in: {burn_in}; a fraction, at least 0 and below 1")
    if cycles < 1 or size < 1 or size % cycles:
        raise ValueError(f"size: {size}; a positive multiple of the {cycles} cycles")
    each, steps = size // cycles, []
    for cycle in range(cycles):
        start, end = (-(-c * total_steps // cycles) for c in (cycle, cycle + 1))
        usable = round((end - start) * (1 - Fraction(str(burn_in))))  # exact in decimal
        steps += [end - usable * (each - 1 - i) // each for i in range(each)]
    if len(set(steps)) < size or steps != sorted(steps) or steps[0] < 1:
        raise ValueError(f"size: {size} samples do not fit into {total_steps} steps")
    return tuple(steps)
