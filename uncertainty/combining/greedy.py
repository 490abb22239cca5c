"""Greedy selection of members for the mixture that predicts held-out examples best."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.combining import _pool

BY = ("nll", "accuracy")


class Greedy(NamedTuple):
    """The chosen members; one that was chosen twice counts twice."""

    members: Any  # [S], in the order in which they were added
    scores: Any  # [S], NLL in nats or accuracy of the mixture after each addition
    pool: Any  # [], members that there were to choose from

    @property
    def shares(self) -> np.ndarray:
        """How often each member was chosen, over S, [M]."""
        return np.bincount(self.members, minlength=int(self.pool)) / len(self.members)

    def __call__(self, log_p: Any) -> np.ndarray:
        """Log-probabilities of the chosen members, [M, B, K] -> [S, B, K]."""
        return _pool.applied(log_p, int(self.pool))[np.asarray(self.members)]


def greedy(
    log_p: ArrayLike,
    labels: ArrayLike,
    size: int = 5,
    by: str = "nll",
    replacement: bool = False,
) -> Greedy:
    """m_s = argmin over m of loss(1/s (sum_{r < s} p_{m_r} + p_m)), s = 1..S.

    Source: Caruana et al. 2004, "Ensemble selection from libraries of models", with replacement;
    without it each member is taken once, as in Loh et al. 2023, "Multi-symmetry ensembles", whose
    members are added to the best one. Equal mixtures by accuracy are compared by their NLL, and
    by NLL by their accuracy; of members that are equal in both, the first is taken.

    Args:
      log_p: [M, B, K] log-probabilities of the members for held-out examples.
      labels: [B] integers.
      size: S. `scores` shows where further members no longer help.
      by: 'nll' or 'accuracy', of the mixture.
      replacement: whether a member may be added again, which gives it more weight.

    Raises:
      ValueError: see `_pool.checked`; an unknown `by`, a size below 1, or one above the number of
        usable members without replacement.
    """
    log_p, labels, usable = _pool.checked(log_p, labels)
    if by not in BY:
        raise ValueError(f"by: {by!r}; one of {', '.join(map(repr, BY))}")
    if size < 1:
        raise ValueError(f"size: {size} members; at least 1")
    if size > usable.sum() and not replacement:
        raise ValueError(
            f"size: {size} members of {usable.sum()} usable ones; choose fewer, or set replacement"
        )
    p, at, left = np.exp(log_p), np.arange(len(labels)), usable.copy()
    total, chosen, scores = np.zeros(log_p.shape[1:]), [], []
    for s in range(1, size + 1):
        losses = {}
        for m in np.flatnonzero(left):
            joined = total + p[m]
            with np.errstate(divide="ignore"):
                nll = -np.log(joined[at, labels] / s).mean()
            error = np.mean(joined.argmax(1) != labels)
            losses[m] = (nll, error) if by == "nll" else (error, nll)
        m = min(losses, key=losses.__getitem__)  # the first of equal ones
        total += p[m]
        left[m] = replacement
        chosen.append(m)
        scores.append(losses[m][0] if by == "nll" else 1 - losses[m][0])
    return Greedy(np.array(chosen), np.array(scores), np.array(len(log_p)))
