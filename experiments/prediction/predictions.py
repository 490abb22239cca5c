"""Types of predictions for a data set, and functions that join their parts."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.data.source import Source
from uncertainty import metrics
from uncertainty.metrics import streaming


class Predictions(NamedTuple):
    """The members' predictions for every example of a source, on the host."""

    y: np.ndarray  # [B] or [B, K]
    mean: np.ndarray  # of the latents, or of y in regression, [M, B, K]
    log_p: np.ndarray | None  # [M, B, K], for classes
    variance: np.ndarray | None  # of y, [M, B, K], in regression
    latent_variance: np.ndarray | None  # marginal variance of the latents, [M, B, K]
    epistemic: np.ndarray | None  # its epistemic part, [M, B, 1 or K]
    source: Source
    seconds: float  # of computing, without compilation
    entries: Mapping[str, np.ndarray] = MappingProxyType({})  # other than x and y, [B, ...]
    run: np.ndarray | None = None  # the run of each member, if there are several, [M]


class Summary(NamedTuple):
    """The inputs of classification metrics for a data set: sums, and arrays [B] per example."""

    tally: streaming.Accumulator | None  # None if labels are unused
    confidence: np.ndarray
    correct: np.ndarray
    examples: dict[str, np.ndarray]  # `metrics.per_example`
    scores: dict[str, np.ndarray]  # `metrics.ood_scores`
    seconds: float = 0.0


def summary(
    log_p: np.ndarray,
    y: np.ndarray | None = None,
    logits: np.ndarray | None = None,
    epistemic: np.ndarray | None = None,
    *,
    bins: int = 15,
    scores: bool = True,
    normalised: bool = True,
    seconds: float = 0.0,
) -> Summary:
    """The summary of predictions, of whatever origin.

    Args:
      log_p: [M, B, K] log-probabilities of each member.
      y: [B] integers, or None without labels.
      logits, epistemic: [M, B, K], for the scores that need them, see `metrics.ood_scores`.
      bins: of the calibration errors.
      scores: whether to add `metrics.ood_scores` and `metrics.per_example`.
      normalised: whether rows of probabilities have to sum to 1, see
        `metrics.evaluate_classification`.
      seconds: of computing the predictions.

    Raises:
      ValueError: see `metrics.evaluate_classification`.
    """
    none = np.zeros(0)
    sums = (None, none, none) if y is None else streaming.tally(log_p, y, bins, normalised)
    examples = metrics.per_example(log_p, y, normalised) if scores else {}
    of_ood = metrics.ood_scores(log_p, logits, epistemic, normalised) if scores else {}
    return Summary(*sums, examples, of_ood, seconds)


def merged(parts: Sequence[Summary]) -> Summary:
    """The summary of a data set from those of its parts, in order."""
    tallies = [part.tally for part in parts]
    return Summary(
        tally=None if tallies[0] is None else functools.reduce(streaming.merge, tallies),
        confidence=np.concatenate([part.confidence for part in parts]),
        correct=np.concatenate([part.correct for part in parts]),
        examples={k: np.concatenate([p.examples[k] for p in parts]) for k in parts[0].examples},
        scores={k: np.concatenate([p.scores[k] for p in parts]) for k in parts[0].scores},
        seconds=sum(part.seconds for part in parts),
    )


class Features(NamedTuple):
    """Features phi(x) of a whole source, and the source's own labels."""

    phi: np.ndarray  # [B, P M D] float32
    y: np.ndarray  # [B]


class Sown(NamedTuple):
    """Arrays that layers store in a collection for one batch."""

    y: np.ndarray  # labels, without padding
    arrays: dict[str, np.ndarray]  # by path, [P S, ...], with the rows of padding too


ARRAYS = ("mean", "log_p", "variance", "latent_variance", "epistemic")  # [M, B, K]


def side_by_side(outs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the members of several runs; an array that a run lacks is 0, see `Latent`."""
    if len(outs) == 1:
        return dict(outs[0])
    joined = {}
    for name in (name for name in ARRAYS if any(name in out for out in outs)):
        width = max(out[name].shape[-1] for out in outs if name in out)
        joined[name] = np.concatenate(
            [
                np.broadcast_to(out.get(name, np.float32(0)), (*out["mean"].shape[:2], width))
                for out in outs
            ]
        )
    return joined


def joined(parts: Sequence[Predictions], source: Source) -> Predictions:
    """Joins the predictions of the parts of a source, in order."""

    def array(name: str) -> np.ndarray | None:
        each = [part._asdict()[name] for part in parts]
        return None if each[0] is None else np.concatenate(each, axis=1)

    return Predictions(
        np.concatenate([part.y for part in parts]),
        *map(array, ARRAYS),
        source=source,
        seconds=sum(part.seconds for part in parts),
        entries={k: np.concatenate([p.entries[k] for p in parts]) for k in parts[0].entries},
        run=parts[0].run,
    )
