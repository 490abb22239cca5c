"""Detection of out-of-distribution data by the uncertainty of the prediction."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data import labels
from experiments.evaluators import Data, Evaluator, Predicted, reads, reads_each
from experiments.runtime import keys
from uncertainty import metrics

if TYPE_CHECKING:
    from experiments.prediction.predictions import Summary
    from experiments.prediction.predictor import Predictor


def ood(data: Data, sets: Mapping[str, Any]) -> Evaluator:
    """AUROC, AUPR and FPR95 of every score, for every out-of-distribution set.

    `ratio_entropy` and `ratio_probability_std` are the mean over the set divided by that over the
    test data (D'Angelo & Fortuin 2021).

    A set that cannot be loaded is reported after the others are done.

    Args:
      data: the in-distribution test source's spec.
      sets: name -> spec of a source with inputs of the same shape; its labels are not used.
    """

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        inside = predict.summary(data)
        missing = []
        for name, spec in sets.items():
            try:
                outside = predict.summary(spec, labels.UNUSED)
            except (OSError, ValueError, ImportError) as error:
                missing.append(f"{name}: {error}")
                continue
            yield from measured(name, inside, outside)
        if missing:
            raise ValueError("; ".join(missing))

    def predicted(predict: "Predictor") -> Iterator[Predicted]:
        yield Predicted("in_distribution", data)
        for name, spec in sets.items():
            yield Predicted(keys.join("ood", name), spec, labels.UNUSED)

    p = np.full((2, 2, 2), 0.5)
    ranks = metrics.ranking(np.zeros(1), np.ones(1))
    names = [f"{rank}_{score}" for score in metrics.ood_scores(np.log(p), p, p) for rank in ranks]
    names += ["ratio_entropy", "ratio_probability_std"]
    yields = {keys.join("ood", name, key) for name in sets for key in names}
    read = reads("data", data) + reads_each("sets", sets, labels.UNUSED)
    return Evaluator(run, "classification", yields, read, predicted=predicted)


def measured(name: str, inside: "Summary", outside: "Summary") -> Iterator[tuple[str, Any]]:
    """The metrics of one out-of-distribution set, and its arrays per example."""
    for score, values in outside.scores.items():
        for metric, value in metrics.ranking(inside.scores[score], values).items():
            yield keys.join("ood", name, f"{metric}_{score}"), value
    for score in {"entropy", "probability_std"} & outside.scores.keys():
        ratio = outside.scores[score].mean() / inside.scores[score].mean()
        yield keys.join("ood", name, f"ratio_{score}"), ratio
    for key in ("confidence", "entropy", "mutual_information"):
        if key in outside.examples:
            yield keys.join("ood", name, key), outside.examples[key]
