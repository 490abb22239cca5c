"""The member that is best on each class, used where that class is predicted."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.combining import _pool

BY = ("nll", "accuracy")


class Winners(NamedTuple):
    """The winner of each class."""

    members: Any  # [K]
    scores: Any  # [M, K], NLL in nats or accuracy on each class; NaN without examples
    examples: Any  # [K], held-out examples of each class
    usable: Any  # [M], members that make the mixture which says whose turn it is

    @property
    def shares(self) -> np.ndarray:
        """On how many classes each member is used, over K, [M]."""
        return np.bincount(self.members, minlength=len(self.usable)) / len(self.members)

    def __call__(self, log_p: Any) -> np.ndarray:
        """Log-probabilities of the winner of each example's class, [M, B, K] -> [1, B, K]."""
        log_p = _pool.applied(log_p, len(self.usable))
        top = _pool.mixture(log_p[np.asarray(self.usable)]).argmax(1)
        return log_p[np.asarray(self.members)[top], np.arange(len(top))][None]


def winners(log_p: ArrayLike, labels: ArrayLike, by: str = "accuracy") -> Winners:
    """p(y | x) = p_{w(k)}(y | x), k = argmax of the mixture of all members for x.

    w(k) is the member with the best accuracy (or NLL) on the held-out examples of class k. Which of
    several symmetries wins a class is what multi-symmetry ensembles look at (Loh et al. 2023); that
    the mixture says whose class it is, where labels are unknown, is our form.

    A class without held-out examples is that of the member with the best score on all of them.
    Equal members by accuracy are compared by their NLL on the class; then the first wins. The
    accuracy of a class is its recall: it favours members that predict a class too often, and the
    NLL does not.

    Args:
      log_p: [M, B, K] log-probabilities of the members for held-out examples.
      labels: [B] integers.
      by: 'accuracy' or 'nll', on each class.

    Raises:
      ValueError: see `_pool.checked`; an unknown `by`.
    """
    log_p, labels, usable = _pool.checked(log_p, labels)
    if by not in BY:
        raise ValueError(f"by: {by!r}; one of {', '.join(map(repr, BY))}")
    M, _, K = log_p.shape
    right, nll = log_p.argmax(2) == labels, -_pool.of_labels(log_p, labels)
    scores, examples = np.full((M, K), np.nan), np.bincount(labels, minlength=K)
    order = np.flatnonzero(usable)

    def best(of: np.ndarray) -> int:
        error, loss = 1 - right[:, of].mean(1), nll[:, of].mean(1)
        keys = (loss, error) if by == "accuracy" else (error, loss)  # the last one first
        return order[np.lexsort([key[order] for key in keys])[0]]

    members = np.full(K, best(np.ones(len(labels), bool)))
    for k in np.flatnonzero(examples):
        of = labels == k
        members[k] = best(of)
        values = right[:, of].mean(1) if by == "accuracy" else nll[:, of].mean(1)
        scores[order, k] = values[order]
    return Winners(members, scores, examples, usable)
