"""What a report reads of a run: its config, training history and one evaluation."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.keys import named
from experiments.reports.study import Column, Row, Study
from experiments.reports.tables import pretty
from experiments.workdir import difference, read_config, read_json
from experiments.writers import read_metrics

# Fields of a config that leave its method the same.
FREE = ("seed", "workdir", "mesh.", "sharding", "logging.", "checkpoint.")


@dataclasses.dataclass
class Run:
    label: str
    config: dict[str, Any]
    metrics: dict[str, float]
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    workdir: pathlib.Path | None = None
    missing: tuple[str, ...] = ()  # files whose figures are left out


def load_run(workdir: str | pathlib.Path, label: str | None = None, name: str = "test") -> Run:
    """Reads a workdir that train and evaluate wrote.

    Args:
      workdir: has config.json and evaluation/<name>/metrics.json; scores.npz beside the latter and
        metrics.jsonl are read where they are there, and listed in `missing` where not.
      label: how tables call it; runs that share a label are seeds of one row. By default the
        directory's name, or its parent's where it is called after a seed ('seed_3', '3').
      name: of the evaluation.

    Raises:
      ValueError: no such directory, config or evaluation; those that exist are named.
    """
    workdir = pathlib.Path(workdir).expanduser()
    if not workdir.is_dir():
        raise ValueError(f"workdir {workdir}: no such directory")
    config = read_config(workdir)
    folder = workdir / "evaluation" / name
    if not (folder / "metrics.json").is_file():
        there = sorted(p.parent.name for p in workdir.glob("evaluation/*/metrics.json"))
        raise ValueError(
            f"{folder / 'metrics.json'} is missing; evaluations there: {there or 'none'}. "
            f"Make it with `python -m experiments.evaluate --workdir {workdir}`"
        )
    metrics = {k: v for k, v in read_json(folder / "metrics.json").items() if v is not None}
    scores, history = {}, []
    if (folder / "scores.npz").is_file():
        with np.load(folder / "scores.npz") as file:
            scores = dict(file)
    if (workdir / "metrics.jsonl").is_file():
        history = read_history(workdir / "metrics.jsonl")
    files = {"scores.npz": scores, "metrics.jsonl": history}
    missing = tuple(file for file, content in files.items() if not content)
    return Run(label or default_label(workdir), config, metrics, scores, history, workdir, missing)


def default_label(workdir: pathlib.Path) -> str:
    """The directory's name, or its parent's where it is called after a seed."""
    workdir = workdir.absolute()
    by_seed = re.fullmatch(r"(seed[_=-]?)?\d+", workdir.name, re.IGNORECASE)
    return workdir.parent.name if by_seed and workdir.parent.name else workdir.name


def read_history(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl merged by step; an array becomes 'name/0', 'name/1', ..."""
    steps: dict[int, dict[str, Any]] = {}
    for record in read_metrics(path):
        entry = steps.setdefault(int(record["step"]), {})
        for name, value in record.items():
            many = {f"{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else 0
            entry.update(many or {name: value})
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
            found = [
                line
                for field, line in changes.items()
                if not field.startswith(FREE) and not field.endswith(".seed")  # of a split
            ]
            if found:
                raise ValueError(
                    f"runs labelled {label!r} differ in more than the seed: {'; '.join(found[:5])}."
                    " Give them labels of their own: LABEL=WORKDIR"
                )
    return groups


COLUMNS = (  # of a study that only has runs; those without a value are left out
    Column("classification/accuracy", "Accuracy", "%", "higher", 2),
    Column("classification/nll", "NLL", "", "lower", 4),
    Column("classification/brier", "Brier", "", "lower", 4),
    Column("calibration/ece", "ECE", "%", "lower", 2),
    Column("regression/nll", "NLL", "", "lower", 4),
    Column("regression/rmse", "RMSE", "", "lower", 4),
    Column("regression/crps", "CRPS", "", "lower", 4),
    Column("regression/coverage_0.9", "90 % coverage", "%", None, 1),
    Column("selective/aurc", "AURC", "%", "lower", 3),
    Column("corruption/accuracy", "Corrupted accuracy", "%", "higher", 2),
    Column("corruption/nll", "Corrupted NLL", "", "lower", 4),
    Column("corruption/ece", "Corrupted ECE", "%", "lower", 2),
)
COSTS = (
    Column("cost/parameters", "Parameters", "M", None, 3),
    Column("cost/train_seconds", "Training", "s", None, 1),
    Column("cost/predict_ms_per_example", "Prediction", "ms", None, 3),
)


def study_of(runs: Iterable[Run], title: str) -> Study:
    """The study that the runs make: a row per label, and every usual column that has a value."""
    groups = by_label(runs)
    rows = [Row(label, [run.metrics for run in group]) for label, group in groups.items()]
    keys = dict.fromkeys(key for row in rows for result in row.results for key in result)
    ood = []
    found = {named(key, "ood"): key for key in keys}
    for name in dict.fromkeys(of[0] for of in found if of):
        for score in ("entropy", "max_probability"):  # one suffices here: the first that is there
            if key := found.get((name, f"auroc_{score}")):
                header = f"{name} AUROC by {pretty(score).lower()}"
                ood.append(Column(key, header, "%", "higher", 2))
                break
    columns = [c for c in (*COLUMNS, *ood, *COSTS) if c.key in keys]
    seeds = {
        run.config["seed"] for group in groups.values() for run in group if "seed" in run.config
    }
    config = {label: group[0].config for label, group in groups.items()}
    return Study(title, columns, rows, config=config, seeds=sorted(seeds))
