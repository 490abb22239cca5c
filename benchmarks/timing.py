"""Fair timings on a noisy machine: sides take turns; wall and CPU time, minima and medians."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.runtime import allocator

Seconds = dict[str, dict[str, float]]
RESULTS = pathlib.Path(__file__).parent / "results"
STAMP = "BENCHMARKS_STAMP"  # JSON that `benchmarks.all` adds to the results of what it runs
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# The allocator keeps freed memory, here and in other processes; else page faults count.
allocator.keep_freed_memory()
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}


def clock(fn: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of fn(), the latter of all threads of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    fn()
    return time.perf_counter() - wall, time.process_time() - cpu


def take_turns(
    sides: Mapping[str, Callable[[], tuple[float, float]]], rounds: int
) -> dict[str, dict[str, float]]:
    """Runs one block of each side, `rounds` times over, so that noise affects all alike.

    Args:
      sides: name -> a function that runs a block and returns wall and CPU seconds per unit of work.

    Returns:
      Name -> the minimum (`wall`, `cpu`) and median (`wall_median`, `cpu_median`) over blocks.
    """
    seconds: dict[str, list] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side())
    summary = {}
    for name, blocks in seconds.items():
        low, middle = np.min(blocks, axis=0), np.median(blocks, axis=0)
        summary[name] = dict(wall=low[0], cpu=low[1], wall_median=middle[0], cpu_median=middle[1])
    return {name: {key: float(v) for key, v in values.items()} for name, values in summary.items()}


def block(run: Callable[[], Any], units: int = 1) -> Callable[[], tuple[float, float]]:
    """A function that returns wall and CPU seconds per unit of work of run(), waiting for it."""

    def timed() -> tuple[float, float]:
        import jax

        seconds = clock(lambda: jax.block_until_ready(run()))
        return seconds[0] / units, seconds[1] / units

    return timed


def over(seconds: Seconds, base: str) -> Seconds:
    """Side -> its seconds over those of `base`, for each clock."""
    return {
        side: {clock: value / seconds[base][clock] for clock, value in values.items()}
        for side, values in seconds.items()
        if side != base
    }


def show(record: dict[str, Any]) -> None:
    table = Table(title=record["job"], caption="ms; ratios and targets are of times")
    for title in (
        "",
        "wall min",
        "median",
        "CPU min",
        "median",
        "ratio wall",
        "median",
        "CPU",
        "median",
        "target",
    ):
        table.add_column(title, justify="right" if title else "left")
    clocks = ("wall", "wall_median", "cpu", "cpu_median")
    for side, values in record["seconds"].items():
        cells = [f"{1e3 * values[c]:,.2f}" for c in clocks]
        if side in record["ratios"]:
            cells += [f"{record['ratios'][side][c]:.3f}" for c in clocks]
            cells += [str(record["targets"].get(side, ""))]
        table.add_row(side, *cells)
    Console(width=130).print(table)


class Worker:
    """A program in a separate environment that answers JSON lines with JSON lines."""

    def __init__(self, python: str, script: str, *arguments: str):
        self._process = subprocess.Popen(
            [python, str(pathlib.Path(__file__).parent / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | KEEP_FREED_MEMORY,
        )

    def ask(self, **request: Any) -> Any:
        """Raises RuntimeError if the program has ended; its own error is on standard error."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def classes(shape: Sequence[int], N: int, B: int) -> dict[str, np.ndarray]:
    """x [N, B, ...] and y [N, B] of ten classes that can be told apart."""
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=(N, B)).astype(np.int32)
    means = rng.normal(size=(10, *shape)).astype(np.float32)
    x = (0.3 * means[y] + rng.normal(size=(N, B, *shape))).astype(np.float32)
    return dict(x=x, y=y)


def add_cores(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for the numbers of cores, which `parse` reads."""
    parser.add_argument(
        "--cores",
        type=int,
        nargs="+",
        default=sorted({1, len(os.sched_getaffinity(0))}),
        help="numbers of cores; each has a process of its own, in which all sides take turns",
    )


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; with other --cores than this process has, its work is done by others.

    Raises:
      SystemExit: the work was done, or failed, in processes of their own, or a number of cores is
        not allowed.
    """
    arguments, available = parser.parse_args(), sorted(os.sched_getaffinity(0))
    if not all(1 <= n <= len(available) for n in arguments.cores):
        parser.error(f"--cores: {arguments.cores}; allowed 1 to {len(available)}")
    if arguments.cores == [len(available)]:
        return arguments
    codes = []
    for n in arguments.cores:
        os.sched_setaffinity(0, available[:n])  # before any thread of theirs exists
        command = [sys.executable, *sys.orig_argv[1:], "--cores", str(n)]
        codes.append(subprocess.run(command, check=False).returncode)
    raise SystemExit(max(codes, key=abs))


def suffix() -> str:
    """What is added to the name of a result that was measured on a single core."""
    return "_1_core" if len(os.sched_getaffinity(0)) == 1 else ""


def where(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Date, hardware, load and versions."""
    info = pathlib.Path("/proc/cpuinfo")
    models = [
        line.split(":")[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def save(name: str, record: Mapping[str, Any]) -> pathlib.Path:
    """Writes `results/<name>.json`."""
    path = RESULTS / f"{name}.json"
    write(path, record)
    return path


def write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a result whole: a reader sees the old file or the new one."""
    if stamp := os.environ.get(STAMP):
        record = dict(record) | dict(measured=json.loads(stamp))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
