"""Accuracy, calibration and selective prediction on labelled data."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, Predicted, reads
from uncertainty import metrics

if TYPE_CHECKING:
    from experiments.prediction.predictions import Summary
    from experiments.prediction.predictor import Predictor


def classification(data: Data, bins: int = 15) -> Evaluator:
    """Metrics of the mixture over members, and arrays per example for the plots.

    `nll_of_mean` is -log of the mean over examples of p(y | x), which some code reports as the NLL;
    by Jensen's inequality it is never larger than the NLL.

    Args:
      data: a source's spec.
      bins: of the calibration errors.

    Raises:
      ValueError: fewer than one bin.
    """
    check_bins(bins)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        p = predict.summary(data, bins=bins)
        yield from measured(p)
        source = predict.source(data)
        if source.shape in ((1,), (2,)):
            yield "test/x", source.gather(np.arange(len(source)))["x"]
        yield "cost/predict_ms_per_example", 1e3 * p.seconds / len(p.correct)

    names = metrics.evaluate_classification(np.log(np.full((2, 2, 2), 0.5)), np.arange(2), bins)
    yields = {*names, "classification/nll_of_mean", "cost/predict_ms_per_example"}
    return Evaluator(
        run,
        "classification",
        yields,
        reads("data", data),
        predicted=lambda predict: iter([Predicted("test", data)]),
    )


def measured(test: "Summary") -> Iterator[tuple[str, Any]]:
    """The metrics of a labelled set, and its arrays per example."""
    yield from metrics.of_tally(test.tally, test.confidence, test.correct).items()
    with np.errstate(divide="ignore"):  # infinite if every label has the probability 0
        yield (
            "classification/nll_of_mean",
            -np.log(np.mean(np.exp(test.examples["log_p_label"], dtype=np.float64))),
        )
    for key, value in test.examples.items():
        yield f"test/{key}", value


def require_normalised(predict: "Predictor", what: str) -> None:
    """Checks that an example has one class, so that probabilities sum to 1.

    Args:
      predict: of one run or of several.
      what: needs it, for the message.

    Raises:
      ValueError: a run's classes are independent, as those of the likelihood 'sigmoid'.
    """
    if not all(run.likelihood.normalised for run in predict.runs):
        spec = predict.runs[0].experiment.config["likelihood"]
        raise ValueError(
            f"likelihood: {spec!r} is of independent classes, whose probabilities do not sum to 1; "
            f"{what} need one of classes that exclude one another, such as 'softmax'"
        )


def check_bins(bins: int) -> None:
    """Raises ValueError for a number of bins below 1."""
    if bins < 1:
        raise ValueError(f"bins: {bins!r}; a whole number from 1")
