"""Calibration and selective prediction in detail: without bins, by class and group, rejection."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import check_bins
from experiments.runtime import keys
from uncertainty.metrics import calibration as errors
from uncertainty.metrics import selective
from uncertainty.metrics.smooth import smooth_ece

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

RISKS = (0.01, 0.05)
OF_GROUP = ("examples", "accuracy", "overconfidence", "ece")


def calibration(
    data: Data,
    bins: int = 15,
    groups: str | None = None,
    risks: Sequence[float] = RISKS,
    classes: bool = True,
    resamples: int = 200,
    level: float = 0.95,
) -> Evaluator:
    """Metrics beyond those of the evaluator `classification`, of the mixture over members.

    `calibration/`: smooth_ece, debiased_error (root mean squared), ece_adaptive, mce and mce_mass;
    with `classes` also `calibration/class/<name>/ece` with ece_low and ece_high, and with `groups`
    `calibration/group/<number>/` examples, accuracy, overconfidence, ece, and their extremes
    `calibration/worst_group_ece` and `calibration/worst_group_accuracy`. `selective/`: augrc, and
    coverage_at_<risk>_error for each risk, such as coverage_at_0.01_error. Arrays for plots:
    `calibration/rejected` and `calibration/accuracy_of_rest`.

    Args:
      data: the test source's spec.
      bins: of all binned errors.
      groups: the entry of the data set with the group of an example, an integer.
      risks: error rates of `metrics.selective.coverage_at_risk`.
      classes: whether to give the error of each class, with a bootstrap interval.
      resamples: of the bootstrap.
      level: of its intervals.

    Raises:
      ValueError: fewer than one bin, a risk or level out of range, or too few resamples.
    """
    check_bins(bins)
    if any(not 0 <= risk <= 1 for risk in risks):
        raise ValueError(f"risks: {risks!r}; error rates from 0 to 1")
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(f"resamples, level: {resamples!r}, {level!r}; at least 2, and in (0, 1)")

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        p = predict(data)
        log_p, y = p.log_p, p.y
        summary = predict.summary(p.source)
        confidence, correct = np.asarray(summary.confidence), np.asarray(summary.correct, bool)
        yield from measured(log_p, y, confidence, correct, bins, risks)
        if classes:
            of_class = errors.classwise(log_p, y, bins)
            low, high = errors.classwise_intervals(log_p, y, bins, level, resamples)
            names = p.source.class_names or tuple(map(str, range(len(of_class))))
            for k, name in enumerate(names):
                each = dict(ece=of_class[k], ece_low=low[k], ece_high=high[k])
                for metric, value in each.items():
                    yield keys.join("calibration", "class", name, metric), float(value)
        if groups is not None:
            if groups not in p.entries:
                raise ValueError(
                    f"groups: {p.source.title} has no entry {groups!r}; it has {[*p.entries]}"
                )
            found = errors.by_group(confidence, correct, np.asarray(p.entries[groups]), bins)
            for group, values in found.items():
                for metric in OF_GROUP:
                    yield f"calibration/group/{group}/{metric}", values[metric]
            yield "calibration/worst_group_ece", max(v["ece"] for v in found.values())
            yield "calibration/worst_group_accuracy", min(v["accuracy"] for v in found.values())

    names = ("smooth_ece", "debiased_error", "ece_adaptive", "mce", "mce_mass")
    yields = {f"calibration/{name}" for name in names} | {"selective/augrc"}
    yields |= {f"selective/coverage_at_{risk:g}_error" for risk in risks}
    if classes:
        yields |= {f"calibration/class/*/{name}" for name in ("ece", "ece_low", "ece_high")}
    if groups is not None:
        yields |= {f"calibration/group/*/{name}" for name in OF_GROUP}
        yields |= {f"calibration/worst_group_{name}" for name in ("ece", "accuracy")}
    return Evaluator(run, "classification", yields, reads("data", data))


def measured(
    log_p: np.ndarray,
    y: np.ndarray,
    confidence: np.ndarray,
    correct: np.ndarray,
    bins: int = 15,
    risks: Sequence[float] = RISKS,
) -> Iterator[tuple[str, Any]]:
    """The metrics and arrays of predictions log_p [M, B, K], without those of classes and groups.

    Args:
      log_p, y: predictions and labels [B].
      confidence, correct: of the mixture, [B].
      bins, risks: as in `calibration`.
    """
    yield "calibration/smooth_ece", smooth_ece(confidence, correct)
    yield "calibration/debiased_error", errors.debiased_error(confidence, correct, bins)
    yield "calibration/ece_adaptive", errors.adaptive_ece(log_p, y, bins)
    yield "calibration/mce", errors.mce(confidence, correct, bins)
    yield "calibration/mce_mass", errors.mce(confidence, correct, bins, "mass")
    yield "selective/augrc", selective.augrc(confidence, correct)
    for risk in risks:
        value = selective.coverage_at_risk(confidence, correct, risk)
        yield f"selective/coverage_at_{risk:g}_error", value
    rejected, accuracy = selective.accuracy_rejection(confidence, correct)
    yield "calibration/rejected", rejected
    yield "calibration/accuracy_of_rest", accuracy
