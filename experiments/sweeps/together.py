"""Cells that differ only in what particles may differ in, trained as particles of one program.

C cells of one seed, each with n particles, become C n particles: particle c n + i has the
hyper-parameters of cell c, and the initial parameters, random numbers and batches of particle i of
a run with that seed (`distinct` of `inference/particles.py`). Its training is that of the cell by
itself, to rounding: of a learning rate as a factor, and of sums in the order of another program.
What is trained is then written to the cell's own workdir, as if it had been trained there; stages
and evaluation are the cell's own.

What a cell does not have then: validation in the course of training, and a time of its own.
"""

import contextlib
import hashlib
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments import train
from experiments.data.description import write_description
from experiments.experiment import config as config_lib
from experiments.experiment.build import Experiment, full, setup, with_outputs
from experiments.reports.study import one_line
from experiments.runtime import execution, storage, writers
from experiments.runtime.checkpoint import Checkpoints, of_training
from experiments.runtime.termination import Interrupted
from experiments.runtime.workdir import MAY_CHANGE, fields, opened
from experiments.sweeps.space import as_json
from experiments.tables.cells import Cells, name_of
from uncertainty.types import State

logger = logging.getLogger(__name__)

# Field of a config -> the hyper-parameter of particles (`inference/hyper.py`).
HYPER = {
    "optimiser.learning_rate": "learning_rate",
    "optimiser.weight_decay": "weight_decay",
    "optimiser.l2": "l2",
    "objective.rate": "label_smoothing",
    "objective.contrast": "contrast",
    "objective.invariance": "invariance",
    "objective.equivariance": "equivariance",
    "inference.prior.scale": "prior_scale",
}
RULES = ("weight_decay", "l2")
CONTRASTIVE = dict.fromkeys(("contrast", "invariance", "equivariance"), "contrastive")
VALUES = {"label_smoothing": "label_smoothing"} | CONTRASTIVE  # not factors: of which objective
SPAN = 1e8  # most that a value may be of another: factors are in single precision


