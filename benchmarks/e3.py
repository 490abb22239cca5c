"""Prediction with E3 (K, M) = (1, 2) against a deep ensemble of two ViTs, in FLOPs and time.

    python -m benchmarks.e3 [--batch 32] [--capacity 1.05] [--image 128] [--save]

The published S/32 (width 512, 8 blocks, 8 heads, MLP 2048), E = 8 experts in the last 2 of the odd
blocks (5 and 7), 100 classes; log-probabilities of the mean of all members. Sides, taking turns:

    2 ViTs        two particles; the side `ViT` is one network
    E3            one expert per token for each of two members
    V-MoE, K = k  k experts per token, one member

FLOPs are those of the compiled program (XLA counts an elementwise operation as one), and must agree
with the count by hand below to 5 %. Parameters are the initial ones.

The floor, in multiply-adds per image of T tokens (17 at 128 pixels): D = 512, H = 2048,

    a = T (4 D^2 + 2 T D)  attention     f = 2 T D H  feed-forward     e = 16 x 3,072 D  embedding
    ViT    e + 8 a + 8 f                                                 0.46 G
    V-MoE  e + 8 a + 6 f + 2 K c f                                       0.46, 0.54 G, K = 1, 2
    E3     e + 6 a + 5 f  +  M (2 a + f + 2 K c f)                       0.61 G

with the capacity factor c = 1.05: E3 computes blocks 0 to 4 and the attention of block 5 once. So
it has 0.67 times the FLOPs of two ViTs, and 0.73 with c = 1.5; the paper claims up to 45 % fewer.
Weights are read once per batch, 4 bytes for 2 FLOP per token. The expert layers have 29 M more
parameters than a ViT's, and two ViTs have 27 M more, so small batches do not change the ratio much.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.timing import block, over, show
from uncertainty import build

D, H, DEPTH, PATCH, E, M = 512, 2048, 8, 32, 8, 2
VIT = dict(name="vit.ViT", variant="S/32", width=D, depth=DEPTH, num_heads=8, mlp_dim=H)
MOE = (5, 7)


def config(side: str, capacity: float) -> dict[str, Any]:
    experts = dict(
        name="experts.MoE",
        num_experts=E,
        router=dict(
            name="routers.TopK", k=2 if side.endswith("2") else 1, capacity_factor=capacity
        ),
    )
    dense = "ViT" in side
    return dict(
        backbone=VIT if dense else VIT | dict(experts=experts, expert_blocks="last 2"),
        ensemble=dict(name="e3", size=M) if side == "E3" else "single",
        head=dict(name="dense.Dense", outputs=100),
        likelihood="softmax",
        optimiser=dict(name="sgd", learning_rate=1e-3),
        steps=1,
        inference=dict(name="particles", size=M if side == "2 ViTs" else 1),
    )


def by_hand(image: int, capacity: float) -> dict[str, float]:
    """GFLOP per image, counted by hand."""
    patches = (image // PATCH) ** 2
    T, e = patches + 1, patches * 3 * PATCH**2 * D
    a, f = T * (4 * D**2 + 2 * T * D), 2 * T * D * H
    dense = e + DEPTH * (a + f)
    moe = {K: dense + 2 * (K * capacity - 1) * f for K in (1, 2)}
    first, last = MOE  # everything before the experts of block `first` is computed once
    once = e + first * (a + f) + a
    later = (DEPTH - first - 1) * a + (last - first - 1) * f + 2 * capacity * f
    counts = {"ViT": dense, "2 ViTs": M * dense, "E3": once + M * later}
    counts |= {f"V-MoE, K = {K}": macs for K, macs in moe.items()}
    return {side: 2 * macs / 1e9 for side, macs in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in dict(batch=32, image=128, rounds=7).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--capacity", type=float, default=1.05, help="factor")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (arguments.batch, arguments.image, arguments.image, 3)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    hand = by_hand(arguments.image, arguments.capacity)
    sides: dict[str, Any] = {}
    flops, memory, parameters, compiled = {}, {}, {}, {}
    for name in hand:
        algorithm = build.inference(config(name, arguments.capacity), num_examples=1)
        state = algorithm.init(jax.random.key(0), x[:1])

        def log_probs(state, x, algorithm=algorithm):
            members = jax.nn.log_softmax(algorithm.predict(state, x).mean)  # [P M, B, K]
            return jax.nn.logsumexp(members, axis=0) - jnp.log(len(members))

        lowered, programs = jax.jit(log_probs).lower(state, x), []
        compiled[name], _ = timing.clock(
            lambda programs=programs, low=lowered: programs.append(low.compile())
        )
        predict = programs[0]
        flops[name] = predict.cost_analysis()["flops"] / 1e9 / arguments.batch
        np.testing.assert_allclose(flops[name], hand[name], rtol=0.05, err_msg=name)
        total = jax.nn.logsumexp(predict(state, x), axis=1)
        np.testing.assert_allclose(total, 0, atol=1e-4, err_msg=name)
        memory[name] = predict.memory_analysis().temp_size_in_bytes / 1e6
        parameters[name] = sum(a.size for a in jax.tree.leaves(state.params))
        sides[name] = block(lambda predict=predict, state=state: predict(state, x))
    timing.take_turns(sides, 1)  # warm up
    seconds = timing.take_turns(sides, arguments.rounds)
    record = dict(
        job=f"log-probabilities of {arguments.batch} images of {arguments.image} pixels, S/32, "
        f"capacity factor {arguments.capacity}",
        seconds=seconds,
        ratios=over(seconds, "2 ViTs"),
        targets={"E3": 1.0},
        gflop_per_image=flops,
        gflop_by_hand=hand,
        flop_ratios={name: value / flops["2 ViTs"] for name, value in flops.items()},
        temporary_megabytes=memory,
        parameters=parameters,
        compile_seconds=compiled,
        rounds=arguments.rounds,
        **timing.where(),
    )
    show(record)
    for key in ("gflop_per_image", "gflop_by_hand", "flop_ratios"):
        print(key, {name: round(value, 3) for name, value in record[key].items()})
    print("parameters", parameters)
    if arguments.save:
        name = f"e3_{arguments.image}_{arguments.batch}_{arguments.capacity}".replace(".", "_")
        print(f"written: {timing.save(name, record)}")


if __name__ == "__main__":
    main()
