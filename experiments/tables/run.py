"""Runs the unfinished cells of a table, here or each in its own process."""

import argparse
import dataclasses
import logging
import math
import pathlib
import re
import subprocess
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.reports.study import Study, one_line
from experiments.runtime.progress import Progress
from experiments.runtime.termination import Interrupted, graceful_termination
from experiments.tables.cells import Cells, name_of
from experiments.tables.summary import study
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)


PAUSE = 2.0  # seconds between looks at the cells of other processes


class Shard(NamedTuple):
    """The place of one of several processes: it begins with its part, and then helps the others."""

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, text: str) -> "Shard":
        """'I/N', with I from 0 to N - 1.

        Raises:
          ConfigError: another form.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not int(found[1]) < int(found[2]):
            raise ConfigError(f"--shard: {text!r}; I/N is needed, with I from 0 to N - 1")
        return cls(int(found[1]), int(found[2]))


class Outcome(NamedTuple):
    """The outcome of running a table's cells."""

    study: Study  # of all finished cells
    read: int  # cells that were finished before
    ran: int
    failures: dict[str, dict[str, list[int]]]  # reason -> row -> seeds

    def failed(self) -> int:
        """The number of cells that failed, counting each once."""
        return len(
            {(r, s) for rows in self.failures.values() for r, of in rows.items() for s in of}
        )


def reproduce(
    cells: Cells,
    *,
    rows: str = "",
    seeds: Sequence[int] | None = None,
    isolate: Sequence[str] | None = None,
    shard: Shard = Shard(),  # noqa: B008  (immutable)
) -> Outcome:
    """Runs the unfinished cells, and waits for those that other processes run meanwhile.

    Several processes, on machines that share the folders, divide the cells among them (`claims`).

    Args:
      cells: of the table.
      rows: a regex; only rows whose name it matches are run. All are shown.
      seeds: run only these seeds; by default the table's.
      isolate: the command that runs one cell in its own process, or None for this process.
      shard: where among the cells this process begins.

    Raises:
      ConfigError: `rows` matches no row, or nothing fills a column.
      Interrupted: SIGTERM or SIGINT came.
    """
    jobs = [(row, seed) for seed in seeds_of_table(cells, seeds) for row in rows_of(cells, rows)]
    cells.check_columns()
    first = len(jobs) * shard.index // shard.count
    rotated = [*jobs[first:], *jobs[:first]]
    cells.claims.begin()
    done = Tally()
    with Progress(len(jobs), cells.name, unit="cell", show=isolate is None) as progress:
        left = rotated
        while left:
            elsewhere = []
            for row, seed in left:
                name = f"{name_of(row)}, seed {seed}"
                progress.update(done.all(), f"{done} · {name}")
                if not one(cells, row, seed, isolate, done, (name, len(jobs))):
                    elsewhere.append((row, seed))
            if elsewhere and len(elsewhere) == len(left):
                waiting = f"{len(elsewhere)} run by other processes"
                progress.update(done.all(), f"{done} · {waiting}")
                time.sleep(PAUSE)
            left = elsewhere
        progress.update(len(jobs), str(done))
    return Outcome(study(cells, done.failures), done.read, done.ran, done.failures)


@dataclasses.dataclass
class Tally:
    """What became of the cells so far."""

    read: int = 0
    ran: int = 0
    failed: int = 0
    failures: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)

    def fail(self, reason: str, row: Mapping[str, Any], seed: int) -> None:
        self.failed += 1
        self.failures.setdefault(reason, {}).setdefault(name_of(row), []).append(seed)

    def all(self) -> int:
        return self.read + self.ran + self.failed

    def __str__(self) -> str:
        return f"{self.read} read, {self.ran} run, {self.failed} failed"


def one(
    cells: Cells,
    row: dict[str, Any],
    seed: int,
    isolate: Sequence[str] | None,
    done: Tally,
    named: tuple[str, int],
) -> bool:
    """Runs a cell unless it is finished; False if another process runs it at present."""
    name, count = named
    key = cells.key(row, seed)
    try:
        if cells.done(row, seed):
            done.read += 1
            return True
        with cells.claims.claim(key) as mine:
            if not mine:
                return False
            if (reason := cells.claims.failed(key)) is not None:
                done.fail(reason, row, seed)
                return True
            cells.records.refresh()
            if cells.done(row, seed):  # meanwhile
                done.read += 1
                return True
            try:
                if isolate is None:
                    cells.run(row, seed)
                else:
                    logger.info("%s (%d of %d)", name, done.all() + 1, count)
                    chosen = ["--rows", f"^{re.escape(name_of(row))}$", "--seeds", str(seed)]
                    run_alone([*isolate, *chosen])
            except Interrupted:
                raise
            except Exception as error:
                cells.claims.fail(key, one_line(error) or type(error).__name__)
                raise
        done.ran += 1
    except Interrupted:
        raise
    except Exception as error:  # the other cells still run
        reason = one_line(error) or type(error).__name__
        level = logging.DEBUG if reason in done.failures else logging.ERROR
        logger.log(level, "%s: %s", name, reason)
        logger.debug("%s", traceback.format_exc())
        done.fail(reason, row, seed)
    return True


def rows_of(cells: Cells, pattern: str) -> list[dict[str, Any]]:
    """The rows whose name a regex matches.

    Raises:
      ConfigError: it matches none, or is not a regex.
    """
    try:
        selected = [row for row in cells.table["rows"] if re.search(pattern, name_of(row))]
    except re.error as error:
        raise ConfigError(f"rows: {pattern!r} is not a regular expression: {error}") from None
    if not selected:
        names = [name_of(row) for row in cells.table["rows"]]
        raise ConfigError(f"rows: {pattern!r} matches none of {names}")
    return selected


def run_cell(cells: Cells, rows: str, seeds: Sequence[int], file: str) -> int:
    """Runs the one cell of `rows` and `seeds`; the reason of a failure goes to the file."""
    (row,) = [r for r in cells.table["rows"] if re.search(rows, name_of(r))]
    try:
        cells.run(row, *seeds)
    except Exception as error:
        pathlib.Path(file).write_text(str(error))
        logger.debug("%s", traceback.format_exc())
        return 1
    return 0


def seeds_of(text: str) -> list[int]:
    """'0,1' as [0, 1]."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0,1,2") from None


def seeds_of_table(cells: Cells, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """The selected seeds, once each; by default the table's."""
    return tuple(dict.fromkeys(cells.table["seeds"] if seeds is None else seeds))


def run_alone(command: Sequence[str]) -> None:
    """Runs one cell in its own process, which also gets SIGTERM and SIGINT.

    Raises:
      RuntimeError: it failed; the message is that of the process, if it left one.
      Interrupted: a signal stopped it.
    """
    with tempfile.NamedTemporaryFile("r") as reason, graceful_termination() as stop:
        process = subprocess.Popen([*command, "--cell", reason.name])
        asked = -math.inf
        while process.poll() is None:
            time.sleep(0.05)
            # Not at once again: a process that has saved and leaves its message would be killed.
            if stop.requested and time.monotonic() > asked + 10:
                asked = time.monotonic()
                process.terminate()
        message = reason.read()
    if stop.requested:
        raise Interrupted(message or f"stopped by {stop.signal}", stop.signal)
    if process.returncode:
        raise RuntimeError(message or f"its process ended with status {process.returncode}")
