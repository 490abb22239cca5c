"""Our SVGD and SGLD, alone and against the libraries of `benchmarks/svgd_opponents.py`."""

import argparse
import contextlib
import functools
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.svgd_opponents import compiled_bytes
from benchmarks.timing import block, over
from experiments.runtime import execution
from uncertainty import build

B, BATCHES, COMPARED = 128, 8, 3
PRIOR, RATE = 10.0, 1e-3
EPS = 1e-5  # of Adam: with 1e-8 gradients that are only rounding errors would give full steps
RECORDED = ("seconds", "ratios", "differences", "megabytes", "first_call_seconds", "versions")
HIDDEN = {784: (100, 10), 13: (50, 1)}  # features -> width and outputs


def data(features: int, outputs: int) -> dict[str, np.ndarray]:
    """Batches x [N, B, D] and y: classes [N, B], or a real number [N, B, 1]."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES, B, features)).astype(np.float32)
    if outputs > 1:
        return dict(x=x, y=rng.integers(outputs, size=(BATCHES, B)).astype(np.int32))
    return dict(x=x, y=rng.normal(size=(BATCHES, B, 1)).astype(np.float32))


class Ours:
    """A compiled update of a config, and its state."""

    def __init__(
        self,
        batches: Mapping[str, np.ndarray],
        widths: tuple[int, ...],
        outputs: int,
        optimiser: Mapping[str, Any],
        **inference: Any,
    ):
        config = dict(
            backbone=dict(name="mlp.MLP", widths=widths),
            ensemble="single",
            head=dict(name="dense.Dense", outputs=outputs),
            likelihood="softmax" if outputs > 1 else "gaussian",
            optimiser=optimiser,
            steps=1_000_000,
            inference=dict(name="particles", **inference),
        )
        algorithm = build.inference(config, num_examples=1)
        self.batches = [{key: a[i] for key, a in batches.items()} for i in range(BATCHES)]
        self.state, self.done = algorithm.init(jax.random.key(0), batches["x"][0]), 0
        mesh = execution.make_mesh({})
        self.update = execution.update_of(algorithm, mesh, "auto", self.state, self.batches[0])

    def steps(self, number: int) -> Any:
        for _ in range(number):
            self.state, metrics = self.update(self.state, self.batches[self.done % BATCHES])
            self.done += 1
        return self.state, metrics

    def compiled(self) -> Any:
        return self.update.trace(self.state, self.batches[0]).lower().compile()

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters as `svgd_opponents.py` names them, [P, ...]."""
        layers = {**self.state.params["backbone"], **self.state.params["head"]}
        return {
            f"{layer}.{kind}": np.array(a)
            for layer, leaves in layers.items()
            for kind, a in leaves.items()
        }


def adam() -> dict[str, Any]:
    return dict(name="adam", learning_rate=RATE, eps=EPS)


class Comparison:
    """Sides that start from the same particles: checks agreement, then measures time and memory."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, (width, outputs) = arguments, HIDDEN[arguments.features]
        self.batches = data(arguments.features, outputs)
        prior = dict(name="gaussian", scale=PRIOR)
        self.ours = functools.partial(Ours, self.batches, (width,), outputs, prior=prior)
        self.record: dict[str, Any] = {key: {} for key in RECORDED}

    def run(
        self,
        P: int,
        opponents: Mapping[str, str],
        timed: Mapping[str, Any],
        fixed: Mapping[str, Any],
        bandwidth: float,
    ) -> None:
        """Adds the results for P particles to the record.

        Args:
          opponents: program in `svgd_opponents.py` -> Python.
          timed: fields of our side when timed.
          fixed: fields with which particles must agree, with that `bandwidth` in the request.

        Raises:
          AssertionError: particles differ by more than 1e-5 after a few steps.
        """
        record, steps = self.record, self.arguments.steps
        ours, checked = self.ours(size=P, **timed), self.ours(size=P, **fixed)
        start = checked.arrays()
        checked.steps(COMPARED)
        n = sum(a[0].size for a in start.values())
        record["job"] = f"MLP of {n:,} parameters, batch {B}"
        record["megabytes"][f"P = {P}: ours"] = compiled_bytes(ours.compiled()) / 1e6
        sides = {f"P = {P}: ours": block(lambda: ours.steps(steps), steps)}
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            file, out = (str(pathlib.Path(folder) / name) for name in ("start.npz", "end.npz"))
            np.savez(file, prior=PRIOR, rate=RATE, eps=EPS, **self.batches, **start)
            for library, python in opponents.items():
                worker = timing.Worker(python, "svgd_opponents.py", library, file)
                ask = stack.enter_context(worker).ask
                threads = self.arguments.threads if library == "torch" else [1]
                answer = ask(
                    threads=threads[-1], bandwidth=bandwidth, steps=COMPARED, particles=out
                )
                record["versions"][library] = answer["version"]
                theirs, mine = np.load(out), checked.arrays()
                apart = max(float(np.abs(theirs[name] - a).max()) for name, a in mine.items())
                assert apart < 1e-5, f"{library}: particles differ by {apart}"
                record["differences"][f"P = {P}: {library}"] = apart
                for n in threads:
                    label = f"P = {P}: {library}" + f", threads: {n}" * (library == "torch")
                    sides[label] = self.side(label, ask, dict(threads=n, bandwidth=None))
            timing.take_turns({f"P = {P}: ours": sides[f"P = {P}: ours"]}, 1)  # warm up
            seconds = timing.take_turns(sides, self.arguments.rounds)
        record["seconds"] |= seconds
        record["ratios"] |= over(seconds, f"P = {P}: ours")

    def side(self, label: str, ask: Callable, request: dict[str, Any]) -> Callable:
        """A function that times a block of their steps, after a warm-up."""
        first = timing.clock(lambda: ask(**request, steps=1))
        self.record["first_call_seconds"][label] = first[0]
        answer = ask(**request, steps=1, memory=True)
        self.record["megabytes"][label] = answer["memory"] / 1e6
        # Fewer steps where one takes long; it may take hundreds of times as long as ours.
        steps = int(np.clip(0.5 / answer["wall"], 1, self.arguments.steps))

        def turn() -> tuple[float, float]:
            answer = ask(**request, steps=steps)
            return answer["wall"], answer["cpu"]

        return turn
