"""Temperature scaling (Guo et al. 2017, "On calibration of modern neural networks").

    p_T(y | x) = softmax(log p(. | x) / T)_y,    T = argmin -1/B sum_b log p_T(y_b | x_b)

Logits differ from log p by a constant of each example, so both give the same. In 1 / T the
objective is convex, and its derivative is a difference of means, E_{p_T}[log p] - log p_y: at the
optimum, the mean log-probability that the model expects is that which it has.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from uncertainty.posthoc import _arrays


class Temperature(NamedTuple):
    """log p -> log softmax(log p / temperature)."""

    temperature: Any  # []
    at_bound: Any  # [], bool: the optimum lies outside the allowed range, see `temperature`

    def __call__(self, log_p: Any) -> Any:
        """Calibrated log-probabilities, [..., B, K]."""
        log_p = _arrays.as_floats(log_p)
        return _arrays.normalised(log_p / self.temperature)


def temperature(
    log_p: ArrayLike,
    labels: ArrayLike,
    minimum: float = 0.01,
    maximum: float = 100.0,
    floor: float = 0.0,
) -> Temperature:
    """The temperature with the lowest NLL, to the precision of float64.

    If every label is the most probable class, the likelihood grows without end as T goes to 0, and
    if the classes' log-probabilities say nothing about the labels, as T goes to infinity: the
    result is then `minimum` or `maximum`, and `at_bound`. Uniform predictions, for which all
    temperatures are equal, give 1.

    Members [M, B, K] get one temperature in common, by the NLL of the mixture of the calibrated
    members. That is not convex: the best of a grid of temperatures is refined.

    Args:
      log_p: [B, K] log-probabilities of held-out examples, or [M, B, K] of members.
      labels: [B] integers.
      minimum, maximum: the allowed range, with 1 inside.
      floor: the least probability of a class; smaller ones are raised to it before the fit. 0 for
        none.

    Raises:
      ValueError: wrong arrays (see `_arrays.checked`), a label of probability 0, or a wrong range.
    """
    if not 0 < minimum <= 1 <= maximum < np.inf:
        raise ValueError(
            f"minimum, maximum: {minimum!r}, {maximum!r}; 0 < minimum <= 1 <= maximum is needed"
        )
    if np.ndim(log_p) == 3 and len(np.asarray(log_p)) == 1:
        log_p = np.asarray(log_p)[0]
    if np.ndim(log_p) == 3:
        return _of_members(np.asarray(log_p), labels, minimum, maximum, floor)
    log_p, labels = _arrays.checked(log_p, labels)
    log_p = _arrays.floored(log_p, floor)
    _arrays.check_labels_possible(log_p, labels, "set floor, such as 1e-6, or leave such rows out")
    finite = np.where(np.isneginf(log_p), 0.0, log_p)  # p log p has the limit 0 for p -> 0
    of_labels = _arrays.at_labels(log_p, labels)
    if (of_labels == log_p.max(-1)).all():
        informed = bool((log_p.min(-1) < of_labels).any())
        return Temperature(np.float64(minimum if informed else 1.0), np.bool_(informed))

    def slope(inverse: float) -> float:
        """The derivative of the NLL by 1 / T."""
        p = np.exp(_arrays.normalised(log_p * inverse))
        return float(np.mean(np.einsum("bk,bk->b", p, finite) - of_labels))

    if slope(1 / minimum) < 0:
        return Temperature(np.float64(minimum), np.bool_(True))
    if slope(1 / maximum) > 0:
        return Temperature(np.float64(maximum), np.bool_(True))
    inverse = optimize.brentq(slope, 1 / maximum, 1 / minimum, xtol=1e-14, rtol=1e-14)
    return Temperature(np.float64(1 / inverse), np.bool_(False))


def _of_members(
    log_p: np.ndarray, labels: ArrayLike, minimum: float, maximum: float, floor: float
) -> Temperature:
    """One temperature of all members [M, B, K], for the NLL of their mixture."""
    log_p = np.stack([_arrays.floored(_arrays.checked(m, labels)[0], floor) for m in log_p])
    labels = np.asarray(labels)
    remedy = "set floor, such as 1e-6, or leave such rows out"
    _arrays.check_labels_possible(log_p.max(0), labels, remedy)

    # Classes lead, so that sums over them are of whole arrays: a third of the time.
    below = np.ascontiguousarray(np.moveaxis(log_p - log_p.max(-1, keepdims=True), -1, 0))
    of_labels = below[labels, :, np.arange(len(labels))].T  # [M, B]
    terms = np.empty_like(below)

    def nll(log_t: float) -> float:
        inverse = np.exp(-log_t)
        np.exp(np.multiply(below, inverse, out=terms), out=terms)
        return float(-_arrays.mixture(of_labels * inverse - np.log(terms.sum(0))).mean())

    grid = np.unique(np.append(np.linspace(np.log(minimum), np.log(maximum), 41), 0.0))
    values = np.array([nll(log_t) for log_t in grid])
    if np.ptp(values) <= 1e-12:
        return Temperature(np.float64(1.0), np.bool_(False))
    best = int(values.argmin())
    if best in (0, len(grid) - 1):
        inside = grid[1 if best == 0 else -2]
        if nll(grid[best] + 1e-4 * (inside - grid[best])) >= values[best]:
            return Temperature(np.float64(np.exp(grid[best])), np.bool_(True))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = optimize.minimize_scalar(nll, bounds=around, method="bounded", options=dict(xatol=1e-9))
    return Temperature(np.float64(np.exp(found.x)), np.bool_(False))
