"""Executors of P particles, vmap, unroll, scan and loop, in ms per member and step.

    python -m benchmarks.executors [--only LeNet5 MLP] [--size 10]

Each executor trains the same ensemble on the same batch, and after two steps their losses must
agree. They take turns; the time is that of the fastest repeat, in wall time and, for busy machines,
in CPU time. Compilation time is that of the first call, without the persistent cache, minus one
step. `single` is one particle by itself: the cost of a member where nothing is shared. `auto` is
the default of a config; its rules, in `uncertainty/inference/executors.py:auto` and
`experiments/runtime/execution.py:update_of`, follow from this table. Memory is what the compiled
update allocates besides its arguments; `loop` takes as much as `single`.

The floor is `single`, or less where one member cannot use all cores.
"""

import argparse
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import timing
from experiments.data.loader import batches
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.experiment.config import plain
from experiments.runtime import execution, writers

EXECUTORS = ("vmap", "unroll", "scan", "loop", "auto")

LAX = dict(name="conv.Conv", method="lax")

# Name -> backbone, batch size. Inputs are digits of 28 x 28, or of 8 x 8 for the first model.
MODELS = {
    "MLP 64-128-128": (dict(name="mlp.MLP", widths=(128, 128)), 64),
    "MLP 784-200-200": (dict(name="mlp.MLP", widths=(200, 200)), 128),
    "MLP 784-1024-1024": (dict(name="mlp.MLP", widths=(1024, 1024)), 128),
    "LeNet5 VALID": (dict(name="lenet.LeNet5"), 128),
    "LeNet5 SAME": (dict(name="lenet.LeNet5", padding="SAME"), 256),
    "LeNet5 VALID, lax": (dict(name="lenet.LeNet5", conv=LAX), 128),
    "ResNet-8": (dict(name="resnet.ResNet", depth=8), 32),
    "ViT tiny 2 x 32": (dict(name="vit.ViT", variant="tiny"), 64),
    "ViT 4 x 64": (dict(name="vit.ViT", variant="tiny", depth=4, width=64, mlp_dim=256), 64),
}


def config(model: str, executor: str, size: int) -> dict[str, Any]:
    backbone, batch_size = MODELS[model]
    config = plain(base())
    config["data"]["train"]["upsample"] = None if model == "MLP 64-128-128" else 28
    config["backbone"], config["batch_size"] = backbone, batch_size
    config["inference"] |= dict(size=size, executor=executor)
    config["mesh"] = dict(data=1)
    return config


class Job:
    """One executor on one model, compiled."""

    def __init__(self, config: dict[str, Any]):
        experiment = setup(config)
        self.state, self.size = experiment.init(), config["inference"]["size"]
        _, batch = next(batches(experiment.source, seed=0, batch_size=config["batch_size"]))
        self.batch = jax.device_put(batch)
        self.update = experiment.update
        self.memory_mb = None
        began = time.perf_counter()
        if hasattr(self.update, "lower"):
            self.update = self.update.lower(self.state, self.batch).compile()
            self.memory_mb = self.update.memory_analysis().temp_size_in_bytes / 2**20
        self()
        compiled = time.perf_counter() - began
        self.compile_s = max(compiled - self(), 0)
        self.loss = np.asarray(self.metrics["loss"])
        self.steps, self.seconds, self.cpu_seconds = 1, [], []

    def __call__(self, steps: int = 1) -> float:
        """Seconds per step."""
        began = time.perf_counter()
        for _ in range(steps):
            self.state, self.metrics = self.update(self.state, self.batch)
        jax.block_until_ready((self.state, self.metrics))
        return (time.perf_counter() - began) / steps

    def repeat(self) -> None:
        began = time.process_time()
        self.seconds.append(self(self.steps))
        self.cpu_seconds.append((time.process_time() - began) / self.steps)

    def member_ms(self, seconds: list[float]) -> float:
        return round(1e3 * min(seconds) / self.size, 4)


def measure(model: str, size: int, repeats: int, seconds: float) -> dict[str, Any]:
    jobs = {"single": Job(config(model, "auto", 1))}
    for name in track(EXECUTORS, f"{model}: compiling"):
        jobs[name] = Job(config(model, name, size))
        np.testing.assert_allclose(jobs[name].loss, jobs["vmap"].loss, rtol=1e-3, err_msg=name)
    for job in jobs.values():
        job.steps = max(1, round(seconds / job()))
    for _ in track(range(repeats), f"{model}: times"):
        for job in jobs.values():
            job.repeat()
    return {
        "model": model,
        "batch_size": MODELS[model][1],
        "size": size,
        "member_ms": {name: job.member_ms(job.seconds) for name, job in jobs.items()},
        "member_cpu_ms": {name: job.member_ms(job.cpu_seconds) for name, job in jobs.items()},
        "compile_s": {name: round(job.compile_s, 2) for name, job in jobs.items()},
        "memory_mb": {
            name: job.memory_mb and round(job.memory_mb, 1) for name, job in jobs.items()
        },
    }


def show(rows: list[dict[str, Any]]) -> None:
    columns = ("single", *EXECUTORS)
    for title, key, digits in (
        ("ms per member and step", "member_ms", 3),
        ("CPU ms, of all threads", "member_cpu_ms", 3),
        ("seconds to compile", "compile_s", 1),
        ("MB besides arguments", "memory_mb", 0),
    ):
        table = Table(title=f"{title}, {rows[0]['size']} particles, {jax.default_backend()}")
        table.add_column("model")
        table.add_column("batch", justify="right")
        for name in columns:
            table.add_column(name, justify="right")
        for r in rows:
            values = r[key]
            best = min((values[n] for n in EXECUTORS if values[n] is not None), default=None)
            texts = ["" if values[n] is None else f"{values[n]:.{digits}f}" for n in columns]
            texts = [
                f"[bold]{t}[/]" if n != "single" and values[n] == best else t
                for n, t in zip(columns, texts, strict=True)
            ]
            table.add_row(r["model"], str(r["batch_size"]), *texts)
        Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="prefixes of model names")
    parser.add_argument("--size", type=int, default=10, help="particles")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="per repeat, at least one step")
    parser.add_argument("--output", type=pathlib.Path, help="JSON; benchmarks/results by default")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    execution.prepare()
    jax.config.update("jax_enable_compilation_cache", False)
    models = [m for m in MODELS if not args.only or m.startswith(tuple(args.only))]
    rows = [measure(model, args.size, args.repeats, args.seconds) for model in models]
    show(rows)
    name = f"executors_{jax.default_backend()}.json"
    output = args.output or pathlib.Path(__file__).parent / "results" / name
    record = {"hardware": writers.hardware(), "load_at_start": load, "rows": rows}
    timing.write(output, record)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
