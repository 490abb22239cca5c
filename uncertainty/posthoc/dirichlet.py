"""Dirichlet calibration (Kull et al. 2019), the matrix scaling of log-probabilities.

    log q = log softmax(W log p + c)

which is the posterior of the classes if p given each class is Dirichlet. With the paper's ODIR
penalty (off-diagonal and intercept regularisation) it is used for many classes too.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.posthoc import _arrays, _linear


class Dirichlet(NamedTuple):
    """log p -> log softmax(weights log p + intercepts)."""

    weights: Any  # [K, K]
    intercepts: Any  # [K]
    converged: Any  # [], bool

    def __call__(self, log_p: Any) -> Any:
        """Calibrated log-probabilities, [..., B, K]."""
        log_p = _arrays.bounded(_arrays.as_floats(log_p))
        return _arrays.normalised(log_p @ self.weights.T + self.intercepts)


def dirichlet(
    log_p: ArrayLike,
    labels: ArrayLike,
    off_diagonal: float = 1e-2,
    intercept: float = 1e-2,
    diagonal: float = 1e-6,
) -> Dirichlet:
    """The matrix and intercepts with the lowest NLL and ODIR penalty, by Newton's method.

        NLL + off_diagonal / (K (K - 1)) sum_{i != j} W_ij^2 + intercept / K sum_j c_j^2
            + diagonal / K sum_k (W_kk - 1)^2

    The last term, which the paper has not, keeps the diagonal finite if the classes are separable.
    Probabilities below exp(-87) are raised to it. It is a fit of K (K + 1) numbers, each of whose
    steps costs B K^2: for up to a few hundred classes.

    Args:
      log_p: [B, K] log-probabilities of held-out examples.
      labels: [B] integers.
      off_diagonal, intercept: lambda and mu; the paper chooses them by cross-validation.
      diagonal: small.

    Raises:
      ValueError: wrong arrays (see `_arrays.checked`), or a penalty that is not positive.
    """
    log_p, labels = _arrays.checked(log_p, labels)
    _linear.check_positive(off_diagonal=off_diagonal, intercept=intercept, diagonal=diagonal)
    K = log_p.shape[1]
    penalty = np.full((K, K), off_diagonal / (K * (K - 1)))
    np.fill_diagonal(penalty, diagonal / K)
    fitted = _linear.fit(log_p, labels, penalty, intercept / K)
    return Dirichlet(*fitted[:2], np.bool_(fitted[2]))
