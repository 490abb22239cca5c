"""Epinets against their base and ensembles, and the testbed against PyTorch.

    python -m benchmarks.epinet training [--depth 20 --batch 32] [--save]
    python -m benchmarks.epinet prediction [--depth 20 --batch 128] [--save]
    python -m benchmarks.epinet testbed --opponents PY [--problems 15 --steps 200] [--save]

All sides of a job run on the same arrays, compiled and warmed up before, taking turns. PY is a
Python with torch.

training    a step of `inference.particles` on a ResNet for CIFAR-10 (noise), SGD with momentum: the
            network alone, with an epinet that is trained with it, and beside a frozen one.
            Settings are those released for CIFAR-10: 20 index dimensions, 50 hidden units, a
            matched prior; 8 index samples.
prediction  log-probabilities: a forward pass of the network, the epinet with 10, 100 and 1,000
            index samples, and an ensemble of 10 networks. The paper's claim is less than twice the
            base.
testbed     random problems of `studies.testbed` (d = 10, n = 100), trained and predicted by an MLP,
            and by an ensemble of 10: all in one program, against PyTorch, one problem after the
            other, the networks of a problem as batched products. Both begin with the same
            parameters, and their KL to the process must agree. Seconds are those of a problem.

FLOPs are those of products and convolutions in the traced program. By hand: ResNet-20 takes 41 M
multiply-adds for an image. The epinet and its prior, with 64 features, Z = 20 and 50 hidden units,
take 64 x 50 once and 50 x 10 for each sample, 0.1 M for 100 samples of both; and for a batch 100 x
50 x 10 x 20, kernels along z. By operations the samples are free, and what is left is memory.
"""

import argparse
import functools
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.timing import block, over, show
from experiments.planning import operations
from studies import testbed
from studies.agents import agents, config_of, given, started
from studies.problems import Setting, joint_kl, marginal_kl
from uncertainty import build

EPINET = dict(name="epinet", index=20, widths=(50,), prior_scale=4.0, training_size=8)
ENSEMBLE = 10
SETTING = Setting(inputs=10, ratio=10, temperature=0.1, seed=0)
COMPARED = 0.02  # of a KL: rounding, after all steps


def config(depth: int, ensemble: Any = "single", size: int = 1) -> dict[str, Any]:
    return dict(
        backbone=dict(name="resnet.ResNet", depth=depth),
        ensemble=ensemble,
        head=dict(name="dense.Dense", outputs=10),
        likelihood="softmax",
        optimiser=dict(name="sgd", learning_rate=0.1, momentum=0.9),
        steps=1,
        inference=dict(name="particles", size=size),
    )


def training(arguments: argparse.Namespace) -> dict[str, Any]:
    sides, flops, compiled = {}, {}, {}
    networks = {
        "base": "single",
        "epinet": EPINET | dict(size=100),
        "epinet, frozen base": EPINET | dict(size=100, frozen=True),
    }
    batch = noise(arguments.batch)
    for name, ensemble in networks.items():
        inference = build.inference(config(arguments.depth, ensemble))
        state = inference.init(jax.random.key(0), batch["x"][:1])
        traced = jax.jit(inference.update, donate_argnums=0).trace(state, batch)
        flops[name] = operations.of_traced(traced).flops
        compiled[name], update = compile_of(traced)
        current = {"state": state}

        def step(current: Any = current, update: Any = update) -> Any:
            current["state"], metrics = update(current["state"], batch)
            return metrics["finite"]

        assert np.all(step()), name
        sides[name] = block(step)
    record = taken(sides, arguments.rounds, flops, compiled)
    job = f"training step, ResNet-{arguments.depth}, batch {arguments.batch}, 8 index samples"
    return record | dict(job=job, targets={"epinet": 2.0})


def prediction(arguments: argparse.Namespace) -> dict[str, Any]:
    sides, flops, compiled = {}, {}, {}
    networks: dict[str, tuple[Any, int]] = {
        "base": ("single", 1),
        **{f"epinet, {n:,} samples": (EPINET | dict(size=n), 1) for n in (10, 100, 1000)},
        f"{ENSEMBLE} networks": ("single", ENSEMBLE),
    }
    x = noise(arguments.batch)["x"]
    for name, (ensemble, size) in networks.items():
        inference = build.inference(config(arguments.depth, ensemble, size))
        state = inference.init(jax.random.key(0), x[:1])

        def log_probs(state: Any, x: jax.Array, inference: Any = inference) -> jax.Array:
            members = jax.nn.log_softmax(inference.predict(state, x).mean)
            return jax.nn.logsumexp(members, axis=0) - np.log(len(members))

        traced = jax.jit(log_probs).trace(state, x)
        flops[name] = operations.of_traced(traced).flops
        compiled[name], predict = compile_of(traced)
        total = jax.nn.logsumexp(predict(state, x), axis=1)
        np.testing.assert_allclose(total, 0, atol=1e-4, err_msg=name)
        sides[name] = block(lambda predict=predict, state=state: predict(state, x))
    record = taken(sides, arguments.rounds, flops, compiled)
    job = f"log-probabilities, ResNet-{arguments.depth}, batch {arguments.batch}"
    return record | dict(job=job, targets={"epinet, 100 samples": 2.0})


def noise(size: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 32, 32, 3)).astype(np.float32)
    return jax.device_put(dict(x=x, y=rng.integers(10, size=size).astype(np.int32)))


