"""Accuracy, calibration and selective prediction on labelled data."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from uncertainty import metrics


def classification(predict: Any, data: Any, bins: int = 15) -> Iterator[tuple[str, Any]]:
    """Metrics of the mixture over members, and per example what the plots need.

    Args:
      predict: `predict.Predictor`.
      data: a source's spec.
      bins: of the calibration errors.
    """
    p = predict(data)
    if p.log_p is None:
        raise ValueError("classification: the likelihood is for real outcomes")
    yield from metrics.evaluate_classification(p.log_p, p.y, bins).items()
    for key, value in metrics.per_example(p.log_p, p.y).items():
        yield f"test/{key}", value
    if p.source.shape in ((1,), (2,)):
        yield "test/x", p.source.gather(np.arange(len(p.source)))["x"]
    yield "cost/predict_ms_per_example", 1e3 * p.seconds / len(p.y)


classification.task = "classification"
