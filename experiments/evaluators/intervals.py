"""Conformal intervals of targets: coverage and width, in groups too."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.conformal import groups_of, unbounded
from experiments.evaluators.posthoc import calibration_data, check_held_out
from experiments.evaluators.regression import moments_of
from experiments.prediction import fitted
from experiments.prediction.predictions import Predictions
from experiments.runtime import keys
from uncertainty.conformal.cqr import cqr
from uncertainty.conformal.split import split
from uncertainty.metrics import regression
from uncertainty.metrics.sets import coverage_range, coverage_within

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

METHODS = ("predicted", "split", "scaled", "cqr")


def intervals(
    data: Data,
    fit: Data,
    methods: Sequence[str] = METHODS,
    alpha: float = 0.1,
    groups: str | None = None,
    by_group: bool = False,
) -> Evaluator:
    """Coverage and mean width, in the stored units of y, of central intervals of 1 - alpha.

    `intervals/<method>/` coverage, width, expected_low and expected_high (between which the
    coverage of a valid method lies with a probability of 95 %, for one target), unbounded (the
    share of thresholds that are infinite, as too few examples calibrate them); with `groups`
    worst_group_coverage.

      predicted  the mixture's own interval, which nothing calibrates
      split      the mixture's mean and one width for all
      scaled     the same in units of the mixture's standard deviation
      cqr        the mixture's quantiles, both moved by one number

    Args:
      data: the test source's spec.
      fit: the spec of the labelled examples that calibrate; neither training nor test examples.
      methods: of these.
      alpha: the share of targets that the intervals may miss, for each target.
      groups: the entry of the data set with the group of an example, an integer from 0.
      by_group: whether each group is calibrated alone (Mondrian).

    Raises:
      ValueError: an unknown method, a wrong alpha, `by_group` without groups, or examples that are
        not held out.
    """
    check_methods(methods, METHODS)
    check_fields(alpha, groups, by_group)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        held_out = calibration_data(predict, fit, data)
        given, y, of_groups = _predicted(held_out)
        by = dict(by="group", groups=of_groups) if by_group else {}
        predictors = {name: fit_interval(name, given, y, alpha, **by) for name in methods}
        p = predict(data)
        new, y, of_groups = _predicted(p)
        own = dict(groups=of_groups) if by_group else {}
        low, high = coverage_range(len(held_out.y), len(y), alpha)
        for name, predictor in predictors.items():
            if predictor is not None:
                kind = "cqr" if name == "cqr" else "split"
                spec = dict(name=kind, alpha=alpha, by="group" if by_group else "none")
                yield from fitted.arrays_of("conformal", name, spec, predictor)
                infinite = unbounded(predictor, of_groups)
                yield keys.join("intervals", name, "unbounded"), float(infinite)
            ends = ends_of(name, predictor, new, **own)
            for metric, value in measured(*ends, y, of_groups).items():
                yield keys.join("intervals", name, metric), value
            if name != "predicted" and not by_group and y.shape[1] == 1:
                yield keys.join("intervals", name, "expected_low"), float(low)
                yield keys.join("intervals", name, "expected_high"), float(high)

    def _predicted(p: Predictions) -> tuple[dict[str, np.ndarray], np.ndarray, Any]:
        mean, variance, y = moments_of(p, "intervals")
        return given_of(mean, variance, alpha, methods), y, groups_of(p, groups)

    def check(source: Source) -> None:
        check_held_out(source, fit)

    names = ["coverage", "width", "expected_low", "expected_high", "unbounded"]
    names += ["worst_group_coverage"] if groups is not None else []
    yields = {keys.join("intervals", method, name) for method in methods for name in names}
    return Evaluator(
        run, "regression", yields, reads("data", data) + reads("fit", fit, reported=False), check
    )


def check_methods(methods: Sequence[str], valid: Sequence[str]) -> None:
    """Raises ValueError unless `methods` is a list of some of the valid ones."""
    if isinstance(methods, str) or not methods or not set(methods) <= set(valid):
        raise ValueError(f"methods: {methods!r}; some of {', '.join(map(repr, valid))}")


def check_fields(alpha: float, groups: str | None, by_group: bool) -> None:
    """Raises ValueError for a wrong alpha, or groups that are missing."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha!r}; the share of misses, between 0 and 1, is expected")
    if by_group and groups is None:
        raise ValueError("by_group: true needs `groups`, the entry with the groups")


def given_of(
    mean: np.ndarray, variance: np.ndarray, alpha: float, methods: Sequence[str]
) -> dict[str, np.ndarray]:
    """What methods start from: the mixture's mean, standard deviation and quantiles, [B, K] each.

    Args:
      mean, variance: of the members, [M, B, K].
      alpha: the quantiles are those at alpha / 2 and 1 - alpha / 2.
      methods: which need them.
    """
    total = variance.mean(0) + mean.var(0)
    values = dict(mean=mean.mean(0), std=np.sqrt(total))
    if {"predicted", "cqr"} & set(methods):
        values["low"] = regression.quantile(mean, variance, alpha / 2)
        values["high"] = regression.quantile(mean, variance, 1 - alpha / 2)
    return values


# The arguments of each method, of those in `given_of`.
ARGUMENTS = {"split": ("mean",), "scaled": ("mean", "std"), "cqr": ("low", "high")}


def fit_interval(
    name: str, given: Mapping[str, np.ndarray], y: np.ndarray, alpha: float, **by: Any
) -> Any:
    """The predictor of a method, calibrated by y [B, K]; None for 'predicted', which has none."""
    if name == "predicted":
        return None
    first, *scale = (given[key] for key in ARGUMENTS[name])
    if name == "cqr":
        return cqr(first, *scale, y, alpha=alpha, **by)
    return split(first, y, *scale, alpha=alpha, **by)


def ends_of(
    name: str, predictor: Any, given: Mapping[str, np.ndarray], **own: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a method's intervals, [B, K] each."""
    if predictor is None:
        return given["low"], given["high"]
    return predictor(*(given[key] for key in ARGUMENTS[name]), **own)


def measured(
    low: np.ndarray, high: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """Coverage and width of intervals [B, K]; with groups [B] the lowest coverage of a group."""
    hit = (low <= y) & (y <= high)
    values = dict(coverage=float(hit.mean()), width=float(np.mean(high - low)))
    if groups is not None:
        worst = min(coverage_within(column, groups).min() for column in hit.T)
        values["worst_group_coverage"] = float(worst)
    return values
