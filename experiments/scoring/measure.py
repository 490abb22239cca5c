"""The metrics of a file of predictions, by the evaluators' functions, and what resamples need."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.evaluators import regression
from experiments.prediction import archive
from experiments.scoring import calibrate
from experiments.scoring.checks import checked, task_of
from experiments.scoring.collected import Collected
from experiments.scoring.files import File
from experiments.scoring.parts import Options, Part
from experiments.scoring.scored import Frame, Scored, Statistic, mean_of
from uncertainty.metrics import regression as of_targets
from uncertainty.metrics import resampling

LEVELS = (0.5, 0.9, 0.95)


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
            scored[0].statistics.append(mean_of(f"{group}/{name}", values))
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
    statistics = [mean_of(f"regression/{name}", values) for name, values in means.items()]
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
    made = {label: Collected(test, apply, bins, not independent) for label, apply in maps.items()}
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
