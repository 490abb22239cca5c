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

    Args:
      log_p: [B, K] log-probabilities of held-out examples.
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
