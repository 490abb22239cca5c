"""SNGP against the layers of probly and lightning-uq-box, from the same parameters and batches.

    python -m benchmarks.gp_libraries --library probly --opponents PY [--save]

PY is a Python with that library and torch 2.13. Three jobs, for which theirs takes the better of
one thread and all cores (ours uses all cores, as XLA does); both sides take turns.

training    a step on the MLP 784-512-512 under spectral normalisation with 1,024 random features
            and 10 classes, batch 128, SGD with momentum. Both libraries add Phi^T Phi to the
            precision in every step; ours does so with `momentum`, and otherwise in the stage
            'laplace'. Losses of the first steps must agree.
covariance  from the precision to what prediction needs: the inverse in theirs, L^-1 in ours.
variance    of 500 examples, from the above. Variances must agree.

The floor in multiply-adds. Training: an example takes 0.66 MMAC in the hidden layers and 0.53 in
the head forward; backward twice that except for the first layer's inputs and the fixed features'
weights, 0.66 + 0.26 + 0.53 + 0.01; the precision 1.05: 3.7 MMAC, 0.94 GFLOP for 128 examples, 4 ms
at 250 GFLOP/s on both cores. Covariance with m = 1,024: Cholesky and the inverse of a triangle
m^3 / 3 flop each, 0.7 GFLOP; Cholesky and L^-T L^-1 m^3, 1.1; an inverse by LU 2 m^3, 2.1. Variance
of B examples: 5/8 m^2 B products in ours, m^2 B in probly, m^2 B + m B^2 in lightning-uq-box.
"""

import argparse
import functools
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import against_torch, timing
from benchmarks.timing import block, show
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.single import single
from uncertainty.heads.sngp import Sngp
from uncertainty.inference.particles import particles
from uncertainty.layers import posterior as posterior_lib
from uncertainty.layers import random_features, spectral_norm
from uncertainty.likelihoods import softmax
from uncertainty.model import from_network

LIBRARIES = ("probly", "lightning-uq-box")
F, D, m, K, B = 784, 512, 1024, 10, 128
BATCHES, SEEN, ASKED, COMPARED = 8, 5_000, 500, 5


class Training:
    """`uncertainty.inference.particles`, run as in the train loop."""

    def __init__(self, x: np.ndarray, y: np.ndarray, **posterior: Any):
        backbone = MLP(widths=(D, D), dense=functools.partial(spectral_norm.Dense, bound=6.0))
        model = from_network(single(backbone, Sngp(K, m, normalise=False, **posterior)), softmax())
        inference = particles(model, optax.sgd(0.05, momentum=0.9, nesterov=True))
        self.init = lambda: inference.init(jax.random.key(0), x[0])
        self.update = jax.jit(inference.update, donate_argnums=0)
        self.batches = [dict(x=x[i], y=y[i]) for i in range(BATCHES)]
        self.restart()

    def restart(self) -> None:
        self.state, self.done = self.init(), 0

    def step(self) -> float:
        self.state, metrics = self.update(self.state, self.batches[self.done % BATCHES])
        self.done += 1
        return metrics["loss"][0]

    def steps(self, number: int) -> Any:
        for _ in range(number):
            self.step()
        return self.state

    def losses(self) -> list[float]:
        self.restart()
        return [float(self.step()) for _ in range(COMPARED)]


