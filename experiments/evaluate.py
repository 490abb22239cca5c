"""Evaluation from a checkpoint alone, on the config's data or on any other.

    python -m experiments.evaluate --workdir runs/ensemble
    python -m experiments.evaluate --workdir runs/ensemble --data digits:validation
    python -m experiments.evaluate --workdir runs/ensemble --name mnist \\
        --data '{"name": "idx", "path": "mnist", "split": "test"}'
    python -m experiments.evaluate --workdir runs/seed0 --workdir runs/seed1 --save_predictions

Several workdirs are evaluated as one ensemble of all their members, by the evaluators of the first;
the results go to the first workdir too. `--save_predictions` also writes the members' predictions
on all these data, as one file for `experiments.score` and others' libraries (docs/predictions.md).
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import flags

from experiments import evaluators
from experiments.data import labels
from experiments.data.derived import divided_otherwise, part_of
from experiments.data.description import read_description
from experiments.data.source import load
from experiments.experiment import config as config_lib
from experiments.experiment.build import Experiment, setup
from experiments.experiment.results import (
    check_name,
    path_in,
    place,
    print_sets,
    reported,
    write_results,
)
from experiments.runtime import storage, writers
from experiments.runtime.checkpoint import Checkpoints, check_step, of_training
from experiments.runtime.progress import Progress, setup_logging
from experiments.runtime.workdir import CONFIG, read_config
from experiments.runtime.workdir import DATA as DATA_FILE
from uncertainty.build import ConfigError
from uncertainty.model import count_parameters
from uncertainty.types import State

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

logger = logging.getLogger(__name__)


def evaluate(
    experiment: Experiment,
    workdir: str | storage.Path,
    *,
    specs: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "test",
    show: bool = True,
    others: Mapping[storage.Path, Experiment] | None = None,
    predictions: bool = False,
) -> tuple[dict[str, float], dict[str, str]]:
    """Runs every evaluator on the newest checkpoint and writes `evaluation/<name>/`.

    An evaluator that fails, for example because its data are missing, is reported and does not stop
    the others.

    Args:
      experiment, workdir: of the run.
      specs: of evaluators; by default those of the config.
      name: of the folder.
      show: whether to print the metrics.
      others: workdir -> further run, whose members join those of this one; costs are summed.
      predictions: whether to write the members' predictions, see `exported.export_all`.

    Returns:
      The metrics, and the reason for each evaluator that failed.

    Raises:
      ConfigError: there is no checkpoint, or runs that cannot be joined.
    """
    from experiments.prediction.predictor import Predictor
    from experiments.prediction.reading import check_alike

    workdir = storage.path(workdir)
    runs = {workdir: experiment, **(others or {})}
    check_alike({str(path): run.source for path, run in runs.items()})
    built = experiment.evaluators
    if specs is not None:
        built = evaluators.build_all(specs, experiment.source.task)
    restored = {path: restore(run, path) for path, run in runs.items()}
    states = {path: state for path, (state, _) in restored.items()}
    predict = Predictor.join({str(p): Predictor(run, states[p]) for p, run in runs.items()})
    metrics, arrays, failures = run_all(built, predict, f"evaluate {name}")
    if failures and not metrics:
        return metrics, failures
    try:
        metrics |= sums([cost(run, states[path], path) for path, run in runs.items()])
    except ValueError as error:
        failures["cost"] = str(error)
        logger.error("cost: %s", error)
    metrics["cost/step"] = step = max(step for _, step in restored.values())
    members = [
        dict(workdir=storage.relative(p, workdir), step=step) for p, (_, step) in restored.items()
    ]
    folder = workdir / "evaluation" / name
    reads = {path_in(key, read.field): read for key, one in built.items() for read in one.data}
    if jax.process_index() == 0:
        noted = {path: predict.reader.noted(read.data) for path, read in reads.items()}
        sets = {path: one for path, one in noted.items() if one}
        if show:
            from experiments.reports import datasets
            from experiments.reports.tables import print_metrics

            path = workdir / DATA_FILE
            noted = datasets.training(path) if path.is_file() else None
            of = datasets.evaluated(experiment.config, metrics, sets, noted)
            print_sets(sets, step, datasets.trained_words([of]), datasets.mismatches([of]))
            print_metrics(metrics)  # printed before they are saved, which may fail
        write_results(folder, metrics, arrays, sets, members)
    if predictions:
        from experiments.experiment.exported import digest, export_all

        for member, run in zip(members, runs.values(), strict=True):
            member |= dict(config=digest(run.config), seed=run.config["seed"])
        failures |= export_all(
            predict,
            built,
            folder / "predictions.npz",
            validation=experiment.config["data"].get("validation"),
            noted=dict(runs=members),
        )
    return metrics, failures


def run_all(
    built: Mapping[str, evaluators.Evaluator], predict: "Predictor", title: str
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, str]]:
    """Numbers and arrays of all evaluators, and the reasons of those that failed."""
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    first = jax.process_index() == 0
    with Progress(len(built), title, unit="evaluator", show=first) as progress:
        for i, (key, evaluator) in enumerate(built.items()):
            progress.update(i, key)
            with reported(key, failures):
                for metric, value in evaluator.run(predict):
                    of_its_kind: Any = arrays if isinstance(value, np.ndarray) else metrics
                    before = of_its_kind.get(metric)
                    if before is not None and not _same(before, value):
                        what = (
                            f"{value}, but an evaluator before has {before}"
                            if of_its_kind is metrics
                            else "another array than that of an evaluator before"
                        )
                        raise ValueError(f"{metric}: {what}; results have one value for a name")
                    of_its_kind[metric] = value
        progress.update(len(built), "")
    return metrics, arrays, failures


def _same(a: Any, b: Any) -> bool:
    """Whether two numbers or arrays are equal up to rounding."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    if a.dtype.kind in "biuf" and b.dtype.kind in "biuf":
        return np.allclose(a, b, equal_nan=True)
    return np.array_equal(a, b)


