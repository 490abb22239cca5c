"""The scores of real-valued targets, collected set by set."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.evaluators import ood, regression
from experiments.prediction import archive
from experiments.runtime import keys
from experiments.scoring.calibrate import same_examples
from experiments.scoring.parts import Part
from experiments.scoring.scored import Frame, Statistic, mean_of, name_of, rankings
from uncertainty.metrics import regression as metrics
from uncertainty.metrics import resampling

LEVELS = (0.5, 0.9, 0.95)
FAR = 5.0  # a ratio of errors to predicted standard deviations that is spoken of
SHOWN = ("nll", "rmse", "crps", "coverage_0.9")  # of corrupted sets
RANKED = "predictive_variance"  # the OOD score that gets intervals, beside those of one's own


class CollectedTargets:
    """Collects the scores of the sets of a file after a map."""

    def __init__(self, test: Part, apply: Callable[[Part], Part]):
        self.apply, self.part = apply, test
        self.frames = {archive.TEST: Frame(test.examples, test.y, test.group)}
        self.corrupted: list[tuple[tuple[str, ...], dict[str, float], dict | None]] = []
        self.inside: Mapping[str, np.ndarray] | None = None  # OOD scores
        self.of_inside = archive.TEST
        self.others: list[tuple[str, Any]] = []
        self.of_others: list[Statistic] = []

    def add(self, part: Part) -> None:
        """A further set: in-distribution, out of distribution, or corrupted."""
        kind, *names = keys.split(part.name)
        if kind == "corruption":
            self._corrupted(part, *names)
            return
        self.frames[part.name] = Frame(part.examples, part.y if kind != "ood" else None, part.group)
        scores = self._scores(part)
        if part.name == archive.INSIDE:
            self.inside, self.of_inside = scores, part.name
            return
        if self.inside is None:
            self.inside = self._scores(self.part)
        frames, name = (self.of_inside, part.name), name_of(part.name)
        chosen = (RANKED, *self.part.scores)
        self.of_others += rankings(frames, self.inside, scores, chosen)
        for metric, value in ood.ranks_of(self.inside, scores).items():
            self.others.append((keys.join("ood", name, metric), value))
        self.others += self._arrays(("ood", name), scores)

    def _scores(self, part: Part) -> dict[str, np.ndarray]:
        p = self.apply(part)
        return metrics.ood_scores(p.mean, p.variance, ood.scale_of(self.part.y)) | dict(p.scores)

    def _arrays(
        self, place: tuple[str, ...], scores: Mapping[str, np.ndarray]
    ) -> list[tuple[str, Any]]:
        """The scores for figures, which those of one's own are not."""
        own = self.part.scores
        return [(keys.join(*place, key), v) for key, v in scores.items() if key not in own]

    def _corrupted(self, part: Part, *names: str) -> None:
        p = self.apply(part)
        every = dict(regression.measured(p.mean, p.variance, p.y))
        values = {name: float(every[f"regression/{name}"]) for name in SHOWN}
        of_test = same_examples(part, self.part)
        self.corrupted.append((names, values, _examples(p) if of_test else None))

    def results(self) -> tuple[list[tuple[str, Any]], list[Statistic]]:
        """Numbers and arrays by name, and statistics."""
        p = self.apply(self.part)
        items = list(regression.measured(p.mean, p.variance, p.y))
        if p.x is not None:
            items.append(("test/x", p.x))
        statistics = _statistics("regression", [_examples(p)])
        error = resampling.coverage_error(_distance(p), np.arange(1, 20) / 20)
        members = [
            metrics.nlls(mean[None], variance[None], p.y)
            for mean, variance in zip(p.mean, p.variance, strict=True)
        ]
        statistics += [
            mean_of("regression/member_nll", np.mean(members, axis=0)),
            Statistic((archive.TEST,), lambda w: {"regression/calibration": error(w)}),
            *self.of_others,
        ]
        items += self.others
        if self.others and self.inside is not None:
            items += self._arrays((self.of_inside,), self.inside)
        for names, values, _ in self.corrupted:
            items += [(keys.join("corruption", *names, k), v) for k, v in values.items()]
        if self.corrupted:
            for name in SHOWN:
                mean = float(np.mean([values[name] for _, values, _ in self.corrupted]))
                items.append((f"corruption/{name}", mean))
            each = [examples for *_, examples in self.corrupted]
            if all(examples is not None for examples in each):
                statistics += _statistics("corruption", each, SHOWN)
        return items, statistics

    def notes(self) -> list[str]:
        """Standardised errors that are far from 1, as of another unit or a standard deviation."""
        p = self.apply(self.part)
        total = p.variance.mean(0) + p.mean.var(0)
        ratio = float(np.sqrt(np.mean((p.y - p.mean.mean(0)) ** 2 / total)))
        if 1 / FAR <= ratio <= FAR:
            return []
        return [
            f"targets are {ratio:.2g} predicted standard deviations away from the mean, where 1 is "
            "calibrated: are mean and variance in the unit of y and its square?"
        ]


def _distance(p: Part) -> np.ndarray:
    """|2 F(y) - 1|: y is inside the central interval of any level above it, [B, K]."""
    return 2 * np.abs(metrics.pit(p.mean, p.variance, p.y) - 0.5)


def _examples(p: Part) -> dict[str, np.ndarray]:
    """The numbers of each example of which metrics are means (of `rmse` the root), [B]."""
    distance = _distance(p)
    return {
        "nll": metrics.nlls(p.mean, p.variance, p.y),
        "crps": metrics.crps_of_targets(p.mean, p.variance, p.y).mean(1),
        "rmse": ((p.mean.mean(0) - p.y) ** 2).mean(1),
        **{f"coverage_{level:g}": (distance <= level).mean(1) for level in LEVELS},
    }


def _statistics(group: str, each: list[dict], names: tuple[str, ...] | None = None) -> list:
    """Of the means over sets of the same examples."""
    statistics = []
    for name in names or each[0]:
        key, values = f"{group}/{name}", [examples[name] for examples in each]
        if name != "rmse":
            statistics.append(mean_of(key, np.mean(values, axis=0)))
            continue
        roots = [resampling.root_mean(value) for value in values]

        def mean_root(w: np.ndarray, key: str = key, roots: list = roots) -> dict:
            return {key: np.mean([root(w) for root in roots], axis=0)}

        statistics.append(Statistic((archive.TEST,), mean_root))
    return statistics
