"""A training step of one network against the jitted step that one writes with flax and optax.

    python -m benchmarks.single_network [--network mlp lenet] [--save]

MLP 784-200-200-10 and LeNet5 (28 x 28, VALID) at batch 128, Adam 1e-3, softmax cross-entropy. Ours
is `Inference.update` of one particle; the bare step is a Flax module, `jax.value_and_grad` and
`optax.adam` under one `jax.jit`, whose arguments are donated. Both start from the same parameters
and see the same batches; their losses must be equal. Blocks take turns.

The floor is 1 for the same products. Ours also decides whether the step is finite, and keeps
metrics of each member and example; its convolutions and its Adam are those of the project.
"""

import argparse
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from benchmarks import against_torch, timing
from benchmarks.timing import block, over, show
from uncertainty.backbones.lenet import LeNet5
from uncertainty.backbones.mlp import MLP

TARGET = 1.05  # time of ours / time of the bare step


class PlainMLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = nn.relu(nn.Dense(200, name=f"dense{i}")(x))
        return nn.Dense(10, name="logits")(x)


class PlainLeNet5(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (features, padding) in enumerate(((6, "SAME"), (16, "VALID"), (120, "VALID"))):
            x = nn.relu(nn.Conv(features, (5, 5), padding=padding, name=f"conv{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2)) if i < 2 else x
        x = nn.relu(nn.Dense(84, name="dense0")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="logits")(x)


NETWORKS = {
    "mlp": ("MLP 784-200-200-10", MLP(widths=(200, 200)), PlainMLP(), (784,)),
    "lenet": ("LeNet5 VALID", LeNet5(), PlainLeNet5(), (28, 28, 1)),
}


def bare_step(network: nn.Module, adam: optax.GradientTransformation) -> Callable:
    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = network.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, x, y)
        updates, state = adam.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return jax.jit(step, donate_argnums=(0, 1))


class Bare:
    """The bare step over the batches, from the parameters of our particle."""

    def __init__(self, network: nn.Module, params: Any, batches: Any):
        self.params = jax.tree.map(lambda a: np.asarray(a)[0], params)
        self.batches, self.adam = batches, optax.adam(1e-3)
        self.update = bare_step(network, self.adam)
        self.restart()

    def restart(self) -> None:
        params = jax.tree.map(jax.numpy.asarray, self.params)
        self.state, self.done = (params, self.adam.init(params)), 0

    def steps(self, number: int) -> Any:
        for _ in range(number):
            batch = self.batches[self.done % len(self.batches)]
            *self.state, loss = self.update(*self.state, batch["x"], batch["y"])
            self.done += 1
        return self.state, loss

    def losses(self) -> np.ndarray:
        self.restart()
        return np.asarray([self.steps(1)[1] for _ in range(against_torch.COMPARED)])


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises AssertionError where the losses of the first steps differ."""
    title, backbone, plain, shape = NETWORKS[name]
    batches = against_torch.data(shape, arguments.batch)
    ours = against_torch.Ours(backbone, 1, "auto", batches)
    params = ours.init().params
    theirs = Bare(plain, {**params["backbone"], **params["head"]}, ours.batches)
    compiled = {
        "ours": timing.clock(ours.step)[0],
        "flax and optax": timing.clock(lambda: theirs.steps(1))[0],
    }
    losses = ours.losses()[:, 0], theirs.losses()
    np.testing.assert_allclose(*losses, rtol=1e-4)
    steps = arguments.steps
    sides = {
        "ours": lambda: ours.block(steps),
        "flax and optax": block(lambda: theirs.steps(steps), steps),
    }
    timing.take_turns(sides, 1)  # warm up
    seconds = timing.take_turns(sides, arguments.rounds)
    return dict(
        job=f"training step of one network, {title}, batch {arguments.batch}",
        seconds=seconds,
        ratios=over(seconds, "flax and optax"),
        targets=dict(ours=TARGET),
        largest_relative_loss_difference=float(np.abs(losses[0] / losses[1] - 1).max()),
        first_call_seconds=compiled,
        steps_a_block=steps,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    for name, value in dict(batch=128, steps=20, rounds=15).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    timing.add_cores(parser)
    arguments = timing.parse(parser)
    for name in arguments.network:
        record = compare(name, arguments) | dict(rounds=arguments.rounds, **timing.where())
        show(record)
        if arguments.save:
            file = f"single_network_{name}_{arguments.batch}{timing.suffix()}"
            print(f"written: {timing.save(file, record)}")


if __name__ == "__main__":
    main()
