"""The metrics of a file of predictions, by the evaluators' functions, and what resamples need."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluators import calibration, classification, corruption, ood, regression
from experiments.prediction import archive
from experiments.prediction.predictions import Summary, merged, summary
from experiments.runtime import keys
from experiments.scoring import calibrate
from experiments.scoring.checks import checked, task_of
from experiments.scoring.files import File
from experiments.scoring.parts import Options, Part
from uncertainty.metrics import regression as of_targets
from uncertainty.metrics import resampling
from uncertainty.metrics.classification import briers

LEVELS = (0.5, 0.9, 0.95)
RANKED = "entropy"  # the OOD score that gets intervals, beside those of one's own


class Statistic(NamedTuple):
    """Metrics as functions of resamples."""

    frames: tuple[str, ...]  # whose examples are drawn
    values: Callable[..., Mapping[str, np.ndarray]]  # weights [R, B] of each -> key -> [R]


class Frame(NamedTuple):
    """Examples that are drawn together: a set, with the sets of the same examples."""

    examples: int
    y: np.ndarray | None
    group: np.ndarray | None


class Scored(NamedTuple):
    """The scores of a file, by itself or after a post-hoc method."""

    label: str
    plain: str  # the label of the file without post-hoc methods
    file: str
    task: str
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]
    statistics: list[Statistic]
    frames: dict[str, Frame]
    sets: dict[str, dict[str, Any]]  # as in sets.json: path -> name, examples, digest
    metadata: Mapping[str, Any]
    notes: tuple[str, ...]


def score(
    file: File,
    label: str,
    options: Options,
    *,
    bins: int = 15,
    labels: Mapping[str, np.ndarray] | None = None,
    methods: Sequence[calibrate.Method] = (),
    conformal: Sequence[str] = (),
    alpha: float = 0.1,
    cross_fit: bool = False,
    seed: int = 0,
) -> list[Scored]:
    """The scores of a file, and of it after each post-hoc method.

    Args:
      file: of predictions.
      label: in tables.
      options: how predictions are read.
      bins: of the calibration errors.
      labels: `y` and `group` for a file without.
      methods: post-hoc methods.
      conformal: methods of `uncertainty/conformal`, of the predictions as they are.
      alpha: the share of labels that their sets may miss.
      cross_fit: whether to fit methods on halves of the test set if there is no validation set.
      seed: of the halves.

    Raises:
      ValueError: wrong values, see `checks.checked`; methods with nothing to be fitted on.
    """
    notes: list[str] = list(file.notes)
    task = task_of(file)
    test = checked(file, archive.TEST, options, notes, labels=labels)
    if task == "regression":
        if methods or conformal:
            flag = "--posthoc" if methods else "--conformal"
            raise ValueError(f"{file.path}: {flag}: the methods are of classes, not regression")
        others = [name for name in file.sets if name != archive.TEST]
        notes += [f"sets that are not read in regression: {', '.join(others)}"] * bool(others)
        return [_regression(file, label, test, notes)]
    validation, said = None, []
    if archive.VALIDATION in file.sets and (methods or conformal):
        validation = checked(file, archive.VALIDATION, options, said, test=test)
        notes += _of_set(archive.VALIDATION, said, notes)
    if (methods or conformal) and validation is None and not cross_fit:
        flag = "--posthoc" if methods else "--conformal"
        raise ValueError(
            f"{file.path}: {flag}: there is no set `validation` to fit on; with --cross-fit "
            "each half of the test set is calibrated by a fit on the other"
        )
    if line := calibrate.noted([*(m.label for m in methods), *conformal], validation):
        notes.append(line)
    maps = {label: lambda part: part}
    for method in methods:
        maps[f"{label} + {method.label}"] = calibrate.fitted(method, test, validation, seed)
    scored = _classes(file, maps, options, test, notes, bins)
    for sets in calibrate.conformal(conformal, alpha, test, validation, seed) if conformal else ():
        group = f"conformal/{sets.label}"
        scored[0].metrics.update({f"{group}/{k}": v for k, v in sets.metrics.items()})
        hits = sets.chosen[np.arange(test.examples), test.y]
        for name, values in (("coverage", hits), ("size", sets.chosen.sum(1))):
            scored[0].statistics.append(_mean(f"{group}/{name}", values))
    return scored


def _regression(file: File, label: str, test: Part, notes: list[str]) -> Scored:
    items = list(regression.measured(test.mean, test.variance, test.y))
    if test.x is not None:
        items.append(("test/x", test.x))
    at = test.mean, test.variance, test.y
    distance = 2 * np.abs(of_targets.pit(*at) - 0.5)  # inside the central interval of a level above
    means = {
        "nll": of_targets.nlls(*at),
        "member_nll": np.mean([of_targets.nlls(*of) for of in _members(test)], axis=0),
        "crps": of_targets.crps_of_targets(*at).mean(1),
        **{f"coverage_{level:g}": (distance <= level).mean(1) for level in LEVELS},
    }
    root = resampling.root_mean(((test.mean.mean(0) - test.y) ** 2).mean(1))
    error = resampling.coverage_error(distance, np.arange(1, 20) / 20)
    statistics = [_mean(f"regression/{name}", values) for name, values in means.items()]
    statistics += [
        Statistic((archive.TEST,), lambda w: {"regression/rmse": root(w)}),
        Statistic((archive.TEST,), lambda w: {"regression/calibration": error(w)}),
    ]
    frames = {archive.TEST: Frame(test.examples, test.y, test.group)}
    sets = {archive.TEST: _noted(file, test)}
    return _scored(file, label, label, sets, notes, items, statistics, frames)


def _members(part: Part) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for mean, variance in zip(part.mean, part.variance, strict=True):
        yield mean[None], variance[None], part.y


def _classes(
    file: File,
    maps: Mapping[str, Callable[[Part], Part]],
    options: Options,
    test: Part,
    notes: list[str],
    bins: int,
) -> list[Scored]:
    """The scores of each map of the predictions; each set is read once."""
    independent = options.independent or file.metadata.get("normalised") is False
    made = {label: _Classes(test, apply, bins, not independent) for label, apply in maps.items()}
    sets = {archive.TEST: _noted(file, test)}
    skipped = [name for name in file.sets if name.partition("/")[0] not in ("ood", "corruption")]
    order = [archive.INSIDE] * (archive.INSIDE in file.sets)
    order += [name for name in file.sets if name not in skipped]
    corrupted = [name for name in order if name.startswith("corruption/")]
    for name in order:
        said: list[str] = []
        part = checked(file, name, options, said, test=test)
        for each in made.values():
            each.add(part)
        sets[name.replace("/", ".", 1)] = _noted(file, part)
        notes += _of_set(name, said, notes)
    if corrupted:
        notes.append(f"corruption: {len(corrupted)} sets")
    return [
        _scored(
            file, label, next(iter(maps)), sets, notes + each.notes(), *each.results(), each.frames
        )
        for label, each in made.items()
    ]


def _of_set(name: str, said: Sequence[str], notes: Sequence[str]) -> list[str]:
    """What is said of a further set: its size, and what differs from what was said before."""

    def kind(line: str) -> str:
        return re.sub(r"[\d,]+ examples?", "", line)

    known = {kind(note.removeprefix(f"{note.partition(': ')[0]}: ")) for note in notes}
    known |= {kind(note) for note in notes}
    new = [f"{name}: {line}" for line in said if kind(line) not in known]
    if new or name.startswith("corruption/"):
        return new
    (size,) = re.findall(r"[\d,]+ examples?", said[0])
    return [f"{name}: {size}"]


def _scored(
    file: File,
    label: str,
    plain: str,
    sets: dict[str, dict[str, Any]],
    notes: Sequence[str],
    items: Iterable[tuple[str, Any]],
    statistics: list[Statistic],
    frames: dict[str, Frame],
) -> Scored:
    """Scores of the numbers and arrays that evaluators yield."""
    items = list(items)
    return Scored(
        label=label,
        plain=plain,
        file=str(file.path),
        task=task_of(file),
        metrics={k: float(v) for k, v in items if not isinstance(v, np.ndarray)},
        arrays={k: v for k, v in items if isinstance(v, np.ndarray)},
        statistics=statistics,
        frames=frames,
        sets=sets,
        metadata=file.metadata,
        notes=tuple(notes),
    )


class _Classes:
    """Collects the scores of the sets of a file after a map."""

    def __init__(self, test: Part, apply: Callable[[Part], Part], bins: int, normalised: bool):
        self.apply, self.bins, self.normalised = apply, bins, normalised
        self.part = test
        self.frames = {archive.TEST: Frame(test.examples, test.y, test.group)}
        self.test = self.inside = self._summary(test)
        self.of_inside = archive.TEST
        self.statistics = self._of_test(apply(test))
        self.corrupted: list[tuple[str, str, Summary]] = []
        self.nlls: list[np.ndarray] = []
        self.others: list[tuple[str, Any]] = []

    def _summary(self, part: Part, scores: bool = True) -> Summary:
        part = self.apply(part)
        ends = np.cumsum(part.batches or (part.examples,))
        parts = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            s = slice(start, end)
            latents = [None if a is None else a[:, s] for a in (part.logits, part.epistemic)]
            y = None if part.y is None else part.y[s]
            options = dict(bins=self.bins, scores=scores, normalised=self.normalised)
            parts.append(summary(part.log_p[:, s], y, *latents, **options))
        whole = merged(parts)
        return whole._replace(scores=whole.scores | dict(part.scores))

    def _of_test(self, test: Part) -> list[Statistic]:
        p = self.test
        ece = resampling.ece(p.confidence, p.correct, self.bins)
        aurc = resampling.aurc(p.confidence, p.correct)
        return [
            _mean("classification/accuracy", p.correct),
            _mean("classification/nll", -p.examples["log_p_label"].astype(np.float64)),
            _mean("classification/brier", briers(test.log_p, test.y)),
            Statistic((archive.TEST,), lambda w: {"calibration/ece": ece(w)}),
            Statistic((archive.TEST,), lambda w: {"selective/aurc": aurc(w)}),
        ]

    def add(self, part: Part) -> None:
        """A further set: in-distribution, out of distribution, or corrupted."""
        kind, *names = keys.split(part.name)
        if kind == "corruption":
            self._corrupted(part, *names)
            return
        self.frames[part.name] = Frame(part.examples, part.y if kind != "ood" else None, part.group)
        if part.name == archive.INSIDE:
            self.inside, self.of_inside = self._summary(part), part.name
            return
        outside = self._summary(part)
        name = "/".join(names)
        lacking = sorted(outside.scores.keys() ^ self.inside.scores.keys())
        if lacking:
            raise ValueError(
                f"{part.name}: the score {lacking[0]} is in one of it and the "
                f"{self.of_inside} set alone"
            )
        self.others += ood.measured(name, self.inside, outside)
        frames = self.of_inside, part.name
        for score in {RANKED, *self.part.scores} & outside.scores.keys():
            both = self.inside.scores[score], outside.scores[score]
            self.statistics.append(_ranking(frames, name, score, *both))

    def _corrupted(self, part: Part, kind: str, severity: str) -> None:
        of = self._summary(part)
        self.corrupted.append((kind, severity, of._replace(examples={}, scores={})))
        if calibrate.same_examples(part, self.part):
            self.nlls.append(-of.examples["log_p_label"].astype(np.float64))

    def results(
        self,
    ) -> tuple[list[tuple[str, Any]], list[Statistic]]:
        """Numbers and arrays by name, and statistics."""
        p = self.test
        items = list(classification.measured(p))
        if len(p.correct) >= 2 * self.bins:  # which the debiased error needs
            log_p = self.apply(self.part).log_p
            items += calibration.measured(log_p, self.part.y, p.confidence, p.correct, self.bins)
        if self.part.x is not None:
            items.append(("test/x", self.part.x))
        items += self.others
        statistics = self.statistics
        if self.corrupted:
            items += corruption.measured(self.corrupted)
            if len(self.nlls) == len(self.corrupted):
                statistics = statistics + self._of_corruption()
        return items, statistics

    def _of_corruption(self) -> list[Statistic]:
        """The means over sets of the same examples as the test set's."""
        correct = np.mean([of.correct for *_, of in self.corrupted], axis=0)
        gaps = [resampling.ece(of.confidence, of.correct, self.bins) for *_, of in self.corrupted]
        return [
            _mean("corruption/accuracy", correct),
            _mean("corruption/nll", np.mean(self.nlls, axis=0)),
            Statistic(
                (archive.TEST,),
                lambda w: {"corruption/ece": np.mean([gap(w) for gap in gaps], axis=0)},
            ),
        ]

    def notes(self) -> list[str]:
        """What makes a number infinite."""
        log_p = self.test.examples["log_p_label"]
        zeros = int(np.isneginf(log_p).sum())
        if not zeros:
            return []
        finite = log_p[np.isfinite(log_p)]
        others = f"; over the others it is {-finite.mean(dtype=np.float64):.4f}" * bool(len(finite))
        return [
            f"the label has the probability 0 in {zeros:,} of {len(log_p):,} examples, so the NLL "
            f"is infinite{others} (--floor 1e-6 raises such probabilities)"
        ]


def _ranking(
    frames: tuple[str, ...], name: str, score: str, inside: np.ndarray, outside: np.ndarray
) -> Statistic:
    of = resampling.ranking(inside, outside)

    def values(w_in: np.ndarray, w_out: np.ndarray) -> dict[str, np.ndarray]:
        return {
            keys.join("ood", name, f"{metric}_{score}"): value
            for metric, value in of(w_in, w_out).items()
        }

    return Statistic(frames, values)


def _mean(key: str, values: np.ndarray) -> Statistic:
    of = resampling.mean(values)
    return Statistic((archive.TEST,), lambda w: {key: of(w)})


def _noted(file: File, part: Part) -> dict[str, Any]:
    """Name, number of examples and identity of a set: equal where labels and data are."""
    about = file.metadata.get("sets", {}).get(part.name, {})
    digest = hashlib.sha256(str(part.examples).encode())
    if part.y is not None:
        digest.update(np.ascontiguousarray(part.y, np.float64).tobytes())
    return dict(
        name=str(about.get("name", part.name)),
        examples=part.examples,
        digest=digest.hexdigest()[:16],
        data=str(about.get("digest", "")),
    )