def train_together(cells: Cells, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int],
                   most: int) -> int:  # fmt: skip
    """Trains all unfinished cells that can be particles of one program; the number of them.

    Cells that other processes run, that have a checkpoint already, or that no other cell goes with
    are left to `tables.run`. So is a cell whose particle had a step that was not finite, which by
    itself ends with the error.

    Args:
      cells: of the sweep.
      rows, seeds: of the cells to run.
      most: particles of one program.
    """
    count = 0
    for seed in seeds:
        todo = [row for row in rows if not _begun(cells, row, seed)]
        for group in groups([cells.config(row, seed) for row in todo]):
            size = max(1, most // cells.config(todo[group[0]], seed)["inference"].get("size", 1))
            for start in range(0, len(group), size):
                part = [todo[i] for i in group[start : start + size]]
                count += _train(cells, part, seed)
    return count


def _begun(cells: Cells, row: Mapping[str, Any], seed: int) -> bool:
    """Whether a cell is finished, damaged, wrong, or has a checkpoint of its own."""
    try:
        config = cells.config(row, seed)
        if cells.done(row, seed):
            return True
        cells.check_selection(config)
    except ValueError:  # `tables.run` reports it
        return True
    return bool(Checkpoints(cells.run_directory(row, seed), read_only=True).steps())


def groups(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Places of the configs that differ only in hyper-parameters of particles, two or more each."""
    found: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        if fits(config):
            found.setdefault(_rest(config), []).append(i)
    return [group for group in found.values() if len(group) > 1]


def fits(config: Mapping[str, Any]) -> bool:
    """Whether nothing keeps a config's particles from being some of many."""
    inference, particles = config["inference"], config["data"].get("particles") or "shared"
    name = particles if isinstance(particles, str) else particles.get("name")
    return not (
        inference.get("hyper")
        or inference.get("distinct")
        or name != "shared"
        or "particle" in config["mesh"]
        or config["pretrained"]
    )


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    """name of a hyper-parameter -> its value in a config, for those that a particle may have."""
    values = {}
    for field, name in HYPER.items():
        section: Any = config
        for part in field.split("."):
            section = section.get(part) if isinstance(section, Mapping) else None
        if section is None or isinstance(section, Mapping):
            continue
        if name in VALUES and config["objective"].get("name") != VALUES[name]:
            continue
        if name == "prior_scale" and config["inference"]["prior"].get("rules"):
            continue  # the factor would be that of the rules too
        values[name] = section
    return values


def _rest(config: Mapping[str, Any]) -> str:
    """All else of a config, as text; of rules all but their common factor."""
    values = _values(config)
    skipped = [field for field, name in HYPER.items() if name in values]
    shapes = {name: _shape(values[name]) for name in RULES if name in values}
    return as_json([fields(config, skipped), shapes, sorted(values)])


def _shape(rules: Sequence[Any]) -> list[Any]:
    """Rules over their largest number, so that equal shapes differ by a factor, which may be 0."""
    largest = max((number for _, number in rules), default=0)
    return [[p, float(f"{number / largest:.9g}") if largest else 1.0] for p, number in rules]


def joint(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The config of one program for all of these, of one group; None if a value does not allow it.

    Factors are of the largest value, which may be the only one that is not 0.
    """
    first, n = configs[0], configs[0]["inference"].get("size", 1)
    values = [_values(config) for config in configs]
    hyper: dict[str, list[float]] = {}
    base: dict[str, Any] = {}
    for name in values[0]:
        own = [of[name] for of in values]
        if len({as_json(value) for value in own}) == 1:
            continue
        if name in RULES:
            sizes = [max((number for _, number in rules), default=0) for rules in own]
        else:
            sizes = own
        if not all(isinstance(size, int | float) for size in sizes):
            return None
        largest = int(np.argmax(sizes))
        if min((size for size in sizes if size), default=1) < sizes[largest] / SPAN:
            return None
        base[name] = own[largest]
        factors = sizes if name in VALUES else [s / sizes[largest] for s in sizes]
        if not all(f > 0 or (f == 0 and name in (*RULES, *VALUES)) for f in factors):
            return None  # it is refused where it stands, or stands for no step at all
        hyper[name] = [float(factor) for factor in factors for _ in range(n)]
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in first.items()}
    for field, name in HYPER.items():
        if name in base:
            *parents, last = field.split(".")
            section = merged
            for parent in parents:
                section[parent] = dict(section[parent])
                section = section[parent]
            section[last] = base[name]
    merged["inference"] |= dict(size=n * len(configs), hyper=hyper, distinct=n)
    merged["evaluation"] |= dict(every=0)
    return merged | dict(evaluators={}, stages=(), on_fault="freeze")


def _train(cells: Cells, rows: Sequence[Mapping[str, Any]], seed: int) -> int:
    """Trains these cells in one program, unless other processes run them; the number of cells."""
    with contextlib.ExitStack() as stack:
        mine = [
            row
            for row in rows
            if stack.enter_context(cells.claims.claim(cells.key(row, seed)))
            and not _begun(cells, row, seed)
        ]
        configs = [cells.config(row, seed) for row in mine]
        config = joint(configs) if len(mine) > 1 else None
        if config is None:
            return 0
        names = [name_of(row) for row in mine]
        digest = hashlib.sha256(as_json(names).encode()).hexdigest()[:8]
        directory = cells.workdir / "together" / f"seed{seed}-{digest}"
        logger.info("seed %d: %d settings as particles of one program", seed, len(mine))
        try:
            experiment = train.train(config, directory, overview=False, evaluated=False)
        except Interrupted:
            raise
        except Exception as error:  # by itself each ends with its own result
            logger.warning("not as particles of one program: %s", one_line(error))
            logger.debug("%s", traceback.format_exc())
            return 0
        trained = Checkpoints(directory, read_only=True, config=of_training(experiment.config))
        state, step = trained.restore(experiment.shapes)
        records = writers.read_metrics(directory / writers.METRICS)
        own = setup(configs[0], evaluated=False)
        sound = finite(state, step)
        n = own.shapes.key.shape[0]
        for c, (row, one) in enumerate(zip(mine, configs, strict=True)):
            places = slice(c * n, (c + 1) * n)
            if not (sound[places].all() or (one["on_fault"] == "freeze" and sound[places].any())):
                logger.warning("%s: a step was not finite; it is run by itself", name_of(row))
                continue
            share = list(records_of(records, c, len(mine), config["inference"]["hyper"]))
            config_of_run = with_outputs(full(one), own.source.outputs)
            _write(own, config_of_run, cells.run_directory(row, seed), state, step, places, share)
        return len(mine)


def finite(state: State, step: int) -> np.ndarray:
    """Which particles made all their steps, [P]: a step that is not finite is not counted by the
    optimiser."""
    counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")
    taken = [np.asarray(execution.host(count)) for _, count in counts]
    every = np.ones(state.key.shape, bool)
    return np.all([every, *(count == step for count in taken if count.ndim == 1)], axis=0)


def particles(state: State, places: slice) -> State:
    """Some particles as the state of a run by themselves: every leaf but the step leads with P."""
    part = jax.tree.map(lambda a: a[places], state.replace(step=None, hyper=None))
    return part.replace(step=state.step)


def records_of(
    records: Sequence[Mapping[str, Any]], cell: int, count: int, hyper: Mapping[str, Sequence]
) -> Iterator[dict[str, Any]]:
    """The training losses of one of `count` cells, with its own learning rate and no times."""
    for record in records:
        losses = [record[f"loss/{i}"] for i in range(len(record)) if f"loss/{i}" in record]
        each = len(losses) // count  # particles and their members
        mine = losses[cell * each : (cell + 1) * each]
        if not mine:
            continue
        line = {"step": record["step"], "loss": float(np.mean(mine))}
        if each > 1:
            line |= {f"loss/{i}": loss for i, loss in enumerate(mine)}
        if "learning_rate" in record:
            factors = hyper.get("learning_rate", [1.0])
            line["learning_rate"] = record["learning_rate"] * factors[cell * len(factors) // count]
        yield line


def _write(
    experiment: Experiment,
    config: Mapping[str, Any],
    directory: storage.Path,
    state: State,
    step: int,
    places: slice,
    records: Sequence[Mapping[str, Any]],
) -> None:
    """Writes a cell's workdir as training by itself would have done."""
    config_lib.check(config)
    part = execution.place(particles(state, places), experiment.shardings)
    saved = dict(config=of_training(config), execution=experiment.rounding())
    with (
        opened(directory, config, ignore=MAY_CHANGE) as workdir,
        contextlib.closing(Checkpoints(workdir, **saved)) as checkpoints,
    ):
        if checkpoints.steps():
            return
        write_description(workdir, experiment.source, experiment.data.sources)
        with contextlib.closing(writers.Writer(workdir)) as writer:
            for record in records:
                writer.write(record["step"], {k: v for k, v in record.items() if k != "step"})
        checkpoints.save(step, part)
