"""Conformal intervals of targets: coverage and width, in groups too."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.conformal import groups_of
from experiments.evaluators.posthoc import calibration_data, check_held_out
from experiments.evaluators.regression import as_stored
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
    coverage of a valid method lies with a probability of 95 %, for one target); with `groups`
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
    if isinstance(methods, str) or not methods or not set(methods) <= set(METHODS):
        raise ValueError(f"methods: {methods!r}; some of {', '.join(map(repr, METHODS))}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha!r}; the share of misses, between 0 and 1, is expected")
    if by_group and groups is None:
        raise ValueError("by_group: true needs `groups`, the entry with the groups")

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        held_out = calibration_data(predict, fit, data)
        if held_out.variance is None:
            raise ValueError("intervals: the likelihood is for classes")
        given, y, of_groups = _predicted(held_out)
        by = dict(by="group", groups=of_groups) if by_group else {}
        fits = {
            "split": lambda: split(given["mean"], y, alpha=alpha, **by),
            "scaled": lambda: split(given["mean"], y, given["std"], alpha=alpha, **by),
            "cqr": lambda: cqr(given["low"], given["high"], y, alpha=alpha, **by),
        }
        predictors = {name: fits[name]() for name in methods if name in fits}
        p = predict(data)
        new, y, of_groups = _predicted(p)
        own = dict(groups=of_groups) if by_group else {}
        low, high = coverage_range(len(held_out.y), len(y), alpha)
        for name in methods:
            if name in predictors:
                kind = "cqr" if name == "cqr" else "split"
                spec = dict(name=kind, alpha=alpha, by="group" if by_group else "none")
                yield from fitted.arrays_of("conformal", name, spec, predictors[name])
            ends = {
                "predicted": lambda f: (new["low"], new["high"]),
                "split": lambda f: f(new["mean"], **own),
                "scaled": lambda f: f(new["mean"], new["std"], **own),
                "cqr": lambda f: f(new["low"], new["high"], **own),
            }[name](predictors.get(name))
            hit = (ends[0] <= y) & (y <= ends[1])
            yield keys.join("intervals", name, "coverage"), float(hit.mean())
            yield keys.join("intervals", name, "width"), float(np.mean(ends[1] - ends[0]))
            if of_groups is not None:
                worst = min(coverage_within(column, of_groups).min() for column in hit.T)
                yield keys.join("intervals", name, "worst_group_coverage"), float(worst)
            if name != "predicted" and not by_group and y.shape[1] == 1:
                yield keys.join("intervals", name, "expected_low"), float(low)
                yield keys.join("intervals", name, "expected_high"), float(high)

    def _predicted(p: Predictions) -> tuple[dict[str, np.ndarray], np.ndarray, Any]:
        """The mixture's mean, standard deviation and quantiles, and y, [B, K]; groups."""
        y = p.y[:, None] if p.y.ndim == 1 else p.y
        mean, variance, y = as_stored(p.source, p.mean, p.variance, y)
        total = variance.mean(0) + mean.astype(np.float64).var(0)
        values = dict(mean=np.asarray(mean, np.float64).mean(0), std=np.sqrt(total))
        if {"predicted", "cqr"} & set(methods):
            values["low"] = regression.quantile(mean, variance, alpha / 2)
            values["high"] = regression.quantile(mean, variance, 1 - alpha / 2)
        return values, np.asarray(y, np.float64), groups_of(p, groups)

    def check(source: Source) -> None:
        check_held_out(source, fit)

    names = ["coverage", "width", "expected_low", "expected_high"]
    names += ["worst_group_coverage"] if groups is not None else []
    yields = {keys.join("intervals", method, name) for method in methods for name in names}
    return Evaluator(run, "regression", yields, reads("data", data) + reads("fit", fit), check)
