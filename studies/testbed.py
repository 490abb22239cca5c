"""The Neural Testbed: how far agents' marginal and joint predictions are from a known process.

    python -m studies.testbed
    python -m studies.testbed --agents 'MLP|epinet' --inputs 2 --ratios 1,10 --seeds 0,1
    python -m studies.testbed --published   # its sweep: d to 100, n / d to 1,000, 100 members

Problems are random networks (`studies/problems.py`) over inputs d, ratios n / d, temperatures and
seeds; agents are configs (`studies/agents.py`). Problems of one shape are trained in one program.
The score of an agent is its KL to the process, averaged over problems, over that of the MLP: of
single labels, and of tau labels at inputs that are drawn from a pair. Results are
`results/testbed`: a table over the seeds of problems with all agents that have been run, a figure,
and `problems.jsonl`, a line for each agent and problem. A line that is there is not computed again,
so a run that is interrupted resumes; lines of other settings are refused.

Source: Osband et al. 2022, "The Neural Testbed: evaluating joint predictions". Differences: the
marginal KL is exact over labels, and each pair has several draws; agents are not tuned.
"""

import argparse
import functools
import hashlib
import itertools
import json
import logging
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.reports import formats
from experiments.reports.study import Study
from experiments.reports.style import GREY, PALETTE, panels, save_png, styled, text
from experiments.reports.tables import print_study
from experiments.reproduce import seeds_of
from experiments.runtime import project, storage
from experiments.runtime.progress import Progress, setup_logging
from experiments.runtime.writers import hardware
from studies.agents import Agent, agents, config_of, given, solve, started
from studies.problems import CLASSES, Problem, Setting, draw, settings
from uncertainty.metrics import resampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

REFERENCE = "MLP"
UNIFORM = "uniform"
TOGETHER = 15  # problems of one program: more take more memory, and little less time each
SCORES = dict(marginal="Marginal KL", joint="Joint KL")  # over the MLP's
OPTIONS = ("tau", "pairs", "draws", "samples", "size")
SWEEP = dict(inputs=[2, 10, 100], ratios=[1, 10, 100, 1000], size=100)  # published
SOURCE = (
    "figure of benchmark agents in the code of the Neural Testbed (October 2021), read to 0.001; "
    "tau = 100, each agent with the best hyper-parameters of a sweep"
)
PUBLISHED = {  # agent -> marginal, joint
    "ensemble": (0.996, 0.991),
    "dropout": (0.995, 0.977),
    "hypermodel": (1.006, 0.636),
    "ensemble+": (1.001, 0.580),
    "SG-MCMC": (0.951, 0.565),
}


def groups(every: Sequence[Setting], agent: Agent | None) -> Iterator[list[Setting]]:
    """Settings of one program: of one shape, and of one temperature where the agent needs that."""
    by_temperature = agent is not None and agent.by_temperature

    def program(s: Setting) -> tuple[float, ...]:
        return (s.inputs, s.ratio, s.temperature if by_temperature else 0.0)

    for _, same in itertools.groupby(every, program):
        whole = list(same)
        yield from (whole[i : i + TOGETHER] for i in range(0, len(whole), TOGETHER))


def made(same: Sequence[Setting], tau: int, pairs: int, draws: int) -> Problem:
    """The problems of settings of one shape, with a leading G."""
    each = [draw(setting, tau, pairs, draws) for setting in same]
    return Problem(*(np.stack(arrays) for arrays in zip(*each, strict=True)))


def program(agent: Agent) -> Callable[..., Any]:
    """`solve` of an agent, compiled once for each shape."""
    start = jax.jit(functools.partial(started, agent), static_argnums=0)
    run = jax.jit(functools.partial(solve, agent), static_argnums=0)

    def called(same: Sequence[Setting], problems: Problem) -> Any:
        first, of = same[0]._replace(seed=0), given(agent, same, problems)
        if not agent.by_temperature:
            first = first._replace(temperature=1.0)  # the one that counts is in `Given`
        begin = first._replace(ratio=1.0, temperature=1.0)
        states = start(begin, of._replace(problem=None, own=None))
        return run(first, of, states)

    return called