def arrays(state: Any, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays that `gp_opponents.py` reads."""
    rng = np.random.default_rng(1)
    params, fixed = state.params, state.collections["random_features"]["head"]["features"]
    return dict(
        x=x,
        y=y,
        seen=rng.normal(size=(SEEN, D)).astype(np.float32),
        asked=rng.normal(size=(ASKED, D)).astype(np.float32),
        W=np.asarray(fixed["kernel"][0]) / np.float32(np.sqrt(D / 2)),
        b=np.asarray(fixed["bias"][0]),
        beta=np.asarray(params["head"]["logits"]["kernel"][0]),
        **{
            f"{name}.kernel": np.asarray(params["backbone"][name]["kernel"][0])
            for name in ("dense0", "dense1")
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--opponents", required=True, help="python with that library")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    against_torch.add_common(parser)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES, B, F)).astype(np.float32)
    y = rng.integers(K, size=(BATCHES, B)).astype(np.int32)
    momentum = Training(x, y, momentum=0.999, num_examples=50_000)
    exact = Training(x, y)
    inputs = arrays(momentum.state, x, y)

    @jax.jit
    def phi(h):
        turns = (h @ inputs["W"] + inputs["b"]) / (2 * np.pi)
        return np.sqrt(2 / m) * random_features.cosine(turns)[None]

    train_features, test_features = phi(inputs["seen"]), phi(inputs["asked"])
    moments = jax.jit(posterior_lib.gram)(train_features)
    inverse_factor, quadratic = (
        jax.jit(posterior_lib.inverse_factor),
        jax.jit(posterior_lib.quadratic),
    )
    factor = inverse_factor(moments)
    variance = np.asarray(quadratic(test_features, factor))[0, :, 0]
    losses = momentum.losses()
    np.testing.assert_allclose(exact.losses(), losses, rtol=1e-5)
    steps = arguments.steps
    sides = {
        "training: ours, momentum": block(lambda: momentum.steps(steps), steps),
        "training: ours, exact": block(lambda: exact.steps(steps), steps),
        "covariance: ours": block(lambda: [inverse_factor(moments) for _ in range(steps)], steps),
        "variance: ours": block(
            lambda: [quadratic(test_features, factor) for _ in range(steps)], steps
        ),
    }
    threads = arguments.threads
    with tempfile.TemporaryDirectory() as folder:
        file = str(pathlib.Path(folder) / "arrays.npz")
        np.savez(file, **inputs)
        program = ("gp_opponents.py", arguments.library, file)
        with timing.Worker(arguments.opponents, *program) as worker:
            request = dict(threads=threads[-1], values=True)
            answer = worker.ask(job="training", steps=COMPARED, **request)
            np.testing.assert_allclose(answer["values"], losses, rtol=1e-4)
            theirs = worker.ask(job="variance", steps=1, **request)["values"][0]
            np.testing.assert_allclose(theirs, variance, rtol=1e-3)
            for job in ("training", "covariance", "variance"):
                for n in threads:

                    def turn(request=dict(job=job, threads=n, steps=steps)):  # noqa: B006
                        seconds = worker.ask(**request)
                        return seconds["wall"], seconds["cpu"]

                    sides[f"{job}: theirs, {n} thread{'s' * (n > 1)}"] = turn
            timing.take_turns(sides, 1)  # warm up
            seconds = timing.take_turns(sides, arguments.rounds)
    record = dict(
        job=f"{arguments.library} and ours: SNGP with {m:,} features",
        seconds=seconds,
        ratios=ratios(seconds),
        targets={"training: ours, momentum": 1.0, "covariance: ours": 2.5},
        largest_relative_difference=dict(
            losses=float(np.abs(np.divide(answer["values"], losses) - 1).max()),
            variances=float(np.abs(np.divide(theirs, variance) - 1).max()),
        ),
        opponent=answer["versions"],
        rounds=arguments.rounds,
        **timing.where(),
    )
    show(record)
    print(record["largest_relative_difference"], answer["versions"])
    if arguments.save:
        name = f"gp_heads_{arguments.library.replace('-', '_')}"
        print(f"written: {timing.save(name, record)}")


def ratios(seconds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Our side -> their best time / ours; the best is over threads, for each clock separately."""
    result = {}
    for side, ours in seconds.items():
        job, implementation = side.split(": ")
        if implementation.startswith("ours"):
            theirs = [v for k, v in seconds.items() if k.startswith(f"{job}: theirs")]
            result[side] = {clock: min(t[clock] for t in theirs) / ours[clock] for clock in ours}
    return result


if __name__ == "__main__":
    main()
