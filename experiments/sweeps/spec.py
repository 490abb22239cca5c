"""A sweep as it is asked for, on the command line and in files, and the table that it makes."""

import json
import tomllib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import evaluators
from experiments.experiment import config as config_lib
from experiments.reports.runs import COLUMNS, COSTS
from experiments.reports.study import Column
from experiments.reports.tables import pretty
from experiments.runtime import keys, project, storage
from experiments.runtime.workdir import write_json
from experiments.sweeps import space
from experiments.tables.cells import VALIDATION, validation_of
from experiments.tables.records import slug
from uncertainty.build import ConfigError, nearest

FILE = "sweep.json"  # in the workdir: the sweep that it belongs to
SEEDS = (0, 1, 2)
# Metrics of which more is better; of those in LOWER less.
HIGHER = {"accuracy", "auroc", "aupr", "log_likelihood"}
LOWER = {"nll", "brier", "error", "ece", "mce", "aurc", "augrc", "rmse", "mae", "crps", "fpr95"}


class Sweep(NamedTuple):
    """What a sweep is.

    Attributes:
      config: configs/FILE.py or configs/FILE.py:OPTIONS.
      set: dotted config fields of all cells.
      axes: the fields that vary.
      random: settings to draw; None for the grid.
      random_seed: of the draws.
      seeds: of each setting.
      select: the metric that is best on validation data, such as 'classification/nll'; '' for the
        task's NLL. 'KEY:higher' and 'KEY:lower' say which is better.
    """

    config: str
    set: dict[str, Any]
    axes: tuple[space.Axis, ...]
    random: int | None = None
    random_seed: int = 0
    seeds: tuple[int, ...] = SEEDS
    select: str = ""

    def settings(self) -> list[dict[str, Any]]:
        """See `space.settings`."""
        return space.settings(self.axes, self.random, self.random_seed)

    def as_dict(self) -> dict[str, Any]:
        """As a file has it."""
        return dict(
            config=self.config,
            set=self.set,
            sweep={
                a.field: list(a.values) if a.values else {a.kind: [a.low, a.high]}
                for a in self.axes
            },
            random=self.random,
            random_seed=self.random_seed,
            seeds=list(self.seeds),
            select=self.select,
        )


KINDS = dict(
    config=str, set=Mapping, sweep=Mapping, random=int, random_seed=int, seeds=list, select=str
)


def read(file: str) -> dict[str, Any]:
    """The content of a file of a sweep: TOML or JSON with fields of `Sweep`, and `sweep`, a dict of
    fields to lists or ranges.

    Raises:
      ConfigError: it is missing, does not parse, or has other fields.
    """
    path = project.find(file) if "://" not in file else storage.path(file)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"--file: no file {file!r}") from None
    try:
        text = data.decode()
        content = tomllib.loads(text) if str(file).endswith(".toml") else json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--file: {file} is not valid: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"--file: {file}: a dict of fields is needed")
    content = {name: value for name, value in content.items() if value is not None}
    for name, value in content.items():
        if name not in KINDS:
            raise ConfigError(f"--file: {file}: no field {name!r}; {nearest(name, KINDS)}")
        if not isinstance(value, KINDS[name]) or isinstance(value, bool):
            raise ConfigError(f"--file: {file}: {name} = {value!r}")
    if not all(type(seed) is int for seed in content.get("seeds", ())):
        raise ConfigError(f"--file: {file}: seeds = {content['seeds']!r}; whole numbers are needed")
    for name in ("set", "sweep"):
        content[name] = _dotted(content.get(name, {}), name == "sweep")
    return content