def restore(experiment: Experiment, workdir: storage.Path) -> tuple[State, int]:
    """The newest state, after the config's stages, and its step; damaged checkpoints are skipped.

    Raises:
      ConfigError: there is no checkpoint, or the stages have not run on the newest one.
      DamagedCheckpointError: none can be read.
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
        # Stages start from the newest checkpoint that is not damaged.
        _, step = trained.restore(experiment.shapes.replace(opt_state=()))
        if after.latest_step() != step:
            raise ConfigError(
                f"workdir: the stages of {workdir} have not run at step {step}; run "
                f"python -m experiments.stage --workdir {workdir}"
            )
    return after.restore(experiment.final_shapes)


def cost(experiment: Experiment, state: State, workdir: storage.Path) -> dict[str, float]:
    """Parameters; seconds of training, and milliseconds for each example (median over records).

    Costs that the records lack, as after a single step, are left out.

    Raises:
      ValueError: the records are damaged.
    """
    costs: dict[str, float] = {"cost/parameters": count_parameters(state)}
    records = writers.read_metrics(workdir / writers.METRICS)
    if seconds := [r["seconds"] for r in records if "seconds" in r]:
        costs["cost/train_seconds"] = max(seconds)
    if rates := [r["steps_per_second"] for r in records if "steps_per_second" in r]:
        examples_per_second = float(np.median(rates)) * experiment.config["batch_size"]
        costs["cost/train_ms_per_example"] = 1e3 / examples_per_second
    return costs


def sums(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The summed costs of several runs, without those that a run lacks."""
    return {k: sum(one[k] for one in costs) for k in costs[0] if all(k in one for one in costs)}


def validation(experiment: Experiment) -> Callable[[State], dict[str, float]] | None:
    """state -> metrics on `data.validation`, or None if the config asks for none."""
    from experiments.prediction.predictor import Predictor

    source, task = experiment.validation, experiment.source.task
    if source is None:
        return None
    evaluator = evaluators.build("validation", dict(name=task, data=source), task)
    predictor = None

    def validate(state: State) -> dict[str, float]:
        nonlocal predictor
        predictor = predictor or Predictor(experiment, state)
        predictor.runs[0].state = state
        items = evaluator.run(predictor)
        numbers = {key: value for key, value in items if not isinstance(value, np.ndarray)}
        predictor.runs[0].state = None  # which would be kept until the next one
        return {key: value for key, value in numbers.items() if not key.startswith("cost/")}

    return validate


def report(failures: Mapping[str, str]) -> None:
    """Raises ValueError if an evaluator failed, so that the program exits with an error."""
    if failures:
        raise ValueError(f"{len(failures)} failed: " + "; ".join(map(": ".join, failures.items())))


def parse_data(text: str, train: Mapping[str, Any]) -> dict[str, Any]:
    """The spec for `NAME`, `NAME:SPLIT`, or a dict in Python or JSON syntax.

    The name of the training data alone, or a dict with a split and no name, keeps the other fields
    of the training data, such as its selected classes.

    Raises:
      ConfigError: any other form.
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


def open_run(workdir: str | storage.Path, examples: bool = False) -> Experiment:
    """The experiment of the run in a workdir, on the devices here.

    Args:
      workdir: of the run.
      examples: whether to read the training data, rather than their record in the workdir alone.

    Raises:
      ValueError: a file of the workdir is damaged; the message names it.
    """
    config, file = read_config(workdir), storage.path(workdir) / CONFIG
    noted = None if examples else read_description(workdir)
    try:
        config_lib.check(config)
        return setup(on_these_devices(config), noted, evaluated=False)
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{file}: no experiment can be built from this config: {error!r}"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def on_these_devices(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with a mesh of the most devices here that divide the batches of training."""
    parts = config["inference"].get("accumulate", 1)
    streams = (config["data"].get("streams") or {}).values()
    sizes = [config["batch_size"], *(s.get("batch_size", config["batch_size"]) for s in streams)]
    sizes = [size // parts for size in sizes]
    return {**config, "mesh": {"data": math.gcd(jax.device_count(), *sizes)}}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments {argv[1:]}")
    setup_logging()
    given = [storage.path(text) for text in WORKDIR.value]
    places = [path.resolve() for path in given]  # a run that is given twice counts once
    workdir, *more = (p for i, p in enumerate(given) if places.index(places[i]) == i)
    experiment = open_run(workdir)
    others = {path: open_run(path) for path in more}
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
        name = place(workdir, NAME.value, spec, source, more)
    elif NAME.value is not None or more:
        name = place(workdir, NAME.value, None, None, more)
    metrics, failures = evaluate(
        experiment, workdir, specs=specs, name=name, others=others, predictions=PREDICTIONS.value
    )
    if metrics:
        print(f"results: {workdir / 'evaluation' / name}")
    report(failures)


if __name__ == "__main__":
    from experiments.runtime import program

    WORKDIR = flags.DEFINE_multi_string(
        "workdir",
        None,
        "The directory of a trained run; several are one ensemble",
    )
    DATA = flags.DEFINE_string("data", None, "Other data: NAME[:SPLIT] or a dict of its fields.")
    NAME = flags.DEFINE_string("name", None, "The folder below WORKDIR/evaluation for the results.")
    PREDICTIONS = flags.DEFINE_bool(
        "save_predictions", False, "Also write the members' predictions, as predictions.npz."
    )
    for alias in ("save-predictions", "predictions"):
        flags.DEFINE_alias(alias, PREDICTIONS.name)
    flags.mark_flags_as_required(["workdir"])
    program.run(main)
