"""The cells of a table on several machines: shards of one command, started here by a scheduler.

Each worker is the same command with `--shard I/N`. It begins with its part of the cells, and then
helps the others; claims (`claims.py`) see to it that none is run twice. Results meet in the folder
or bucket of the table, so a scheduler has nothing to bring back.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from experiments.experiment import config as config_lib
from experiments.runtime import storage
from experiments.runtime.progress import Progress
from experiments.tables.cells import Cells, name_of
from experiments.tables.run import Outcome, Shard
from experiments.tables.summary import study
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)

LAUNCHERS = ("slurm", "local")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `launch` and of `Shard`."""
    add = parser.add_argument
    text = "one of N processes that share the folders: begins with the I-th part of the cells"
    add("--shard", metavar="I/N", type=_shard, default=Shard(), help=text)
    text = "run the cells by workers of SLURM, or of this machine (needs the extra `slurm`)"
    add("--launcher", choices=LAUNCHERS, help=text)
    add("--workers", type=int, default=2, help="of --launcher (default: %(default)s)")
    text = "for submitit, such as timeout_min=240 or slurm_partition=gpu; may be repeated"
    add("--resource", action="append", default=[], metavar="NAME=VALUE", help=text)


def _shard(text: str) -> Shard:
    try:
        return Shard.of(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--shard: ")) from None


def check(args: argparse.Namespace) -> None:
    """Refuses flags that do not go together, and a launcher that is not installed.

    Raises:
      ConfigError: the message names the flag.
    """
    if args.launcher is None:
        if args.resource:
            raise ConfigError("--resource: is for --launcher")
        return
    if args.workers < 1:
        raise ConfigError(f"--workers: {args.workers}; at least 1")
    if args.shard.count > 1:
        raise ConfigError("--shard: the launcher gives each worker its own; leave one of them out")
    if not importlib.util.find_spec("submitit"):
        raise ConfigError(
            f"--launcher: {args.launcher} needs submitit, which is not installed: "
            "pip install '.[slurm]'"
        )
    config_lib.assignments(args.resource)


class Worker:
    """One worker as a job of submitit: the command as a process of its own.

    Before its time is over, SLURM tells submitit, which calls `checkpoint`: the process saves what
    it trains, and the job goes back into the queue. Where it begins again does not matter.
    """

    def __init__(self, command: Sequence[str]):
        self.command = list(command)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        self._process = subprocess.Popen(self.command)
        _until_ended(self._process)
        code = self._process.wait()
        if code not in (0, 1):  # 1: a cell failed, which its driver reports
            raise RuntimeError(f"the worker ended with status {code}")
        return code

    def checkpoint(self) -> Any:
        """The job to queue again; called by submitit's handler of SLURM's signal, on top of
        `__call__` in the same thread."""
        import submitit

        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            _until_ended(self._process)
        return submitit.helpers.DelayedSubmission(Worker(self.command))


def _until_ended(process: subprocess.Popen) -> None:
    """Waits until a process has ended, also in a signal handler that interrupts such a wait.

    `Popen.wait` holds a lock meanwhile, for which a second one in the same thread waits for ever.
    """
    with contextlib.suppress(ChildProcessError):  # `process` knows its status already
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def launched(
    cells: Cells,
    command: Sequence[str],
    args: argparse.Namespace,
    jobs: Sequence[tuple[dict[str, Any], int]],
) -> Outcome:
    """What becomes of cells that workers run.

    Args:
      cells: of the table.
      command: that runs its cells here, to which a shard is added.
      args: with the flags of `add_arguments`.
      jobs: rows and seeds.

    Raises:
      ConfigError: a resource that the launcher does not know.
    """
    cells.claims.begin()
    left = unfinished(cells, jobs)
    read = len(jobs) - len(left)
    ended = run_workers(cells, command, args, left)
    cells.records.refresh()
    left = unfinished(cells, left)
    failures: dict[str, dict[str, list[int]]] = {}
    for row, seed in left:
        why = cells.claims.failed(cells.key(row, seed))
        why = why or "; ".join(["no worker has finished it", *ended])
        failures.setdefault(why, {}).setdefault(name_of(row), []).append(seed)
    return Outcome(study(cells, failures), read, len(jobs) - read - len(left), failures)


def unfinished(
    cells: Cells, jobs: Sequence[tuple[dict[str, Any], int]]
) -> list[tuple[dict[str, Any], int]]:
    """The rows and seeds whose cells are not finished, in the round if there is one; see
    `Cells.done`. Those of damaged records are not."""

    def done(row: dict[str, Any], seed: int) -> bool:
        try:
            return cells.done(row, seed, warn=False)
        except ValueError:  # its worker reports it
            return False

    return [job for job in jobs if not done(*job)]


def run_workers(
    cells: Cells,
    command: Sequence[str],
    args: argparse.Namespace,
    jobs: Sequence[tuple[dict[str, Any], int]],
) -> list[str]:
    """Starts the workers, waits for them, and returns a line on each that failed.

    Ctrl-C cancels them; what they have finished stays, and the same command resumes.

    Args:
      cells, command, args: see `launched`.
      jobs: rows and seeds that are not finished, for the progress.
    """
    import submitit

    local = cells.workdir if not isinstance(cells.workdir, storage.BucketPath) else "."
    folder = storage.path(local) / "launcher"
    executor = submitit.AutoExecutor(folder=str(folder), cluster=args.launcher)
    given = {k: config_lib.value_of(v, k) for k, v in config_lib.assignments(args.resource).items()}
    try:
        executor.update_parameters(**{"timeout_min": 24 * 60, "name": "cells", **given})
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(f"--resource: {error}") from error
    workers = []
    with executor.batch():
        for i in range(args.workers):
            shard = ["--shard", f"{i}/{args.workers}"]
            workers.append(executor.submit(Worker([*command, *shard])))
    logger.info("workers %s; their output is in %s", ", ".join(w.job_id for w in workers), folder)
    ended, left = False, list(jobs)
    try:
        with Progress(len(jobs), "launched", unit="cell") as progress:
            while not all(worker.done() for worker in workers):
                cells.records.refresh()
                working = sum(not worker.done() for worker in workers)
                left = unfinished(cells, left)
                progress.update(len(jobs) - len(left), f"{working} of {len(workers)} workers")
                time.sleep(0.5 if args.launcher == "local" else 10)
            cells.records.refresh()
            progress.update(len(jobs) - len(unfinished(cells, left)), "0 workers")
        ended = True
    finally:
        if not ended:
            for worker in workers:
                worker.cancel()
    lines = []
    for i, worker in enumerate(workers):
        if (error := worker.exception()) is not None:
            last = "".join(str(error).strip().splitlines()[-1:])
            lines.append(f"worker {i} ({worker.job_id}): {last}; see {worker.paths.stderr}")
    return lines


def python(program: str) -> list[str]:
    """The command of a program of this installation."""
    return [sys.executable, "-m", f"experiments.{program}"]
