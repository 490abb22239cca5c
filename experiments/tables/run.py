"""Runs the unfinished cells of a table, here or each in its own process."""

import logging
import math
import re
import subprocess
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.reports.study import Study, one_line
from experiments.runtime.progress import Progress
from experiments.runtime.termination import Interrupted, graceful_termination
from experiments.tables.cells import Cells, name_of
from experiments.tables.summary import study
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)


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
) -> Outcome:
    """Runs the unfinished cells.

    Args:
      cells: of the table.
      rows: a regex; only rows whose name it matches are run. All are shown.
      seeds: run only these seeds; by default the table's.
      isolate: the command that runs one cell in its own process, or None for this process.

    Raises:
      ConfigError: `rows` matches no row, or nothing fills a column.
      Interrupted: SIGTERM or SIGINT came.
    """
    jobs = [(row, seed) for seed in seeds_of_table(cells, seeds) for row in rows_of(cells, rows)]
    cells.check_columns()
    failures: dict[str, dict[str, list[int]]] = {}
    read = ran = 0
    with Progress(len(jobs), cells.name, unit="cell", show=isolate is None) as progress:
        for i, (row, seed) in enumerate(jobs):
            name = f"{name_of(row)}, seed {seed}"
            progress.update(i, f"{read} read, {ran} run, {i - read - ran} failed · {name}")
            try:
                if cells.done(row, seed):
                    read += 1
                    continue
                if isolate is None:
                    cells.run(row, seed)
                else:
                    logger.info("%s (%d of %d)", name, i + 1, len(jobs))
                    run_alone(
                        [*isolate, "--rows", f"^{re.escape(name_of(row))}$", "--seeds", str(seed)]
                    )
                ran += 1
            except Interrupted:
                raise
            except Exception as error:  # the other cells still run
                reason = one_line(error) or type(error).__name__
                level = logging.DEBUG if reason in failures else logging.ERROR
                logger.log(level, "%s: %s", name, reason)
                logger.debug("%s", traceback.format_exc())
                failures.setdefault(reason, {}).setdefault(name_of(row), []).append(seed)
        progress.update(len(jobs), f"{read} read, {ran} run, {len(jobs) - read - ran} failed")
    return Outcome(study(cells, failures), read, ran, failures)


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