def _dotted(tree: Mapping[str, Any], ranges: bool, prefix: str = "") -> dict[str, Any]:
    """Nested tables of TOML as dotted names; a range is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_range = ranges and isinstance(value, Mapping) and set(value) <= set(space.RANGES)
        if isinstance(value, Mapping) and ranges and not is_range:
            flat |= _dotted(value, ranges, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def joined(content: Mapping[str, Any], given: Mapping[str, Any]) -> Sweep:
    """The sweep of a file's content and of what is given on the command line, which wins.

    Raises:
      ConfigError: no config, or a wrong field.
    """
    fields = {**content, **{k: v for k, v in given.items() if v is not None}}
    if not fields.get("config"):
        raise ConfigError("--config: missing; configs/FILE.py, or `config` in --file")
    merged = {
        name: {**content.get(name, {}), **(given.get(name) or {})} for name in ("set", "sweep")
    }
    sweep = Sweep(
        config=fields["config"],
        set=merged["set"],
        axes=tuple(space.axis(field, value) for field, value in merged["sweep"].items()),
        random=fields.get("random"),
        random_seed=fields.get("random_seed", 0),
        seeds=tuple(dict.fromkeys(fields.get("seeds") or SEEDS)),
        select=fields.get("select", ""),
    )
    if "seed" in sweep.set:
        raise ConfigError("--set seed: use --seeds")
    for axis in sweep.axes:
        if axis.field in sweep.set:
            raise ConfigError(f"--sweep {axis.field}: is set by --set too")
    return sweep


def note(sweep: Sweep, workdir: storage.Path) -> None:
    """Writes the sweep to its workdir, for which it may have other values, fields or seeds later.

    Raises:
      ConfigError: the workdir belongs to a sweep of another config.
    """
    path = workdir / FILE
    new = sweep.as_dict()
    if path.is_file():
        old = json.loads(path.read_text())
        for field in ("config", "set"):
            if space.as_json(old[field]) != space.as_json(new[field]):
                raise ConfigError(
                    f"--workdir: {workdir} belongs to a sweep with {field} {old[field]!r}, not "
                    f"{new[field]!r}; use another"
                )
        if space.as_json(old) == space.as_json(new):
            return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, new)


class Select(NamedTuple):
    """The metric that a sweep chooses by."""

    key: str
    better: str  # 'higher' or 'lower'
    task: str  # 'classification' or 'regression'

    @property
    def validation(self) -> str:
        """Its name on validation data."""
        return f"{VALIDATION}/{self.key}"


def select_of(text: str, config: Mapping[str, Any]) -> Select:
    """The metric of `--select`, for a config.

    Raises:
      ConfigError: no evaluator says what the task is, one that the task does not have, no
        validation data, or a metric of which it is not known which is better.
    """
    built = evaluators.build_all(config["evaluators"])
    tasks = {one.task for one in built.values()} - {None}
    if len(tasks) != 1:
        raise ConfigError(
            "config.evaluators: none of classification or regression, so that it is not known what "
            "to choose by; add evaluators.test={'name': 'classification', 'data': {...}}"
        )
    (task,) = tasks
    key, _, better = (text or f"{task}/nll").partition(":")
    names = evaluators.build(VALIDATION, dict(name=task, data=validation_of(config))).yields
    names = {name for name in names if not name.startswith("cost/")}
    if key not in names:
        raise ConfigError(f"--select: no metric {key!r} on validation data; {nearest(key, names)}")
    last = key.rpartition("/")[2]
    known = "higher" if last in HIGHER else "lower" if last in LOWER else ""
    better = better or known
    if better not in ("higher", "lower"):
        raise ConfigError(f"--select: {text!r}; say which is better: {key}:higher or {key}:lower")
    return Select(key, better, str(task))


def table_of(sweep: Sweep) -> tuple[dict[str, Any], Select]:
    """The table of a sweep, for `tables.cells.Cells`, and the metric that it chooses by.

    Raises:
      ConfigError: see `space.settings` and `select_of`; a field that the config lacks.
    """
    settings = sweep.settings()
    labels = _distinct(space.labels(settings), settings)
    rows = [
        dict(label=label, config=sweep.config, set={**sweep.set, **one})
        for label, one in zip(labels, settings, strict=True)
    ]
    file = _located(sweep.config)
    config = config_lib.plain(config_lib.load(file, rows[0]["set"]))
    select = select_of(sweep.select, config)
    names: set[str] = set()
    for name, spec in config["evaluators"].items():
        names |= evaluators.build(name, spec).yields
    fields = ", ".join(axis.field for axis in sweep.axes)
    kind = f"{len(rows)} settings" if sweep.random is None else f"{len(rows)} drawn settings"
    table = dict(
        title=f"{sweep.config}: {kind} of {fields}",
        seeds=sweep.seeds,
        rows=rows,
        columns=columns(select, names),
        validated=select.task,
    )
    return table, select


def _located(config: str) -> str:
    file, colon, options = config.partition(":")
    return f"{project.own(file)}{colon}{options}"


def _distinct(labels: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels; those whose files would have one name, such as x=-1 and x=1, with a checksum."""
    names = [slug(label) for label in labels]
    return [
        label
        if names.count(name) == 1
        else f"{label} #{zlib.crc32(space.as_json(one).encode()):08x}"
        for label, name, one in zip(labels, names, settings, strict=True)
    ]


def columns(select: Select, names: set[str]) -> list[dict[str, Any]]:
    """The chosen metric on validation data, then what the evaluators yield of the usual columns.

    Args:
      select: the metric.
      names: of all metrics of the evaluators.
    """
    known = {column.key: column for column in (*COLUMNS, *COSTS)}
    own = known.get(select.key, Column(select.key, pretty(select.key.rpartition("/")[2]), digits=4))
    own = {**vars(own), "better": select.better}
    chosen = [{**own, "key": select.validation, "header": f"Validation {own['header']}"}]
    first = [own] if select.key in names else []
    rest = [vars(c) for c in COLUMNS if c.key in names and c.key != select.key]
    for name in sorted(filter(None, (keys.named(key, "ood") for key in names))):
        if name[1] == "auroc_entropy":
            key, header = keys.join("ood", *name), f"{name[0]} AUROC"
            rest.append(vars(Column(key, header, "%", "higher", 2)))
    costs = [vars(c) for c in COSTS if c.key in ("cost/parameters", "cost/train_seconds")]
    return [*chosen, *first, *rest, *costs]
