"""The Neural Testbed: how far agents' marginal and joint predictions are from a known process.

    python -m studies.testbed
    python -m studies.testbed --agents 'mlp|epinet' --inputs 2 --ratios 1,10 --seeds 0,1
    python -m studies.testbed --inputs 2,10,100 --ratios 1,10,100,1000   # the published sweep

Problems are random networks (`studies/problems.py`) over inputs d, ratios n / d, temperatures and
seeds; agents are configs (`studies/agents.py`). Problems of one shape are trained in one program.
The score of an agent is its KL to the process, averaged over problems, over that of the MLP: of
single labels, and of tau labels at inputs that are drawn from a pair. Results are
`results/testbed`: a table over the seeds of problems, and `problems.jsonl`, a line for each agent
and problem. A line that is there is not computed again, so a run that is interrupted resumes;
`--fresh` begins anew.

Source: Osband et al. 2022, "The Neural Testbed: evaluating joint predictions". Differences: the
marginal KL is exact over labels, and each pair has several draws; agents are not tuned.
"""

import argparse
import functools
import itertools
import json
import logging
import math
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reports import formats
from experiments.reports.study import Study
from experiments.reports.tables import print_study
from experiments.reproduce import seeds_of
from experiments.runtime import project
from experiments.runtime.progress import setup_logging
from experiments.runtime.writers import hardware
from studies.agents import Agent, agents, solve
from studies.problems import CLASSES, Problem, Setting, draw, joint_kl, marginal_kl, settings
from uncertainty.metrics import resampling

logger = logging.getLogger(__name__)

REFERENCE = "mlp"
UNIFORM = "uniform"
COLUMNS = (
    dict(key="marginal", header="Marginal KL / MLP", better="lower", digits=3),
    dict(key="joint", header="Joint KL / MLP", better="lower", digits=3),
    dict(key="seconds", header="Time", unit="s", digits=1),
)


def groups(every: Sequence[Setting], agent: Agent | None) -> Iterator[list[Setting]]:
    """Settings of one program: those of equal shape, and of equal config of the agent."""
    by_temperature = agent is not None and callable(agent.config)

    def program(s: Setting) -> tuple[float, ...]:
        return (s.inputs, s.ratio, s.temperature if by_temperature else 0.0)

    for _, same in itertools.groupby(every, program):
        yield list(same)


def made(same: Sequence[Setting], tau: int, pairs: int, draws: int) -> Problem:
    """The problems of settings of one shape, with a leading G.

    A problem is a function of its setting: its key is made from d, n and the seed, and problems
    that differ in temperature alone are the same network.
    """
    first = same[0]
    root = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), first.inputs), first.examples)
    keys = jnp.stack([jax.random.fold_in(root, s.seed) for s in same])
    temperatures = jnp.asarray([s.temperature for s in same], jnp.float32)

    def one(key: jax.Array, temperature: jax.Array) -> Problem:
        return draw(key, first._replace(temperature=temperature), tau, pairs, draws)

    return jax.jit(jax.vmap(one))(keys, temperatures)


def measured(agent: Agent | None, same: Sequence[Setting], problems: Problem) -> dict[str, Any]:
    """KLs [G] of an agent (None for uniform probabilities) on problems of one shape, and seconds.

    Seconds are those of one problem, compilation left out.

    Raises:
      FloatingPointError: a step that was not finite.
    """
    seconds = 0.0
    if agent is None:
        log_q = jnp.full((len(same), 1, *problems.log_p.shape[1:]), -math.log(CLASSES))
    else:
        l2, prior = (
            jnp.asarray([of(s) for s in same], jnp.float32) for of in (agent.l2, agent.prior)
        )
        keys = jnp.stack([jax.random.key(s.seed) for s in same])
        run = jax.jit(functools.partial(solve, agent, same[0]))
        compiled = run.lower(problems, keys, l2, prior).compile()
        began = time.perf_counter()
        log_q, finite = jax.block_until_ready(compiled(problems, keys, l2, prior))
        seconds = (time.perf_counter() - began) / len(same)
        if not np.asarray(finite).all():
            worst = same[int(np.argmin(np.asarray(finite)))]
            raise FloatingPointError(f"a step of {worst} was not finite")

    @jax.jit
    def compare(one: tuple[jax.Array, Problem]) -> tuple[jax.Array, jax.Array]:
        log_q, problem = one
        return marginal_kl(log_q, problem.log_p), joint_kl(log_q, problem.log_p, problem.counts)

    marginal, joint = jax.lax.map(compare, (log_q, problems))  # one after the other: memory
    return dict(
        marginal=np.asarray(marginal, np.float64),
        joint=np.maximum(np.asarray(joint, np.float64), 0.0),  # as published
        seconds=seconds,
    )


