"""Predictions beside the votes of many people on each example."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import require_normalised
from uncertainty import metrics

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor


def human(data: Data, entry: str = "human") -> Evaluator:
    """NLL and KL divergence of the mixture against the votes, and whether uncertainty agrees.

    With q the shares of the votes on an example and p the mixture's probabilities,

      human/nll         mean of -sum_k q_k log p_k
      human/kl          mean of sum_k q_k log(q_k / p_k): the NLL less the entropy of the votes
      human/entropy     mean entropy of the votes, the least possible NLL
      human/spearman    rank correlation of the entropies of p and q over examples
      human/auroc       AUROC of the entropy of p for the examples on which a tenth of the votes or
                        more are not for the most frequent class

    Args:
      data: a source's spec, with the votes as an entry.
      entry: its name, [B, K] numbers of votes.

    Raises:
      ValueError: examples without votes, votes that are negative or of other classes, or, when run,
        independent classes (the likelihood 'sigmoid').
    """

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        require_normalised(predict, "shares of votes")
        p = predict(data)
        q = shares(p.entries.get(entry), p.log_p.shape[-1], entry)
        yield from against(mixture(p.log_p), q).items()

    names = against(np.log(np.full((2, 2), 0.5)), np.eye(2))
    return Evaluator(run, "classification", set(names), reads("data", data))


def mixture(log_p: np.ndarray) -> np.ndarray:
    """log mean_m p_m, [M, B, K] -> [B, K] float64."""
    from scipy import special

    log_p = log_p.astype(np.float64)
    return special.logsumexp(log_p, axis=0) - np.log(len(log_p))


def shares(votes: Any, classes: int, entry: str) -> np.ndarray:
    """Votes [B, K] divided by their number.

    Raises:
      ValueError: see `human`.
    """
    if votes is None:
        raise ValueError(f"entry: the data have no entry {entry!r}; name it in their `entries`")
    votes = np.asarray(votes, np.float64)
    if votes.ndim != 2 or votes.shape[1] != classes:
        raise ValueError(f"entry: {entry!r} is {votes.shape}; votes for {classes} classes needed")
    if not (votes >= 0).all() or not (votes.sum(1) > 0).all():
        raise ValueError(f"entry: {entry!r} has negative votes, or examples without any")
    return votes / votes.sum(1, keepdims=True)


def against(log_p: np.ndarray, q: np.ndarray) -> dict[str, float]:
    """The metrics of `human` for log p [B, K] and shares q [B, K]; without rank metrics if one of
    the entropies does not vary."""
    from scipy import special, stats

    p = np.exp(log_p)
    nll = -np.sum(np.where(q > 0, q * log_p, 0.0), axis=1)
    of_q, of_p = special.entr(q).sum(1), special.entr(p).sum(1)
    values = dict(nll=nll.mean(), kl=(nll - of_q).mean(), entropy=of_q.mean())
    unsure = q.max(1) <= 0.9
    values["spearman"] = stats.spearmanr(of_p, of_q).statistic if np.ptp(of_p) > 0 else np.nan
    values["auroc"] = (
        metrics.ranking(of_p[~unsure], of_p[unsure])["auroc"]
        if 0 < unsure.sum() < len(q)
        else np.nan
    )
    return {f"human/{name}": float(value) for name, value in values.items()}
