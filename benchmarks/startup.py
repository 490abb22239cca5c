"""Time from the command to the quickstart's first step, with a warm compilation cache.

    python -m benchmarks.startup [--opponents /path/to/their/bin/python]

Fresh processes, in turns: this project's imports, those of its dependencies alone (the floor),
`python -m experiments.train` to its first step, and torch-uncertainty's imports. Wall time is that
of the fastest repeat; CPU seconds (user and system) estimate the time on an idle machine.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import timing
from experiments.runtime import writers

FIRST_STEP = "first step"  # what the train loop logs once that step is done
TARGETS = {"import experiments.train": 3.0, "first step": 10.0}
DEPENDENCIES = "import flax.linen, jax, optax, orbax.checkpoint, rich.progress"
TRAIN = (
    "-m",
    "experiments.train",
    "--config=configs/digits/mlp.py:size=10",
    "--config.steps=100",
    "--noevaluate",
    "--workdir",
)


def imports(python: str, statement: str) -> tuple[float, float]:
    """Wall and CPU seconds of a process that only runs a statement.

    Raises:
      RuntimeError: the process fails; with the last line of its error.
    """
    before, began = _children(), time.perf_counter()
    process = subprocess.run([python, "-c", statement], capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{statement!r}: {process.stderr.strip().splitlines()[-1]}")
    return wall, _children() - before


def first_step(python: str) -> tuple[float, float]:
    """Wall seconds to the line that reports the first step, and CPU seconds of all 100 steps.

    Raises:
      RuntimeError: training ended before that line.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, began = _children(), time.perf_counter()
        command = [python, *TRAIN, str(pathlib.Path(folder) / "run")]
        wall, line = None, ""
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if wall is None and FIRST_STEP in line:
                    wall = time.perf_counter() - began
        if wall is None:
            raise RuntimeError(f"{' '.join(command)}: {line.strip()}")
        return wall, _children() - before


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def heaviest(statement: str, count: int = 8) -> list[tuple[str, float]]:
    """The modules that take longest to import themselves, in ms: candidates for late imports."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = [line.split(":")[1].split("|") for line in text.splitlines() if "import time:" in line]
    own = [(n.strip(), int(s) / 1e3) for s, _, n in lines if s.strip().isdigit()]
    packages: dict[str, float] = {}
    for name, ms in own:
        package = name.partition(".")[0]
        packages[package] = packages.get(package, 0) + ms
    return sorted(packages.items(), key=lambda item: -item[1])[:count]


def measure(opponents: str | None, repeats: int) -> list[dict[str, Any]]:
    ours = sys.executable
    jobs = {
        "import its dependencies": lambda: imports(ours, DEPENDENCIES),
        "import experiments.train": lambda: imports(ours, "import experiments.train"),
        "first step": lambda: first_step(ours),
    }
    if opponents:
        jobs["import torch"] = lambda: imports(opponents, "import torch")
        jobs["import torch_uncertainty"] = lambda: imports(opponents, "import torch_uncertainty")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    errors: dict[str, str] = {}
    for repeat in track(range(repeats + 1), "repeats"):
        for name, job in jobs.items():
            if name in errors:
                continue
            try:
                result = job()
            except RuntimeError as error:
                errors[name] = str(error)
                continue
            if repeat:  # the first fills the disk and compilation caches
                times[name].append(result)
    rows = []
    for name, results in times.items():
        row = {"job": name, "target_s": TARGETS.get(name)}
        if name in errors:
            rows.append(row | {"error": errors[name]})
            continue
        wall, cpu = zip(*results, strict=True)
        rows.append(row | {"wall_s": min(wall), "wall_median_s": _median(wall), "cpu_s": min(cpu)})
    return rows


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def show(rows: list[dict[str, Any]], packages: list[tuple[str, float]]) -> None:
    table = Table(title="Seconds from the command, warm caches")
    for name in ("what", "wall, min", "wall, median", "CPU", "target"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for r in rows:
        target = f"{r['target_s']:g}" if r["target_s"] else ""
        if "error" in r:
            table.add_row(r["job"], "fails", "", "", target)
        else:
            times = (f"{r[key]:.2f}" for key in ("wall_s", "wall_median_s", "cpu_s"))
            table.add_row(r["job"], *times, target)
    console = Console()
    console.print(table)
    for r in rows:
        if "error" in r:
            console.print(f"{r['job']}: {r['error']}", markup=False)
    console.print("heaviest imports, ms: " + ", ".join(f"{n} {ms:.0f}" for n, ms in packages))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opponents", help="python of an environment with torch-uncertainty")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, help="JSON; benchmarks/results by default")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    rows = measure(args.opponents, args.repeats)
    packages = heaviest("import experiments.train")
    show(rows, packages)
    output = args.output or pathlib.Path(__file__).parent / "results" / "startup.json"
    record = {
        "hardware": writers.hardware(),
        "load_at_start": load,
        "rows": rows,
        "heaviest_imports_ms": {name: round(ms) for name, ms in packages},
    }
    timing.write(output, record)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
