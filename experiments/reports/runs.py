"""Reads a run for a report: its config, training history and one evaluation."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from experiments.reports import datasets
from experiments.reports.study import Column, Row, Study, numbers
from experiments.reports.tables import pretty
from experiments.runtime import keys as keys_lib
from experiments.runtime import segments, storage
from experiments.runtime.keys import named, split
from experiments.runtime.workdir import (
    CONFIG,
    DATA,
    difference,
    read_config,
    read_json,
    readable,
)
from experiments.runtime.writers import METRICS, read_metrics

# Fields of a config that do not change the method.
FREE = ("seed", "workdir", "mesh.", "sharding", "logging.", "checkpoint.")


@dataclasses.dataclass
class Run:
    label: str
    config: dict[str, Any]
    metrics: dict[str, float]
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    workdir: storage.Path | None = None
    missing: tuple[str, ...] = ()  # files whose figures are left out
    damaged: tuple[str, ...] = ()  # why some of these cannot be read
    sets: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # of sets.json
    trained: dict[str, Any] | None = None  # of data.json

    def evaluated(self) -> datasets.Evaluated:
        """The data sets of the evaluation."""
        return datasets.evaluated(self.config, self.metrics, self.sets, self.trained)


def load_run(workdir: str | storage.Path, label: str | None = None, name: str = "test") -> Run:
    """Reads a workdir that train and evaluate wrote.

    Args:
      workdir: has config.json and evaluation/<name>/metrics.json. scores.npz beside the latter and
        metrics.jsonl are optional: listed in `missing` if absent, and in `damaged` too if
        unreadable.
      label: of the run in tables; runs that share a label are seeds of one row. By default the
        directory's name, or its parent's if it is named after a seed ('seed_3', '3').
      name: of the evaluation.

    Raises:
      ValueError: a missing directory, config or evaluation, with the names of those that exist; or
        one that cannot be read.
    """
    workdir = storage.path(workdir).expanduser()
    if not workdir.is_dir():
        raise ValueError(f"workdir {workdir}: no such directory")
    file = workdir / CONFIG
    if file.is_file():
        config = readable(file, lambda _: read_config(workdir))
    else:
        config = read_config(workdir)  # raises if it is missing
    if not isinstance(config, Mapping) or not isinstance(config.get("seed", 0), int):
        raise ValueError(f"{file} is damaged: it is not a config with a seed")
    folder = workdir / "evaluation" / name
    if not (folder / "metrics.json").is_file():
        available = sorted(p.parent.name for p in workdir.glob("evaluation/*/metrics.json"))
        raise ValueError(
            f"{folder / 'metrics.json'} is missing; evaluations there: {available or 'none'}. "
            f"Make it with `python -m experiments.evaluate --workdir {workdir}`"
        )
    metrics = readable(folder / "metrics.json", lambda path: numbers(read_json(path)))
    damaged, contents = [], {}
    for path, read in (
        (folder / "scores.npz", read_scores),
        (workdir / METRICS, read_history),
        (folder / "sets.json", lambda path: datasets.check_sets(read_json(path))),
        (workdir / DATA, datasets.training),
    ):
        contents[path.name] = None
        if path.is_file() or (path.name == METRICS and segments.segments(path)):
            try:
                contents[path.name] = readable(path, read)
            except ValueError as error:
                damaged.append(str(error))
    missing = tuple(n for n in ("scores.npz", METRICS) if not contents[n])
    return Run(
        label or default_label(workdir),
        dict(config),
        metrics,
        contents["scores.npz"] or {},
        contents[METRICS] or [],
        workdir,
        missing,
        tuple(damaged),
        contents["sets.json"] or {},
        contents[DATA],
    )


PER_EXAMPLE = ("confidence", "prediction", "label", "entropy", "mutual_information")


def read_scores(path: storage.Path) -> dict[str, np.ndarray]:
    """The arrays of scores.npz.

    Raises:
      ValueError: an array is not numeric, or arrays per example differ in length.
    """
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        scores = dict(file)
    lengths: dict[str, dict[int, str]] = {}
    for key, value in scores.items():
        if value.dtype.kind not in "biuf":
            raise ValueError(f"{key} is {value.dtype}, not numeric")
        group, *name, kind = split(key)
        if group in ("test", "ood") and kind in PER_EXAMPLE:
            if value.ndim != 1:
                raise ValueError(f"{key} has shape {value.shape}; one number per example is needed")
            lengths.setdefault("/".join([group, *name]), {})[len(value)] = key
    for by_length in lengths.values():
        if len(by_length) > 1:
            sizes, names = (
                " and ".join(map(str, of)) for of in zip(*by_length.items(), strict=True)
            )
            raise ValueError(f"{names} have {sizes} examples")
    return scores


def default_label(workdir: storage.Path) -> str:
    """The directory's name, or its parent's if it is named after a seed."""
    workdir = workdir.absolute()
    by_seed = re.fullmatch(r"(seed[_=-]?)?\d+", workdir.name, re.IGNORECASE)
    return workdir.parent.name if by_seed and workdir.parent.name else workdir.name


def read_history(path: str | storage.Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl merged by step; an array becomes 'name/0', 'name/1', ...

    Values that are not numbers are left out.
    """
    steps: dict[int, dict[str, Any]] = {}
    for record in read_metrics(path):
        entry = steps.setdefault(int(record["step"]), {})
        for name, value in record.items():
            many = enumerate(value) if isinstance(value, list) else ()
            values = {f"{name}/{i}": v for i, v in many} or {name: value}
            entry |= {k: v for k, v in values.items() if isinstance(v, int | float)}
    return [steps[step] for step in sorted(steps)]


