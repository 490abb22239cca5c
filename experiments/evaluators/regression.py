"""Likelihood, error and interval calibration for real outcomes."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from uncertainty import metrics


def regression(predict: Any, data: Any, grid: Any = None) -> Iterator[tuple[str, Any]]:
    """Metrics of the mixture of the members' Gaussians, in the units of the source's `y`.

    Args:
      predict: `predict.Predictor`.
      data: a source's spec.
      grid: the spec of a source with one input, on which the report's figure shows the prediction;
        by default `data`.
    """
    p = predict(data)
    if p.variance is None:
        raise ValueError("regression: the likelihood is for classes")
    y = p.y[:, None] if p.y.ndim == 1 else p.y
    yield from metrics.evaluate_regression(p.mean, p.variance, y).items()
    yield "test/mean", p.mean
    yield "test/variance", p.variance
    yield "test/y", y
    if p.source.shape in ((1,), (2,)):
        yield "test/x", p.source.gather(np.arange(len(p.source)))["x"]
    if grid is not None:
        g = predict(grid)
        yield "grid/mean", g.mean
        yield "grid/variance", g.variance
        yield "grid/x", g.source.gather(np.arange(len(g.source)))["x"]
    yield "cost/predict_ms_per_example", 1e3 * p.seconds / len(y)


regression.task = "regression"
