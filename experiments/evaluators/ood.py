"""Telling data from elsewhere by the uncertainty of the prediction."""

from collections.abc import Iterator, Mapping
from typing import Any

from uncertainty import metrics


def ood(predict: Any, data: Any, sets: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """AUROC, AUPR and FPR95 of every score, for every out-of-distribution set.

    `ratio_entropy` and `ratio_probability_std` are the mean over the set divided by that over the
    test data (D'Angelo & Fortuin 2021).

    A set that cannot be loaded is reported once the others are done.

    Args:
      predict: `predict.Predictor`.
      data: the in-distribution test source's spec.
      sets: name -> spec of a source with inputs of the same shape; its labels are not used.
    """
    inside = predict(data)
    scores_in = metrics.ood_scores(inside.log_p, inside.mean, inside.epistemic)
    missing = []
    for name, spec in sets.items():
        try:
            outside = predict(spec)
        except (OSError, ValueError, ImportError) as error:
            missing.append(f"{name}: {error}")
            continue
        scores_out = metrics.ood_scores(outside.log_p, outside.mean, outside.epistemic)
        for score, values in scores_out.items():
            for metric, value in metrics.ranking(scores_in[score], values).items():
                yield f"ood/{name}/{metric}_{score}", value
        for score in {"entropy", "probability_std"} & scores_out.keys():
            yield f"ood/{name}/ratio_{score}", scores_out[score].mean() / scores_in[score].mean()
        example = metrics.per_example(outside.log_p, None)
        for key in ("confidence", "entropy", "mutual_information"):
            if key in example:
                yield f"ood/{name}/{key}", example[key]
    if missing:
        raise ValueError("; ".join(missing))


ood.task = "classification"