def by_label(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each label, in order.

    Raises:
      ValueError: runs that share a label differ in more than the seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    for label, group in groups.items():
        for run in group[1:]:
            changes = difference(group[0].config, run.config)
            changed = [
                line
                for field, line in changes.items()
                if not field.startswith(FREE)
                and not field.endswith(".seed")  # of a split
                and not (field == "pretrained.path" and _begin_alike(group[0], run))
            ]
            if changed:
                raise ValueError(
                    f"runs labelled {label!r} differ in more than the seed: "
                    f"{'; '.join(changed[:5])}. Give them different labels: LABEL=WORKDIR"
                )
    return groups


def _begin_alike(a: Run, b: Run) -> bool:
    """Whether the files that two runs begin from may be one path with {seed}."""
    paths = [str(run.config.get("pretrained", {}).get("path")) for run in (a, b)]
    seeds = [str(run.config.get("seed")) for run in (a, b)]
    reached = {(0, 0)}  # ends of equal beginnings
    while reached:
        if tuple(map(len, paths)) in reached:
            return True
        ends = set()
        for i, j in reached:
            if paths[0][i : i + 1] == paths[1][j : j + 1] != "":
                ends.add((i + 1, j + 1))
            if paths[0].startswith(seeds[0], i) and paths[1].startswith(seeds[1], j):
                ends.add((i + len(seeds[0]), j + len(seeds[1])))
        reached = ends
    return False


COLUMNS = (  # of a study made from runs alone; those without a value are left out
    Column("classification/accuracy", "Accuracy", "%", "higher", 2),
    Column("classification/nll", "NLL", "nats", "lower", 4),
    Column("classification/brier", "Brier", "", "lower", 4),
    Column("calibration/ece", "ECE", "%", "lower", 2),
    Column("regression/nll", "NLL", "nats", "lower", 4),
    Column("regression/rmse", "RMSE", "units of y", "lower", 4),
    Column("regression/crps", "CRPS", "units of y", "lower", 4),
    Column("regression/coverage_0.9", "90 % coverage", "%", None, 1),
    Column("selective/aurc", "AURC", "%", "lower", 3),
    Column("corruption/accuracy", "Corrupted accuracy", "%", "higher", 2),
    Column("corruption/nll", "Corrupted NLL", "nats", "lower", 4),
    Column("corruption/ece", "Corrupted ECE", "%", "lower", 2),
    Column("corruption/rmse", "Corrupted RMSE", "units of y", "lower", 4),
    Column("corruption/coverage_0.9", "Corrupted 90 % coverage", "%", None, 1),
)
OF_OOD = (("aupr_out", "AUPR", "higher"), ("fpr95", "FPR95", "lower"))
COSTS = (
    Column("cost/parameters", "Parameters", "M", None, 3),
    Column("cost/train_seconds", "Training", "s", None, 1),
    Column("cost/predict_ms_per_example", "Prediction", "ms", None, 3),
)


def by_task(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each task: 'classification', 'regression' or ''; tables do not mix tasks."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.evaluated().task, []).append(run)
    return groups


def study_of(runs: Iterable[Run], title: str) -> Study:
    """The study of runs: a row per label, and every usual column that has a value."""
    groups = by_label(runs)
    rows = [
        Row(label, [run.metrics for run in group], data=[run.evaluated() for run in group])
        for label, group in groups.items()
    ]
    keys = dict.fromkeys(key for row in rows for result in row.results for key in result)
    ood = []
    places = {named(key, "ood"): key for key in keys}
    for name in dict.fromkeys(of[0] for of in places if of):
        for score in ("entropy", "max_probability", "predictive_variance"):  # the first there is
            if key := places.get((name, f"auroc_{score}")):
                by = f"by {pretty(score).lower()}"
                ood.append(Column(key, f"{name} AUROC {by}", "%", "higher", 2))
                for metric, name_of, better in OF_OOD:
                    if key := places.get((name, f"{metric}_{score}")):
                        ood.append(Column(key, f"{name} {name_of} {by}", "%", better, 2))
                break
    columns = [c for c in (*COLUMNS, *_of_methods(keys), *ood, *COSTS) if c.key in keys]
    seeds = {
        run.config["seed"] for group in groups.values() for run in group if "seed" in run.config
    }
    if len(seeds) > max(map(len, groups.values()), default=0):  # methods with seeds of their own
        seeds = set()
    config = {label: group[0].config for label, group in groups.items()}
    return Study(title, columns, rows, config=config, seeds=sorted(seeds))


def _of_methods(keys: Collection[str]) -> list[Column]:
    """A column for each calibrated value and each kind of set, named after its method."""
    kinds = {
        ("posthoc", "nll"): ("NLL after {}", "nats", "lower", 4),
        ("posthoc", "ece"): ("ECE after {}", "%", "lower", 2),
        ("conformal", "coverage"): ("Coverage of {} sets", "%", None, 2),
        ("conformal", "size"): ("Size of {} sets", "", None, 2),
        ("intervals", "coverage"): ("Coverage of {} intervals", "%", None, 2),
        ("intervals", "width"): ("Width of {} intervals", "units of y", None, 4),
        ("regions", "coverage"): ("Coverage of {} regions", "%", None, 2),
        ("regions", "volume"): ("Volume of {} regions", "", None, 4),
    }
    columns = []
    for key in keys:
        group, *label, metric = split(key)
        if (group, metric) in kinds and len(label) == 1 and label[0] != "uncalibrated":
            header, *rest = kinds[group, metric]
            name = pretty(label[0])
            if group != "conformal" and not name[:2].isupper():  # no acronym
                name = name[:1].lower() + name[1:]
            columns.append(Column(key, header.format(name), *rest))
            worst = f"{group}/{keys_lib.join(label[0])}/severity_"
            severities = [k[len(worst) : -len("/coverage")] for k in keys if k.startswith(worst)]
            severities = [s for s in severities if s.isdecimal()] if metric == "coverage" else []
            if severities:  # the promise is not for these, so what is covered stands beside
                most = max(severities, key=int)
                at = f"{header.format(name)} at severity {most}"
                columns.append(Column(f"{worst}{most}/coverage", at, *rest))
    return columns


def read_run(run: Any, problems: list[str] | None = None) -> Run | None:
    """The run of an argument of `write_report`; None, and a line in `problems`, if damaged."""
    try:
        if not isinstance(run, Run):
            run = load_run(**run) if isinstance(run, Mapping) else load_run(run)
    except (ValueError, OSError) as error:
        if problems is None:
            raise
        problems.append(str(error))
        return None
    if problems is None and run.damaged:
        raise ValueError(run.damaged[0])
    if problems is not None:
        problems += [line for line in run.damaged if line not in problems]
    return run
