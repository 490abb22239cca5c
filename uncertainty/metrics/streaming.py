"""Metrics of data seen in parts, exact: only what follows from sums over examples.

    acc = streaming.init(members=10, classes=10)
    for log_p, labels in batches:
        acc = streaming.update(acc, log_p, labels)
    streaming.result(acc)  # {'classification/accuracy': ..., ...}

`merge` joins accumulators of different parts, in any order, with the result of one pass over all of
them, up to the rounding of float64 sums. Equal-mass bins, risk-coverage and ranking need all
examples at once: see `evaluate_classification` and `ranking`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics import _arrays
from uncertainty.metrics.calibration import gap, width_sums
from uncertainty.metrics.classification import murphy, squared_error
from uncertainty.metrics.information import disagreements, divergences


class Accumulator(NamedTuple):
    """Sums over the examples seen so far."""

    members: int
    examples: int
    correct: float
    nll: float
    member_nll: float
    brier: float
    entropy: float
    expected_entropy: float
    disagreement: float
    pairwise_kl: float
    bins: np.ndarray  # [3, bins]: number, confidence and right answers
    class_bins: np.ndarray  # [3, K, bins]: number, probability and labels of each class


def init(members: int, classes: int, bins: int = 15) -> Accumulator:
    """The accumulator of no examples."""
    for name, value in (("members", members), ("classes", classes)):
        if value < 1:
            raise ValueError(f"{name}: at least 1 is expected; got {value}")
    bins = _arrays.checked_bins(bins)
    sums = np.zeros((3, bins)), np.zeros((3, classes, bins))
    return Accumulator(members, 0, 0, 0, 0, 0, 0, 0, 0, 0, *sums)


def update(
    acc: Accumulator, log_p: ArrayLike, labels: ArrayLike, normalised: bool = True
) -> Accumulator:
    """Adds the examples log_p [M, B, K] with labels [B].

    Args:
      acc: of the previous examples.
      log_p, labels, normalised: as in `evaluate_classification`.

    Raises:
      ValueError: see `evaluate_classification`; or another number of members or classes than in
        `init`.
    """
    log_p, labels = _arrays.checked(log_p, labels)
    expected, got = (acc.members, acc.class_bins.shape[1]), (len(log_p), log_p.shape[2])
    if got != expected:
        raise ValueError(
            f"log_p: {expected[0]} members and {expected[1]} classes are expected; got "
            f"{got[0]} and {got[1]}"
        )
    return merge(acc, tally(log_p, labels, acc.bins.shape[1], normalised)[0])


def merge(a: Accumulator, b: Accumulator) -> Accumulator:
    """The accumulator of the examples of both.

    Raises:
      ValueError: different numbers of members, classes or bins.
    """
    shapes = [(x.members, *x.class_bins.shape[1:]) for x in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"members, classes, bins: {shapes[0]} and {shapes[1]} do not match")
    pairs: Any = zip(a[1:], b[1:], strict=True)  # of numbers or of arrays
    return Accumulator(a.members, *(x + y for x, y in pairs))


def result(acc: Accumulator) -> dict[str, float]:
    """Metrics of all examples, under the names of `evaluate_classification`."""
    B, K = acc.examples, acc.class_bins.shape[1]
    if not B:
        raise ValueError("acc: no examples have been seen")
    _, confidence, right = acc.bins
    _, probability, label = acc.class_bins
    parts = murphy(acc.class_bins)
    values = {
        "classification/accuracy": acc.correct / B,
        "classification/nll": acc.nll / B,
        "classification/member_nll": acc.member_nll / B,
        "classification/brier": acc.brier / B,
        "calibration/ece": gap(confidence, right, B),
        "calibration/ece_classwise": gap(probability, label, B) / K,
        **{f"calibration/brier_{name}": value for name, value in parts.items()},
        "uncertainty/entropy": acc.entropy / B,
    }
    if acc.members > 1:
        information = max(acc.entropy - acc.expected_entropy, 0.0)
        values |= {
            "uncertainty/mutual_information": information / B,
            "uncertainty/disagreement": acc.disagreement / B,
            "uncertainty/pairwise_kl": max(acc.pairwise_kl, 0.0) / B,
        }
    return {name: np.float64(value) for name, value in values.items()}


def tally(
    log_p: np.ndarray, labels: np.ndarray, bins: int, normalised: bool = True
) -> tuple[Accumulator, np.ndarray, np.ndarray]:
    """The accumulator of checked arrays; confidence and correctness [B] of each example.

    With `normalised`, probabilities that do not sum to 1 are refused; without, see
    `evaluate_classification`.

    One pass with one exponentiation: every metric uses a chunk while it is in the cache.
    """
    M, B, K = log_p.shape
    confidence, correct = np.empty(B), np.empty(B, bool)

    def chunk(s: slice, x: np.ndarray, y: np.ndarray) -> Accumulator:
        members, p, log_q, q = _arrays.mixture(x)
        at = _arrays.places(y, K)
        at_label = of_label = _arrays.at_labels(x, at)
        if normalised:
            _arrays.check_sums(p, s.start)
            whole, log_p_label = (x, members, p, log_q, q), _arrays.log_mean_exp(at_label)
        else:
            each = _arrays.events(x)
            whole, of_label = (each, *_arrays.mixture(each)), _arrays.of_one_class(each, y)
            log_p_label = _arrays.of_one_class(_arrays.log_mean_exp(each), y)
        index = _arrays.argmax(x[0] if M == 1 else q)
        right = correct[s] = index == y
        top = confidence[s] = q.ravel().take(_arrays.places(index, K))
        entropy = -_arrays.inner(whole[4], whole[3])
        return Accumulator(
            members=M,
            examples=len(y),
            correct=int(np.count_nonzero(right)),
            nll=0.0 - log_p_label.sum(),
            member_nll=0.0 - of_label.sum() / M,
            entropy=entropy,
            expected_entropy=entropy if M == 1 else -_arrays.inner(whole[2], whole[1]) / M,
            disagreement=0.0 if M == 1 else disagreements(x),
            pairwise_kl=0.0 if M == 1 else divergences(*whole[:3], whole[4]),
            bins=width_sums(top, right, bins),
            class_bins=_arrays.bin_classes(q, at, bins),
            brier=squared_error(q, at_label, at),  # last, as it overwrites q
        )

    return _arrays.over(chunk, log_p, labels, merge), confidence, correct
