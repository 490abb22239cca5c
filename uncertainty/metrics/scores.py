"""Out-of-distribution scores, one per example: the higher, the more out of distribution."""

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics import _arrays, information
from uncertainty.metrics.information import entropy, mutual_information

__all__ = [
    "dempster_shafer",
    "entropy",
    "epistemic_variance",
    "max_logit",
    "max_probability",
    "mutual_information",
    "ood_scores",
    "probability_std",
]


def max_probability(log_p: ArrayLike) -> np.ndarray:
    """1 - max_k p_k of the mixture of log_p [M, B, K], [B] (Hendrycks & Gimpel, 2017).

    Computed as the mean over members of 1 - p, so that confident examples do not tie at p = 1.
    """
    log_p, none = _arrays.checked(log_p)
    score = np.empty(log_p.shape[1])

    def chunk(s: slice, x: np.ndarray, _: np.ndarray) -> int:
        at = _arrays.places(_arrays.predictions(x), x.shape[2])
        score[s] = -np.expm1(_arrays.at_labels(x, at)).mean(0)
        return 0

    _arrays.over(chunk, log_p, none)
    return score


def probability_std(log_p: ArrayLike) -> np.ndarray:
    """Standard deviation of p_mk over members, mean over classes, [M, B, K] -> [B].

    The "model disagreement" of D'Angelo & Fortuin 2021, "Repulsive deep ensembles are Bayesian",
    with M instead of M - 1 in the variance, which changes no ranking or ratio.
    """
    log_p, none = _arrays.checked(log_p)
    score = np.empty(log_p.shape[1])

    def chunk(s: slice, x: np.ndarray, _: np.ndarray) -> int:
        score[s] = np.exp(x, dtype=np.float64).std(0).mean(-1)
        return 0

    _arrays.over(chunk, log_p, none)
    return score


def max_logit(logits: ArrayLike) -> np.ndarray:
    """-max_k mean_m u_mk of the members' logits [M, B, K], [B] (Hendrycks et al., 2022).

    Raises:
      ValueError: a wrong shape, NaN.
    """
    return -_logits(logits).mean(0, dtype=np.float64).max(1)


def dempster_shafer(logits: ArrayLike) -> np.ndarray:
    """The mean over members of K / (K + sum_k exp(u_mk)), [M, B, K] -> [B] (Sensoy et al. 2018).

    In (0, 1): 1 if no class has evidence. A score of SNGP in Liu et al. 2020. Evaluators use the
    latents' means, without `mean_field`.

    Raises:
      ValueError: a wrong shape, NaN.
    """
    from scipy import special  # 0.1 s

    logits = _logits(logits)
    K = logits.shape[-1]
    return special.expit(np.log(K) - special.logsumexp(logits, axis=-1)).mean(0)


def epistemic_variance(variance: ArrayLike) -> np.ndarray:
    """The mean over members and classes of the latents' variance [M, B, K or 1], [B].

    Raises:
      ValueError: a wrong shape, NaN, a negative variance.
    """
    variance = _logits(variance, "variance")
    if variance.min() < 0:
        raise ValueError(f"variance: {variance.min()} is negative")
    return variance.mean((0, 2), dtype=np.float64)


def _logits(array: ArrayLike, field: str = "logits") -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(
            f"{field}: [members, examples, classes] is expected, none 0; got {array.shape}"
        )
    if np.isnan(array).any():
        raise ValueError(f"{field}: NaN at example {np.isnan(array).any((0, 2)).argmax()}")
    return array


def ood_scores(
    log_p: ArrayLike,
    logits: ArrayLike | None = None,
    variance: ArrayLike | None = None,
    normalised: bool = True,
) -> dict[str, np.ndarray]:
    """Every score by its name: log_p [M, B, K] -> [B].

    `max_logit` and `dempster_shafer` need logits [M, B, K], `epistemic_variance` a variance of the
    latents [M, B, K or 1], `mutual_information` and `probability_std` M > 1. With normalised=False
    entropies are sums over independent classes, see `evaluate_classification`.
    """
    log_p, _ = _arrays.checked(log_p)
    total, expected = information.entropies(log_p, normalised)
    scores = {"max_probability": max_probability(log_p), "entropy": total}
    if len(log_p) > 1:
        scores["mutual_information"] = np.maximum(total - expected, 0.0)
        scores["probability_std"] = probability_std(log_p)
    if logits is not None:
        scores["max_logit"] = max_logit(logits)
        scores["dempster_shafer"] = dempster_shafer(logits)
    if variance is not None:
        scores["epistemic_variance"] = epistemic_variance(variance)
    return scores
