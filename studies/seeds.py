"""All seeds of a table's row in one program, for networks so small that their steps cost nothing.

    python -m studies.seeds shortcuts --rows '^Linear' --seeds 0,1,2,3,4

Trains and evaluates the cells that `experiments.reproduce` would: each seed has the initial
parameters, random numbers and batches of its cell, so that its training is that cell's to rounding.
But the row is set up and compiled once, its seeds are trained one after the other in it
(`--at_once`: side by side), and steps are a scan. Records go to `results/<table>/runs.jsonl`; they
lack the costs of training. Cells with a record are not run again, so the same command resumes;
`experiments.reproduce` then writes the table. A row whose data depend on the seed is refused.
"""

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import evaluate
from experiments.data.description import describe
from experiments.experiment import build as build_lib
from experiments.experiment.build import Experiment
from experiments.experiment.results import path_in
from experiments.prediction.predictor import Predictor
from experiments.reproduce import seeds_of
from experiments.runtime import execution, project, writers
from experiments.runtime.progress import setup_logging
from experiments.runtime.workdir import difference
from experiments.tables import constraints
from experiments.tables.cells import Cells, name_of
from experiments.tables.run import rows_of, seeds_of_table
from uncertainty.build import ConfigError
from uncertainty.types import Batch, State

logger = logging.getLogger(__name__)

CHUNK = 100  # steps whose batches are in memory


def check(configs: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError for more than training from the beginning, and for configs of seeds that
    differ in more than the seed, such as in data that are split by it: data are read once."""
    config = configs[0]
    for other in configs[1:]:
        changed = {k: line for k, line in difference(config, other).items() if k != "seed"}
        if changed:
            raise ConfigError(
                f"{next(iter(changed.values()))} between seeds {config['seed']} and "
                f"{other['seed']}; seeds of one program share the data, use experiments.reproduce"
            )
    for field in ("stages", "pretrained"):
        if config[field]:
            raise ConfigError(f"{field}: {config[field]!r}; unset it, or use experiments.reproduce")
    if config["evaluation"]["every"]:
        raise ConfigError("evaluation.every: unset it, or use experiments.reproduce")


def trained(experiment: Experiment, seeds: Sequence[int], at_once: bool) -> State:
    """The states of all seeds after training, with a leading S.

    Raises:
      FloatingPointError: a step that was not finite.
    """
    init, P = experiment.inference.init, experiment.shapes.key.shape[0]
    states = [init(jax.random.key(seed), experiment.example()) for seed in seeds]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    streams = [experiment.data._replace(seed=seed).batches(0, P) for seed in seeds]
    update = execution.on_mesh(
        experiment.inference.update, experiment.mesh, own_examples=experiment.data.own_examples
    )

    def steps(one: tuple[State, Batch]) -> tuple[State, jax.Array]:
        def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
            state, metrics = update(state, batch)
            return state, metrics["finite"]

        return jax.lax.scan(step, *one)

    over = jax.vmap(steps) if at_once else lambda one: jax.lax.map(steps, one)
    run = jax.jit(lambda state, batches: over((state, batches)), donate_argnums=0)
    total = experiment.config["steps"]
    for start in range(0, total, CHUNK):
        count = min(CHUNK, total - start)
        each = [[next(stream)[1] for _ in range(count)] for stream in streams]
        rows = [jax.tree.map(lambda *a: np.stack(a), *batches) for batches in each]
        state, finite = run(state, jax.tree.map(lambda *a: np.stack(a), *rows))
        if not np.asarray(finite).all():
            raise FloatingPointError(f"a step from {start} to {start + count} was not finite")
    return state


def records(
    cells: Cells, row: Mapping[str, Any], seeds: Sequence[int], at_once: bool
) -> list[dict[str, Any]]:
    """The records of a row's cells, of these seeds.

    Raises:
      ConfigError: see `check`.
      FloatingPointError: see `trained`.
    """
    configs = [cells.config(row, seed) for seed in seeds]
    check(configs)
    experiment = build_lib.setup(configs[0])
    states = trained(experiment, seeds, at_once)
    first = jax.tree.map(lambda a: a[0], states)
    shared, made = Predictor(experiment, first), []
    description = describe(experiment.source, experiment.data.sources)
    for i, seed in enumerate(seeds):
        state = jax.tree.map(lambda a, i=i: a[i], states)
        predict = Predictor(experiment, state)
        predict.runs, predict.reader, predict.source = shared.runs, shared.reader, shared.source
        predict.runs[0].state = state
        metrics, _, failures = evaluate.run_all(experiment.evaluators, predict, f"seed {seed}")
        metrics |= {"cost/step": experiment.config["steps"]}
        reads = {
            path_in(key, read.field): read.data
            for key, one in experiment.evaluators.items()
            for read in one.data
        }
        noted = {path: predict.reader.noted(data) for path, data in reads.items()}
        made.append(
            dict(
                row=name_of(row),
                seed=seed,
                metrics=metrics,
                failures=failures,
                sets={path: one for path, one in noted.items() if one},
                trained={k: description[k] for k in ("name", "examples", "digest")},
                config_file=row["config"],
                config=configs[i],
                hardware=writers.hardware(),
                versions=constraints.installed(),
                run="",
            )
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.seeds", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    results = project.default("results")
    parser.add_argument("table", help="a file of configs/tables")
    parser.add_argument("--rows", default="", help="run only rows that match this regex")
    parser.add_argument("--seeds", type=seeds_of, help="such as 0,1,2; the table's by default")
    parser.add_argument("--at_once", action="store_true", help="seeds side by side")
    parser.add_argument("--results", default=results, help=f"where the table goes ({results})")
    args = parser.parse_args(argv)
    setup_logging()
    try:
        cells = Cells(args.table, args.results, project.default("runs"), {})
        for row in rows_of(cells, args.rows):
            todo = [s for s in seeds_of_table(cells, args.seeds) if not cells.done(row, s)]
            if not todo:
                continue
            began = time.perf_counter()
            for record in records(cells, row, todo, args.at_once):
                cells.records.put(record)
            seconds = time.perf_counter() - began
            logger.info("%s: %d seeds, %.0f s", name_of(row), len(todo), seconds)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
