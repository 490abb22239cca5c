"""The data sets that runs were evaluated on: described above a table, and compared between rows."""

import json
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.data.derived import parts_of_one, path_of, specs
from experiments.runtime import storage
from experiments.runtime.workdir import read_json

# Fields of a spec that change how examples are read, not which examples they are.
READING = set(
    "mean std standardise statistics range channels resize data_dir in_memory".split()  # noqa: SIM905
)


class Data(NamedTuple):
    """A data set that a run was evaluated on."""

    name: str  # such as 'digits[test]'
    examples: int | None  # None if not recorded
    identity: str  # equal for equal examples


class Evaluated(NamedTuple):
    """The data sets that a run was evaluated on, by path."""

    seed: Any
    task: str  # 'classification', 'regression', or '' if neither was evaluated
    # 'test' of the evaluator test's `data`, 'ood.mnist' of `sets`, 'map.ood.ring' of other fields
    sets: Mapping[str, Data]  # identified by digests; empty if not recorded
    specs: Mapping[str, Data]  # identified by their specs in the config
    trained: Data | None = None  # the training data, if recorded with their size
    others: tuple[str, ...] = ()  # paths of `sets` that are not parts of the training data's set


def evaluated(
    config: Mapping[str, Any],
    metrics: Iterable[str],
    sets: Mapping[str, Mapping[str, Any]] | None = None,
    trained: Mapping[str, Any] | None = None,
) -> Evaluated:
    """The data sets of a run.

    Args:
      config: of the run.
      metrics: their names.
      sets: of its sets.json, see `check_sets`.
      trained: the record of its training data, with `name`, `examples` and `digest`.
    """
    groups = {key.partition("/")[0] for key in metrics}
    task = next((task for task in ("classification", "regression") if task in groups), "")
    noted = {k: Data(s["name"], s["examples"], s["digest"]) for k, s in (sets or {}).items()}
    specs_ = dict(_specs(config.get("evaluators")))
    if trained is None:
        return Evaluated(config.get("seed"), task, noted, specs_)
    data = Data(*(trained[field] for field in ("name", "examples", "digest")))
    return Evaluated(config.get("seed"), task, noted, specs_, data, others(config, noted, data))


# Evaluators whose `data` are points to look at, which no model is trained on.
POINTS = ("posterior", "uncertainty_map")


def others(config: Mapping[str, Any], sets: Mapping[str, Data], trained: Data) -> tuple[str, ...]:
    """The paths of the sets that should be parts of the training data's set, and are of another.

    These are the `data` of evaluators; sets that are meant to be out of distribution are not.
    """
    train = config.get("data", {}).get("train", {})
    found = []
    for path, data in sets.items():
        fields = (config.get("evaluators") or {}).get(path)
        spec = fields.get("data") if isinstance(fields, Mapping) else None
        if path in ("data", "validation") and spec is None:  # of `evaluate --data`, of a sweep
            alike = _set_of(data.name) == _set_of(trained.name)
        elif isinstance(spec, Mapping) and fields.get("name") not in POINTS:
            alike = parts_of_one(spec, train)
        else:
            continue
        found += [] if alike else [path]
    return tuple(found)


def _set_of(name: str) -> str:
    """'digits' of 'digits[test]' and of 'digits/train[:9]'."""
    return re.split(r"[\[/]", name, maxsplit=1)[0].strip()


def mismatches(runs: Sequence[Evaluated]) -> list[str]:
    """Sentences on sets that are not parts of the set that the runs were trained on."""
    paths: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for path in run.others:
            words = (sized(run.sets[path]), sized(run.trained))
            paths.setdefault(words, []).append(path)
    return [
        f"{', '.join(dict.fromkeys(of))}: {there} is another set than the training data, {here}"
        for (there, here), of in paths.items()
    ]


def sized(data: Data) -> str:
    """'digits[test], 360 examples'."""
    if data.examples is None:
        return data.name
    return f"{data.name}, {data.examples:,} example{'s' * (data.examples != 1)}"


def trained_words(runs: Iterable[Evaluated]) -> str:
    """'digits[train], 1,150 examples': the training data of runs, if all have a record of them."""
    runs = list(runs)
    if not runs or any(run.trained is None for run in runs):
        return ""
    return " or ".join(dict.fromkeys(sized(run.trained) for run in runs))


