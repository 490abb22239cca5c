"""Predictions of trained runs for arrays, from Python.

from experiments import load_run

run = load_run("runs/five")              # several workdirs are one ensemble
predicted = run.predict(x)               # x as the run's data are stored
predicted.probs, predicted.entropy, predicted.mutual_information

run = load_run("runs/five", posthoc="temperature", conformal="lac")   # as its evaluators fitted
predicted = run.predict(x)
predicted.probs, predicted.sets()        # calibrated probabilities, conformal sets
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments import evaluate
from experiments.data.source import Source, of_array
from experiments.evaluators.conformal import mixture
from experiments.evaluators.intervals import ends_of, given_of
from experiments.evaluators.regression import as_stored
from experiments.experiment.results import RUNS
from experiments.prediction import fitted
from experiments.prediction.predictions import Predictions
from experiments.prediction.predictor import Predictor
from experiments.runtime import storage
from experiments.runtime.progress import Progress
from experiments.runtime.workdir import read_config, read_json
from uncertainty.build import ConfigError
from uncertainty.distributions import Classes, Gaussians, Sets
from uncertainty.posthoc import OfMixture


class Run:
    """One or several trained runs, whose members predict as one ensemble; made by `load_run`.

    Attributes:
      predictor: of data sets by their specs, as evaluators use it.
      steps: of the checkpoint of each workdir.
      conformal: of the prediction sets, see `uncertainty.distributions.Classes`; or one that an
        evaluation saved.
      posthoc: the calibrator of the predictions that an evaluation saved.
    """

    def __init__(
        self,
        predictor: Predictor,
        steps: dict[str, int],
        conformal: "Sets | SavedSets | None" = None,
        posthoc: fitted.Saved | None = None,
    ):
        self.predictor, self.steps = predictor, steps
        self.conformal, self.posthoc = conformal, posthoc

    @property
    def data(self) -> Source:
        """The training data, without examples: shape, type, classes, and how they are read."""
        return self.predictor.reader.like

    def predict(self, x: Any, *, progress: bool = True) -> Classes | Gaussians:
        """What all members predict for x [B, ...].

        Inputs are those of the run's data, as they are stored: bytes of images stay bytes, and
        tables have their own units. They are scaled and normalised by the run's `data.json`, as
        every evaluation does. The numbers are those of `experiments.evaluate`, bit for bit, for the
        same examples in the same order. Large arrays are predicted in batches of the config's
        `evaluation.batch_size`; a last batch is padded.

        Args:
          x: of the shape and type of the training inputs; tables may be any real numbers.
          progress: whether to show it, if there are several batches.

        Returns:
          For classes `Classes`: log_p [PM, B, K], probs, entropy, mutual_information, sets(alpha).
          For regression `Gaussians`: mean, variance, quantile(level), sets(alpha), in the units of
          y. All but the sets are of the predictions after post-hoc calibration, if there is one; of
          the mixture calibrated log_p is [1, B, K].

        Raises:
          ValueError: another shape or type, or values that are not finite or out of range.
          FloatingPointError: the predictions of a member are not finite.
        """
        source = of_array(x, self.data)
        show = progress and len(source) > self.predictor.batch_size
        names = ("log_p",) if source.task == "classification" else ("mean", "variance")
        with Progress(len(source), "predict", unit="example", show=show) as bar:

            def part_of(part: Predictions, start: int) -> list[np.ndarray]:
                bar.update(start + len(part.y), "")
                return [getattr(part, name) for name in names]

            parts = self.predictor.over(source, part_of)
        arrays = [np.concatenate(each, axis=1) for each in zip(*parts, strict=True)]
        calibrate = None if self.posthoc is None else self.posthoc.fitted
        conformal: Any = self.conformal
        alpha = 0.1
        if isinstance(conformal, SavedSets):
            alpha = conformal.alpha
        if source.task == "classification":
            (log_p,) = arrays
            if isinstance(conformal, SavedSets):
                conformal = conformal.of_classes(log_p)
            if calibrate is not None:
                log_p = np.asarray(calibrate(log_p))
            return Classes(
                log_p,
                conformal,
                normalised=all(run.likelihood.normalised for run in self.predictor.runs),
                class_names=self.data.class_names,
                alpha=alpha,
                pooled=isinstance(calibrate, OfMixture),
            )
        mean, variance, _ = as_stored(self.data, *arrays, arrays[0])
        if isinstance(conformal, SavedSets):
            conformal = conformal.of_targets(mean, variance)
        if calibrate is not None:
            mean, variance = calibrate(mean, variance)
        return Gaussians(mean, variance, conformal, alpha)

    def features(self, x: Any) -> np.ndarray:
        """phi(x) of all members side by side, [B, P M D]; those that members share appear once.

        Raises:
          ValueError: see `predict`.
        """
        return self.predictor.features(of_array(x, self.data)).phi


class SavedSets:
    """A conformal predictor that an evaluation saved, and the map of probabilities before it."""

    def __init__(self, label: str, saved: fitted.Saved, before: Any = None):
        self.label, self.predictor, self.before = label, saved.fitted, before
        self.alpha = float(saved.spec["alpha"])

    def of_classes(self, log_p: np.ndarray) -> Sets:
        """(unused, alpha) -> the sets for log_p [M, B, K] before post-hoc calibration."""

        def sets(_: np.ndarray, alpha: float, **given: Any) -> np.ndarray:
            self._check(alpha)
            return self.predictor(mixture(log_p, self.before), **given)

        return sets

    def of_targets(self, mean: np.ndarray, variance: np.ndarray) -> Callable[..., tuple]:
        """alpha -> the ends of intervals for moments [M, B, K] before post-hoc calibration."""
        moments = np.asarray(mean, np.float64), np.asarray(variance, np.float64)

        def sets(alpha: float, **given: Any) -> tuple[np.ndarray, np.ndarray]:
            self._check(alpha)
            inputs = given_of(*moments, self.alpha, [self.label])
            return ends_of(self.label, self.predictor, inputs, **given)

        return sets

    def _check(self, alpha: float) -> None:
        if not math.isclose(alpha, self.alpha):
            raise ValueError(
                f"alpha: {alpha}, but {self.label!r} was calibrated for {self.alpha:g}; leave it "
                "out, or set alpha of the evaluator and evaluate again"
            )


def load_run(
    *workdirs: str | storage.Path,
    conformal: Sets | str | None = None,
    posthoc: str | None = None,
    evaluation: str = "test",
) -> Run:
    """The trained run of a workdir; several are one ensemble of all their members.

    Reads the config, the description of the training data and the newest checkpoint; the data
    themselves are not needed.

    Args:
      workdirs: of `experiments.train`, also in buckets; one that is given twice counts once.
      conformal: what makes the sets: the label of a conformal method that an evaluator of the run
        fitted, such as 'lac' (also with a calibration before it, 'lac_temperature'), or 'cqr' of
        intervals; or a function, see `uncertainty.distributions.Classes`. None for no sets.
      posthoc: the label of a post-hoc method that an evaluator of the run fitted, such as
        'temperature', to calibrate the predictions. None for predictions as they are.
      evaluation: where both were saved, WORKDIR/evaluation/NAME; of several workdirs that of the
        first, which has to be one of all of them together.

    Raises:
      ConfigError: no workdir, one without a checkpoint, or whose stages have not run; runs that
        cannot be joined, as their data or tasks differ, or without classes or targets; a label that
        was not saved, or for another step of a run or other members.
    """
    if not workdirs:
        raise ConfigError("workdir: none is given")
    paths = [storage.path(workdir) for workdir in workdirs]
    places = [path.resolve() for path in paths]
    unique = [p for i, p in enumerate(paths) if places.index(places[i]) == i]
    folder = unique[0] / "evaluation" / evaluation
    saved, sets, of_steps = None, conformal, None
    if posthoc is not None or isinstance(conformal, str):
        read_config(unique[0])  # raises where there is no run
        of_steps = _steps_of(folder, unique)
    if posthoc is not None:
        saved = _calibrator(folder, posthoc)
    if isinstance(conformal, str):
        sets = _sets(folder, conformal)
    predictors, steps = {}, {}
    for path in unique:
        experiment = evaluate.open_run(path)
        if experiment.source.task == "unlabelled":
            raise ConfigError(f"workdir: {path} was trained without labels, so it predicts none")
        state, steps[str(path)] = evaluate.restore(experiment, path)
        predictors[str(path)] = Predictor(experiment, state)
    joined = next(iter(predictors.values())) if len(predictors) == 1 else None
    predictor = joined or Predictor.join(predictors)
    if of_steps not in (None, restored := [*steps.values()]):
        s = "s" * (len(unique) > 1)
        then, now = (", ".join(map(str, each)) for each in (of_steps, restored))
        raise ConfigError(
            f"evaluation: {folder} is of step{s} {then}, but the checkpoint{s} of step{s} {now}; "
            f"{_again(unique)} fits again"
        )
    return Run(predictor, steps, sets, saved)


def _calibrator(folder: storage.Path, label: str) -> fitted.Saved:
    if label.startswith("before_"):
        raise ConfigError(
            f"posthoc: {label!r} is fitted to a part of the held-out examples, for the sets of "
            "that name alone"
        )
    return fitted.load(folder, "posthoc", label)


def _sets(folder: storage.Path, label: str) -> SavedSets:
    saved = fitted.load(folder, "conformal", label)
    if saved.spec["name"] == "regions":
        raise ConfigError(
            f"conformal: {label!r} is a region of several targets, which has no ends; "
            f"prediction.fitted.read({str(folder)!r}, 'conformal', {label!r}) gives it"
        )
    before = f"before_{label}"
    if before not in fitted.names(folder, "posthoc"):
        return SavedSets(label, saved)
    return SavedSets(label, saved, fitted.load(folder, "posthoc", before).fitted)


def _again(paths: Sequence[storage.Path]) -> str:
    return " ".join(["python -m experiments.evaluate", *(f"--workdir {path}" for path in paths)])


def _steps_of(folder: storage.Path, paths: Sequence[storage.Path]) -> list[int]:
    """The step of each run in the results in a folder.

    Raises:
      ConfigError: there are none, or they are of other members than these runs'.
    """
    if not (folder / "metrics.json").is_file():
        raise ConfigError(f"evaluation: {folder} has no results; {_again(paths)} writes them")
    joined = read_json(folder / RUNS) if (folder / RUNS).exists() else []
    noted = [run["workdir"] for run in joined]
    here = [storage.relative(path, paths[0]) for path in paths] if len(paths) > 1 else []
    if noted != here:
        raise ConfigError(
            f"evaluation: the results in {folder} are of {len(noted) or 1} run"
            f"{'s' * (len(noted) > 1)}, but {len(paths)} predict here, which need calibrators of "
            f"their own; {_again(paths)} writes a folder of theirs, to be named by evaluation="
        )
    if joined:
        return [int(run["step"]) for run in joined]
    return [int(read_json(folder / "metrics.json").get("cost/step", -1))]
