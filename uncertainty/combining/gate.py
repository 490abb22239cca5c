"""Learned weights of the members, which depend on what all members together predict."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from uncertainty.combining import _pool


class Gate(NamedTuple):
    """Weights of the members of an example: softmax(intercepts + weights q)."""

    intercepts: Any  # [M], -inf for members that are left out
    weights: Any  # [M, K]
    converged: Any  # [], bool
    shares: Any  # [M], their mean weights over the held-out examples

    def __call__(self, log_p: Any) -> np.ndarray:
        """Log-probabilities of the weighted mixture, [M, B, K] -> [1, B, K]."""
        log_p = _pool.applied(log_p, len(self.intercepts))
        usable = np.isfinite(self.intercepts)
        log_p = log_p[usable]
        g = _gates(self.intercepts[usable], self.weights[usable], _pool.mixture(log_p))
        return special.logsumexp(g[..., None] + log_p, axis=0)[None]


def gate(log_p: ArrayLike, labels: ArrayLike, l2: float = 1e-3, constant: bool = False) -> Gate:
    """p(y | x) = sum_m g_m(x) p_m(y | x), g(x) = softmax(a + W q(x)), q = 1/M sum_m p_m(. | x).

    a [M] and W [M, K] minimise the NLL of held-out examples plus l2 (|a|^2 + |W|^2), from 0, where
    all members count alike, by L-BFGS. So a gate reads predictions alone, and may be fitted to
    those of any runs. A mixture of experts with a linear gate (Jacobs et al. 1991, "Adaptive
    mixtures of local experts") whose experts are given. It has M (K + 1) numbers, so it needs many
    more held-out examples than that.

    Args:
      log_p: [M, B, K] log-probabilities of the members for held-out examples.
      labels: [B] integers.
      l2: of the mean NLL in nats; larger values pull towards equal weights.
      constant: whether W = 0: one weight of each member for all x, the linear opinion pool.

    Raises:
      ValueError: see `_pool.checked`; a negative l2, or a label to which all members give the
        probability 0.
    """
    checked, y, usable = _pool.checked(log_p, labels)
    if not 0 <= l2 < np.inf:
        raise ValueError(f"l2: {l2}; a number from 0")
    members = checked[usable]
    M, B, K = members.shape
    q, of_labels = _pool.mixture(members), _pool.of_labels(members, y)  # [B, K], [M, B]
    if (impossible := np.isneginf(of_labels).all(0)).any():
        raise ValueError(
            f"log_p: the label of example {impossible.argmax()} has the probability 0 with every "
            "member, whatever their weights; leave it out"
        )

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, W = theta[:M], theta[M:].reshape(M, -1) if not constant else np.zeros((M, K))
        g = _gates(a, W, q)
        each = g + of_labels
        log_mixture = special.logsumexp(each, axis=0)  # [B]
        residual = (np.exp(g) - np.exp(each - log_mixture)) / B  # of the NLL by the gates' scores
        slope = residual.sum(1) if constant else np.append(residual.sum(1), (residual @ q).ravel())
        return float(-log_mixture.mean() + l2 * theta @ theta), slope + 2 * l2 * theta

    start = np.zeros(M if constant else M * (K + 1))
    found = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options=dict(maxiter=2_000, ftol=1e-14, gtol=1e-9)
    )
    slope = np.abs(loss(found.x)[1]).max()
    a, W = found.x[:M], np.zeros((M, K)) if constant else found.x[M:].reshape(M, K)
    intercepts, weights = np.full(len(usable), -np.inf), np.zeros((len(usable), K))
    shares = np.zeros(len(usable))
    intercepts[usable], weights[usable] = a, W
    shares[usable] = np.exp(_gates(a, W, q)).mean(1)
    return Gate(intercepts, weights, np.bool_(slope < 1e-5), shares)


def _gates(intercepts: np.ndarray, weights: np.ndarray, q: np.ndarray) -> np.ndarray:
    """log g [M, B] for mixtures q [B, K]."""
    return special.log_softmax(intercepts[:, None] + weights @ q.T, axis=0)