def check_sets(sets: Any) -> dict[str, dict[str, Any]]:
    """Validates the content of sets.json: path -> dict(name=..., examples=..., digest=...).

    Raises:
      ValueError: it has another form.
    """
    kinds = dict(name=str, examples=int, digest=str)
    for path, of in sets.items() if isinstance(sets, Mapping) else [("", None)]:
        if not isinstance(of, Mapping) or not all(
            isinstance(of.get(field), kind) for field, kind in kinds.items()
        ):
            raise ValueError(f"{path!r}: {of!r} has no name, number of examples and digest")
    return dict(sets)


def training(path: storage.Path) -> dict[str, Any] | None:
    """Name, size and digest of the training data in a run's data.json; None in older ones."""
    noted = read_json(path, {"name": str})
    kinds = dict(examples=int, digest=str)
    if not all(isinstance(noted.get(field), kind) for field, kind in kinds.items()):
        return None
    return {field: noted[field] for field in ("name", *kinds)}


def _specs(evaluators: Any) -> Iterable[tuple[str, Data]]:
    """(path, Data) of every set that the evaluators of a config read, by the paths of sets.json."""
    for name, fields in evaluators.items() if isinstance(evaluators, Mapping) else ():
        for field, value in fields.items() if isinstance(fields, Mapping) else ():
            for path, spec in specs(value, path_of(name, field)):
                if not isinstance(spec.get("name"), str):  # a field that is no data set
                    continue
                selection = {k: v for k, v in spec.items() if k not in READING}
                identity = json.dumps(selection, sort_keys=True, default=str)
                yield path, Data(_name(spec), None, identity)


def _name(spec: Mapping[str, Any]) -> str:
    name, split = str(spec["name"]), str(spec.get("split", "train"))
    if "path" in spec:
        name += f" {pathlib.PurePath(str(spec['path'])).name}"
    return f"{name}/{split}" if "[" in split else f"{name}[{split}]"


def differing(a: Sequence[Evaluated], b: Sequence[Evaluated]) -> set[str]:
    """The paths of data sets that differ between two rows, for equal seeds if they share any.

    Sets that only one row has are not compared. Different tasks are reported as the path 'task'.
    """
    pairs = [(x, y) for x in a for y in b if x.seed == y.seed] or [(x, y) for x in a for y in b]
    paths = set()
    for x, y in pairs:
        if x.task and y.task and x.task != y.task:
            paths.add("task")
        these, those = (x.sets, y.sets) if x.sets and y.sets else (x.specs, y.specs)
        shared = these.keys() & those.keys()
        paths |= {path for path in shared if these[path].identity != those[path].identity}
    return paths


def changed(runs: Sequence[Evaluated]) -> set[str]:
    """The paths of data sets whose examples differ between seeds although their specs are equal."""
    first: dict[tuple, str] = {}
    paths = set()
    for run in runs:
        requested = tuple(sorted((path, data.identity) for path, data in run.specs.items()))
        for path, data in run.sets.items():
            if first.setdefault((requested, path), data.identity) != data.identity:
                paths.add(path)
    return paths


def partition(rows: Sequence[Sequence[Evaluated]]) -> list[int]:
    """The group number of each row: rows of one group were evaluated on the same data."""
    groups: list[list[Sequence[Evaluated]]] = []
    numbers = []
    for row in rows:
        alike = (i for i, group in enumerate(groups) if not any(differing(row, o) for o in group))
        number = next(alike, len(groups))
        groups += [[]] * (number == len(groups))
        groups[number] = [*groups[number], row]
        numbers.append(number)
    return numbers


def described(runs: Iterable[Evaluated], paths: Collection[str] | None = None) -> str:
    """'digits[test], 360 examples (test, ood); ...': the data sets of runs, the test set first.

    Args:
      runs: of which the sets are described.
      paths: of the sets that are described; by default all.
    """
    sizes: dict[str, set[int]] = {}
    readers: dict[str, dict[str, None]] = {}
    for run in runs:
        for path, data in (run.sets or run.specs).items():
            if paths is not None and path not in paths:
                continue
            sizes.setdefault(data.name, set())
            if data.examples is not None:
                sizes[data.name].add(data.examples)
            readers.setdefault(data.name, {})[path] = None
    parts = []
    for name, of in sorted(readers.items(), key=lambda item: "test" not in item[1]):
        size = " or ".join(f"{n:,}" for n in sorted(sizes[name]))
        size = f", {size} example{'s' * (sizes[name] != {1})}" * bool(size)
        parts.append(f"{name}{size} ({', '.join(of)})")
    return "; ".join(parts)
