"""Adaptive prediction sets (Romano, Sesia & Candès 2020).

    s(x, y) = sum_{k : p_k > p_y} p(k | x) + u p(y | x)

u is uniform for each example, or 1. The most probable classes until their sum reaches q: if p is
the truth, coverage holds at each x (exactly, with random u). With u = 1 the sets are larger, and
never split a class at random.
"""

from typing import Any

from numpy.typing import ArrayLike

from uncertainty.conformal.raps import Raps, raps


def aps(
    log_p: ArrayLike,
    labels: ArrayLike,
    alpha: float = 0.1,
    by: str = "none",
    groups: Any = None,
    randomised: bool = True,
    allow_empty: bool = True,
    u: Any = None,
) -> Raps:
    """Calibrates the sum at which sets stop: `raps` without a penalty.

    Args:
      log_p, labels, alpha, by, groups, allow_empty: as for `lac`.
      randomised: whether u is uniform; else 1.
      u: [B] uniform draws of the calibration examples, for randomised sets.

    Raises:
      ValueError: see `lac`; or no u.
    """
    return raps(log_p, labels, alpha, by, groups, randomised, allow_empty, 0.0, 0, u)