def scores(
    lines: Sequence[Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """name -> results of each seed, and intervals: means over problems, relative to the MLP's.

    Intervals are of 1,000 resamples of the problems' networks, the same for all agents; problems
    that differ in temperature alone share their network, so they are drawn together.
    """
    order = sorted({(line["inputs"], line["ratio"], line["temperature"], line["seed"])
                    for line in lines})  # fmt: skip
    place = {problem: i for i, problem in enumerate(order)}
    values = {name: {key: np.full(len(order), np.nan) for key in ("marginal", "joint", "seconds")}
              for name in (*names, REFERENCE)}  # fmt: skip
    for line in lines:
        at = place[line["inputs"], line["ratio"], line["temperature"], line["seed"]]
        for key, of in values.get(line["agent"], {}).items():
            of[at] = line[key]
    clusters = [f"{d} {ratio} {seed}" for d, ratio, _, seed in order]
    weights = np.concatenate(list(resampling.weights(len(order), 1000, 0, clusters)))
    seed_of = np.array([seed for *_, seed in order])
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        ratios: list[dict[str, float]] = []
        for seed in seeds:
            mask = seed_of == seed
            one = {
                key: float(values[name][key][mask].mean() / values[REFERENCE][key][mask].mean())
                for key in ("marginal", "joint")
            }
            ratios.append(one | dict(seconds=float(values[name]["seconds"][mask].mean())))
        intervals = {}
        for key in ("marginal", "joint"):
            mine, reference = values[name][key], values[REFERENCE][key]
            drawn = (weights @ mine) / (weights @ reference)
            intervals[key] = resampling.interval(drawn, float(mine.mean() / reference.mean()))
        result[name] = dict(results=ratios, intervals=intervals)
    return result


def run(
    chosen: Mapping[str, Agent | None],
    every: Sequence[Setting],
    options: Mapping[str, int],
    path: pathlib.Path,
) -> list[dict[str, Any]]:
    """The lines of all agents and problems; those that `path` lacks are computed and added.

    Raises:
      ValueError: the file has other options.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for line in lines:
        if differs := [k for k, v in options.items() if line[k] != v]:
            raise ValueError(
                f"{path}: has lines of {differs[0]} {line[differs[0]]}, not "
                f"{options[differs[0]]}; --fresh begins anew"
            )
    done = {(n["agent"], n["inputs"], n["ratio"], n["temperature"], n["seed"]) for n in lines}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, agent in chosen.items():
        for same in groups([s for s in every if (name, *s) not in done], agent):
            problems = made(same, options["tau"], options["pairs"], options["draws"])
            found = measured(agent, same, problems)
            new = [
                dict(agent=name, **s._asdict(), marginal=float(found["marginal"][i]),
                     joint=float(found["joint"][i]), seconds=found["seconds"], **options)
                for i, s in enumerate(same)
            ]  # fmt: skip
            with path.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in new))
            lines += new
            logger.info(
                "%s, d = %d, n / d = %g: %d problems, marginal %.4f, joint %.4f, %.1f s each",
                name, *same[0][:2], len(same), found["marginal"].mean(), found["joint"].mean(),
                found["seconds"],
            )  # fmt: skip
    wanted = {(name, *s) for name in chosen for s in every}
    return [
        n
        for n in lines
        if (n["agent"], n["inputs"], n["ratio"], n["temperature"], n["seed"]) in wanted
    ]


def study(scored: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], command: str) -> Study:
    """The table; notes have the intervals."""
    rows = []
    for name, one in scored.items():
        words = [f"{key} {low:.3f} to {high:.3f}" for key, (low, high) in one["intervals"].items()]
        note = f"95 % interval over problems: {', '.join(words)}." if name != REFERENCE else ""
        rows.append(dict(label=name, results=one["results"], note=note))
    title = "Neural Testbed: KL to the process, relative to the MLP's"
    return Study(title, COLUMNS, rows, command, seeds=list(seeds), hardware=hardware())


def numbers(text: str) -> list[float]:
    """'1,10' as [1, 10]."""
    return [float(one) for one in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.testbed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--agents", default="", help="run only those that match this regex")
    parser.add_argument("--inputs", type=seeds_of, default=[2, 10], help="d, such as 2,10,100")
    parser.add_argument("--ratios", type=numbers, default=[1, 10, 100], help="n / d")
    parser.add_argument("--temperatures", type=numbers, default=[0.01, 0.1, 0.5])
    parser.add_argument("--seeds", type=seeds_of, default=[0, 1, 2, 3, 4], help="of problems")
    parser.add_argument("--tau", type=int, default=10, help="labels of a joint prediction")
    parser.add_argument("--pairs", type=int, default=1000, help="of test inputs")
    parser.add_argument("--draws", type=int, default=10, help="of labels for each pair")
    parser.add_argument("--samples", type=int, default=1000, help="index samples at prediction")
    parser.add_argument("--size", type=int, default=100, help="members of ensembles")
    results = project.default("results")
    parser.add_argument("--results", default=results, help=f"for tables ({results})")
    parser.add_argument("--fresh", action="store_true", help="remove earlier lines")
    args = parser.parse_args(argv)
    setup_logging()
    for name in ("tau", "pairs", "draws", "samples", "size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: {getattr(args, name)}; at least 1")
    available: dict[str, Agent | None] = {UNIFORM: None, **agents(args.samples, args.size)}
    try:
        chosen = {k: v for k, v in available.items() if re.search(args.agents, k)}
        every = settings(args.inputs, args.ratios, args.temperatures, args.seeds)
    except re.error as error:
        parser.error(f"--agents: {args.agents!r} is not a regular expression: {error}")
    except ValueError as error:
        parser.error(f"--{error}")
    if not chosen:
        parser.error(f"--agents: {args.agents!r} matches none of {list(available)}")
    chosen = {REFERENCE: available[REFERENCE], **chosen}  # all are relative to it
    folder = pathlib.Path(args.results) / "testbed"
    lines_at = folder / "problems.jsonl"
    if args.fresh:
        lines_at.unlink(missing_ok=True)
    options = {name: getattr(args, name) for name in ("tau", "pairs", "draws", "samples", "size")}
    try:
        lines = run(chosen, every, options, lines_at)
    except ValueError as error:
        parser.error(str(error))
    command = " ".join(["python -m studies.testbed", *(sys.argv[1:] if argv is None else argv)])
    table = study(scores(lines, list(chosen), args.seeds), args.seeds, command)
    print_study(table)
    formats.write_study(table, folder, "table")
    print(f"table: {folder}/table.md, .tex, .csv, .json\nproblems: {lines_at}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
