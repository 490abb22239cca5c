"""The cells of a table, rows x seeds: their configs, their runs and their records."""

import contextlib
import copy
import difflib
import functools
import hashlib
import importlib
import json
import logging
import pathlib
import pkgutil
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments import evaluate, evaluators, stage, train
from experiments.data import labels
from experiments.data.derived import key_of
from experiments.data.source import load
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.reports import datasets
from experiments.runtime import keys, project, storage, writers
from experiments.runtime.workdir import (
    DATA,
    MAY_CHANGE,
    difference,
    fields,
    read_json,
    same_but_for,
)
from experiments.tables.records import Records, slug
from uncertainty.build import ConfigError, nearest
from uncertainty.specs import imported

if TYPE_CHECKING:
    from experiments.tables.claims import Claims

logger = logging.getLogger(__name__)

TABLES = "configs.tables"
VALIDATION = "validation"  # the evaluation and the metrics that a choice is made by
UNFINISHED = "unfinished"  # a file that marks an unfinished round

# Metrics that `evaluate` adds to those of evaluators.
OF_A_RUN = {"cost/parameters", "cost/train_seconds", "cost/train_ms_per_example", "cost/step"}


def table_of(name: str) -> dict[str, Any]:
    """The table of `configs/tables/<name>.py`, of a file, or of 'package.module[:function]'.

    Raises:
      ConfigError: there is no such table.
    """
    if name.endswith(".py"):
        return config_lib.function_of(name, "table", "get_table")()
    if "." in name or ":" in name:
        return imported(name, "table", "get_table")()
    tables = importlib.import_module(TABLES)
    names = [m.name for m in pkgutil.iter_modules(tables.__path__)]
    if name not in names:
        raise ConfigError(f"table: no {name!r}; {nearest(name, names)}")
    return importlib.import_module(f"{tables.__name__}.{name}").get_table()


def project_name(name: str) -> str:
    """A table of `configs/tables` by its name, also if its file is given; others unchanged.

    Raises:
      ConfigError: another file or module whose results would be those of a table of the project.
    """
    own = project.own("configs/tables")
    if name.endswith(".py") and project.find(name).resolve().parent == own.resolve():
        return pathlib.PurePath(name).stem
    if folder_of(name) != name and (own / f"{folder_of(name)}.py").is_file():
        raise ConfigError(
            f"table: {name!r} would share the results of the project's table {folder_of(name)!r}; "
            "give it another name"
        )
    return name


def folder_of(name: str) -> str:
    """The folder of a table's results and runs: its name, that of its file or of its module."""
    if name.endswith(".py"):
        return pathlib.PurePath(name).stem
    module, _, function = name.partition(":")
    last = module.rpartition(".")[2]
    return last if function in ("", "get_table") else f"{last}-{slug(function)}"


def name_of(row: Mapping[str, Any]) -> str:
    """`group: label`, or the label alone."""
    return ": ".join(filter(None, [row.get("group", ""), row["label"]]))


