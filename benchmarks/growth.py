"""How time and memory grow with particles, members, experts, tokens, predictions and devices.

    python -m benchmarks.growth [--only particles experts] [--most 16] [--again]

Each point has a process of its own and is written to `results/growth.json` when it is done; points
that are there already are not measured again, except, by --again, those that failed. The page of
`benchmarks.page` draws them. Sides of a point take turns; the time is that of the fastest block,
the memory what the compiled program takes for arguments, results and temporaries. The last side of
an axis is the naive alternative, where one is cheap to write.

particles    P: a step of MLP 784-100-10, batch 128: a deep ensemble, SVGD, a loop over P jitted
             steps of flax and optax, and SVGD with a kernel that is mapped over pairs
members      M: a step of LeNet5, batch 128: BatchEnsemble, packed members (alpha = 2), M networks
experts      E: a layer on 2,000 tokens of 128, K = 1, forward and backward: sorted dispatch, the
             dense layer on as many tokens, dispatch by einsum
tokens       T: the same for 32 experts
predictions  S: probabilities of 500 examples, MLP 784-200-200-10: an ensemble of S, MC dropout with
             S masks, a loop over S jitted forward passes
devices      N virtual devices of this machine's cores, for the overhead: a step of 8 MLPs
             784-200-200 with the mesh's axis `particle` or `data`, and of SVGD over `particle`;
             memory is that of a device
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import timing

FILE = "growth.json"
POWERS = tuple(2**i for i in range(9))
AXES = {  # name -> label, values
    "particles": ("particles P", POWERS),
    "members": ("members M", POWERS[:6]),
    "experts": ("experts E", POWERS[1:8]),
    "tokens": ("tokens T", tuple(500 * 2**i for i in range(8))),
    "predictions": ("members of a prediction S", POWERS[:8]),
    "devices": ("virtual devices N", POWERS[:4]),
}
CAPTIONS = {
    "particles": "A training step of an MLP with 79,510 parameters, batch 128.",
    "members": "A training step of LeNet5, batch 128; packed members have half of the features.",
    "experts": "A layer on 2,000 tokens of 128, K = 1, forward and backward.",
    "tokens": "The same layer with 32 experts; the dense layer has as many tokens.",
    "predictions": "Probabilities of 500 examples, MLP 784-200-200-10.",
    "devices": "A step of 8 MLPs 784-200-200; devices share the cores, memory is of one device.",
}
LARGEST = {  # (axis, side) -> its largest value, above which it takes too long or too much memory
    ("particles", "SVGD over pairs"): 32,
    ("tokens", "einsum"): 8_000,
}
BLOCK = 0.1  # seconds of a block, of one call at least

Side = tuple[Callable[[], Any], float]  # a call, and megabytes


def compiled(
    function: Callable, *arguments: Any, donate: tuple[int, ...] = ()
) -> tuple[Any, float]:
    import jax

    from benchmarks.svgd_opponents import compiled_bytes

    program = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    return program, compiled_bytes(program) / 1e6


def stepping(program: Callable, state: Any, *rest: Any) -> Callable[[], Any]:
    """A call that takes the state on; its result is what is waited for."""
    held = [state]

    def call() -> Any:
        held[0], *more = program(held[0], *rest)
        return held[0], more

    return call


def training(backbone: Any, shape: tuple[int, ...], **sections: Any) -> Side:
    """The update of a config on one batch of 128."""
    import jax

    from benchmarks.efficient_ensembles import inference

    batch = one_batch(shape)
    parts = dict(ensemble="single", inference=dict(name="particles")) | sections
    algorithm = inference(backbone, parts)
    state = algorithm.init(jax.random.key(0), batch["x"])
    program, megabytes = compiled(algorithm.update, state, batch, donate=(0,))
    return stepping(program, state, batch), megabytes


def one_batch(shape: tuple[int, ...]) -> dict[str, Any]:
    import jax

    from benchmarks import against_torch

    return jax.device_put({k: a[0] for k, a in against_torch.data(shape, 128).items()})


def particles(P: int) -> dict[str, Callable[[], Side]]:
    mlp = dict(name="mlp.MLP", widths=(100,))

    def ours(direction: str) -> Side:
        prior = dict(prior=dict(name="gaussian", scale=10.0)) if direction == "svgd" else {}
        inference = dict(name="particles", size=P, direction=direction, **prior)
        return training(mlp, (784,), inference=inference)

    def plain() -> tuple[Any, Any, Any]:
        import flax.linen as nn
        import jax
        import optax

        network, batch = nn.Sequential([nn.Dense(100), nn.relu, nn.Dense(10)]), one_batch((784,))
        keys = jax.random.split(jax.random.key(0), P)
        params = jax.jit(jax.vmap(lambda key: network.init(key, batch["x"])["params"]))(keys)
        return network, optax.adam(1e-3), (params, batch)

    def loop() -> Side:
        import jax

        from benchmarks.single_network import bare_step
        from benchmarks.svgd_opponents import compiled_bytes

        network, adam, (params, batch) = plain()
        each = [jax.tree.map(lambda a, p=p: a[p] + 0, params) for p in range(P)]
        states = [(member, adam.init(member)) for member in each]
        update, x, y = bare_step(network, adam), batch["x"], batch["y"]
        one = update.lower(*states[0], x, y).compile()
        held = sum(a.nbytes for a in jax.tree.leaves(states[0])) / 1e6

        def call() -> Any:
            for p in range(P):
                *states[p], _ = one(*states[p], x, y)
            return states

        return call, compiled_bytes(one) / 1e6 + (P - 1) * held

    def pairs() -> Side:
        import jax
        import jax.numpy as jnp
        import optax
        from jax.flatten_util import ravel_pytree

        network, adam, (params, batch) = plain()
        _, tree = ravel_pytree(jax.tree.map(lambda a: a[0], params))
        z = jax.vmap(lambda member: ravel_pytree(member)[0])(params)

        def log_density(z: Any, x: Any, y: Any) -> Any:
            logits = network.apply({"params": tree(z)}, x)
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return -nll - 0.5 * jnp.sum((z / 10) ** 2)

        def step(state: Any, x: Any, y: Any) -> Any:
            z, own = state
            squared = jax.vmap(lambda a: jax.vmap(lambda b: jnp.sum((a - b) ** 2))(z))(z)
            h = jnp.median(squared) / (2 * np.log(P + 1)) + 1e-6

            def kernel(a: Any, b: Any) -> Any:
                return jnp.exp(-jnp.sum((a - b) ** 2) / (2 * h))

            g = jax.vmap(jax.grad(log_density), (0, None, None))(z, x, y)
            each = jax.vmap(lambda a, g, b: kernel(a, b) * g + jax.grad(kernel)(a, b), (0, 0, None))
            phi = jax.vmap(lambda b: each(z, g, b).mean(0))(z)
            updates, own = adam.update(-phi, own, z)
            return ((z + updates, own),)

        state = (z, adam.init(z))
        program, megabytes = compiled(step, state, batch["x"], batch["y"], donate=(0,))
        return stepping(program, state, batch["x"], batch["y"]), megabytes

    return {
        "deep ensemble": lambda: ours("independent"),
        "SVGD": lambda: ours("svgd"),
        "a loop over steps": loop,
        "SVGD over pairs": pairs,
    }


def members(M: int) -> dict[str, Callable[[], Side]]:
    lenet, shape = dict(name="lenet.LeNet5"), (28, 28, 1)
    fast = dict(name="batch_ensemble", size=M, fast_weights=dict(name="batch_ensemble.gaussian"))
    packed, size = dict(name="packed", size=M, alpha=2.0), dict(name="particles", size=M)
    return {
        "BatchEnsemble": lambda: training(lenet, shape, ensemble=fast),
        "packed": lambda: training(lenet, shape, ensemble=packed),
        "networks": lambda: training(lenet, shape, inference=size),
    }


def layers(E: int, T: int) -> dict[str, Callable[[], Side]]:
    def side(dispatch: str) -> Side:
        import jax.numpy as jnp

        from benchmarks import moe
        from benchmarks.svgd_opponents import compiled_bytes
        from uncertainty.layers.feed_forward import FeedForward

        x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, T, 128)), jnp.float32)
        layer = FeedForward(512) if dispatch == "dense" else moe.layer(E, 1, 128, dispatch)
        made = moe.Side(layer, x)
        return made, compiled_bytes(made.compiled) / 1e6

    return {name: functools.partial(side, name) for name in ("sort", "dense", "einsum")}


def predictions(S: int) -> dict[str, Callable[[], Side]]:
    import jax
    import jax.numpy as jnp

    from uncertainty import build, predictive

    x = jnp.asarray(np.random.default_rng(0).normal(size=(500, 784)), jnp.float32)

    def made(size: int = 1, ensemble: Any = "single") -> tuple[Any, Any]:
        algorithm = build.inference(
            dict(
                backbone=dict(name="mlp.MLP", widths=(200, 200)),
                ensemble=ensemble,
                head=dict(name="dense.Dense", outputs=10),
                likelihood="softmax",
                optimiser=dict(name="adam", learning_rate=1e-3),
                steps=1,
                inference=dict(name="particles", size=size),
            ),
            num_examples=1,
        )
        return algorithm, algorithm.init(jax.random.key(0), x[:1])

    def ours(**sections: Any) -> Side:
        algorithm, state = made(**sections)

        def predict(state: Any, x: Any) -> Any:
            members = jax.nn.log_softmax(algorithm.predict(state, x).mean)
            return jnp.exp(predictive.mixture(members))

        program, megabytes = compiled(predict, state, x)
        return lambda: program(state, x), megabytes

    def loop() -> Side:
        algorithm, state = made()

        def predict(state: Any, x: Any) -> Any:
            return jax.nn.softmax(algorithm.predict(state, x).mean[0])

        program, megabytes = compiled(predict, state, x)
        states = [jax.tree.map(lambda a: a + 0, state.params) for _ in range(S)]
        held = sum(a.nbytes for a in jax.tree.leaves(state.params)) / 1e6
        each = [state.replace(params=params) for params in states]
        return lambda: sum(program(one, x) for one in each) / S, megabytes + (S - 1) * held

    dropout = dict(name="mc_dropout", size=S, rate=0.1)
    return {
        "ensemble": lambda: ours(size=S),
        "MC dropout": lambda: ours(ensemble=dropout),
        "a loop over passes": loop,
    }


def devices(N: int) -> dict[str, Callable[[], Side]]:
    def side(axis: str, direction: str = "independent") -> Side:
        from benchmarks import executors
        from benchmarks.svgd_opponents import compiled_bytes
        from experiments.experiment.build import setup
        from experiments.runtime import execution

        execution.prepare()
        config = executors.config("MLP 784-200-200", "vmap", 8)
        config["mesh"], config["inference"]["direction"] = {axis: N}, dict(name=direction)
        if direction == "svgd":
            config["inference"]["prior"] = dict(name="gaussian", scale=1.0)
        experiment = setup(config)
        state = experiment.init()
        _, batch = next(experiment.batches(0))
        batch = experiment.put(batch)
        program = experiment.update.lower(state, batch).compile()
        return stepping(program, state, batch), compiled_bytes(program) / 1e6

    return {
        "ensemble, axis particle": lambda: side("particle"),
        "ensemble, axis data": lambda: side("data"),
        "SVGD, axis particle": lambda: side("particle", "svgd"),
    }


MAKE: dict[str, Callable[[int], dict[str, Callable[[], Side]]]] = dict(
    particles=particles,
    members=members,
    experts=lambda E: layers(E, 2_000),
    tokens=lambda T: layers(32, T),
    predictions=predictions,
    devices=devices,
)


def point(axis: str, value: int, rounds: int) -> dict[str, Any]:
    """Milliseconds, megabytes and seconds of compilation of each side, in this process."""

    makers = {
        name: make
        for name, make in MAKE[axis](value).items()
        if value <= LARGEST.get((axis, name), value)
    }
    about: dict[str, dict[str, float]] = {}
    sides = {}
    for name, make in makers.items():
        began = time.perf_counter()
        call, megabytes = make()
        about[name] = dict(compile_seconds=time.perf_counter() - began, megabytes=megabytes)
        once = timing.block(call)
        once()
        times = max(1, round(BLOCK / max(once()[0], 1e-6)))
        sides[name] = timing.block(lambda call=call, n=times: [call() for _ in range(n)][-1], times)
    seconds = timing.take_turns(sides, rounds)
    return {
        name: {k: float(f"{v:.4g}") for k, v in about[name].items()}
        | {f"{clock}_ms": float(f"{1e3 * v:.4g}") for clock, v in seconds[name].items()}
        for name in makers
    }


def in_a_process(axis: str, value: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """`sides` of a point, or `error`."""
    flags = os.environ.get("XLA_FLAGS", "")
    if axis == "devices":
        flags += f" --xla_force_host_platform_device_count={value}"
    command = [sys.executable, "-m", "benchmarks.growth", "--point", axis, str(value)]
    command += ["--rounds", str(arguments.rounds)]
    environment = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags.strip())
    try:
        done = subprocess.run(
            command, env=environment, timeout=arguments.timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return dict(error=f"not done after {arguments.timeout:g} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return dict(error=f"exit status {done.returncode}: {last[:300]}")
    return dict(sides=json.loads(done.stdout.strip().splitlines()[-1]))


def measure(path: pathlib.Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of all points, after those that it lacks were measured."""
    record = json.loads(path.read_text()) if path.exists() else dict(points=[])
    for axis in arguments.only or AXES:
        for value in AXES[axis][1]:
            if value > arguments.most:
                continue
            own = dict(axis=axis, value=value)
            old = next((p for p in record["points"] if own.items() <= p.items()), None)
            if old is not None and not (arguments.again and "error" in old):
                continue
            print(f"{AXES[axis][0]} = {value} ... ", end="", flush=True)
            took, _ = timing.clock(lambda: own.update(in_a_process(axis, value, arguments)))  # noqa: B023
            print(own.get("error", f"{took:.0f} s"), flush=True)
            points = [p for p in record["points"] if p is not old] + [own]
            order = list(AXES)
            points.sort(key=lambda p: (order.index(p["axis"]), p["value"]))
            record |= dict(points=points, rounds=arguments.rounds, **timing.where())
            timing.write(path, record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=AXES, help="axes")
    parser.add_argument("--most", type=int, default=10**9, help="largest value of an axis")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=600, help="seconds of a point")
    parser.add_argument("--again", action="store_true", help="measure again what failed")
    parser.add_argument(
        "--output", type=pathlib.Path, help="JSON; in benchmarks/results by default"
    )
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        axis, value = arguments.point
        print(json.dumps(point(axis, int(value), arguments.rounds)))
        return
    path = arguments.output or timing.RESULTS / FILE
    record = measure(path, arguments)
    for each in record["points"]:
        if "error" in each:
            print(f"{each['axis']} = {each['value']}: {each['error']}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
