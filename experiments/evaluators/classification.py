"""Accuracy, calibration and selective prediction on labelled data."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from uncertainty import metrics


def classification(predict: Any, data: Any, bins: int = 15) -> Iterator[tuple[str, Any]]:
    """Metrics of the mixture over members, and per example what the plots need.

    `nll_of_mean` is -log of the mean over examples of p(y | x), which some code
    reports as the nll; by Jensen's inequality it is never larger.

    Args:
      predict: `predict.Predictor`.
      data: a source's spec.
      bins: of the calibration errors.
    """
    p = predict.summary(data, bins=bins)
    yield from metrics.of_tally(p.tally, p.confidence, p.correct).items()
    mean = np.mean(np.exp(p.examples["log_p_label"], dtype=np.float64))
    yield "classification/nll_of_mean", -np.log(mean)
    for key, value in p.examples.items():
        yield f"test/{key}", value
    if p.source.shape in ((1,), (2,)):
        yield "test/x", p.source.gather(np.arange(len(p.source)))["x"]
    yield "cost/predict_ms_per_example", 1e3 * p.seconds / len(p.correct)


def _yields(bins: int = 15, **_: Any) -> set[str]:
    found = metrics.evaluate_classification(np.log(np.full((2, 2, 2), 0.5)), np.arange(2), bins)
    return {*found, "classification/nll_of_mean", "cost/predict_ms_per_example"}


classification.task = "classification"


def check(source: Any, data: Any, bins: int = 15) -> None:
    """Raises ValueError for a number of bins that is none."""
    if type(bins) is not int or bins < 1:
        raise ValueError(f"bins: {bins!r}; a whole number from 1")


classification.yields = _yields
