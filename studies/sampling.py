"""Every method in weight space, as a sampler of known two-dimensional densities.

    python -m studies.sampling
    python -m studies.sampling --target funnel --methods 'SVGD|SGLD' --seeds 0,1

A density is the posterior of one example, so this runs the code that trains networks. Results are
`results/sampling_gaussian` and `results/sampling_funnel`: a table of distances to the density over
seeds, whose first row is that of as many exact draws, and a figure of the first seed. A method that
fails is reported and does not stop the others; the exit status is then 1.

Kernels with h = .5 are exp(-|a - b|^2 / (2 h^2)), as in the notebook that the settings are from.
"""

import argparse
import functools
import importlib.util
import logging
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reports import formats
from experiments.reports.study import Study
from experiments.reports.style import save_png
from experiments.reports.tables import print_study
from experiments.reproduce import seeds_of
from experiments.runtime import project
from experiments.runtime.progress import Progress, setup_logging
from experiments.runtime.writers import hardware
from studies.densities import DENSITIES, Density, Distances, as_model, picture
from studies.nuts import nuts
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.svgd import svgd
from uncertainty.inference.directions.wgd import wgd
from uncertainty.inference.kernels.imq import imq
from uncertainty.inference.kernels.linear import linear
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.inference.particles import particles
from uncertainty.optimisers.optimiser import adam, optimiser
from uncertainty.optimisers.samplers import psgld, sghmc, sgld

logger = logging.getLogger(__name__)

H = 0.5**2  # of the kernels with a fixed width: h squared
EXACT, NUTS = "Exact draws", "NUTS"
COLUMNS = (
    dict(key="mmd", header="MMD", better="lower", digits=3),
    dict(key="w1", header="Sliced W1", better="lower", digits=3),
    dict(key="seconds", header="Time", unit="s", digits=1),
)
BATCH = dict(x=jnp.zeros((1, 1)), y=jnp.zeros((1,)))


class Method(NamedTuple):
    optimiser: Any
    direction: Callable = independent
    steps: int | None = None  # None for those of the density


def methods(target: str) -> dict[str, Method]:
    """label -> Method, with the settings for one of DENSITIES.

    Adam with rate .1, as in the notebook; the samplers' rates were chosen on another seed.
    """

    def follow(direction: Callable, steps: int | None = None, **fields: Any) -> Method:
        configured = functools.partial(direction, **fields) if fields else direction
        return Method(optimiser(adam(), 0.1), configured, steps)

    rbf_h, imq_h = (functools.partial(kernel, bandwidth=H) for kernel in (rbf, imq))
    half = DENSITIES[target]().steps // 2
    # Slow with 500 particles: a median, a linear solve or an eigendecomposition in each step
    slow = 500 if target == "funnel" else None
    rates = dict(funnel=(1.0, 0.005), gaussian=(0.3, 0.01))[target]
    return {
        "Independent (MAP)": follow(independent),
        "SVGD, h = .5": follow(svgd, kernel=rbf_h),
        "SVGD, median": follow(svgd, slow),
        "SVGD, IMQ": follow(svgd, kernel=imq_h),
        "SVGD, linear": follow(svgd, kernel=linear),
        "Stochastic SVGD": Method(
            optimiser(sgld(), rates[0]), functools.partial(svgd, kernel=rbf_h), slow
        ),
        "KDE-WGD": follow(wgd, estimator="kde", kernel=rbf_h),
        "SGE-WGD": follow(wgd, slow, estimator="sge", kernel=rbf_h),
        "SSGE-WGD": follow(wgd, slow, estimator="ssge"),
        "SGLD": Method(optimiser(sgld(), rates[1])),
        "pSGLD": Method(optimiser(psgld(), 0.01)),
        "pSGLD, then fixed": Method(optimiser(psgld(adapt_steps=half), 0.01)),
        "SGHMC": Method(optimiser(sghmc(), 0.001)),
    }