def compile_of(traced: Any) -> tuple[float, Any]:
    """Seconds, and the program."""
    programs: list[Any] = []
    seconds, _ = timing.clock(lambda: programs.append(traced.lower().compile()))
    return seconds, programs[0]


def taken(sides: Any, rounds: int, flops: dict[str, float], compiled: Any) -> dict[str, Any]:
    timing.take_turns(sides, 1)  # warm up
    seconds = timing.take_turns(sides, rounds)
    return dict(
        seconds=seconds,
        ratios=over(seconds, "base"),
        gflop={name: value / 1e9 for name, value in flops.items()},
        flop_ratios={name: value / flops["base"] for name, value in flops.items()},
        compile_seconds=compiled,
    )


def against_torch(arguments: argparse.Namespace) -> dict[str, Any]:
    same = [SETTING._replace(seed=seed) for seed in range(arguments.problems)]
    problems = testbed.made(same, tau=10, pairs=100, draws=1)
    of = agents(size=ENSEMBLE)
    seconds, ratios, compiled, found = {}, {}, {}, {}
    for name in ("MLP", "ensemble"):
        agent = of[name]._replace(steps=lambda setting: arguments.steps)
        run = testbed.program(agent)

        def ours(run: Any = run) -> Any:
            return testbed.measured(run, same, problems)

        compiled[name], _ = timing.clock(ours)
        sides = {f"{name}: ours": block(ours, len(same))}
        with tempfile.TemporaryDirectory() as folder:
            file, answer = (pathlib.Path(folder) / f for f in ("begin.npz", "log_q.npz"))
            np.savez(file, **begun(agent, same, problems))
            with timing.Worker(arguments.opponents, "testbed_torch.py", str(file)) as worker:
                for threads in (1, 2):
                    ask = functools.partial(
                        worker.ask, threads=threads, steps=arguments.steps, answer=str(answer)
                    )

                    def theirs(ask: Any = ask) -> tuple[float, float]:
                        took = ask()
                        return took["wall"] / len(same), took["cpu"] / len(same)

                    theirs()  # warm up
                    side = f"{name}: PyTorch, {threads} thread{'s' * (threads > 1)}"
                    sides[side] = theirs
                found[name] = compare(ours(), dict(np.load(answer))["log_q"], problems)
                timing.take_turns(sides, 1)
                own = timing.take_turns(sides, arguments.rounds)
        seconds |= own
        ratios |= over(own, f"{name}: ours")
    return dict(
        job=f"a problem of the testbed, d = {SETTING.inputs}, n = {SETTING.examples}, "
        f"{arguments.steps} steps, {len(same)} problems",
        seconds=seconds,
        ratios=ratios,
        targets={},
        problems_per_second={side: 1 / clocks["wall"] for side, clocks in seconds.items()},
        differences_of_kl=found,
        compile_seconds=compiled,
    )


def begun(agent: Any, same: list[Setting], problems: Any) -> dict[str, np.ndarray]:
    """Data, L2 and the initial parameters [G, P, ...] of a program, by path."""
    of = given(agent, same, problems)
    tree = jax.jit(functools.partial(started, agent, same[0]))(of).params
    layers = {"dense0": tree["backbone"]["dense0"], "dense1": tree["backbone"]["dense1"],
              "logits": tree["head"]["logits"]}  # fmt: skip
    arrays = {f"{name}.{k}": np.asarray(a) for name, layer in layers.items()
              for k, a in layer.items()}  # fmt: skip
    rate = config_of(agent, same[0])["optimiser"]["learning_rate"]
    pairs = problems.pairs.reshape(len(same), -1, SETTING.inputs)
    return arrays | dict(x=problems.x, y=problems.y, pairs=pairs, l2=of.l2, rate=rate)


def compare(ours: dict[str, Any], log_q: np.ndarray, problems: Any) -> dict[str, float]:
    """The largest relative difference of KLs; raises AssertionError above COMPARED."""
    apart = {}
    members = log_q.reshape(*log_q.shape[:2], *problems.log_p.shape[1:])  # [G, P, T, 2, K]
    for name in ("marginal", "joint"):
        kl: Any = marginal_kl if name == "marginal" else joint_kl
        last = () if name == "marginal" else (problems.counts,)
        theirs = [
            float(kl(q, *arrays)) for q, *arrays in zip(members, problems.log_p, *last, strict=True)
        ]
        np.testing.assert_allclose(ours[name], theirs, rtol=COMPARED, atol=1e-3, err_msg=name)
        apart[name] = float(np.max(np.abs(ours[name] / theirs - 1)))
    return apart


JOBS = {"training": training, "prediction": prediction, "testbed": against_torch}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--opponents", help="python with torch")
    parser.add_argument("--batch", type=int, help="32 in training, 128 in prediction")
    for name, value in dict(depth=20, rounds=7, problems=15, steps=200).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    if arguments.job == "testbed" and not arguments.opponents:
        parser.error("testbed needs --opponents, a Python with torch")
    arguments.batch = arguments.batch or (32 if arguments.job == "training" else 128)
    record = JOBS[arguments.job](arguments) | dict(rounds=arguments.rounds, **timing.where())
    show(record)
    for key in ("gflop", "flop_ratios", "problems_per_second", "differences_of_kl"):
        if key in record:
            print(key, record[key])
    if arguments.save:
        name = f"epinet_{arguments.job}"
        if arguments.job != "testbed":
            name += f"_resnet_{arguments.depth}_{arguments.batch}"
        print(f"written: {timing.save(name, record)}")


if __name__ == "__main__":
    main()
