"""Conformal sets, intervals and regions of predictions in files, also where they are corrupted."""

import pkgutil
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluators import conformal as of_classes
from experiments.evaluators import intervals as of_targets
from experiments.evaluators import regions as of_regions
from experiments.runtime import keys
from experiments.scoring.calibrate import folds, same_examples
from experiments.scoring.parts import Part
from experiments.scoring.scored import Statistic, mean_of
from uncertainty import conformal
from uncertainty.conformal.regions import regions
from uncertainty.metrics.sets import coverage_range, coverage_within, evaluate_sets
from uncertainty.specs import nearest, resolve, signature

BY = ("group", "class")
REGIONS = ("box", "directional")


class Rule(NamedTuple):
    """A conformal method, and whether each group or class is calibrated alone (Mondrian)."""

    name: str
    by: str = "none"

    @property
    def label(self) -> str:
        """In the names of metrics."""
        return self.name + f"_by_{self.by}" * (self.by != "none")

    @property
    def task(self) -> str:
        of_target = self.name in (*of_targets.METHODS, *REGIONS)
        return "regression" if of_target else "classification"


def rules(names: Sequence[str], alpha: float) -> list[Rule]:
    """The rules of 'lac' or 'class:lac'.

    Args:
      names: of them, as they are given to --conformal.
      alpha: the share of labels that sets may miss.

    Raises:
      ValueError: an unknown method, one that is named twice, or a wrong alpha.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"--alpha: {alpha}; the share of misses, between 0 and 1, is expected")
    found = []
    for word in names:
        by, colon, name = word.rpartition(":")
        if colon and by not in BY:
            raise ValueError(f"--conformal: {word!r}; NAME, group:NAME or class:NAME")
        rule = Rule(name, by or "none")
        if rule.task == "classification":
            valid = [*_names_of_classes(), *of_targets.METHODS, *REGIONS]
            if name not in valid:
                raise ValueError(f"--conformal: no method {name!r}; {nearest(name, valid)}")
        elif rule.by == "class" or (rule.by != "none" and name == "predicted"):
            raise ValueError(f"--conformal: {word!r}; {name!r} is not calibrated by {rule.by}")
        found.append(rule)
    if len(set(found)) < len(found):
        raise ValueError(f"--conformal: {','.join(names)!r} names a method twice")
    return found


def _names_of_classes() -> list[str]:
    files = [m.name for m in pkgutil.iter_modules(conformal.__path__) if m.name[0] != "_"]
    return [f for f in files if "log_p" in signature(resolve("conformal", f, "--conformal"))[0]]


class _Classes:
    """Sets of classes, from the mixture's log-probabilities: chosen [B, K]."""

    group, size = "conformal", "size"

    def __init__(self, rule: Rule, alpha: float):
        spec = dict(name=rule.name, by=rule.by)
        (self.spec,) = of_classes.labelled([spec], alpha, "group").values()
        self.alpha = alpha

    def given(self, part: Part) -> np.ndarray:
        return of_classes.mixture(part.log_p)

    def fit(self, part: Part, u: np.ndarray, groups: Any) -> Any:
        field = "--conformal"
        return of_classes.fit_sets(self.spec, self.given(part), part.y, u, groups, field)

    def apply(self, predictor: Any, part: Part, u: np.ndarray, groups: Any) -> tuple:
        return (predictor(self.given(part), u=u, groups=groups),)

    def measured(self, made: tuple, part: Part, groups: Any) -> dict[str, float]:
        return evaluate_sets(*made, part.y, self.alpha, groups)

    def examples(self, made: tuple, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Hits and sizes, [B] each."""
        (chosen,) = made
        return chosen[np.arange(part.examples), part.y], chosen.sum(1)

    def single(self, part: Part) -> bool:
        """Whether an example is one hit or miss."""
        return True


class _Intervals:
    """Intervals of each target: their ends, [B, K] each."""

    group, size = "intervals", "width"

    def __init__(self, rule: Rule, alpha: float):
        self.rule, self.alpha = rule, alpha

    def given(self, part: Part) -> dict[str, np.ndarray]:
        return of_targets.given_of(part.mean, part.variance, self.alpha, [self.rule.name])

    def fit(self, part: Part, u: np.ndarray, groups: Any) -> Any:
        by = {} if groups is None else dict(by="group", groups=groups)
        return of_targets.fit_interval(self.rule.name, self.given(part), part.y, self.alpha, **by)

    def apply(self, predictor: Any, part: Part, u: np.ndarray, groups: Any) -> tuple:
        own = {} if groups is None or self.rule.by == "none" else dict(groups=groups)
        return of_targets.ends_of(self.rule.name, predictor, self.given(part), **own)

    def measured(self, made: tuple, part: Part, groups: Any) -> dict[str, float]:
        return of_targets.measured(*made, part.y, groups)

    def examples(self, made: tuple, part: Part) -> tuple[np.ndarray, np.ndarray]:
        low, high = made
        return ((low <= part.y) & (part.y <= high)).mean(1), (high - low).mean(1)

    def single(self, part: Part) -> bool:
        return part.y.shape[1] == 1


class _Regions:
    """Regions of several targets: whether y is inside, and the volume, [B]; their bounds [B, D]."""

    group, size = "regions", "volume"

    def __init__(self, rule: Rule, alpha: float):
        self.rule, self.alpha = rule, alpha

    def given(self, part: Part) -> tuple[of_regions.Standard, np.ndarray, np.ndarray]:
        p = of_regions.standard_of(part.mean, part.variance, part.y)
        K = p.y.shape[1]
        v = of_regions.directions_of(self.rule.name, _count(K), K)
        return p, v, of_regions.lows(p, v, self.alpha)

    def fit(self, part: Part, u: np.ndarray, groups: Any) -> Any:
        if part.y.shape[1] < 2:
            raise ValueError(f"--conformal {self.rule.name}: for several outputs, and y has one")
        p, v, low = self.given(part)
        by = {} if groups is None else dict(by="group", groups=groups)
        return regions(low, v, p.y, self.alpha, **by)

    def apply(self, predictor: Any, part: Part, u: np.ndarray, groups: Any) -> tuple:
        p, v, low = self.given(part)
        low = predictor(low, groups=groups) if self.rule.by != "none" else predictor(low)
        return (p.y @ v.T >= low - 1e-12).all(-1), of_regions.volumes_of(v, low, p), low

    def measured(self, made: tuple, part: Part, groups: Any) -> dict[str, float]:
        inside, volume, _ = made
        values = dict(coverage=float(inside.mean()), volume=float(volume.mean()))
        if groups is not None:
            worst = coverage_within(inside, groups).min()
            values["worst_group_coverage"] = float(worst)
        return values

    def examples(self, made: tuple, part: Part) -> tuple[np.ndarray, np.ndarray]:
        return made[0], made[1]

    def single(self, part: Part) -> bool:
        return True


def _count(targets: int) -> int:
    """How many directions cut the regions of so many targets."""
    return max(16, 4 * targets)


def _kind(rule: Rule, alpha: float) -> Any:
    if rule.task == "classification":
        return _Classes(rule, alpha)
    return (_Regions if rule.name in REGIONS else _Intervals)(rule, alpha)


class Sets:
    """Collects the coverage and size of the sets of several rules, set of data by set of data.

    Thresholds are those of the validation set, or of each half of the test set for the other. On
    corrupted sets these are the same ones: they promise nothing there, and what they cover is what
    is reported, as means over the kinds of corruption of a severity.

    Attributes:
      notes: what has to be said of them.
    """

    def __init__(
        self, chosen: Sequence[Rule], alpha: float, test: Part, validation: Part | None, seed: int
    ):
        """Calibrates.

        Args:
          chosen: of `rules`, all of the task of the predictions.
          alpha: the share of labels that the sets may miss.
          test: the test set.
          validation: held-out examples; None to calibrate on halves of the test set.
          seed: of the halves, and of the draws of randomised methods.

        Raises:
          ValueError: wrong values, or rules by groups without groups that the two sets share.
        """
        self.alpha, self.seed, self.test, self.validation = alpha, seed, test, validation
        self.notes: list[str] = []
        self.names = None
        if any(rule.by == "group" for rule in chosen):
            self.names = self._known_groups()
        rng = np.random.default_rng((seed, 3))
        self.u = rng.random(test.examples)
        self.folds = folds(test, validation, seed)
        self.fits: list[tuple[Rule, Any, list]] = []
        for rule in chosen:
            kind = _kind(rule, alpha)
            predictors = [
                kind.fit(fold.fit, rng.random(fold.fit.examples), self._codes(fold.fit, rule))
                for fold in self.folds
            ]
            self.fits.append((rule, kind, predictors))
        self.corrupted: dict[tuple[int, str], list[tuple[dict, tuple | None]]] = {}

    def _known_groups(self) -> np.ndarray:
        if self.validation is None:
            raise ValueError(
                "--conformal: group:NAME needs a set `validation` that has the groups of the test "
                "set, as --cross-fit keeps each group in one half"
            )
        for part in (self.validation, self.test):
            if part.group is None:
                raise ValueError(f"--conformal: group:NAME needs `group`, which {part.name} lacks")
        names, of_test = np.unique(self.validation.group), np.unique(self.test.group)
        unknown = [name for name in of_test.tolist() if name not in set(names.tolist())]
        if len(unknown) == len(of_test):
            raise ValueError(
                f"--conformal: group:NAME: the {len(of_test)} groups of the test set, such as "
                f"{unknown[0]!r}, are not those of the validation set, such as {names[0]!r}, so no "
                "threshold is theirs"
            )
        if unknown:
            self.notes.append(
                f"sets by group have everything in {len(unknown)} of {len(of_test)} groups of the "
                f"test set, such as {unknown[0]!r}, which the validation set lacks"
            )
        self.notes.append(
            "groups are taken as kinds of examples by group:NAME, and as dependent examples by the "
            "bootstrap: --unclustered if they are not dependent"
        )
        return names

    def _codes(self, part: Part, rule: Rule | None) -> np.ndarray | None:
        """Numbers of the groups of a set, [B]; None for rules without, or if nothing asks."""
        if self.names is None or (rule is not None and rule.by != "group") or part.group is None:
            return None
        place = np.minimum(np.searchsorted(self.names, part.group), len(self.names) - 1)
        return np.where(self.names[place] == part.group, place, len(self.names))

    def _made(self, part: Part) -> Iterator[tuple[Rule, Any, list, tuple]]:
        u = self.u
        if not same_examples(part, self.test):
            u = np.random.default_rng((self.seed, 4, zlib.crc32(part.name.encode())))
            u = u.random(part.examples)
        for rule, kind, predictors in self.fits:
            groups = self._codes(part, rule)
            if rule.by == "group" and groups is None:
                raise ValueError(f"--conformal: group:NAME needs `group`, which {part.name} lacks")
            each = [kind.apply(predictor, part, u, groups) for predictor in predictors]
            made = each[0]
            if len(each) == 2:
                first = self.folds[0].applies(part)
                made = tuple(
                    np.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b)
                    for a, b in zip(*each, strict=True)
                )
            yield rule, kind, predictors, made

    def add(self, part: Part) -> None:
        """A corrupted set."""
        _, _, severity = keys.split(part.name)
        of_test = same_examples(part, self.test)
        if of_test and part.group is None:
            part = part._replace(group=self.test.group)
        for i, (_, kind, _, made) in enumerate(self._made(part)):
            values = kind.measured(made, part, self._codes(part, None))
            examples = kind.examples(made, part) if of_test else None
            self.corrupted.setdefault((i, severity), []).append((values, examples))

    def results(self) -> tuple[dict[str, float], dict[str, np.ndarray], list[Statistic]]:
        """Metrics and arrays by name, and the statistics of coverage and size."""
        metrics: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {}
        statistics: list[Statistic] = []
        outlined: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for i, (rule, kind, predictors, made) in enumerate(self._made(self.test)):
            place = keys.join(kind.group, rule.label)
            values = kind.measured(made, self.test, self._codes(self.test, None))
            if predictors[0] is not None:
                infinite = [np.isinf(predictor.quantile).mean() for predictor in predictors]
                values["unbounded"] = float(np.mean(infinite))
                if self.validation is not None and rule.by == "none" and kind.single(self.test):
                    sizes = self.validation.examples, self.test.examples
                    low, high = coverage_range(*sizes, self.alpha)
                    values |= dict(expected_low=float(low), expected_high=float(high))
            metrics |= {f"{place}/{name}": value for name, value in values.items()}
            if isinstance(kind, _Regions):
                p, v, _ = kind.given(self.test)
                outlined[rule.label] = v, made[2]
            statistics += self._statistics(place, kind, [kind.examples(made, self.test)])
            for (of, severity), each in self.corrupted.items():
                if of != i:
                    continue
                at = f"{place}/{keys.join(f'severity_{severity}')}"
                for name in each[0][0]:
                    metrics[f"{at}/{name}"] = float(np.mean([v[name] for v, _ in each]))
                examples = [e for _, e in each]
                if all(e is not None for e in examples):
                    statistics += self._statistics(at, kind, examples)
        if outlined:
            arrays |= of_regions.drawn(outlined, p, _count(p.y.shape[1]), self.alpha)
        return metrics, arrays, statistics

    def _statistics(self, place: str, kind: Any, examples: Sequence[tuple]) -> Iterator[Statistic]:
        """Of coverage and size, means over sets of the same examples."""
        for name, values in zip(("coverage", kind.size), zip(*examples, strict=True), strict=True):
            yield mean_of(f"{place}/{name}", np.mean(np.asarray(values, np.float64), axis=0))
