"""Evaluation from a checkpoint alone, on the config's data or on any other.

    python -m experiments.evaluate --workdir runs/ensemble
    python -m experiments.evaluate --workdir runs/ensemble --data digits:validation
    python -m experiments.evaluate --workdir runs/ensemble --name mnist \\
        --data '{"name": "idx", "path": "mnist", "split": "test"}'
"""

import ast
import importlib
import inspect
import json
import logging
import pathlib
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import config as config_lib
from experiments import evaluators, execution, writers
from experiments.checkpoint import Checkpoints
from experiments.data.loader import epoch
from experiments.data.source import Source, load
from experiments.progress import Progress, setup_logging
from experiments.setup import Experiment, setup
from experiments.workdir import read_config, write_json
from uncertainty.build import ConfigError, nearest
from uncertainty.types import State

logger = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """What the members say of every example of a source, on the host."""

    y: np.ndarray  # [B] or [B, K]
    mean: np.ndarray  # of the latents, or of y for real outcomes, [M, B, K]
    log_p: np.ndarray | None  # [M, B, K], for classes
    variance: np.ndarray | None  # of y, [M, B, K], for real outcomes
    source: Source
    seconds: float  # of computing, compilation left out


class Predictor:
    """predict(source or its spec) -> Predictions, compiled once and sharded like training.

    Attributes:
      drop: members whose predictions are not finite are left out, with a warning, rather than an
        error; for runs with `on_fault='freeze'`.
    """

    def __init__(self, experiment: Experiment, state: State, *, drop: bool = False):
        self.state, self.drop = state, drop
        self.batch_size = experiment.config["evaluation"]["batch_size"]
        self.shape, self.task = experiment.source.shape, experiment.source.task
        self._put = execution.put_batch(experiment.mesh)
        latents = execution.compile_predict(experiment.inference, experiment.mesh)
        likelihood = experiment.model.likelihood

        def predict(state: State, x: jax.Array) -> dict[str, jax.Array]:
            latent = latents(state, x)
            if likelihood.log_probs is None:
                mean, variance = likelihood.moments(latent)
                return dict(mean=mean, variance=variance)
            return dict(log_p=likelihood.log_probs(latent, jax.random.key(0)), mean=latent.mean)

        self._predict = jax.jit(predict)
        self._compiled = False
        self._memory: dict[str, Predictions] = {}

    def __call__(self, spec: Mapping[str, Any] | Source) -> Predictions:
        """Predicts a whole source, given as it is or as what `data.source.load` takes."""
        memo = json.dumps(spec, sort_keys=True, default=str) if isinstance(spec, Mapping) else None
        if memo in self._memory:
            return self._memory[memo]
        source = load(spec) if isinstance(spec, Mapping) else spec
        if tuple(source.shape) != tuple(self.shape):
            raise ConfigError(
                f"{source.name}: inputs of shape {tuple(source.shape)}, but the model was trained "
                f"on {tuple(self.shape)}"
            )
        parts, labels, seconds = [], [], 0.0
        for batch in epoch(source, self.batch_size):
            rows = int(np.sum(batch["mask"]))
            x = self._put({"x": batch["x"]})["x"]
            if not self._compiled:
                jax.block_until_ready(self._predict(self.state, x))
                self._compiled = True
            began = time.monotonic()
            out = execution.host(self._predict(self.state, x))
            seconds += time.monotonic() - began
            parts.append({key: value[:, :rows] for key, value in out.items()})
            labels.append(batch["y"][:rows])
        joined = {key: np.concatenate([p[key] for p in parts], axis=1) for key in parts[0]}
        joined = self._finite_members(joined, source.name)
        result = Predictions(
            y=np.concatenate(labels),
            mean=joined["mean"],
            log_p=joined.get("log_p"),
            variance=joined.get("variance"),
            source=source,
            seconds=seconds,
        )
        if memo is not None:
            self._memory = {memo: result}
        return result

    def _finite_members(self, arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
        bad = np.isnan(arrays.get("log_p", arrays["mean"])).any(axis=(1, 2))
        if not bad.any():
            return arrays
        members = ", ".join(map(str, np.flatnonzero(bad)))
        if not self.drop or bad.all():
            raise FloatingPointError(f"{name}: the predictions of member {members} are not numbers")
        logger.warning("%s: member %s predicts no numbers and is left out", name, members)
        return {key: value[~bad] for key, value in arrays.items()}


def evaluator(name: str, spec: Mapping[str, Any]) -> Callable[[Predictor], Iterator]:
    """The evaluator of `experiments/evaluators/<spec['name']>.py` with the fields of `spec`.

    Raises:
      ConfigError: an unknown evaluator or field.
    """
    field = f"evaluators.{name}"
    files = [m.name for m in pkgutil.iter_modules(evaluators.__path__)]
    kind = spec.get("name")
    if kind not in files:
        raise ConfigError(f"{field}.name: no evaluator {kind!r}; {nearest(kind, files)}")
    fn = getattr(importlib.import_module(f"experiments.evaluators.{kind}"), kind)
    fields = {key: value for key, value in spec.items() if key != "name"}
    parameters = list(inspect.signature(fn).parameters)[1:]
    for key in fields:
        if key not in parameters:
            raise ConfigError(f"{field}.{key}: no such field; {nearest(key, parameters)}")
    return lambda predict: fn(predict, **fields)


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
    runners = {key: evaluator(key, spec) for key, spec in specs.items()}
    restored = Checkpoints(workdir, read_only=True).restore(experiment.shapes)
    if restored is None:
        raise ConfigError(f"workdir: {workdir} has no checkpoint to evaluate")
    state, step = restored
    predict = Predictor(experiment, state, drop=experiment.config["on_fault"] == "freeze")
    metrics: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    with Progress(len(runners), f"evaluate {name}") as progress:
        for i, (key, run) in enumerate(runners.items()):
            progress.update(i, key)
            try:
                for metric, value in run(predict):
                    (arrays if isinstance(value, np.ndarray) else metrics)[metric] = value
            except (ValueError, OSError, FloatingPointError, ImportError) as error:
                failures[key] = str(error)
                logger.error("evaluator %s: %s", key, error)
        progress.update(len(runners), "")
    metrics |= cost(experiment, state, workdir)
    metrics["cost/step"] = step
    directory = workdir / "evaluation" / name
    directory.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(directory / "scores.npz", **arrays)
    write_json(directory / "metrics.json", metrics)
    if show:
        from experiments.reports.tables import print_metrics

        print_metrics(metrics)
    return metrics, failures


def cost(experiment: Experiment, state: State, workdir: pathlib.Path) -> dict[str, float]:
    """Parameters, and seconds of training."""
    records = writers.read_metrics(workdir / writers.METRICS)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return {
        "cost/parameters": parameters,
        "cost/train_seconds": max((r.get("seconds", 0.0) for r in records), default=float("nan")),
    }


def validation(experiment: Experiment) -> Callable[[State], dict[str, float]] | None:
    """state -> metrics on `data.validation`, or None where the config asks for none."""
    spec = experiment.config["data"].get("validation")
    if not spec or not experiment.config["evaluation"]["every"]:
        return None
    source = load(spec)
    kind = "classification" if source.task == "classification" else "regression"
    run = evaluator("validation", dict(name=kind, data=source))
    predictor = None

    def validate(state: State) -> dict[str, float]:
        nonlocal predictor
        predictor = predictor or Predictor(experiment, state)
        predictor.state = state
        return {key: value for key, value in run(predictor) if not isinstance(value, np.ndarray)}

    return validate


def parse_data(text: str) -> dict[str, Any]:
    """`name`, `name:split`, or a dict in Python or JSON syntax.

    Raises:
      ConfigError: neither of these.
    """
    if text.lstrip().startswith("{"):
        try:
            return dict(ast.literal_eval(text))
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"--data: {text!r} is not a dict: {error}") from None
    name, _, split = text.partition(":")
    return dict(name=name, **({"split": split} if split else {}))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments {argv[1:]}")
    setup_logging()
    config = read_config(WORKDIR.value)
    config["mesh"] = {}  # whatever devices there are here
    experiment = setup(config)
    specs, name = None, NAME.value or "test"
    if DATA.value:
        data = parse_data(DATA.value)
        kind = "classification" if experiment.source.task == "classification" else "regression"
        specs, name = {"data": dict(name=kind, data=data)}, NAME.value or data["name"]
    _, failures = evaluate(experiment, WORKDIR.value, specs=specs, name=name)
    if failures:
        raise ValueError("\n".join(f"evaluator {key}: {why}" for key, why in failures.items()))


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a trained run.")
    DATA = flags.DEFINE_string("data", None, "Other data: NAME[:SPLIT] or a dict of its fields.")
    NAME = flags.DEFINE_string("name", None, "Where under evaluation/ the results go.")
    flags.mark_flags_as_required(["workdir"])
    config_lib.run(main)