def sample(
    density: Density, method: Method, seeds: Sequence[int], progress: Progress
) -> tuple[list[np.ndarray], list[float], float]:
    """Particles [P, 2] and seconds without compilation, for each seed; the share of skipped steps.

    Raises:
      FloatingPointError: a particle's last step was not finite, or the particle is too far out.
    """
    inference = particles(
        as_model(density), method.optimiser, density.size, method.direction, num_examples=1
    )
    steps = method.steps or density.steps
    chunk = -(-steps // 20)

    def advance(state: Any) -> tuple[Any, jax.Array]:
        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            state, metrics = inference.update(state, BATCH)
            return state, metrics["finite"]

        return jax.lax.scan(step, state, length=chunk)

    compiled, samples, seconds, lost = None, [], [], []
    for i, seed in enumerate(seeds):
        state = inference.init(jax.random.key(seed), BATCH["x"])
        compiled = compiled or jax.jit(advance).lower(state).compile()
        began = time.perf_counter()
        for done in range(0, steps, chunk):
            state, finite = compiled(state)
            lost.append(1 - float(finite.mean()))
            progress.update(i * steps + done + chunk)
        z = np.asarray(state.params["z"], np.float64)
        seconds.append(time.perf_counter() - began)
        if not np.asarray(finite)[-1].all() or not np.abs(z).max() < 1e6:
            raise FloatingPointError(f"seed {seed}: particles that are not finite")
        samples.append(z)
    return samples, seconds, float(np.mean(lost))


def by_nuts(
    density: Density, seeds: Sequence[int], steps: int = 500, warmup: int = 1000
) -> tuple[list[np.ndarray], list[float]]:
    """The last of `steps` draws of P NUTS chains, with one chain's adaptation in `warmup` steps."""
    samples, seconds = [], []
    for seed in seeds:
        begin, key = jax.random.split(jax.random.key(seed))
        mean, std = density.start
        start = jnp.array(mean) + std * jax.random.normal(begin, (density.size, 2))
        sampled = nuts(density.log_density, start, key, warmup, 1, thin=steps, shared=True)
        samples.append(np.asarray(sampled.draws[:, -1], np.float64))
        seconds.append(sampled.seconds)
    return samples, seconds


def compare(
    target: str, chosen: Mapping[str, Method], seeds: Sequence[int], reference: bool, runlocal: bool
) -> tuple[Study, Density, Distances, dict[str, np.ndarray]]:
    """Runs methods on one of DENSITIES, and with `reference` NUTS, if BlackJAX is installed.

    Returns:
      The table, the density, its distances, and label -> particles of the first seed.
    """
    density = DENSITIES[target]()
    if runlocal:
        density = density._replace(size=20, steps=40)
    distances = Distances(density, 1000 if runlocal else 10_000)
    rows, first_seed = [], {}

    def add(label: str, samples: list[np.ndarray], seconds: Sequence[float], **fields: str) -> None:
        results = [density.summary(z) | distances(z) for z in samples]
        for result, s in zip(results, seconds, strict=False):
            result["seconds"] = s
        rows.append(dict(label=label, results=results, **fields))
        first_seed[label] = samples[0]

    exact = [density.draw(np.random.default_rng(seed), density.size) for seed in seeds]
    missing = reference and importlib.util.find_spec("blackjax") is None
    note = "NUTS is left out: pip install '.[reference]'." if missing else ""
    add(EXACT, exact, (), group=EXACT, note=note)
    chosen = ({NUTS: None} if reference and not missing else {}) | dict(chosen)
    for label, method in chosen.items():
        try:
            if method is None:
                samples, seconds = by_nuts(density, seeds, *((5, 20) if runlocal else ()))
                add(label, samples, seconds, group=NUTS, note="500 steps after 1,000 to adapt.")
                continue
            method = method._replace(steps=min(method.steps or density.steps, density.steps))
            with Progress(len(seeds) * method.steps, f"{target}: {label}") as progress:
                samples, seconds, lost = sample(density, method, seeds, progress)
        except Exception as error:  # a failing method must not stop the others
            logger.error("%s: %s", label, error)
            rows.append(dict(label=label, failed=str(error)))
            continue
        notes = [f"{method.steps:,} steps."] * (method.steps != density.steps)
        notes += [f"{100 * lost:.2g} % of the steps were not finite and not taken."] * (lost > 0)
        add(label, samples, seconds, note=" ".join(notes))
    study = Study(
        density.title,
        (*density.columns, *COLUMNS),
        rows,
        f"python -m studies.sampling --target {target}",
        seeds=list(seeds),
        hardware=hardware(),
    )
    return study, density, distances, first_seed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.sampling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", choices=DENSITIES, help="one density (default: all)")
    parser.add_argument("--methods", default="", help="run only those that match this regex")
    parser.add_argument("--seeds", type=seeds_of, default=[0, 1, 2, 3, 4], help="such as 0,1,2")
    results = project.default("results")
    parser.add_argument("--results", default=results, help=f"for tables and figures ({results})")
    parser.add_argument("--runlocal", action="store_true", help="20 particles, 40 steps")
    args = parser.parse_args(argv)
    setup_logging()
    status = 0
    for target in [args.target] if args.target else DENSITIES:
        available = methods(target)
        try:
            chosen = {k: v for k, v in available.items() if re.search(args.methods, k)}
        except re.error as error:
            parser.error(f"--methods: {args.methods!r} is not a regular expression: {error}")
        if not chosen:
            parser.error(f"--methods: {args.methods!r} matches none of {list(available)}")
        study, density, distances, first_seed = compare(
            target, chosen, args.seeds, not args.methods, args.runlocal
        )
        folder = pathlib.Path(args.results) / f"sampling_{target}"
        print_study(study)
        formats.write_study(study, folder, "table")
        figure = save_png(
            picture(density, distances.draws, first_seed), folder / "particles.png", 120
        )
        print(f"table:  {folder}/table.md, .tex, .csv, .json\nfigure: {figure}")
        status |= any(row.failed for row in study.rows)
    return status


if __name__ == "__main__":
    sys.exit(main())
