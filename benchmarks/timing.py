"""Fair timings on a noisy machine: sides take turns; wall and CPU time, minima and medians."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Seconds = dict[str, dict[str, float]]
RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# The allocator keeps freed memory, as `experiments` sets for this process; else page faults count.
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
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
