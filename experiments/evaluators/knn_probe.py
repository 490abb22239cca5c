"""How well the nearest neighbours in the space of features tell the class."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data import labels
from experiments.evaluators import Data, Evaluator, reads
from uncertainty.metrics.neighbours import neighbours, unit

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor


def knn_probe(train: Data, data: Data, k: int = 200, temperature: float = 0.1) -> Evaluator:
    """Accuracy of the vote of the k nearest training examples, by their features.

    The usual measure of self-supervised features, which trains nothing: `metrics/neighbours.py`;
    k = 200 and 0.1 are those of E-SSL's code. Features are those of the backbone at prediction.

    Yields `knn/accuracy`, by the features of all members together, each divided by its norm (the
    cosine is then the mean of theirs); `knn/member_accuracy`, the mean of the members alone, and
    the array `knn/members` [M]. Members that share features count once.

    Args:
      train: labelled examples, such as dict(split="train").
      data: the labelled test set.
      k: neighbours.
      temperature: of the cosines in the weights.

    Raises:
      ValueError: k below 1 or a temperature that is not positive; when run, a k beyond the number
        of examples.
    """
    if k < 1:
        raise ValueError(f"k: {k}; at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature}; a positive number")

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        of_train, y = predict.member_features(train)
        of_test, y_test = predict.member_features(data)
        K = int(max(y.max(), y_test.max())) + 1

        def accuracy(x: np.ndarray, inputs: np.ndarray) -> float:
            votes = neighbours(x, y, K, inputs, k, temperature)
            return float(np.mean(votes.argmax(1) == y_test))

        each = [accuracy(x, inputs) for x, inputs in zip(of_train, of_test, strict=True)]
        joined = each[0]
        if len(each) > 1:
            x, inputs = (
                np.concatenate([unit(phi) for phi in of], axis=1) for of in (of_train, of_test)
            )
            joined = accuracy(x, inputs)
        yield "knn/accuracy", joined
        yield "knn/member_accuracy", float(np.mean(each))
        yield "knn/members", np.asarray(each)

    read = reads("train", train, labels.OWN, reported=False) + reads("data", data, labels.OWN)
    return Evaluator(run, None, {"knn/accuracy", "knn/member_accuracy"}, read)
