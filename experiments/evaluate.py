"""Evaluation from a checkpoint alone, on the config's data or on any other.

    python -m experiments.evaluate --workdir runs/ensemble
    python -m experiments.evaluate --workdir runs/ensemble --data digits:validation
    python -m experiments.evaluate --workdir runs/ensemble --name mnist \\
        --data '{"name": "idx", "path": "mnist", "split": "test"}'
"""

import logging
import math
import pathlib
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.data import labels
from experiments.data.derived import divided_otherwise, part_of
from experiments.data.description import read_description
from experiments.data.source import load
from experiments.evaluators import evaluator
from experiments.experiment import config as config_lib
from experiments.experiment.build import Experiment, setup
from experiments.experiment.results import check_name, place, print_sets, sets_of, write_results
from experiments.runtime import program, writers
from experiments.runtime.checkpoint import Checkpoints, check_step, of_training
from experiments.runtime.progress import Progress, setup_logging
from experiments.runtime.workdir import CONFIG, read_config
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
    from experiments.experiment.predictor import Predictor

    workdir = pathlib.Path(workdir)
    specs = experiment.config["evaluators"] if specs is None else specs
    task = experiment.source.task
    runners = {key: evaluator(key, spec, task) for key, spec in specs.items()}
    state, step = restore(experiment, workdir)
    predict = Predictor(experiment, state)
    paths = {path: spec for key, spec in specs.items() for path, spec in sets_of(key, spec)}
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    first = jax.process_index() == 0
    with Progress(len(runners), f"evaluate {name}", unit="evaluator", show=first) as progress:
        for i, (key, run) in enumerate(runners.items()):
            progress.update(i, key)
            try:
                for metric, value in run(predict):
                    (arrays if isinstance(value, np.ndarray) else metrics)[metric] = value
            except Exception as error:  # one evaluator must not take the others with it
                plain = isinstance(error, ValueError | OSError | ArithmeticError | ImportError)
                failures[key] = str(error) if plain else repr(error)
                logger.error("evaluator %s: %s", key, failures[key])
                logger.debug("%s", traceback.format_exc())
        progress.update(len(runners), "")
    if failures and not metrics:
        return metrics, failures
    try:
        metrics |= cost(experiment, state, workdir)
    except ValueError as error:
        failures["cost"] = str(error)
        logger.error("cost: %s", error)
    metrics["cost/step"] = step
    if jax.process_index() != 0:
        return metrics, failures
    sets = {path: noted for path, spec in paths.items() if (noted := predict.noted(spec))}
    if show:
        from experiments.reports.tables import print_metrics

        print_sets(sets, step)
        print_metrics(metrics)  # first: what cannot be saved is seen at least
    write_results(workdir / "evaluation" / name, metrics, arrays, sets)
    return metrics, failures


def restore(experiment: Experiment, workdir: pathlib.Path) -> tuple[State, int]:
    """The newest state, after the stages where the config has some, and its step.

    Raises:
      ConfigError: there is none, or the stages have not seen the newest checkpoint.
    """
    trained = Checkpoints(workdir, read_only=True, config=of_training(experiment.config))
    if trained.latest_step() is None:
        raise ConfigError(f"workdir: {workdir} has no checkpoint to evaluate")
    if not experiment.stages:
        state, step = trained.restore(experiment.shapes)
        check_step(state, step)
        return state, step
    after = Checkpoints(workdir / "stages", read_only=True, config=experiment.config)
    if after.latest_step() != trained.latest_step():
        raise ConfigError(
            f"workdir: the stages of {workdir} have not run at step {trained.latest_step()}; "
            f"python -m experiments.stage --workdir {workdir}"
        )
    return after.restore(experiment.final_shapes)


def cost(experiment: Experiment, state: State, workdir: pathlib.Path) -> dict[str, float]:
    """Parameters; seconds of training, and milliseconds for each example (median over records).

    What the records do not tell, as where a run has a single step, is left out.

    Raises:
      ValueError: they are damaged.
    """
    found = {"cost/parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params))}
    records = writers.read_metrics(workdir / writers.METRICS)
    if seconds := [r["seconds"] for r in records if "seconds" in r]:
        found["cost/train_seconds"] = max(seconds)
    if rates := [r["steps_per_second"] for r in records if "steps_per_second" in r]:
        examples_per_second = float(np.median(rates)) * experiment.config["batch_size"]
        found["cost/train_ms_per_example"] = 1e3 / examples_per_second
    return found


def validation(experiment: Experiment) -> Callable[[State], dict[str, float]] | None:
    """state -> metrics on `data.validation`, or None where the config asks for none."""
    from experiments.experiment.predictor import Predictor

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

    A name alone that is that of the training data, and a dict that has a split and no name, stand
    for the training data with its other fields, such as the classes it is restricted to, too.

    Raises:
      ConfigError: neither of these.
    """
    if text.lstrip().startswith("{"):
        spec = config_lib.value_of(text, "--data")
        return part_of(train, spec) if "split" in spec and "name" not in spec else spec
    name, _, split = text.strip().partition(":")
    if not name:
        raise ConfigError(f"--data: {text!r}; NAME, NAME:SPLIT, or a dict of fields")
    if name == train["name"]:
        return part_of(train, {"split": split}) if split else dict(train)
    return dict(name=name, **({"split": split} if split else {}))


def open_run(workdir: str | pathlib.Path, examples: bool = False) -> Experiment:
    """The experiment of the run in a workdir, on the devices here.

    Args:
      workdir: of the run.
      examples: whether to read the training data, and not only what was noted of them.

    Raises:
      ValueError: its files are damaged; it names the one.
    """
    config, file = read_config(workdir), pathlib.Path(workdir) / CONFIG
    noted = None if examples else read_description(workdir)
    try:
        config_lib.check(config)
        return setup(on_these_devices(config), noted, evaluated=False)
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ConfigError(f"{file}: not a config that anything is made of: {error!r}") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def on_these_devices(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with a mesh of as many of the devices here as share the batches equally."""
    sizes = config["batch_size"] // config["inference"].get("accumulate", 1)
    data = math.gcd(jax.device_count(), sizes, config["evaluation"]["batch_size"])
    return {**config, "mesh": {"data": data}}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments {argv[1:]}")
    setup_logging()
    experiment = open_run(WORKDIR.value)
    specs, name = None, "test"
    if NAME.value is not None:
        check_name(NAME.value)
    if DATA.value is not None:
        spec = parse_data(DATA.value, experiment.config["data"]["train"])
        source = load(spec, "--data", experiment.source, labels.ALIKE)
        why = divided_otherwise(spec, experiment.config["data"]["train"])
        for note in (*source.notes, *([why] if why else ())):
            logger.warning("--data: %s: %s", source.title, note)
        specs = {"data": dict(name=experiment.source.task, data=source)}
        name = place(pathlib.Path(WORKDIR.value), NAME.value, spec, source)
    elif NAME.value is not None:
        name = place(pathlib.Path(WORKDIR.value), NAME.value, None, None)
    found, failures = evaluate(experiment, WORKDIR.value, specs=specs, name=name)
    if found:
        print(f"results: {pathlib.Path(WORKDIR.value) / 'evaluation' / name}")
    report(failures)


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a trained run.")
    DATA = flags.DEFINE_string("data", None, "Other data: NAME[:SPLIT] or a dict of its fields.")
    NAME = flags.DEFINE_string("name", None, "Where under evaluation/ the results go.")
    flags.mark_flags_as_required(["workdir"])
    program.run(main)
