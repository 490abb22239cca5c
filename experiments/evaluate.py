"""Evaluation from a checkpoint alone, on the config's data or on any other.

    python -m experiments.evaluate --workdir runs/ensemble
    python -m experiments.evaluate --workdir runs/ensemble --data digits:validation
    python -m experiments.evaluate --workdir runs/ensemble --name mnist \\
        --data '{"name": "idx", "path": "mnist", "split": "test"}'
"""

import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import config as config_lib
from experiments import writers
from experiments.checkpoint import Checkpoints
from experiments.data.source import load
from experiments.evaluators import evaluator
from experiments.predict import Predictor
from experiments.progress import Progress, setup_logging
from experiments.setup import Experiment, read_description, setup
from experiments.workdir import read_config, write_json
from uncertainty.build import ConfigError
from uncertainty.types import State

logger = logging.getLogger(__name__)


def evaluate(
    experiment: Experiment,
    workdir: str | pathlib.Path,
    *,
    specs: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "test",
    show: bool = True,
) -> tuple[dict[str, float], dict[str, str]]:
    """Runs every evaluator on the newest checkpoint and writes `evaluation/<name>/`.

    An evaluator that fails (its data is missing, say) is reported and does not stop the others.

    Returns:
      The metrics, and the reason for each evaluator that failed.
    """
    workdir = pathlib.Path(workdir)
    specs = experiment.config["evaluators"] if specs is None else specs
    task = experiment.source.task
    runners = {key: evaluator(key, spec, task) for key, spec in specs.items()}
    state, step = restore(experiment, workdir)
    predict = Predictor(experiment, state)
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    with Progress(len(runners), f"evaluate {name}", show=jax.process_index() == 0) as progress:
        for i, (key, run) in enumerate(runners.items()):
            progress.update(i, key)
            try:
                for metric, value in run(predict):
                    (arrays if isinstance(value, np.ndarray) else metrics)[metric] = value
            except (ValueError, OSError, FloatingPointError, ImportError) as error:
                failures[key] = str(error)
                logger.error("evaluator %s: %s", key, error)
        progress.update(len(runners), "")
    if failures and not metrics:
        return metrics, failures
    metrics |= cost(experiment, state, workdir)
    metrics["cost/step"] = step
    if jax.process_index() != 0:
        return metrics, failures
    write_results(workdir / "evaluation" / name, metrics, arrays)
    if show:
        from experiments.reports.tables import print_metrics

        print_metrics(metrics)
    return metrics, failures


def restore(experiment: Experiment, workdir: pathlib.Path) -> tuple[State, int]:
    """The newest state, after the stages where the config has some, and its step.

    Raises:
      ConfigError: there is none, or the stages have not seen the newest checkpoint.
    """
    trained = Checkpoints(workdir, read_only=True)
    if trained.latest_step() is None:
        raise ConfigError(f"workdir: {workdir} has no checkpoint to evaluate")
    if not experiment.stages:
        return trained.restore(experiment.shapes)
    after = Checkpoints(workdir / "stages", read_only=True)
    if after.latest_step() != trained.latest_step():
        raise ConfigError(
            f"workdir: the stages of {workdir} have not run at step {trained.latest_step()}; "
            f"python -m experiments.stage --workdir {workdir}"
        )
    return after.restore(experiment.final_shapes)


def write_results(
    directory: pathlib.Path, metrics: Mapping[str, float], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes metrics.json and scores.npz, whole or not at all."""
    half = directory / "half.npz"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(half, **arrays)
        write_json(directory / "metrics.json", metrics)
        os.replace(half, directory / "scores.npz")
    except OSError as error:
        half.unlink(missing_ok=True)
        raise OSError(error.errno, f"could not write {directory}: {error.strerror}") from error


def cost(experiment: Experiment, state: State, workdir: pathlib.Path) -> dict[str, float]:
    """Parameters; seconds of training, and milliseconds for each example (median over records)."""
    records = writers.read_metrics(workdir / writers.METRICS)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    rates = [r["steps_per_second"] for r in records if "steps_per_second" in r]
    examples_per_second = float(np.median(rates or [np.nan])) * experiment.config["batch_size"]
    return {
        "cost/parameters": parameters,
        "cost/train_seconds": max((r.get("seconds", 0.0) for r in records), default=float("nan")),
        "cost/train_ms_per_example": 1e3 / examples_per_second,
    }


def validation(experiment: Experiment) -> Callable[[State], dict[str, float]] | None:
    """state -> metrics on `data.validation`, or None where the config asks for none."""
    source, task = experiment.validation, experiment.source.task
    if source is None:
        return None
    run = evaluator("validation", dict(name=task, data=source), task)
    predictor = None

    def validate(state: State) -> dict[str, float]:
        nonlocal predictor
        predictor = predictor or Predictor(experiment, state)
        predictor.state = state
        found = (item for item in run(predictor) if not isinstance(item[1], np.ndarray))
        return {key: value for key, value in found if not key.startswith("cost/")}

    return validate


def report(failures: Mapping[str, str]) -> None:
    """Raises ValueError where an evaluator failed, so that the program's exit status tells it."""
    if failures:
        raise ValueError(f"{len(failures)} failed: " + "; ".join(map(": ".join, failures.items())))


def parse_data(text: str, train: Mapping[str, Any]) -> dict[str, Any]:
    """`NAME`, `NAME:SPLIT`, or a dict in Python or JSON syntax.

    A name alone that is that of the training data stands for the training data with its other
    fields, such as the classes it is restricted to, too.

    Raises:
      ConfigError: neither of these.
    """
    if text.lstrip().startswith("{"):
        return config_lib.value_of(text, "--data")
    name, _, split = text.partition(":")
    spec = dict(train) if name == train["name"] else dict(name=name)
    spec |= {"split": split} if split else {}
    lacking = {
        f: train[f] for f in ("resize", "size", "mean", "std") if f in train and f not in spec
    }
    if lacking:
        logger.warning("--data %s: without %s of the training data, which the model may need; "
                       "with them it is --data \"%s\"",
                       text, ", ".join(lacking), {**spec, **lacking})  # fmt: skip
    return spec


def on_these_devices(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with a mesh of as many of the devices here as share the batches equally."""
    sizes = config["batch_size"] // config["inference"].get("accumulate", 1)
    data = math.gcd(jax.device_count(), sizes, config["evaluation"]["batch_size"])
    return {**config, "mesh": {"data": data}}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments {argv[1:]}")
    setup_logging()
    config = on_these_devices(read_config(WORKDIR.value))
    experiment = setup(config, read_description(WORKDIR.value))
    specs, name = None, "test"
    if DATA.value:
        spec = parse_data(DATA.value, config["data"]["train"])
        source = load(spec, "--data")
        specs = {"data": dict(name=experiment.source.task, data=source)}
        name = re.sub(r"[^\w.-]+", "-", f"{spec['name']} {spec.get('split', '')}".strip())
    _, failures = evaluate(experiment, WORKDIR.value, specs=specs, name=NAME.value or name)
    report(failures)


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a trained run.")
    DATA = flags.DEFINE_string("data", None, "Other data: NAME[:SPLIT] or a dict of its fields.")
    NAME = flags.DEFINE_string("name", None, "Where under evaluation/ the results go.")
    flags.mark_flags_as_required(["workdir"])
    config_lib.run(main)
