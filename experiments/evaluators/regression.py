"""Likelihood, error and interval calibration for real-valued targets."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, Predicted, reads
from uncertainty import metrics

if TYPE_CHECKING:
    from experiments.prediction.predictions import Predictions
    from experiments.prediction.predictor import Predictor


def regression(data: Data, grid: Data | None = None) -> Evaluator:
    """Metrics of the mixture of the members' Gaussians, in the stored units of `y`.

    If the source normalises y, this is undone: an error e becomes y_std e, and the NLL of u = (y -
    y_mean) / y_std gains log y_std, as p(y) = p(u) / y_std.

    Args:
      data: a source's spec.
      grid: the spec of one-dimensional inputs for the figure of the report; by default `data`.
    """

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        p = predict(data)
        if p.variance is None:
            raise ValueError("regression: the likelihood is for classes")
        y = p.y[:, None] if p.y.ndim == 1 else p.y
        yield from measured(*as_stored(p.source, p.mean, p.variance, y))
        if p.source.shape in ((1,), (2,)):
            yield "test/x", p.source.gather(np.arange(len(p.source)))["x"]
        if grid is not None:
            g = predict(grid)
            mean, variance, _ = as_stored(g.source, g.mean, g.variance, y)
            yield "grid/mean", mean
            yield "grid/variance", variance
            yield "grid/x", g.source.gather(np.arange(len(g.source)))["x"]
        yield "cost/predict_ms_per_example", 1e3 * p.seconds / len(y)

    names = metrics.evaluate_regression(*np.ones((2, 2, 2, 1)), np.ones((2, 1)))
    yields = {*names, "cost/predict_ms_per_example"}
    return Evaluator(
        run,
        "regression",
        yields,
        reads("data", data) + reads("grid", grid, reported=False),
        predicted=lambda predict: iter([Predicted("test", data)]),
    )


def measured(mean: np.ndarray, variance: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Any]]:
    """The metrics of mean and variance [M, B, K] for targets y [B, K], and these arrays."""
    yield from metrics.evaluate_regression(mean, variance, y).items()
    yield "test/mean", mean
    yield "test/variance", variance
    yield "test/y", y


def as_stored(
    source: Any, mean: np.ndarray, variance: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance [M, B, K] and y [B, K] without the normalisation of the source."""
    if source.y_mean is None:
        return mean, variance, y
    shift, scale = (np.asarray(a, np.float64) for a in (source.y_mean, source.y_std))
    return mean * scale + shift, variance * scale**2, y * scale + shift


def moments_of(p: "Predictions", evaluator: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance [M, B, K] and y [B, K], in stored units and float64.

    Raises:
      ValueError: predictions of classes.
    """
    if p.variance is None:
        raise ValueError(f"{evaluator}: the likelihood is for classes")
    y = p.y[:, None] if p.y.ndim == 1 else p.y
    mean, variance, y = (np.asarray(a, np.float64) for a in (p.mean, p.variance, y))
    return as_stored(p.source, mean, variance, y)
