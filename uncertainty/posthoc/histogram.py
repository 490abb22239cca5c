"""Histogram binning of each class against the rest (Zadrozny & Elkan 2001), normalised.

q_k = f_k(p_k) / sum_j f_j(p_j),   f_k = the frequency of the class in p_k's bin
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.posthoc import _arrays

KINDS = ("mass", "width")


class Histogram(NamedTuple):
    """log p -> the normalised values of K step functions."""

    edges: Any  # [K, bins - 1], ascending; a value on an edge is in the upper bin
    values: Any  # [K, bins]

    def __call__(self, log_p: Any) -> Any:
        """Calibrated log-probabilities, [..., B, K]."""
        log_p = _arrays.as_floats(log_p)
        xp = _arrays.namespace(log_p)
        p = xp.exp(log_p)
        of_classes = zip(self.edges, self.values, strict=True)
        q = [
            xp.take(xp.asarray(values), xp.searchsorted(edges, p[..., k], side="right"))
            for k, (edges, values) in enumerate(of_classes)
        ]
        return _arrays.from_probabilities(xp.stack(q, -1))


def histogram(
    log_p: ArrayLike, labels: ArrayLike, bins: int = 15, kind: str = "mass", prior: float = 1.0
) -> Histogram:
    """The frequency of each class in bins of its probability.

        f = (labels + prior m) / (examples + prior)

    with m the mean probability in the bin, or its middle if it is empty: the model's own
    probability counts as `prior` examples, so that no class gets the probability 0.

    Args:
      log_p: [B, K] log-probabilities of held-out examples.
      labels: [B] integers.
      bins: their number.
      kind: 'mass', edges at quantiles of each class's probabilities; or 'width', at j / bins.
      prior: from 0.

    Raises:
      ValueError: wrong arrays (see `_arrays.checked`), fewer than 1 bin, an unknown kind, or a
        negative prior.
    """
    log_p, labels = _arrays.checked(log_p, labels)
    if bins < 1 or int(bins) != bins:
        raise ValueError(f"bins: {bins!r}; a whole number from 1 is expected")
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}; one of {', '.join(map(repr, KINDS))}")
    if not prior >= 0:
        raise ValueError(f"prior: {prior!r}; a number from 0 is expected")
    p, K = np.exp(log_p), log_p.shape[1]
    levels = np.arange(1, bins) / bins
    if kind == "mass":
        edges = np.quantile(p, levels, axis=0, method="inverted_cdf").T
    else:
        edges = np.tile(levels, (K, 1))
    values = np.empty((K, bins))
    for k in range(K):
        index = np.searchsorted(edges[k], p[:, k], side="right")
        count, total, right = (
            np.bincount(index, weights, bins) for weights in (None, p[:, k], labels == k)
        )
        limits = np.concatenate([[0.0], edges[k], [1.0]])
        middle = (limits[:-1] + limits[1:]) / 2
        own = np.where(count > 0, total / np.maximum(count, 1), middle)
        weight = count + prior
        values[k] = np.where(weight > 0, (right + prior * own) / np.maximum(weight, 1e-300), own)
    return Histogram(edges, values)
