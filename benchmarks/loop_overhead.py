"""The train loop with data, metrics and logging against the bare compiled step.

    python -m benchmarks.loop_overhead

The loop is `experiments.train.train` itself, as in the quickstart but without validation. The bare
side calls the same compiled update on one batch that is already on the device, and blocks once at
the end. Both take turns every `logging.every` steps within one run: the update passed to the loop
pauses it for a bare block of as many steps, so noise affects both sides alike. The ratios are those
of the fastest blocks, and the median over neighbouring pairs; ratios of CPU time count the work of
all threads, as if no core were free for it.

The floor is 1: the loop's own work (indexing a batch, 6 to 20 us; placing it on the device, 65 to
85 us, in a thread; queues and dispatch) overlaps with the step as long as a core is free, except
one wait for the metrics every `every` steps. In the third job the step is so small that the loop
itself is measured; it has no target.
"""

import argparse
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any
from unittest import mock

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from experiments.data.loader import batches
from experiments.experiment import config as config_lib
from experiments.experiment.build import setup
from experiments.runtime import execution, writers
from experiments.train import train
from uncertainty.types import Batch, Metrics, State

TARGET = 1.03


def jobs(steps: int) -> dict[str, dict[str, Any]]:
    """Name -> config."""

    def config() -> dict[str, Any]:
        config = config_lib.plain(config_lib.load("configs/digits/mlp.py:size=10"))
        config["evaluation"]["every"], config["evaluators"] = 0, {}
        config["steps"] = config["checkpoint"]["every"] = steps
        return config

    small, large, tiny = config(), config(), config()
    large["data"]["train"] |= dict(upsample=28, classes=None)
    large["head"]["outputs"] = 10
    large["backbone"]["widths"] = (200, 200)
    large["batch_size"] = 128
    large["steps"] = large["checkpoint"]["every"] = steps // 3
    tiny["backbone"]["widths"] = (8,)
    tiny["inference"]["size"] = 1
    return {
        "quickstart: MLP 64-128-128-8 x 10, batch 64": small,
        "MLP 784-200-200-10 x 10, batch 128": large,
        "loop alone: MLP 64-8-8, batch 64": tiny,
    }


class Turns:
    """An update for the loop that alternates with bare blocks of `every` steps."""

    def __init__(self, config: Mapping[str, Any]):
        experiment = setup(config)
        self.every = config["logging"]["every"]
        self.state = experiment.init()
        _, batch = next(batches(experiment.source, seed=0, batch_size=config["batch_size"]))
        self.batch = execution.put_batch(experiment.mesh)(batch)
        self.update = experiment.update
        # Wall and CPU seconds per step, for each block.
        self.seconds: dict[str, list[np.ndarray]] = {"loop": [], "bare": []}
        self._calls, self._began = 0, clocks()

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        if self._calls % self.every == 0:  # the loop has just waited for metrics and written them
            if self._calls > self.every:  # the first block compiles
                self.seconds["loop"].append((clocks() - self._began) / self.every)
                self.seconds["bare"].append(self.bare())
            self._began = clocks()
        self._calls += 1
        return self.update(state, batch)

    def trace(self, state: State, batch: Batch) -> jax.stages.Traced:
        return self.update.trace(state, batch)

    def bare(self) -> np.ndarray:
        """Seconds per step of the compiled update alone."""
        began = clocks()
        for _ in range(self.every):
            self.state, metrics = self.update(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return (clocks() - began) / self.every


def clocks() -> np.ndarray:
    """Wall and CPU seconds, the latter of all threads."""
    return np.asarray([time.perf_counter(), time.process_time()])


def compare(config: Mapping[str, Any]) -> dict[str, float]:
    turns = Turns(config)
    turns.bare()
    with (
        tempfile.TemporaryDirectory() as workdir,
        mock.patch.object(execution, "update_of", lambda *_, **__: turns),
    ):
        train(config, workdir)
    loop, bare = (1e3 * np.asarray(turns.seconds[side]) for side in ("loop", "bare"))
    return {
        "blocks": len(loop),
        "block_steps": turns.every,
        **statistics(loop[:, 0], bare[:, 0]),
        **{f"cpu_{name}": v for name, v in statistics(loop[:, 1], bare[:, 1]).items()},
    }


def statistics(loop: np.ndarray, bare: np.ndarray) -> dict[str, Any]:
    return {
        "loop_min_ms": float(loop.min()),
        "bare_min_ms": float(bare.min()),
        "ratio_min": float(loop.min() / bare.min()),
        "ratio_median": float(np.median(loop / bare)),
        "ratio_quartiles": [float(q) for q in np.quantile(loop / bare, (0.25, 0.75))],
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"Train loop against the bare step (target: {TARGET})")
    for name in ("job", "clock", "loop ms", "bare ms", "ratio of min", "median ratio", "quartiles"):
        table.add_column(name, justify="left" if name in ("job", "clock") else "right")
    for r in rows:
        for clock, prefix in (("wall", ""), ("CPU", "cpu_")):
            table.add_row(
                "" if prefix else r["job"],
                clock,
                f"{r[f'{prefix}loop_min_ms']:.3f}",
                f"{r[f'{prefix}bare_min_ms']:.3f}",
                f"{r[f'{prefix}ratio_min']:.3f}",
                f"{r[f'{prefix}ratio_median']:.3f}",
                "{:.2f} {:.2f}".format(*r[f"{prefix}ratio_quartiles"]),
            )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_500, help="of the loop")
    parser.add_argument("--output", type=pathlib.Path, help="JSON; benchmarks/results by default")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    rows = [{"job": job, **compare(config)} for job, config in jobs(args.steps).items()]
    show(rows)
    output = args.output or pathlib.Path(__file__).parent / "results" / "loop_overhead.json"
    record = {"hardware": writers.hardware(), "load_at_start": load, "target": TARGET, "rows": rows}
    timing.write(output, record)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