def validation_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of a config's validation data.

    Raises:
      ConfigError: there are none.
    """
    spec = config["data"].get("validation")
    if not spec:
        raise ConfigError(
            "config.data.validation: missing; the choice is made on validation data, such as "
            "{'split': 'validation'} or {'split': 'train[80%:]'} beside train[:80%]"
        )
    return spec


def sets_of(directory: storage.Path, name: str) -> dict[str, Any]:
    """The data sets of an evaluation."""
    path = directory / "evaluation" / name / "sets.json"
    return read_json(path) if path.is_file() else {}


class Cells:
    """The cells of a table: their configs, runs and records.

    Overrides that change results make other cells than the table's own. They have their own folder
    in `results` and `workdir`, named after the overrides.

    Args:
      name: the table.
      results: the folder of finished cells and the rendered table.
      workdir: the folder of the runs, with their checkpoints.
      overrides: dotted config fields to set in every row that has a section for them.
      round: the folder of a round of new runs, see `begin_round`; None for the table's own runs.
      table: the table itself, by default that of this name in `configs/tables`.

    A row may have `set`, a dict of dotted config fields to their values. With `validated` in the
    table, cells are evaluated on `data.validation` too, as metrics `validation/...`.

    Raises:
      ConfigError: an unknown table, two rows with the same files, an override for which no row has
        a section, or an override of the seed.
    """

    def __init__(
        self,
        name: str,
        results: str | storage.Path,
        workdir: str | storage.Path,
        overrides: Mapping[str, Any],
        round: str | storage.Path | None = None,
        table: Mapping[str, Any] | None = None,
    ):
        if table is None:
            name, table, folder = project_name(name), table_of(name), folder_of(name)
        else:
            folder = ""
        self.name, self.given, self.table = folder or name, name, table
        self.overrides = overrides
        self._configs: dict[tuple[str, int], dict[str, Any]] = {}
        self.round = storage.path(round) if round else None
        self._claims: Claims | None = None
        self._selections: dict[str, str] = {}  # data of a config -> why nothing is selected on them
        slugs: dict[str, str] = {}
        for row in self.table["rows"]:
            if (other := slugs.setdefault(slug(name_of(row)), name_of(row))) != name_of(row):
                raise ConfigError(
                    f"table {name}: rows {other!r} and {name_of(row)!r} would share the "
                    f"folder {slug(other)!r}; give one another label"
                )
        if "seed" in overrides:
            raise ConfigError("config.seed: use --seeds to choose the seeds of a table")
        for field, value in overrides.items():
            refused = [self._refused(row, field, value) for row in self.table["rows"]]
            if all(refused):
                raise ConfigError(refused[0])
        self.variant = self._variant()
        self.results = storage.path(results) / folder / self.variant
        self.workdir = storage.path(workdir) / folder / self.variant
        self.records = Records(self.results, list(slugs))

    @staticmethod
    def _load(row: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
        """The config of a row; its file is looked up in the project, from any working directory."""
        file, colon, arg = row["config"].partition(":")
        path = f"{project.own(file)}{colon}{arg}"
        return config_lib.load(path, {**row.get("set", {}), **overrides})

    @classmethod
    def _refused(cls, row: Mapping[str, Any], name: str, value: Any) -> str | None:
        """Why an override does not apply to a row's config, or None."""
        try:
            config_lib.override(cls._load(row, {}), name, value)
        except ConfigError as error:
            return str(error)

    def _variant(self) -> str:
        """The folder name for overrides; '' if they do not change results."""
        changed = {}
        for row in self.table["rows"]:
            for name, value in self.overrides.items():
                if self._refused(row, name, value) is None:
                    config = self._load(row, {})
                    own = config_lib.plain(config)
                    config_lib.override(config, name, value)
                    other = config_lib.plain(config)
                    if not same_but_for(own, other, MAY_CHANGE):
                        for part in name.split("."):
                            other = other[part]
                        changed[name] = other
        if not changed:
            return ""
        text = json.dumps(changed, sort_keys=True, default=str)
        prefix = "-".join(f"{name}={value}" for name, value in sorted(changed.items()))
        prefix = re.sub(r"[^A-Za-z0-9.=_]+", "-", prefix)[:40].strip("-.")
        return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def config(self, row: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The config of a cell; it is cached and must not be changed."""
        cell = name_of(row), seed
        if cell not in self._configs:
            config = self._load(row, {"seed": seed})
            fitting = {k: v for k, v in self.overrides.items() if not self._refused(row, k, v)}
            config_lib.apply(config, fitting)
            self._configs[cell] = config_lib.plain(config)
        return self._configs[cell]

    def made_with(self, field: str) -> bool:
        """Whether a finished cell has what this override sets, or none is finished.

        Cells that were evaluated before with other fields, or on another disk, are finished too.
        """
        records = self.finished()
        for row in self.table["rows"]:
            own = {seed: record for (name, seed), record in records.items() if name == name_of(row)}
            if not own:
                continue
            config = self._load(row, {"seed": (seed := min(own))})
            others = {k: v for k, v in self.overrides.items() if k != field}
            fitting = {k: v for k, v in others.items() if not self._refused(row, k, v)}
            config_lib.apply(config, fitting)
            now = self.config(row, seed)
            names = difference(config_lib.plain(config), now)
            expected = [fields(now).get(name) for name in names]
            for record in own.values():
                has = fields(record["config"])
                if names and [has.get(name) for name in names] == expected:
                    return True
        return not records

    def check_columns(self) -> None:
        """Refuses a column that no row's evaluators can fill and that has no published values.

        Evaluators of the table count even if overrides remove them: an evaluator without data may
        be left out, and its columns stay empty.

        Raises:
          ConfigError: such a column; the message has the nearest names.
        """
        names, unknown = set(OF_A_RUN), False
        for row in self.table["rows"]:
            try:
                for config in (config_lib.plain(self._load(row, {})), self.config(row, 0)):
                    for name, spec in config["evaluators"].items():
                        names |= evaluators.build(name, spec).yields if spec is not None else set()
                    if task := self.table.get("validated"):
                        spec = dict(name=task, data=validation_of(config))
                        own = evaluators.build("validation", spec).yields
                        names |= {f"{VALIDATION}/{name}" for name in own}
            except ConfigError:  # `run` reports it
                unknown = True
        for column in self.table["columns"]:
            key = column["key"]
            published = any(key in row.get("published", {}) for row in self.table["rows"])
            if published or keys.among(key, names):
                continue
            near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
            groups = ", ".join(sorted({name.partition("/")[0] for name in names}))
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
            hint = hint or f"they yield {groups}/..."
            message = f"table {self.name}: column {key!r}: no row's evaluators yield it; {hint}"
            if not unknown:
                raise ConfigError(message)
            logger.warning("%s", message)

    def seeds(self, row: Mapping[str, Any]) -> list[int]:
        """The seeds of a row that have a record."""
        return self.records.seeds(slug(name_of(row)))

    def run_directory(self, row: Mapping[str, Any], seed: int) -> storage.Path:
        """The workdir in which a cell runs, or was run last."""
        own = pathlib.Path(slug(name_of(row)), f"seed{seed}")
        if self.round is not None:
            return self.round / own
        record = self._recorded(row, seed)
        last = self.workdir / record["run"] if record and record.get("run") else None
        return last if last and last.is_dir() else self.workdir / own

    def _recorded(self, row: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        """The record of a cell, with any config."""
        return self.records.get(slug(name_of(row)), seed)

    def record(self, row: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        """The record of a finished cell; None if there is none, or if its config differs.

        Raises:
          ValueError: the record is damaged.
        """
        record = self._recorded(row, seed)
        if record is None:
            return None
        try:
            config = self.config(row, seed)
        except ConfigError:  # `run` reports it
            return None
        # Sections that are newer than the record had their defaults.
        settings = _defaults() | record["config"]
        same = same_but_for(settings, config, MAY_CHANGE)
        return record if same else None

    def finished(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The readable records with this config, by the name of the row and the seed."""
        records = {}
        for row in self.table["rows"]:
            for seed in self.seeds(row):
                with contextlib.suppress(ValueError):  # `run` reports it
                    if record := self.record(row, seed):
                        records[name_of(row), seed] = record
        return records

    def done(self, row: Mapping[str, Any], seed: int, warn: bool = True) -> bool:
        """Whether the cell is finished, as far as possible with this config.

        Args:
          row, seed: of the cell.
          warn: whether to log how its record differs from the config.

        Raises:
          ValueError: the record is damaged.
        """
        if self.round is not None and not self._mark(row, seed).is_file():
            return False
        record = self.record(row, seed)
        if record is None:
            if warn and self._recorded(row, seed) is not None:
                logger.warning("%s has another config and is not used", self._where(row, seed))
            return False
        then, now = record["config"]["evaluators"], self.config(row, seed)["evaluators"]
        if record["failures"]:
            return same_but_for(then, now, ())
        if warn and not same_but_for(then, now, ("*.sets.*.name", "*.sets.*.path")):
            logger.warning(
                "%s was evaluated with other config.evaluators than now; "
                "delete it to evaluate it again",
                self._where(row, seed),
            )
        then, now = (c.get("pretrained") or {} for c in (record["config"], self.config(row, seed)))
        if warn and not same_but_for(then, now, ()):
            logger.warning(
                "%s began from config.pretrained.path %r, not %r; unless these are the same "
                "parameters, delete it to run it again",
                self._where(row, seed),
                then.get("path"),
                now.get("path"),
            )
        return True

    def _where(self, row: Mapping[str, Any], seed: int) -> str:
        """The description of a record for messages, with its file and line."""
        place = self.records.where(slug(name_of(row)), seed)
        return f"the record of {name_of(row)}, seed {seed} ({place})"

    def run(self, row: Mapping[str, Any], seed: int) -> None:
        """Trains and evaluates one cell and writes its record, replacing an earlier one."""
        from experiments.tables import constraints

        config = copy.deepcopy(self.config(row, seed))
        self.check_selection(config)
        directory = self.run_directory(row, seed)
        experiment = train.train(config, directory, overview=False)
        stage.run(experiment, directory)
        metrics, failures = evaluate.evaluate(experiment, directory, show=False)
        sets = sets_of(directory, "test")
        if task := self.table.get("validated"):
            spec = dict(name=task, data=validation_of(experiment.config))
            on_validation, why = evaluate.evaluate(
                experiment, directory, specs={VALIDATION: spec}, name=VALIDATION, show=False
            )
            evaluate.report(why)
            sets[VALIDATION] = sets_of(directory, VALIDATION)[VALIDATION]
            metrics |= {
                f"{VALIDATION}/{key}": value
                for key, value in on_validation.items()
                if not key.startswith("cost/")
            }
        self.records.put(
            dict(
                row=name_of(row),
                seed=seed,
                metrics=metrics,
                failures=failures,
                sets=sets,
                trained=datasets.training(directory / DATA),
                config_file=row["config"],
                config=config,
                hardware=writers.hardware(),
                versions=constraints.installed(),
                run=directory.relative_to(self.workdir).as_posix(),
            ),
        )
        if self.round is not None:
            self._mark(row, seed).touch()

    def check_selection(self, config: Mapping[str, Any]) -> None:
        """Refuses validation data, by which cells are selected, that are among the test data.

        The data are read once for all cells that have the same. Training and test data that cannot
        be read are reported by training, which reads them too.

        Raises:
          ConfigError: there are no validation data.
          ValueError: they cannot be read, or more than half of them are in a set that an evaluator
            reports numbers of, or the other way round.
        """
        if not self.table.get("validated"):
            return
        key = key_of({name: config[name] for name in ("data", "evaluators")})
        if key not in self._selections:
            self._selections[key] = _selected_on(validation_of(config), config)
        if reason := self._selections[key]:
            raise ValueError(reason)

    def key(self, row: Mapping[str, Any], seed: int) -> str:
        """The name of a cell's claim."""
        return f"{slug(name_of(row))}-seed{seed}"

    @property
    def claims(self) -> "Claims":
        """Those of the present round."""
        from experiments.tables.claims import Claims

        folder = (self.round or self.workdir) / "claims"
        if self._claims is None or self._claims.folder != folder:
            self._claims = Claims(folder)
        return self._claims

    def _mark(self, row: Mapping[str, Any], seed: int) -> storage.Path:
        """The file that marks a cell of a round as recorded."""
        return self.run_directory(row, seed) / "recorded"

    def begin_round(self) -> None:
        """Makes all cells run again, in `workdir/fresh/<n>`; records stay until they are replaced.

        An unfinished round is resumed.
        """
        folder = self.workdir / "fresh"
        rounds = sorted(int(p.name) for p in folder.glob("*") if re.fullmatch("[0-9]+", p.name))
        last = folder / str(rounds[-1]) if rounds else None
        if last and (last / UNFINISHED).is_file():
            logger.info("resuming the unfinished round %s; delete it to begin another", last)
            self.round = last
            return
        self.round = folder / str(rounds[-1] + 1 if rounds else 1)
        self.round.mkdir(parents=True)
        (self.round / UNFINISHED).touch()

    def end_round(self) -> None:
        """Ends the round, so that the next one starts from scratch."""
        (self.round / UNFINISHED).unlink(missing_ok=True)


def _selected_on(spec: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Why nothing may be selected on the validation data of a config; '' if it may."""
    from experiments.data.overlap import require_apart

    unreadable, seen = (ValueError, OSError, ImportError), set()
    try:
        train = load(config["data"]["train"], "data.train", labels=labels.OPTIONAL)
        built = evaluators.build_all(config["evaluators"])
    except unreadable:
        return ""
    try:
        validation = load(spec, "data.validation", train, labels.ALIKE)
    except unreadable as error:  # which training need not read
        return str(error)
    for name, evaluator in built.items():
        for read in evaluator.data:
            if not read.reported or (key := (read.labels, key_of(read.data))) in seen:
                continue
            seen.add(key)
            field = f"evaluators.{name}.{read.field}"
            try:
                test = load(read.data, field, train, read.labels)
            except unreadable:
                continue
            try:
                require_apart("data.validation", validation, test, f"the data of {field}")
                used = "the validation data, by which settings are selected"
                require_apart(field, test, validation, used)
            except ValueError as error:
                return str(error)
    return ""


@functools.cache
def _defaults() -> dict[str, Any]:
    """The sections of a config with their defaults."""
    return config_lib.plain(base())
