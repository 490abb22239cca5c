"""Out-of-distribution scores, one per example: the higher, the more out of distribution."""

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics import _arrays, information
from uncertainty.metrics.information import entropy, mutual_information

__all__ = ["entropy", "max_logit", "max_probability", "mutual_information", "ood_scores"]


def max_probability(log_p: ArrayLike) -> np.ndarray:
    """1 - max_k p_k of the mixture of log_p [M, B, K], [B] (Hendrycks & Gimpel, 2017).

    Computed as the mean over members of 1 - p, so confident examples do not tie at p = 1.
    """
    log_p, none = _arrays.checked(log_p)
    score = np.empty(log_p.shape[1])

    def chunk(s: slice, x: np.ndarray, _: np.ndarray) -> int:
        at = _arrays.places(_arrays.predictions(x), x.shape[2])
        score[s] = -np.expm1(_arrays.at_labels(x, at)).mean(0)
        return 0

    _arrays.over(chunk, log_p, none)
    return score


def max_logit(logits: ArrayLike) -> np.ndarray:
    """-max_k mean_m u_mk of the members' logits [M, B, K], [B] (Hendrycks et al., 2022).

    Raises:
      ValueError: a wrong shape, NaN.
    """
    logits = np.asarray(logits)
    if logits.ndim != 3 or 0 in logits.shape:
        raise ValueError(
            f"logits: [members, examples, classes] is expected, none 0; got {logits.shape}"
        )
    score = -logits.mean(0, dtype=np.float64).max(1)
    if np.isnan(score.min()):
        raise ValueError(f"logits: NaN at example {np.isnan(score).argmax()}")
    return score


def ood_scores(log_p: ArrayLike, logits: ArrayLike | None = None) -> dict[str, np.ndarray]:
    """Every score by its name: log_p [M, B, K] -> [B].

    `max_logit` where there are logits [M, B, K], `mutual_information` where M > 1.
    """
    log_p, _ = _arrays.checked(log_p)
    total, expected = information.entropies(log_p)
    scores = {"max_probability": max_probability(log_p), "entropy": total}
    if len(log_p) > 1:
        scores["mutual_information"] = np.maximum(total - expected, 0.0)
    if logits is not None:
        scores["max_logit"] = max_logit(logits)
    return scores
