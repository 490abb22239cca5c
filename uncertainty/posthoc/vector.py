"""Vector scaling (Guo et al. 2017): a factor and an intercept for each class.

    log q = log softmax(w * log p + c)

The paper's w multiplies logits. Those differ from log p by a constant of each example, to which the
softmax is blind but w is not, so that its fits and these differ.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.posthoc import _arrays, _linear


class Vector(NamedTuple):
    """log p -> log softmax(weights * log p + intercepts)."""

    weights: Any  # [K]
    intercepts: Any  # [K]
    converged: Any  # [], bool

    def __call__(self, log_p: Any) -> Any:
        """Calibrated log-probabilities, [..., B, K]."""
        log_p = _arrays.bounded(_arrays.as_floats(log_p))
        return _arrays.normalised(log_p * self.weights + self.intercepts)


def vector(
    log_p: ArrayLike,
    labels: ArrayLike,
    weight_penalty: float = 1e-3,
    intercept_penalty: float = 1e-3,
) -> Vector:
    """The factors and intercepts with the lowest NLL and penalty, by Newton's method.

        NLL + weight_penalty / K sum_k (w_k - 1)^2 + intercept_penalty / K sum_k c_k^2

    The penalty, which the paper has not, keeps both finite if a class has no examples or the
    classes are separable. Probabilities below exp(-87) are raised to it.

    Args:
      log_p: [B, K] log-probabilities of held-out examples.
      labels: [B] integers.
      weight_penalty, intercept_penalty: positive.

    Raises:
      ValueError: wrong arrays (see `_arrays.checked`), or a penalty that is not positive.
    """
    log_p, labels = _arrays.checked(log_p, labels)
    _linear.check_positive(weight_penalty=weight_penalty, intercept_penalty=intercept_penalty)
    K = log_p.shape[1]
    fitted = _linear.fit(log_p, labels, np.full(K, weight_penalty / K), intercept_penalty / K)
    return Vector(*fitted[:2], np.bool_(fitted[2]))
