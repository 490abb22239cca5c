"""The members of several files of predictions or runs, in one pool."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import evaluate
from experiments.experiment.exported import digest, export_all
from experiments.prediction import archive
from experiments.prediction.predictor import Predictor
from experiments.runtime import storage
from experiments.runtime.workdir import from_jsonable
from experiments.scoring.checks import checked, task_of
from experiments.scoring.files import File, read
from experiments.scoring.parts import Options, Part
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.npz"  # of a run, in evaluation/test
OF_MEMBERS = ("log_p", "probs", "logits", "epistemic", "run")  # arrays that lead with M


class Member(NamedTuple):
    """One member of the pool."""

    kind: str  # the label of its file
    name: str  # 'eq 0', or 'eq' of a kind with one member
    file: str
    index: int  # in its file


class Pool(NamedTuple):
    """Members of all files, and their predictions for the sets that all files have."""

    members: list[Member]
    sets: dict[str, Part]  # with log_p [M, B, K]; 'test' and 'validation' among them
    notes: list[str]  # what was found, converted and left out

    @property
    def kinds(self) -> list[str]:
        """Of each member."""
        return [member.kind for member in self.members]


def pool(given: Sequence[tuple[str, str]], options: Options = Options()) -> Pool:  # noqa: B008
    """The pool of files, all of which have the same examples in the same order.

    Args:
      given: (label, path) of each file of predictions, or workdir of a run; files of one label are
        of one kind.
      options: how predictions are read.

    Raises:
      ValueError: a file without a test set or a validation set of classes, one whose labels are not
        those of the first, or no member with finite predictions.
    """
    members: list[Member] = []
    parts: dict[str, list[Part]] = {}
    notes: list[str] = []
    first: tuple[File, dict[str, Part]] | None = None
    for label, path in given:
        file = opened(path)
        if task_of(file) != "classification":
            raise ValueError(f"{path}: predictions of targets; classes alone can be combined")
        if archive.VALIDATION not in file.sets:
            raise ValueError(
                f"{path}: no set `validation` to choose members by; a run has one if its config "
                "has data.validation, a file as arrays validation/log_p and validation/y"
            )
        file, left, kept = finite(file)
        for index in left:
            notes.append(f"{label}: member {index} of {path} is not finite and is left out")
        if not kept:
            continue
        said: list[str] = []
        test = checked(file, archive.TEST, options, said)
        found = {archive.TEST: test}
        for name in file.sets:
            if name != archive.TEST:
                found[name] = checked(file, name, options, [], test=test)
        notes += [f"{label}: {line}" for line in said]
        if first is None:
            first = file, found
        check_alike(file, found, *first)
        members += [Member(label, "", str(path), index) for index in kept]
        for name, part in found.items():
            parts.setdefault(name, []).append(part)
    if not members:
        raise ValueError("no member of any file is finite: " + "; ".join(notes))
    count = len({(m.file, m.kind) for m in members})
    sets = {}
    for name, each in parts.items():
        if len(each) == count:
            log_p = np.concatenate([part.log_p for part in each])
            sets[name] = each[0]._replace(log_p=log_p, logits=None, epistemic=None, scores={})
        else:
            notes.append(f"{name}: not in every file, and left out")
    return Pool(named(members), sets, notes)


def opened(path: str) -> File:
    """A file of predictions; of a run those of its newest checkpoint, which are made if need be.

    Raises:
      ValueError: the run cannot be evaluated, or see `read`.
    """
    place = storage.path(path)
    return read(str(predicted(place))) if place.is_dir() else read(path)


def predicted(workdir: storage.Path) -> storage.Path:
    """The file of a run's predictions, as `experiments.evaluate --save_predictions` writes it.

    Raises:
      ValueError: there is no checkpoint, or the predictions of a set failed.
    """
    experiment = evaluate.open_run(workdir)
    state, step = evaluate.restore(experiment, workdir)
    config = experiment.config
    runs = [dict(workdir=".", step=step, config=digest(config), seed=config["seed"])]
    file = workdir / "evaluation" / "test" / PREDICTIONS
    if file.is_file() and _noted(file).get("runs") == runs:
        return file
    logger.info("%s: predicting with the checkpoint of step %d", workdir, step)
    failures = export_all(
        Predictor(experiment, state),
        experiment.evaluators,
        file,
        validation=config["data"].get("validation"),
        noted=dict(runs=runs),
    )
    if failures:
        raise ConfigError(f"{workdir}: " + "; ".join(f"{k}: {v}" for k, v in failures.items()))
    if not file.is_file():
        raise ConfigError(
            f"{workdir}: no evaluator of its config predicts a test set; add one, such as "
            "evaluators.test=dict(name='classification', data=dict(split='test'))"
        )
    return file


def _noted(file: storage.Path) -> dict[str, Any]:
    with file.open("rb") as binary, np.load(binary, allow_pickle=False) as arrays:
        return from_jsonable(json.loads(arrays[archive.METADATA]))


def finite(file: File) -> tuple[File, list[int], list[int]]:
    """A file with the members whose predictions are finite in every set; those left out and kept.

    A log-probability of -inf is finite: the probability is 0.

    Raises:
      ValueError: a file whose sets have different numbers of members.
    """
    bad: np.ndarray | None = None
    for name, arrays in file.sets.items():
        for key in (key for key in archive.CLASSES if key in arrays):
            values = _with_members(arrays[key]())
            if bad is None:
                bad = np.zeros(len(values), bool)
            if len(values) != len(bad):
                raise ValueError(f"{file.path}: {name}: {len(values)} members, not {len(bad)}")
            wrong = np.isnan(values) | np.isposinf(values)
            if key != "log_p":
                wrong |= np.isinf(values)
            bad |= wrong.reshape(len(values), -1).any(1)
    assert bad is not None
    kept = np.flatnonzero(~bad)
    if len(kept) == len(bad):
        return file, [], kept.tolist()

    def sliced(key: str, get: Any) -> Any:
        return (lambda: _with_members(get())[kept]) if key in OF_MEMBERS else get

    sets = {
        name: {key: sliced(key, get) for key, get in arrays.items()}
        for name, arrays in file.sets.items()
    }
    return file._replace(sets=sets), np.flatnonzero(bad).tolist(), kept.tolist()


def _with_members(values: np.ndarray) -> np.ndarray:
    """[M, ...] of [M, B, K], [B, K] or the runs [M] of members."""
    return values[None] if values.ndim == 2 else values


def check_alike(
    file: File, parts: Mapping[str, Part], first: File, expected: Mapping[str, Part]
) -> None:
    """Raises ValueError unless a file has the classes, labels and data of the first one."""
    names = [of.metadata.get("class_names") for of in (file, first)]
    if None not in names and names[0] != names[1]:
        a, b = (str(list(of))[:60] for of in names)
        raise ValueError(f"{file.path}: class_names {a}; {first.path} has {b}")
    for name, a in parts.items():
        if (b := expected.get(name)) is None:
            continue
        if a.log_p.shape[1:] != b.log_p.shape[1:]:
            raise ValueError(
                f"{file.path}: {name}: {list(a.log_p.shape[1:])} examples and classes; "
                f"{first.path} has {list(b.log_p.shape[1:])}"
            )
        if (a.y is None) != (b.y is None) or (a.y is not None and not np.array_equal(a.y, b.y)):
            raise ValueError(
                f"{file.path}: {name}: its labels are not those of {first.path}, so members would "
                "be combined for different examples"
            )
        data = [of.metadata.get("sets", {}).get(name, {}).get("digest") for of in (file, first)]
        if None not in data and data[0] != data[1]:
            raise ValueError(f"{file.path}: {name}: other data than those of {first.path}")


def named(members: Sequence[Member]) -> list[Member]:
    """Members with names: their kind, with a number where it has several."""
    kinds = [member.kind for member in members]
    seen: dict[str, int] = {}
    result = []
    for member in members:
        n = seen[member.kind] = seen.get(member.kind, -1) + 1
        one = kinds.count(member.kind) == 1
        result.append(member._replace(name=member.kind if one else f"{member.kind} {n}"))
    return result
