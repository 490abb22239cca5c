"""Multinomial logistic regression on log-probabilities, by Newton's method.

    -1/B sum_b log softmax(W log p_b + c)_{y_b} + sum_ij A_ij (W - I)_ij^2 + sum_j a_j c_j^2

which is convex, and strictly so with positive penalties A and a: without them the optimum is at
infinity if a class has no example or the classes are separable.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from uncertainty.posthoc import _arrays

TOLERANCE = 1e-10  # of the largest entry of the gradient


def check_positive(**penalties: float) -> None:
    """Raises ValueError for a penalty that is not positive and finite."""
    for name, value in penalties.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name}: {value!r}; a positive number is expected")


def fit(
    log_p: np.ndarray,
    labels: np.ndarray,
    weight_penalty: np.ndarray,
    intercept_penalty: float,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The weights, the intercepts [K], and whether the gradient is 0 to `TOLERANCE`.

    Args:
      log_p: [B, K] normalised.
      labels: [B].
      weight_penalty: A, [K, K]; or [K] for a diagonal W.
      intercept_penalty: a, of each class.
    """
    x, (B, K) = _arrays.bounded(log_p), log_p.shape
    one_hot = np.eye(K)[labels]
    diagonal = weight_penalty.ndim == 1
    identity = np.ones(K) if diagonal else np.eye(K)
    penalty = np.append(weight_penalty.ravel(), np.full(K, intercept_penalty))
    centre = np.append(identity.ravel(), np.zeros(K))

    def scores(theta: np.ndarray) -> np.ndarray:
        weights, intercepts = theta[:-K].reshape(identity.shape), theta[-K:]
        return (x * weights if diagonal else x @ weights.T) + intercepts

    def back(residual: np.ndarray) -> np.ndarray:
        """The transpose of `scores`, over B."""
        of_weights = (residual * x).sum(0) if diagonal else residual.T @ x
        return np.append(of_weights.ravel(), residual.sum(0)) / B

    def value(theta: np.ndarray) -> float:
        nll = -_arrays.at_labels(_arrays.normalised(scores(theta)), labels).mean()
        return float(nll + penalty @ (theta - centre) ** 2)

    def slopes(theta: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """The gradient, and the product of the Hessian with a vector."""
        p = np.exp(_arrays.normalised(scores(theta)))

        def product(direction: np.ndarray) -> np.ndarray:
            change = scores(direction)
            change = p * (change - (p * change).sum(-1, keepdims=True))
            return back(change) + 2 * penalty * direction

        return back(p - one_hot) + 2 * penalty * (theta - centre), product

    theta, converged = newton(value, slopes, centre)
    return theta[:-K].reshape(identity.shape), theta[-K:], converged


def newton(value: Callable, slopes: Callable, theta: np.ndarray) -> tuple[np.ndarray, bool]:
    """The minimum of a smooth, strictly convex function, and whether its gradient is 0 there."""
    now = value(theta)
    for _ in range(200):
        gradient, product = slopes(theta)
        size = np.abs(gradient).max()
        if size <= TOLERANCE:
            return theta, True
        hessian = LinearOperator((len(theta), len(theta)), matvec=product, dtype=np.float64)
        accuracy = min(0.1, np.sqrt(size))
        step, _ = cg(hessian, -gradient, rtol=accuracy, maxiter=2 * len(theta))
        slope, scale = gradient @ step, 1.0
        for _ in range(60):
            after = value(theta + scale * step)
            # Close to the optimum the decrease is below the rounding of the value.
            if after <= now + 1e-4 * scale * slope + 4e-16 * abs(now):
                break
            scale /= 2
        else:
            return theta, False
        theta, now = theta + scale * step, after
    return theta, False
