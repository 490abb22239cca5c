"""Mixture-of-experts layers, forward and backward: sort and einsum dispatch against a dense layer.

    python -m benchmarks.moe [--choices 1 2] [--tokens 2000 8000 64000] [--save]

`layers/experts.MoE` as in training: top-k routing with noise, capacity factor 1.05, importance and
load losses, all tokens in one group; loss and gradients for parameters and tokens. Experts map 128
features to 512 and back (`--width`, and four times that). Dense is the same feed-forward layer on
K T tokens, as many as the experts process. All sides of the same K and T take turns. Outputs and
gradients of `sort` and `einsum` must agree. Einsum is skipped where its array [T, E, C] of zeros
and ones, T x 1.05 K T numbers for any E, would exceed --limit (1 GB by default).

The floor. Operations per token and choice, D = 128: dense 2 x 8 D^2 = 262 kFLOP forward, three
times that in all, 786; the experts 1.05 times that, because of the capacity's padding, and 6 D E /
K for the router's products: 0.8 % at E = 8, 3.1 % at 32, 12.5 % at 128, for K = 1. Bytes: dispatch
reads and writes a row of 512 bytes per choice four times (in and out, forward and backward), 4 kB,
0.4 us at 10 GB/s, against the 6 us that dense takes on one core: 7 %. The router has arrays of T E
numbers: noise, two softmaxes, maxima, the load's normal distribution, forward and backward some ten
passes and three transcendental functions, 15 ns per number: 8 % at E = 32, 30 % at 128, for K = 1.
So sort takes 1.23 times as long as dense at E = 32, K = 1, and 1.18 at K = 2, if split products run
as fast as one; the router's share grows with E and falls with width as 1 / D. Experts' weights are
read twice and their gradients written, 3 x 0.53 MB x E, 200 MB at E = 128: as long as dense takes
for 3,000 tokens (800 at E = 32), so for few tokens time grows with E. Einsum adds 8 D x 1.05 K T
operations per token: as many as dense has at T = 730, 11 times as many at 8,000.
"""

import argparse
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.timing import block, over, show
from uncertainty.layers.feed_forward import FeedForward
from uncertainty.layers.moe.experts import MoE
from uncertainty.layers.moe.routers import TopK

TARGET, AT = 1.3, 32  # of `sort` over dense, at this E


class Side:
    """A compiled function from the tokens to loss, output and gradients."""

    def __init__(self, layer: nn.Module, x: jax.Array):
        key = jax.random.key(0)
        self.x, T = x, x.shape[2]
        small = x[:, :, : min(T, 256)]
        init = jax.jit(functools.partial(layer.init, train=False))
        self.variables = dict(init({"params": key}, small))
        params = self.variables["params"]
        if "experts" in params:  # experts start equal: give them different weights

            def scaled(a: jax.Array) -> jax.Array:
                return a * jnp.linspace(0.5, 1.5, len(a)).reshape(-1, *[1] * (a.ndim - 1))

            params = params | dict(experts=jax.tree.map(scaled, params["experts"]))

        def loss(params, x):
            rngs = dict(noise=jax.random.key(1))
            variables = dict(params=params)
            y, changed = layer.apply(
                variables, x, train=True, rngs=rngs, mutable=["losses", "routing"]
            )
            auxiliary = sum(map(jnp.mean, jax.tree.leaves(changed.get("losses", {}))))
            # Half the mean square, so that the gradient of y is not a constant
            return 0.5 * jnp.mean(y**2) + auxiliary, y

        gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        lowered = jax.jit(gradients).lower(params, x)
        programs: list = []
        self.compile_seconds, _ = timing.clock(lambda: programs.append(lowered.compile()))
        self.compiled, self.params = programs[0], params

    def __call__(self) -> Any:
        return self.compiled(self.params, self.x)

    def megabytes(self) -> float:
        return self.compiled.memory_analysis().temp_size_in_bytes / 1e6


def layer(E: int, K: int, D: int, dispatch: str) -> nn.Module:
    return MoE(
        num_experts=E,
        feed_forward=functools.partial(FeedForward, mlp_dim=4 * D),
        router=functools.partial(TopK, k=K),
        dispatch=dispatch,
    )


def compare(K: int, T: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and memory for all E and both dispatches, and the ratios of `sort` to dense.

    Raises:
      AssertionError: outputs or gradients of the two dispatches differ.
    """
    rng, D = np.random.default_rng(0), arguments.width
    x = jnp.asarray(rng.normal(size=(1, 1, T, D)), jnp.float32)
    tokens = jnp.asarray(rng.normal(size=(1, 1, K * T, D)), jnp.float32)
    layers = {"dense": Side(FeedForward(4 * D), tokens)}
    for E in arguments.experts:
        layers[f"sort, E = {E}"] = Side(layer(E, K, D, "sort"), x)
        array = 4 * T * 1.05 * K * T / 1e9
        if array <= arguments.limit:
            layers[f"einsum, E = {E}"] = Side(layer(E, K, D, "einsum"), x)
            results = [layers[f"{way}, E = {E}"]() for way in ("sort", "einsum")]
            for a, b in zip(*map(jax.tree.leaves, results), strict=True):
                a, b = np.asarray(a), np.asarray(b)
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * np.abs(b).max())
    times = max(1, 16_000 // (K * T))
    sides = {
        name: block(lambda side=side: [side() for _ in range(times)], times)
        for name, side in layers.items()
    }
    timing.take_turns(sides, 1)  # warm up
    seconds = timing.take_turns(sides, arguments.rounds)
    return dict(
        job=f"a layer of experts, {T:,} tokens of {D}, K = {K}",
        seconds=seconds,
        ratios=over(seconds, "dense"),
        targets={f"sort, E = {AT}": TARGET},
        megabytes={name: side.megabytes() for name, side in layers.items()},
        compile_seconds={name: side.compile_seconds for name, side in layers.items()},
        us_per_token={
            name: {clock: 1e6 * v / T for clock, v in values.items()}
            for name, values in seconds.items()
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, values in dict(
        experts=(8, 32, 128), choices=(1, 2), tokens=(2_000, 8_000, 64_000)
    ).items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=list(values))
    parser.add_argument("--width", type=int, default=128, help="D")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1.0, help="largest array of einsum, in GB")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    choices = "" if arguments.choices == [1] else "_k" + "".join(map(str, arguments.choices))
    jobs = {}
    for K in arguments.choices:
        for T in arguments.tokens:
            record = compare(K, T, arguments)
            jobs[f"{T} tokens, K = {K}"] = record
            show(record)
            print("MB", {name: round(mb) for name, mb in record["megabytes"].items()})
    if arguments.save:
        record = dict(jobs=jobs, rounds=arguments.rounds, **timing.where())
        print(f"written: {timing.save(f'moe_{arguments.width}{choices}', record)}")


if __name__ == "__main__":
    main()
