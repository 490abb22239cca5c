"""The cells of a table, rows x seeds: their configs, what they found, and where that is kept."""

import importlib
import logging
import pathlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

import configs.tables
from configs.base import base
from experiments import config as config_lib
from experiments import evaluate, stage, train, writers
from experiments.workdir import read_json, same_but_for, write_json
from uncertainty.build import ConfigError, nearest

logger = logging.getLogger(__name__)


def table_of(name: str) -> dict[str, Any]:
    """The table of `configs/tables/<name>.py`.

    Raises:
      ConfigError: there is no such table.
    """
    names = [m.name for m in pkgutil.iter_modules(configs.tables.__path__)]
    if name not in names:
        raise ConfigError(f"table: no {name!r}; {nearest(name, names)}")
    return importlib.import_module(f"configs.tables.{name}").get_table()


def name_of(row: Mapping[str, Any]) -> str:
    """`group: label`, or the label alone."""
    return ": ".join(filter(None, [row.get("group", ""), row["label"]]))


def slug(row: Mapping[str, Any]) -> str:
    """A file name for a row."""
    return re.sub(r"[^a-z0-9]+", "-", name_of(row).lower()).strip("-")


class Cells:
    """The cells of a table: which are to be run, and what the finished ones found.

    Args:
      name: the table.
      results: where finished cells and the rendered table are kept.
      workdir: where the runs are, with their checkpoints.
      overrides: dotted config fields to set in every row that has a section for them.

    Raises:
      ConfigError: there is no such table, or no row has a section for an override.
    """

    def __init__(self, name: str, results: str, workdir: str, overrides: Mapping[str, Any]):
        self.name, self.table = name, table_of(name)
        self.results = pathlib.Path(results) / name
        self.workdir = pathlib.Path(workdir) / name
        self.overrides = overrides
        for name, value in overrides.items():
            refused = [self._refused(row, name, value) for row in self.table["rows"]]
            if all(refused):
                raise ConfigError(refused[0])

    @staticmethod
    def _refused(row: Mapping[str, Any], name: str, value: Any) -> str | None:
        """Why a row's config cannot have this override, or None."""
        try:
            config_lib.load(row["config"], {name: value})
        except ConfigError as error:
            return str(error)

    def config(self, row: Mapping[str, Any], seed: int) -> dict[str, Any]:
        config = config_lib.load(row["config"], {"seed": seed})
        for name, value in self.overrides.items():
            if self._refused(row, name, value) is None:
                config_lib.override(config, name, value)
        return config_lib.plain(config)

    def file(self, row: Mapping[str, Any], seed: int) -> pathlib.Path:
        return self.results / "runs" / f"{slug(row)}-seed{seed}.json"

    def run_directory(self, row: Mapping[str, Any], seed: int) -> pathlib.Path:
        return self.workdir / slug(row) / f"seed{seed}"

    def record(self, row: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
        """What a finished cell found; None if there is none, or its config was another one."""
        path = self.file(row, seed)
        if not path.is_file():
            return None
        record = read_json(path)
        try:
            config = self.config(row, seed)
        except ConfigError:  # `run` will tell
            return None
        # A section that came after the record was made had its default.
        made = config_lib.plain(base()) | record["config"]
        same = same_but_for(made, config, config_lib.MAY_CHANGE)
        return record if same else None

    def done(self, row: Mapping[str, Any], seed: int) -> bool:
        """Whether nothing is left to do, as far as can be done with this config."""
        record = self.record(row, seed)
        if record is None:
            if (path := self.file(row, seed)).is_file():
                logger.warning("%s is of another config and is not used", path)
            return False
        then, now = record["config"]["evaluators"], self.config(row, seed)["evaluators"]
        if record["failures"]:
            return same_but_for(then, now, ())
        if not same_but_for(then, now, ("*.sets.*.name", "*.sets.*.path")):
            logger.warning("%s was evaluated otherwise than config.evaluators asks now; "
                           "delete it to evaluate it again", self.file(row, seed))  # fmt: skip
        return True

    def run(self, row: Mapping[str, Any], seed: int) -> None:
        """Trains and evaluates one cell and records it."""
        config = self.config(row, seed)
        directory = self.run_directory(row, seed)
        experiment = train.train(config, directory, overview=False)
        stage.run(experiment, directory)
        metrics, failures = evaluate.evaluate(experiment, directory, show=False)
        self.file(row, seed).parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self.file(row, seed),
            dict(
                row=name_of(row),
                seed=seed,
                metrics=metrics,
                failures=failures,
                config_file=row["config"],
                config=config,
                hardware=writers.hardware(),
            ),
        )
