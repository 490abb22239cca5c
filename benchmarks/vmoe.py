"""A training step of V-MoE and E3 against google-research/vmoe, on CPU.

    python -m benchmarks.vmoe --vmoe DIR DIR [--batch 32] [--image 128] [--save]

The folders are checkouts of google-research/vmoe and of google-research/vision_transformer, which
it imports; both need only packages that are here. The published S/32 as in `benchmarks.e3`, with
experts in the last 2 odd blocks: V-MoE with K = 2, and E3 with K = 1 and M = 2; capacity factor
1.05, all tokens of the batch in one group, Adam 1e-3, float32. Their step is that of their trainer
(the loss, its auxiliary losses, `optax`), under one `jax.jit` whose arguments are donated.

Both start from the same parameters and see the same batches; without the router's noise, whose
draws differ, the losses of the first steps must agree. Times are with the noise of training.

The floor is 1 for the products of attention, feed-forward layers and experts, which are the same;
theirs dispatches by products with an array [S, E, C].
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import traverse_util

from benchmarks import e3, timing
from benchmarks.timing import block, over, show
from uncertainty import build
from uncertainty.restore.plan import plan

BATCHES, COMPARED, CLASSES, BALANCE = 4, 3, 100, 0.005
KINDS = {"V-MoE, K = 2": (2, 1), "E3, K = 1, M = 2": (1, 2)}


def module(K: int, M: int, noise: float, tokens: int) -> Any:
    """Their network, for a batch with so many tokens."""
    from vmoe.nn import vit_moe, vit_moe_ensemble

    moe: dict[str, Any] = dict(
        layers=e3.MOE,
        num_experts=e3.E,
        group_size=tokens * M,
        router=dict(
            num_selected_experts=K,
            noise_std=noise,
            importance_loss_weight=BALANCE,
            load_loss_weight=BALANCE,
            dispatcher=dict(name="einsum", capacity_factor=1.05, batch_priority=False),
        ),
    )
    make = vit_moe.VisionTransformerMoe
    if M > 1:
        make, moe = vit_moe_ensemble.VisionTransformerMoeEnsemble, moe | dict(ensemble_size=M)
    return make(
        num_classes=CLASSES,
        patch_size=(e3.PATCH, e3.PATCH),
        hidden_size=e3.D,
        head_kernel_zero_init=False,
        encoder=dict(num_layers=e3.DEPTH, mlp_dim=e3.H, num_heads=8, moe=moe),
    )


class Theirs:
    """Their training step over the batches."""

    def __init__(self, K: int, M: int, noise: float, batches: Any, params: Any = None):
        B, size = batches[0]["x"].shape[:2]
        tokens = B * ((size // e3.PATCH) ** 2 + 1)
        network, adam = module(K, M, noise, tokens), optax.adam(1e-3)
        rngs = {"params": jax.random.key(0), "gating": jax.random.key(1)}
        if params is None:
            params = jax.jit(network.init)(rngs, batches[0]["x"])["params"]
        # Copies, since a step takes the place of its arguments
        self.params, self.batches, self.done = jax.tree.map(np.asarray, params), batches, 0

        def loss(params: Any, x: Any, y: Any, key: Any) -> Any:
            logits, metrics = network.apply({"params": params}, x, rngs={"gating": key})
            # Their members of an example follow each other
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.repeat(y, M)).mean()
            return nll + jnp.mean(metrics["auxiliary_loss"]), nll

        def step(params: Any, state: Any, key: Any, x: Any, y: Any) -> Any:
            key, own = jax.random.split(key)
            (_, nll), g = jax.value_and_grad(loss, has_aux=True)(params, x, y, own)
            updates, state = adam.update(g, state, params)
            return optax.apply_updates(params, updates), state, key, nll

        self.update = jax.jit(step, donate_argnums=(0, 1, 2))
        own = jax.tree.map(jnp.asarray, self.params)
        self.state = (own, adam.init(own), jax.random.key(2))

    def steps(self, number: int) -> Any:
        for _ in range(number):
            batch = self.batches[self.done % BATCHES]
            *self.state, nll = self.update(*self.state, batch["x"], batch["y"])
            self.done += 1
        return self.state, nll

    def losses(self) -> list[float]:
        return [float(self.steps(1)[1]) for _ in range(COMPARED)]


class Ours:
    """Our update of the same network, from their parameters."""

    def __init__(self, K: int, M: int, noise: float, batches: Any, params: Any):
        router = dict(name="routers.TopK", k=K, noise_std=noise, importance_loss=BALANCE,
                      load_loss=BALANCE)  # fmt: skip
        experts = dict(name="experts.MoE", num_experts=e3.E, router=router)
        algorithm = build.inference(
            dict(
                backbone=e3.VIT | dict(experts=experts, expert_blocks="last 2"),
                ensemble=dict(name="e3", size=M) if M > 1 else "single",
                head=dict(name="dense.Dense", outputs=CLASSES),
                likelihood="softmax",
                optimiser=dict(name="adam", learning_rate=1e-3),
                steps=1_000_000,
                inference=dict(name="particles"),
            ),
            num_examples=1,
        )
        self.batches, self.done = batches, 0
        state = algorithm.init(jax.random.key(0), batches[0]["x"])
        target = traverse_util.flatten_dict(state.params, sep="/")
        source = traverse_util.flatten_dict(params, sep="/")
        side = batches[0]["x"].shape[1] // e3.PATCH
        shapes = {name: a.shape[1:] for name, a in target.items()}
        moves = plan({name: a.shape for name, a in source.items()}, shapes, "vmoe",
                     patches=(1, side, side))  # fmt: skip
        flat = {
            name: jnp.asarray(move(source[move.source], shapes[name]))[None]
            for name, move in moves.items()
        }
        self.state = state.replace(params=traverse_util.unflatten_dict(flat, sep="/"))
        self.update = jax.jit(algorithm.update, donate_argnums=0)

    def steps(self, number: int) -> Any:
        for _ in range(number):
            self.state, metrics = self.update(self.state, self.batches[self.done % BATCHES])
            self.done += 1
        return self.state, metrics

    def losses(self) -> list[float]:
        return [float(np.mean(self.steps(1)[1]["nll"])) for _ in range(COMPARED)]


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises AssertionError where losses of the first steps differ."""
    rng, B = np.random.default_rng(0), arguments.batch
    batches = [
        dict(
            x=jnp.asarray(rng.normal(size=(B, arguments.image, arguments.image, 3)), jnp.float32),
            y=jnp.asarray(rng.integers(CLASSES, size=B), jnp.int32),
        )
        for _ in range(BATCHES)
    ]
    sides: dict[str, Callable] = {}
    differences, compiled = {}, {}
    for kind, (K, M) in KINDS.items():
        theirs = Theirs(K, M, 0.0, batches)
        ours = Ours(K, M, 0.0, batches, theirs.params)
        losses = ours.losses(), theirs.losses()
        np.testing.assert_allclose(*losses, rtol=2e-3, err_msg=kind)
        differences[kind] = float(np.abs(np.divide(*losses) - 1).max())
        params = theirs.params
        del ours, theirs
        made = {
            f"{kind}: ours": Ours(K, M, 1.0, batches, params),
            f"{kind}: google-research/vmoe": Theirs(K, M, 1.0, batches, params),
        }
        for name, side in made.items():
            sides[name] = block(lambda side=side: side.steps(1))
            compiled[name] = sides[name]()[0]
    timing.take_turns(sides, 1)  # warm up
    seconds = timing.take_turns(sides, arguments.rounds)
    ratios = {}
    for kind in KINDS:
        own = {name: s for name, s in seconds.items() if name.startswith(kind)}
        ratios |= over(own, f"{kind}: google-research/vmoe")
    return dict(
        job=f"training step, S/32 with {e3.E} experts in 2 of 8 blocks, {B} images of "
        f"{arguments.image} pixels",
        seconds=seconds,
        ratios=ratios,
        targets=dict.fromkeys(ratios, 1.0),
        largest_relative_loss_difference=differences,
        first_call_seconds=compiled,
        rounds=arguments.rounds,
        **timing.where(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vmoe", nargs="+", required=True, help="folders that are added to Python's path"
    )
    for name, value in dict(batch=32, image=128, rounds=7).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    sys.path[:0] = arguments.vmoe
    logging.set_verbosity(logging.ERROR)  # theirs warns of every capacity that is rounded up
    try:
        import vmoe.nn.vit_moe_ensemble  # noqa: F401
    except ImportError as error:
        parser.error(
            f"--vmoe: {' '.join(arguments.vmoe)}: {error}; give the checkouts of "
            "google-research/vmoe and google-research/vision_transformer"
        )
    record = compare(arguments)
    show(record)
    print(record["largest_relative_loss_difference"])
    if arguments.save:
        print(f"written: {timing.save(f'vmoe_{arguments.image}_{arguments.batch}', record)}")


if __name__ == "__main__":
    main()
