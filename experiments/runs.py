"""Predictions of trained runs for arrays, from Python.

from experiments import load_run

run = load_run("runs/five")              # several workdirs are one ensemble
predicted = run.predict(x)               # x as the run's data are stored
predicted.probs, predicted.entropy, predicted.mutual_information
"""

from typing import Any

import numpy as np

from experiments import evaluate
from experiments.data.source import Source, of_array
from experiments.evaluators.regression import as_stored
from experiments.prediction.predictions import Predictions
from experiments.prediction.predictor import Predictor
from experiments.runtime import storage
from experiments.runtime.progress import Progress
from uncertainty.build import ConfigError
from uncertainty.distributions import Classes, Gaussians, Sets


class Run:
    """One or several trained runs, whose members predict as one ensemble; made by `load_run`.

    Attributes:
      predictor: of data sets by their specs, as evaluators use it.
      steps: of the checkpoint of each workdir.
      conformal: of the prediction sets, see `uncertainty.distributions.Classes`.
    """

    def __init__(self, predictor: Predictor, steps: dict[str, int], conformal: Sets | None):
        self.predictor, self.steps, self.conformal = predictor, steps, conformal

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
          For regression `Gaussians`: mean, variance, quantile(level), in the units of y.

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
        if source.task == "classification":
            normalised = all(run.likelihood.normalised for run in self.predictor.runs)
            return Classes(*arrays, self.conformal, normalised, self.data.class_names)
        mean, variance, _ = as_stored(self.data, *arrays, arrays[0])
        return Gaussians(mean, variance)

    def features(self, x: Any) -> np.ndarray:
        """phi(x) of all members side by side, [B, P M D]; those that members share appear once.

        Raises:
          ValueError: see `predict`.
        """
        return self.predictor.features(of_array(x, self.data)).phi


def load_run(*workdirs: str | storage.Path, conformal: Sets | None = None) -> Run:
    """The trained run of a workdir; several are one ensemble of all their members.

    Reads the config, the description of the training data and the newest checkpoint; the data
    themselves are not needed.

    Args:
      workdirs: of `experiments.train`, also in buckets; one that is given twice counts once.
      conformal: see `uncertainty.distributions.Classes`.

    Raises:
      ConfigError: no workdir, one without a checkpoint, or whose stages have not run; runs that
        cannot be joined, as their data or tasks differ, or without classes or targets.
    """
    if not workdirs:
        raise ConfigError("workdir: none is given")
    paths = [storage.path(workdir) for workdir in workdirs]
    places = [path.resolve() for path in paths]
    predictors, steps = {}, {}
    for path in (p for i, p in enumerate(paths) if places.index(places[i]) == i):
        experiment = evaluate.open_run(path)
        if experiment.source.task == "unlabelled":
            raise ConfigError(f"workdir: {path} was trained without labels, so it predicts none")
        state, steps[str(path)] = evaluate.restore(experiment, path)
        predictors[str(path)] = Predictor(experiment, state)
    joined = next(iter(predictors.values())) if len(predictors) == 1 else None
    return Run(joined or Predictor.join(predictors), steps, conformal)