def measured(
    run: Callable[..., Any] | None, same: Sequence[Setting], problems: Problem
) -> dict[str, np.ndarray]:
    """KLs [G] of an agent's `program` on problems of one shape; None for uniform probabilities.

    Raises:
      FloatingPointError: a step that was not finite.
    """
    if run is None:
        log_p = np.asarray(problems.log_p, np.float64)
        each = np.einsum("gtak,gtrak->gtr", log_p, problems.counts)
        tau = problems.counts[0, 0, 0].sum()
        marginal = (np.exp(log_p) * log_p).sum(-1).mean((1, 2)) + math.log(CLASSES)
        joint = each.mean((1, 2)) + tau * math.log(CLASSES)
    else:
        marginal, joint, finite = jax.device_get(run(same, problems))
        if not finite.all():
            raise FloatingPointError(f"a step of {same[int(np.argmin(finite))]} was not finite")
    return dict(
        marginal=np.asarray(marginal, np.float64),
        joint=np.maximum(np.asarray(joint, np.float64), 0.0),  # as published
    )


def scores(
    lines: Sequence[Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """name -> results of each seed, and intervals: means over problems, relative to the MLP's.

    Results are of all problems, and of those of each n / d: 'joint' and 'joint/10'. That of a seed
    is R + (a_s - R b_s) / b, with a_s and b_s the means of the agent and of the MLP over its
    problems, b the mean of b_s and R the ratio of means: so the mean over seeds is R, and the
    standard error that of a ratio to first order. A mean of a_s / b_s would be that of the easiest.

    Intervals are of 1,000 resamples of the problems' networks, the same for all agents; problems
    that differ in temperature alone share their network, so they are drawn together.

    Args:
      lines: of `names` and the MLP, each for all problems.
    """
    order = sorted({place(line)[1:] for line in lines})
    position = {problem: i for i, problem in enumerate(order)}
    values = {key: {name: np.full(len(order), np.nan) for name in (*names, REFERENCE)}
              for key in ("marginal", "joint")}  # fmt: skip
    for line in lines:
        for key, of in values.items():
            if line["agent"] in of:
                of[line["agent"]][position[place(line)[1:]]] = line[key]
    clusters = [f"{d} {ratio} {seed}" for d, ratio, _, seed in order]
    weights = np.concatenate(list(resampling.weights(len(order), 1000, 0, clusters)))
    seed_of, ratio_of = (np.array([problem[i] for problem in order]) for i in (3, 1))
    parts = {"": np.full(len(order), True)} | {
        f"/{ratio:g}": ratio_of == ratio for ratio in np.unique(ratio_of)
    }
    scored: dict[str, dict[str, Any]] = {}
    for name in names:
        results: list[dict[str, float]] = [{} for _ in seeds]
        intervals = {}
        for key, of in values.items():
            mine, reference = of[name], of[REFERENCE]
            for part, mask in parts.items():
                a, b = (
                    np.array([of[mask & (seed_of == seed)].mean() for seed in seeds])
                    for of in (mine, reference)
                )
                ratio = a.mean() / b.mean()
                for result, one in zip(results, ratio + (a - ratio * b) / b.mean(), strict=True):
                    result[key + part] = float(one)
            drawn = (weights @ mine) / (weights @ reference)
            intervals[key] = resampling.interval(drawn, float(mine.mean() / reference.mean()))
        scored[name] = dict(results=results, intervals=intervals)
    return scored


def place(line: Mapping[str, Any]) -> tuple:
    """The agent and the setting of a line."""
    return (line["agent"], line["inputs"], line["ratio"], line["temperature"], line["seed"])


def digest(agent: Agent | None, setting: Setting, options: Mapping[str, int]) -> str:
    """Of all that a line's numbers follow from, but the code."""
    of = None
    if agent is not None:
        of = (config_of(agent, setting), agent.l2(setting), agent.prior(setting), agent.draws)
    whole = (of, [options[name] for name in ("tau", "pairs", "draws")])
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a file, which may not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(
    chosen: Mapping[str, Agent | None],
    every: Sequence[Setting],
    options: Mapping[str, int],
    path: pathlib.Path,
) -> list[dict[str, Any]]:
    """The lines of all agents and problems; those that `path` lacks are computed and added.

    Raises:
      ValueError: the file has lines of other settings.
    """
    wanted = {
        (name, *s): digest(agent, s, options) for name, agent in chosen.items() for s in every
    }
    done = {place(line): line for line in read(path)}
    for key, settings_of in wanted.items():
        if key in done and done[key]["settings"] != settings_of:
            raise ValueError(
                f"{path}: has lines of {key[0]!r} with other settings ({', '.join(OPTIONS)}, or "
                "those of the agent); --fresh removes them, and another --results keeps both"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    started = len(wanted.keys() & done.keys())
    with Progress(len(wanted), "testbed", unit="problem", start=started) as progress:
        for name, agent in chosen.items():
            solver = None if agent is None else program(agent)
            for same in groups([s for s in every if (name, *s) not in done], agent):
                began = time.perf_counter()
                problems = made(same, options["tau"], options["pairs"], options["draws"])
                kl = measured(solver, same, problems)
                new = [
                    dict(agent=name, **s._asdict(), settings=wanted[name, *s],
                         **{key: float(f"{of[i]:.6g}") for key, of in kl.items()})
                    for i, s in enumerate(same)
                ]  # fmt: skip
                with path.open("a") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in new))
                done |= {place(line): line for line in new}
                logger.info(
                    "%s, d = %d, n / d = %g: %d problems, marginal %.4f, joint %.4f, %.1f s",
                    name, *same[0][:2], len(same), kl["marginal"].mean(), kl["joint"].mean(),
                    time.perf_counter() - began,
                )  # fmt: skip
                progress.update(len(wanted.keys() & done.keys()), name)
    return [done[key] for key in wanted]


def complete(
    available: Mapping[str, Agent | None],
    every: Sequence[Setting],
    options: Mapping[str, int],
    path: pathlib.Path,
) -> dict[str, list[dict[str, Any]]]:
    """name -> its lines, for agents that have one for every problem."""
    done = {place(line): line for line in read(path)}
    whole = {}
    for name, agent in available.items():
        lines = [done.get((name, *s)) for s in every]
        of = [digest(agent, s, options) for s in every]
        if all(n and n["settings"] == d for n, d in zip(lines, of, strict=True)):
            whole[name] = [n for n in lines if n]
    return whole


def study(
    scored: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    command: str,
    options: Mapping[str, int],
) -> Study:
    """The table; notes have the intervals."""
    rows = []
    for name, one in scored.items():
        words = [f"{key} {low:.3f} to {high:.3f}" for key, (low, high) in one["intervals"].items()]
        note = f"95 % interval over problems: {', '.join(words)}." if name != REFERENCE else ""
        values = zip(("marginal", "joint"), PUBLISHED.get(name, ()), strict=False)
        published = {key: (value, SOURCE) for key, value in values}
        rows.append(dict(label=name, results=one["results"], note=note, published=published))
    title = "Neural Testbed: KL to the process, relative to the MLP's"
    parts = [key.partition("/") for key in rows[0]["results"][0]]
    columns = [
        dict(key="".join(part), better="lower", digits=3,
             header=SCORES[part[0]] + f", n/d = {part[2]}" * bool(part[2]))
        for part in sorted(parts, key=lambda part: (float(part[2] or 0), part[0] == "joint"))
    ]  # fmt: skip
    return Study(title, columns, rows, command, dict(options), list(seeds), hardware())


@styled
def picture(scored: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """A bar for each agent and score, with its interval, and published values as lines."""
    names = [name for name in scored if name != UNIFORM]
    figure, axes = panels(1, 2, 3.6, 0.8 + 0.3 * len(names), sharey=True)
    rows = np.arange(len(names))
    for i, (ax, key) in enumerate(zip(axes[0], SCORES, strict=True)):
        means = np.array([np.mean([r[key] for r in scored[n]["results"]]) for n in names])
        ends = np.array([scored[n]["intervals"][key] for n in names])
        errors = np.maximum(np.abs(ends.T - means), 0)
        look = dict(error_kw=dict(ecolor="black", elinewidth=1), color=PALETTE[5])
        ax.barh(rows, means, 0.7, xerr=errors, label="ours, 95 % over problems", **look)
        at = [(r, PUBLISHED[n][i]) for r, n in zip(rows, names, strict=True) if n in PUBLISHED]
        ax.vlines(
            [v for _, v in at], [r - 0.35 for r, _ in at], [r + 0.35 for r, _ in at],
            color=PALETTE[1], linewidth=2.5, label="published (tuned, tau = 100)",
        )  # fmt: skip
        ax.axvline(1, color=GREY, linewidth=1, linestyle=":")
        ax.set(xlabel=f"{SCORES[key]} / MLP's", ylim=(len(names) - 0.5, -0.5), xlim=(0, None))
    axes[0, 0].set_yticks(rows, [text(name) for name in names])
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2)
    return figure


def numbers(text: str) -> list[float]:
    """'1,10' as [1, 10]."""
    return [float(one) for one in text.split(",")]


def parsed(argv: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
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
    parser.add_argument("--samples", type=int, default=1000, help="functions at prediction")
    parser.add_argument("--size", type=int, default=20, help="members of ensembles")
    parser.add_argument("--published", action="store_true", help="the sweep of the authors")
    results = project.default("results")
    parser.add_argument("--results", default=results, help=f"for tables and figures ({results})")
    parser.add_argument("--fresh", action="store_true", help="remove lines of the chosen agents")
    if parser.parse_known_args(argv)[0].published:
        parser.set_defaults(**SWEEP)
    args = parser.parse_args(argv)
    for name in OPTIONS:
        if getattr(args, name) < 1:
            parser.error(f"--{name}: {getattr(args, name)}; at least 1")
    return args, parser


def command_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command that has all rows of the table."""
    words = ["python -m studies.testbed", *["--published"] * args.published]
    for name in ("inputs", "ratios", "temperatures", "seeds", *OPTIONS):
        value = getattr(args, name)
        if value != parser.get_default(name):
            listed = ",".join(f"{v:g}" for v in value) if isinstance(value, list) else value
            words.append(f"--{name} {listed}")
    return " ".join(words)


def main(argv: Sequence[str] | None = None) -> int:
    args, parser = parsed(argv)
    setup_logging()
    options = {name: getattr(args, name) for name in OPTIONS}
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
    folder = pathlib.Path(args.results) / "testbed"
    path = folder / "problems.jsonl"
    if args.fresh and path.exists():
        kept = [line for line in read(path) if line["agent"] not in chosen]
        storage.write(path, "".join(json.dumps(line) + "\n" for line in kept))
    try:
        # All scores are relative to the MLP's.
        run({REFERENCE: available[REFERENCE], **chosen}, every, options, path)
    except ValueError as error:
        parser.error(str(error))
    whole = complete(available, every, options, path)
    lines = list(itertools.chain(*whole.values()))
    scored = scores(lines, list(whole), args.seeds)
    table = study(scored, args.seeds, command_of(args, parser), options)
    print_study(table)
    formats.write_study(table, folder, "table")
    figure = save_png(picture(scored), folder / "scores.png", 120)
    print(f"table: {folder}/table.md, .tex, .csv, .json\nproblems: {path}\nfigure: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
