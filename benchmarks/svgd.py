"""SVGD in weight space: against a deep ensemble's step, and against other libraries.

    python -m benchmarks.svgd steps [--save]
    python -m benchmarks.svgd libraries --torch PY --stein PY [--features 784] [--save]
    python -m benchmarks.svgd sgld --stein PY [--features 784] [--save]

The first PY is a Python with torch 2.13, the second one with blackjax and numpyro. All sides are
compiled and warmed up before, and take turns. Adam, batch 128, ReLU; the data are noise.

steps      a step of SVGD and one of a deep ensemble, 784-100-100-100-10, 99,710 parameters.
libraries  a step of SVGD against PyTorch by hand (the better of one thread and all),
           `blackjax.svgd` and NumPyro's SteinVI, each with its own median heuristic: 784-100-10
           with 79,510 parameters, and for `--features 13` 13-50-1 with 751, regression. With the
           same fixed bandwidth, the particles after some steps must agree.
sgld       ten chains of SGLD against `blackjax.sgld`; at temperature 0 they must agree.

The floor of `steps`, in multiply-adds, with n = 99,710 parameters. SVGD's Gram matrix takes P^2 n,
and so does the product K (g + z / (N h)), from which phi is computed for this kernel at temperature
1: 2 P^2 n, 0.16 GFLOP at P = 20 and 1.00 at P = 50. A deep ensemble's step takes, per particle and
example, 99,400 forward, as many for the gradients of the weights and 21,000 for those of the
layers' inputs: 219,800, or 1.13 and 2.81 GFLOP. So SVGD has 1.14 and 1.35 times its operations. The
deep ensemble also spends time on Adam, which reads and writes some ten numbers per parameter: the
floor in time, printed below, is 1 + time of those two products / time of its step.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import against_torch, timing
from benchmarks.svgd_sides import HIDDEN, RATE, RECORDED, B, Comparison, Ours, adam, data
from benchmarks.timing import block, over, show


def steps(arguments: argparse.Namespace) -> dict[str, Any]:
    batches = data(784, 10)
    seconds, ratios, targets, floors = {}, {}, {}, {}
    for P, target in zip(arguments.particles or (20, 50), (1.10, 1.25), strict=False):
        ensembles = {
            name: Ours(batches, (100, 100, 100), 10, adam(), size=P, direction=direction)
            for name, direction in (("deep ensemble", "independent"), ("SVGD", "svgd"))
        }
        z = jnp.concatenate(
            [a.reshape(P, -1) for a in jax.tree.leaves(ensembles["SVGD"].state.params)], axis=1
        )
        products = jax.jit(lambda K, z: (K @ z, z @ z.T))
        K = jnp.eye(P)
        sides = {
            f"P = {P}: {name}": block(lambda o=o: o.steps(arguments.steps), arguments.steps)
            for name, o in ensembles.items()
        }
        sides[f"P = {P}: the kernel's products alone"] = block(
            lambda f=products, K=K, z=z: [f(K, z) for _ in range(arguments.steps)], arguments.steps
        )
        timing.take_turns(sides, 1)  # warm up
        own = timing.take_turns(sides, arguments.rounds)
        alone, _, kernel = own.values()
        gflop = 4 * P**2 * z.shape[1] / 1e9
        floors[P] = dict(
            kernel_gflop=gflop,
            gflop_per_s={clock: gflop / kernel[clock] for clock in kernel},
            ratio_of_times={clock: 1 + kernel[clock] / alone[clock] for clock in alone},
            ratio_of_operations=1 + 2 * P * z.shape[1] / (B * 219_800),
        )
        seconds |= own
        ratios |= over(own, f"P = {P}: deep ensemble")
        targets[f"P = {P}: SVGD"] = target
    return dict(
        job=f"a step of MLP 784-100-100-100-10, batch {B}",
        seconds=seconds,
        ratios=ratios,
        targets=targets,
        floors=floors,
    )


def libraries(arguments: argparse.Namespace) -> dict[str, Any]:
    h = 0.5 * arguments.features  # of the order of the median of |z_i - z_j|^2
    direction = dict(name="svgd", kernel=dict(name="rbf", bandwidth=h))
    pythons = dict(torch=arguments.torch, blackjax=arguments.stein, numpyro=arguments.stein)
    comparison = Comparison(arguments)
    for P in arguments.particles or (10, 50, 100):
        comparison.run(
            P,
            {name: pythons[name] for name in arguments.opponents},
            timed=dict(optimiser=adam(), direction="svgd"),
            fixed=dict(optimiser=adam(), direction=direction),
            bandwidth=h,
        )
    ratios = comparison.record["ratios"]
    large = arguments.features == 784
    targets = {name: 10.0 if large and "blackjax" in name else 1.2 for name in ratios}
    return comparison.record | dict(job=f"SVGD, {comparison.record['job']}", targets=targets)


def sgld(arguments: argparse.Namespace) -> dict[str, Any]:
    optimiser = dict(name="sgld", learning_rate=RATE)
    comparison = Comparison(arguments)
    for P in arguments.particles or (10,):
        comparison.run(
            P,
            {"blackjax-sgld": arguments.stein},
            timed=dict(optimiser=optimiser),
            fixed=dict(optimiser=optimiser, temperature=0.0),
            bandwidth=0.0,
        )
    targets = dict.fromkeys(comparison.record["ratios"], 1.0)
    return comparison.record | dict(job=f"SGLD, {comparison.record['job']}", targets=targets)


JOBS = {f.__name__: f for f in (steps, libraries, sgld)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--torch", help="python with torch")
    parser.add_argument("--stein", help="python with blackjax and numpyro")
    parser.add_argument("--features", type=int, choices=HIDDEN, default=784)
    parser.add_argument("--particles", type=int, nargs="+", help="P, instead of the job's defaults")
    names = ("torch", "blackjax", "numpyro")
    parser.add_argument("--opponents", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    against_torch.add_common(parser)
    arguments = parser.parse_args()
    if arguments.job != "steps" and arguments.stein is None:
        parser.error(f"{arguments.job} needs --stein")
    if arguments.job == "libraries" and "torch" in arguments.opponents and arguments.torch is None:
        parser.error("the opponent torch needs --torch; or leave it out of --opponents")
    record = JOBS[arguments.job](arguments)
    record |= dict(rounds=arguments.rounds, **timing.where())
    show(record)
    for key in ("floors", *RECORDED[2:]):
        if key in record:
            print(key, record[key])
    if arguments.save:
        name = f"svgd_{arguments.job}"
        if arguments.job != "steps":
            name += f"_{arguments.features}"
        print(f"written: {timing.save(name, record)}")


if __name__ == "__main__":
    main()
