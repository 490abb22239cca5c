"""Times ensemble training against PyTorch, on the same batches and from the same parameters."""

import argparse
import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from experiments.runtime import execution
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference.particles import particles
from uncertainty.likelihoods import softmax
from uncertainty.model import from_network
from uncertainty.optimisers import optimiser as optimisers
from uncertainty.types import State

BATCHES = 8
COMPARED = 5  # steps whose losses are compared


class Ours:
    """`uncertainty.inference.particles` over the batches, with one executor."""

    def __init__(self, backbone: Any, size: int, executor: str, batches: Mapping[str, np.ndarray]):
        model = from_network(single(backbone, Dense(outputs=10)), softmax())
        calls, _, name = executor.rpartition(" steps a call: ")
        adam = optimisers.optimiser(optimisers.adam(), 1e-3)
        inference = particles(model, adam, size=size, executor=name)
        first = {key: a[0] for key, a in batches.items()}
        self.init = lambda: inference.init(jax.random.key(0), first["x"])
        self.batches = [{key: a[i] for key, a in batches.items()} for i in range(BATCHES)]
        self.steps_a_call = int(calls or 1)
        if calls:  # the same update inside a scan: the best a loop on the device could do
            self.batches = [batches] * BATCHES
            update = jax.jit(lambda s, b: jax.lax.scan(inference.update, s, b), donate_argnums=0)
        else:
            mesh, state = execution.make_mesh({}), self.init()
            update = execution.update_of(inference, mesh, name, state, self.batches[0])
        self.update, self.state, self.done = update, self.init(), 0

    def step(self) -> Any:
        batch = self.batches[self.done % BATCHES]
        self.state, metrics = self.update(self.state, batch)
        self.done += 1
        return metrics

    def block(self, steps: int) -> tuple[float, float]:
        """Wall and CPU seconds per step."""
        calls = max(steps // self.steps_a_call, 1)

        def run() -> None:
            for _ in range(calls):
                self.step()
            jax.block_until_ready(self.state)

        return tuple(s / calls / self.steps_a_call for s in timing.clock(run))

    def losses(self) -> np.ndarray:  # [steps, P]
        self.state, self.done = self.init(), 0
        losses = [
            np.asarray(self.step()["loss"]).reshape(self.steps_a_call, -1)
            for _ in range(-(-COMPARED // self.steps_a_call))
        ]
        return np.concatenate(losses)[:COMPARED]


def data(shape: Sequence[int], B: int) -> dict[str, np.ndarray]:
    """x [N, B, ...] and y [N, B]: classes that can be told apart."""
    return timing.classes(shape, BATCHES, B)


def compare(
    name: str,
    backbone: Any,
    network: Mapping[str, Any],
    shape: Sequence[int],
    target: float,
    arguments: argparse.Namespace,
) -> None:
    """Times every executor and every PyTorch method, taking turns.

    Args:
      name: of the job, for the table.
      network: how PyTorch's side makes it, see `torch_ensembles.py`.
      shape: of the inputs, [H, W, C] or [D].
      target: the smallest acceptable ratio.
      arguments: of `parser`.

    Raises:
      AssertionError: losses differ between any two sides.
    """
    B, P = arguments.batch, arguments.size
    batches = data(shape, B)
    ours = {executor: Ours(backbone, P, executor, batches) for executor in arguments.executors}
    first = next(iter(ours.values()))
    sides, compiled, losses = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "arrays.npz")
        np.savez(file, **batches, **arrays(first.init()))
        for executor, side in ours.items():
            compiled[executor], _ = timing.clock(side.step)
            losses[executor] = side.losses()
            sides[f"ours: {executor}"] = lambda side=side: side.block(arguments.steps)
        with timing.Worker(arguments.opponents, "torch_ensembles.py", file) as worker:
            version = None
            for method, threads in itertools.product(arguments.methods, arguments.threads):
                label = f"PyTorch: {method}, {threads} thread{'s' * (threads > 1)}"
                request = dict(method=method, threads=threads, losses=False, network=network)
                answer = worker.ask(**request | dict(steps=COMPARED, losses=True))
                losses[label], version = np.asarray(answer["losses"]), answer["version"]

                def block(request=request):
                    seconds = worker.ask(**request, steps=arguments.steps)
                    return seconds["wall"] / arguments.steps, seconds["cpu"] / arguments.steps

                sides[label] = block
            reference = losses[next(iter(losses))]
            for side, values in losses.items():
                np.testing.assert_allclose(values, reference, rtol=2e-3, err_msg=side)
            timing.take_turns(sides, 1)  # warm up
            seconds = timing.take_turns(sides, arguments.rounds)
    ms = {side: {key: 1e3 * v / P for key, v in values.items()} for side, values in seconds.items()}
    record = dict(
        job=name,
        batch=B,
        members=P,
        steps_a_block=arguments.steps,
        rounds=arguments.rounds,
        ms_per_member_and_step=ms,
        first_call_seconds=compiled,
        losses_after=COMPARED,
        largest_relative_loss_difference=float(
            max(np.abs(v / reference - 1).max() for v in losses.values())
        ),
        ratios=ratios(ms),
        target=target,
        torch=version,
        **timing.where(),
    )
    show(record)
    if arguments.save:
        file = "".join(c if c.isalnum() else "_" for c in f"{name} {B}").lower()
        print(f"written: {timing.save(file + timing.suffix(), record)}")


def ratios(ms: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Executor -> PyTorch's best time / ours; the best is chosen for each clock separately."""
    torch = [values for side, values in ms.items() if side.startswith("PyTorch")]
    best = {key: min(values[key] for values in torch) for key in torch[0]}
    return {
        side.removeprefix("ours: "): {key: best[key] / values[key] for key in best}
        for side, values in ms.items()
        if side.startswith("ours")
    }


def show(record: Mapping[str, Any]) -> None:
    cores = f"{record['cores']} core{'s' * (record['cores'] > 1)}"
    table = Table(
        title=f"{record['job']}: {record['members']} members, batch {record['batch']}, {cores}",
        caption=f"ms per member and step; ratio: PyTorch's best / ours, target {record['target']}",
    )
    columns = dict(wall="wall min", wall_median="median", cpu="CPU min", cpu_median="median")
    table.add_column("")
    for title in (*columns.values(), "ratio wall", "median", "CPU", "first call s"):
        table.add_column(title, justify="right")
    for side, ms in record["ms_per_member_and_step"].items():
        executor = side.removeprefix("ours: ")
        ratio = record["ratios"].get(executor)
        cells = [f"{ms[key]:.2f}" for key in columns]
        if ratio:
            cells += [f"{ratio[key]:.2f}" for key in ("wall", "wall_median", "cpu")]
            cells += [f"{record['first_call_seconds'][executor]:.1f}"]
        table.add_row(side, *cells)
    Console(width=120).print(table)


def parse(
    description: str | None, executors: Sequence[str], methods: Sequence[str], **defaults: int
) -> argparse.Namespace:
    """The flags of a comparison; `defaults` are those of batch, size, steps and rounds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--opponents", required=True, help="python with torch installed")
    for name, value in (dict(batch=128, size=10, steps=8, rounds=10) | defaults).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--executors", nargs="+", default=executors)
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    add_common(parser)
    timing.add_cores(parser)
    return timing.parse(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for PyTorch's threads and for saving the result."""
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, len(os.sched_getaffinity(0))}),
        help="numbers of PyTorch threads; several threads are very slow on shared cores",
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")


def arrays(state: State) -> dict[str, np.ndarray]:
    """path -> initial parameters [P, ...]; the names that PyTorch's side reads."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state.params)
    return {"/".join(key.key for key in path): np.asarray(a) for path, a in flat}
