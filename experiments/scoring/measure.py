"""The metrics of a file of predictions, by the evaluators' functions, and what resamples need."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.prediction import archive
from experiments.scoring import calibrate
from experiments.scoring.checks import checked, task_of
from experiments.scoring.collected import Collected
from experiments.scoring.collected_targets import CollectedTargets
from experiments.scoring.files import File
from experiments.scoring.parts import Options, Part
from experiments.scoring.scored import Frame, Scored, Statistic
from experiments.scoring.sets import Sets, rules


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
      conformal: methods as `sets.rules` takes them, of the predictions as they are.
      alpha: the share of labels that their sets may miss.
      cross_fit: whether to fit methods on halves of the test set if there is no validation set.
      seed: of the halves.

    Raises:
      ValueError: wrong values, see `checks.checked`; methods with nothing to be fitted on, or of
        another task.
    """
    notes: list[str] = list(file.notes)
    task = task_of(file)
    chosen = rules(conformal, alpha) if conformal else []
    for flag, each in (("--posthoc", methods), ("--conformal", chosen)):
        for one in each:
            if one.task != task:
                kinds = {"classification": "classes", "regression": "targets"}
                raise ValueError(
                    f"{file.path}: {flag}: {one.name!r} is for {kinds[one.task]}, and these are "
                    f"predictions of {kinds[task]}"
                )
    test = checked(file, archive.TEST, options, notes, labels=labels)
    validation, said = None, []
    if archive.VALIDATION in file.sets and (methods or chosen):
        validation = checked(file, archive.VALIDATION, options, said, test=test)
        notes += _of_set(archive.VALIDATION, said, notes)
    if (methods or chosen) and validation is None and not cross_fit:
        flag = "--posthoc" if methods else "--conformal"
        raise ValueError(
            f"{file.path}: {flag}: there is no set `validation` to fit on; with --cross-fit "
            "each half of the test set is calibrated by a fit on the other"
        )
    if line := calibrate.noted([m.label for m in (*methods, *chosen)], validation):
        notes.append(line)
    maps: dict[str, Callable[[Part], Part]] = {label: lambda part: part}
    for method in methods:
        maps[f"{label} + {method.label}"] = calibrate.fitted(method, test, validation, seed, notes)
    sets = Sets(chosen, alpha, test, validation, seed) if chosen else None
    notes += sets.notes if sets else []
    scored = _measured(file, maps, sets, options, test, notes, bins)
    if sets:
        metrics, arrays, statistics = sets.results()
        scored[0].metrics.update(metrics)
        scored[0].arrays.update(arrays)
        scored[0].statistics.extend(statistics)
    return scored


def _measured(
    file: File,
    maps: Mapping[str, Callable[[Part], Part]],
    conformal: Sets | None,
    options: Options,
    test: Part,
    notes: list[str],
    bins: int,
) -> list[Scored]:
    """The scores of each map of the predictions; each set is read once."""
    task = task_of(file)
    independent = options.independent or file.metadata.get("normalised") is False
    made: dict[str, Any] = {
        label: Collected(test, apply, bins, not independent)
        if task == "classification"
        else CollectedTargets(test, apply)
        for label, apply in maps.items()
    }
    sets = {archive.TEST: _noted(file, test)}
    order = [name for name in file.sets if name not in (archive.TEST, archive.VALIDATION)]
    order.sort(key=lambda name: name != archive.INSIDE)
    corrupted = [name for name in order if name.startswith("corruption/")]
    for name in order:
        said: list[str] = []
        part = checked(file, name, options, said, test=test)
        for each in made.values():
            try:
                each.add(part)
            except ValueError as error:
                raise ValueError(f"{file.path}: {error}") from error
        if conformal and name in corrupted:
            conformal.add(part)
        sets[name.replace("/", ".", 1)] = _noted(file, part)
        notes += _of_set(name, said, notes)
    if corrupted:
        notes.append(f"corruption: {len(corrupted)} set{'s' * (len(corrupted) > 1)}")
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
