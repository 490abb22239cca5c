"""Conformal regions of several targets: joint coverage and volume, beside those of boxes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.conformal import groups_of, unbounded
from experiments.evaluators.intervals import check_fields, check_methods
from experiments.evaluators.posthoc import calibration_data, check_held_out
from experiments.evaluators.regression import moments_of
from experiments.prediction import fitted
from experiments.runtime import keys
from uncertainty.conformal.regions import areas, outline, spread, volumes
from uncertainty.conformal.regions import regions as calibrated
from uncertainty.metrics import regression
from uncertainty.metrics.sets import coverage_range, coverage_within

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

METHODS = ("predicted", "box", "directional")
SHOWN = 3  # test examples whose regions are drawn
LEVELS = (0.5, 0.75)  # of half-spaces whose coverage is drawn, beside 1 - alpha / 2


def regions(
    data: Data,
    fit: Data,
    methods: Sequence[str] = METHODS,
    directions: int = 16,
    alpha: float = 0.1,
    groups: str | None = None,
    by_group: bool = False,
) -> Evaluator:
    """The share of examples all of whose targets lie in a region, and the mean volume of regions.

    `regions/<method>/` coverage, volume (the area of two targets, in the product of their stored
    units), expected_low and expected_high (between which the coverage of a valid method lies with
    a probability of 95 %), unbounded (the share of thresholds that are infinite, as too few
    examples calibrate them); with `groups` worst_group_coverage.

      directional  half-spaces in several directions, by `conformal.regions`
      box          the same in the directions of the axes alone: an interval of each target
      predicted    the half-spaces of the mixture's own quantiles, which nothing calibrates

    A direction is one of the targets less the mixture's mean in units of its standard deviation, so
    regions follow both and need no common unit. The quantiles are those at alpha / 2 of the
    mixture, as in conformalised quantile regression, which this is in one dimension.

    Arrays for the figures of the report are those of `drawn`.

    Args:
      data: the test source's spec, with several targets.
      fit: the spec of the labelled examples that calibrate; neither training nor test examples.
      methods: of these.
      directions: how many, `conformal.regions.spread`.
      alpha: the share of examples that the regions may miss.
      groups: the entry of the data set with the group of an example, an integer from 0.
      by_group: whether each group is calibrated alone (Mondrian).

    Raises:
      ValueError: an unknown method, a wrong alpha, `by_group` without groups, too few directions,
        data of a single target, or examples that are not held out.
    """
    check_methods(methods, METHODS)
    check_fields(alpha, groups, by_group)
    spread(directions)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        held_out, p = calibration_data(predict, fit, data), predict(data)
        of_fit, of_test = (standard_of(*moments_of(part, "regions")) for part in (held_out, p))
        own = dict(groups=groups_of(p, groups)) if by_group else {}
        by = dict(by="group", groups=groups_of(held_out, groups)) if by_group else {}
        expected = coverage_range(len(held_out.y), len(p.y), alpha)
        made = {}
        for name in methods:
            v = directions_of(name, directions, of_test.y.shape[1])
            low = lows(of_test, v, alpha)
            if name != "predicted":
                predictor = calibrated(lows(of_fit, v, alpha), v, of_fit.y, alpha, **by)
                spec = dict(name="regions", alpha=alpha, by="group" if by_group else "none")
                yield from fitted.arrays_of("conformal", name, spec, predictor)
                low = predictor(low, **own)
                infinite = unbounded(predictor, groups_of(p, groups))
                yield keys.join("regions", name, "unbounded"), float(infinite)
            made[name] = v, low
            for metric, value in measured(v, low, of_test, groups_of(p, groups)).items():
                yield keys.join("regions", name, metric), value
            if name != "predicted" and not by_group:
                for end, value in zip(("low", "high"), expected, strict=True):
                    yield keys.join("regions", name, f"expected_{end}"), float(value)
        yield from drawn(made, of_test, directions, alpha)

    def check(source: Source) -> None:
        if source.outputs < 2:
            raise ValueError(
                f"data: {source.name} has {source.outputs} target; regions are of several, and the "
                "evaluator `intervals` of one"
            )
        spread(directions, source.outputs)
        check_held_out(source, fit)

    names = ["coverage", "volume", "expected_low", "expected_high", "unbounded"]
    names += ["worst_group_coverage"] if groups is not None else []
    yields = {keys.join("regions", method, name) for method in methods for name in names}
    return Evaluator(
        run, "regression", yields, reads("data", data) + reads("fit", fit, reported=False), check
    )


class Standard(NamedTuple):
    """Targets and their mixture less its mean, in units of its standard deviation."""

    mean: np.ndarray  # [M, B, K] of the members
    variance: np.ndarray  # [M, B, K]
    y: np.ndarray  # [B, K]
    unit: np.ndarray  # [B, K], the standard deviation
    centre: np.ndarray  # [B, K], the mixture's mean


def standard_of(mean: np.ndarray, variance: np.ndarray, y: np.ndarray) -> Standard:
    """Of mean and variance [M, B, K] and y [B, K]."""
    centre, unit = mean.mean(0), np.sqrt(variance.mean(0) + mean.var(0))
    return Standard((mean - centre) / unit, variance / unit**2, (y - centre) / unit, unit, centre)


def directions_of(name: str, count: int, targets: int) -> np.ndarray:
    """The directions of a method, [D, K]."""
    if name == "box":
        return np.concatenate([np.eye(targets), -np.eye(targets)])
    return spread(count, targets)


def lows(p: Standard, directions: np.ndarray, alpha: float) -> np.ndarray:
    """The quantiles at alpha / 2 of v . y under the mixture, [B, D]."""
    return regression.quantile(p.mean @ directions.T, p.variance @ directions.T**2, alpha / 2)


def measured(
    directions: np.ndarray, low: np.ndarray, p: Standard, groups: np.ndarray | None = None
) -> dict[str, float]:
    """Coverage and mean volume of the regions v . y >= low, low [B, D], in the units of y."""
    hit = (p.y @ directions.T >= low - 1e-12).all(-1)
    values = dict(coverage=float(hit.mean()), volume=float(np.mean(volumes_of(directions, low, p))))
    if groups is not None:
        values["worst_group_coverage"] = float(coverage_within(hit, groups).min())
    return values


def volumes_of(directions: np.ndarray, low: np.ndarray, p: Standard) -> np.ndarray:
    """The volumes of the regions of all examples, [B]; infinite for those without a bound."""
    bounded = np.isfinite(low).all(-1)
    made = areas if p.y.shape[1] == 2 else volumes
    values = np.full(len(low), np.inf)
    values[bounded] = made(directions, low[bounded])
    return values * p.unit.prod(-1)


def drawn(
    made: Mapping[str, tuple[np.ndarray, np.ndarray]], p: Standard, count: int, alpha: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays for figures: regions of E examples, evenly spaced over the data, and half-spaces.

        regions/y, regions/mean       [E, 2], the first two targets and the mixture's mean
        regions/<method>/outline      [E, N, 2], corners, the first of them again up to N; NaN for a
                                      region that is empty or has no end
        regions/directions            [D, K]
        regions/levels                [L], the last is 1 - alpha / 2
        regions/covered               [D, L], the share of examples with v . y above the mixture's
                                      own quantile at 1 - level: the level, if it is calibrated
        regions/<method>/covered      [D'], the same of the region's half-spaces
        regions/examples              [], B

    Args:
      made: method -> its directions [D', K] and bounds [B, D'].
      p: the test examples.
      count: D.
      alpha: as of the regions.
    """
    some = np.unique(np.linspace(0, len(p.y) - 1, SHOWN).astype(int))
    unit, centre = p.unit[some, None, :2], p.centre[some, None, :2]
    yield "regions/y", (centre + unit * p.y[some, None, :2])[:, 0]
    yield "regions/mean", centre[:, 0]
    for name, (v, low) in made.items():
        corners = [
            outline(v, limits) if np.isfinite(limits).all() else np.zeros((0, 2))
            for limits in low[some]
        ]
        padded = np.full((len(some), max(map(len, corners)), 2), np.nan)
        for row, of in zip(padded, corners, strict=True):
            if len(of):
                row[: len(of)], row[len(of) :] = of, of[0]
        yield keys.join("regions", name, "outline"), centre + unit * padded
        yield keys.join("regions", name, "covered"), (p.y @ v.T >= low - 1e-12).mean(0)
    v = spread(count, p.y.shape[1])
    levels = np.array([*LEVELS, 1 - alpha / 2])
    below = regression.pit(p.mean @ v.T, p.variance @ v.T**2, p.y @ v.T)  # [B, D]
    yield "regions/directions", v
    yield "regions/levels", levels
    yield "regions/covered", (below[..., None] >= 1 - levels).mean(0)
    yield "regions/examples", np.array(len(p.y))
