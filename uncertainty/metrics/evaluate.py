"""All metrics of a set of predictions at once, with shared computations."""

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics import _arrays, regression, streaming
from uncertainty.metrics._sorting import most_confident_first
from uncertainty.metrics.calibration import gap, mass_sums
from uncertainty.metrics.information import entropies
from uncertainty.metrics.selective import excess


def evaluate_classification(
    log_p: ArrayLike, labels: ArrayLike, bins: int = 15, normalised: bool = True
) -> dict[str, float]:
    """Classification, calibration, selective and uncertainty metrics.

    One pass over memory with one exponentiation, and one sort.

    Args:
      log_p: [M, B, K] log-probabilities of each member.
      labels: [B] integers.
      bins: of the calibration errors and the Brier decomposition.
      normalised: whether each row of probabilities has to sum to 1, as for a softmax, which is
        checked; False for independent classes (`likelihoods.sigmoid`), each of which is there or
        not: NLL, entropies and KL are then sums over classes of those of the Bernoulli variables,
        the label's class being there and the others not. All else is as it is for a softmax.

    Returns:
      'group/metric' -> value; mutual information, disagreement and pairwise KL if M > 1.

    Raises:
      ValueError: wrong shapes, NaN, logits in place of log-probabilities (positive ones, and with
        `normalised` all), labels out of range.
    """
    log_p, labels = _arrays.checked(log_p, labels)
    return of_tally(*streaming.tally(log_p, labels, _arrays.checked_bins(bins), normalised))


def of_tally(
    acc: streaming.Accumulator, confidence: np.ndarray, correct: np.ndarray
) -> dict[str, float]:
    """The metrics of `evaluate_classification` from sums and two numbers per example.

    Args:
      acc: sums over all examples; `streaming.merge` joins those of parts.
      confidence, correct: of each example [B], from `streaming.tally`, concatenated.
    """
    values = streaming.result(acc)
    B, bins = len(confidence), acc.bins.shape[1]
    descending, errors = most_confident_first(confidence, correct)
    _, total, right, _ = mass_sums(descending, errors, bins)
    area = float(np.mean(errors / np.arange(1, B + 1)))
    values["calibration/ece_mass"] = gap(total, right, B)
    values["selective/aurc"] = area
    values["selective/excess_aurc"] = excess(confidence, correct, area)
    groups = {"classification": 0, "calibration": 1, "selective": 2, "uncertainty": 3}
    return dict(sorted(values.items(), key=lambda item: groups[item[0].partition("/")[0]]))


def per_example(
    log_p: ArrayLike, labels: ArrayLike | None = None, normalised: bool = True
) -> dict[str, np.ndarray]:
    """Arrays [B] of each example for plots.

    Args:
      log_p: [M, B, K] log-probabilities of each member.
      labels: [B] integers, or None without labels.
      normalised: see `evaluate_classification`; it is not checked.

    Returns:
      prediction, confidence (the mixture's largest probability), entropy and, if M > 1,
      mutual_information; with labels also label and log_p_label, the mixture's log-probability of
      it (with normalised=False of it and no other class). Floats are float32.
    """
    log_p, valid_labels = _arrays.checked(log_p, labels)
    B = len(valid_labels)
    prediction, confidence, log_p_label = np.empty(B, np.int32), np.empty(B), np.empty(B)

    def chunk(s: slice, x: np.ndarray, y: np.ndarray) -> int:
        prediction[s] = _arrays.predictions(x)
        top, label = (_arrays.places(i, x.shape[2]) for i in (prediction[s], y))
        confidence[s] = np.exp(_arrays.at_labels(x, top)).mean(0)
        if normalised:
            log_p_label[s] = _arrays.log_mean_exp(_arrays.at_labels(x, label))
        else:
            log_p_label[s] = _arrays.of_one_class(_arrays.log_mean_exp(_arrays.events(x)), y)
        return 0

    _arrays.over(chunk, log_p, valid_labels)
    total, expected = entropies(log_p, normalised)
    values: dict[str, np.ndarray] = {
        "prediction": prediction,
        "confidence": confidence,
        "entropy": total,
    }
    if len(log_p) > 1:
        values["mutual_information"] = np.maximum(total - expected, 0.0)
    if labels is not None:
        values |= {"label": valid_labels, "log_p_label": log_p_label}
    return {
        name: value.astype(np.float32 if value.dtype.kind == "f" else np.int32)
        for name, value in values.items()
    }


def evaluate_regression(
    mean: ArrayLike, variance: ArrayLike, y: ArrayLike, levels: tuple[float, ...] = (0.5, 0.9, 0.95)
) -> dict[str, float]:
    """Metrics of the mixture of the members' Gaussians.

    Args:
      mean, variance: [M, B, K] of each member.
      y: [B, K].
      levels: of the central intervals for coverage and mean width.

    Returns:
      'regression/metric' -> value.
    """
    values = {
        "nll": regression.nll(mean, variance, y),
        "member_nll": regression.member_nll(mean, variance, y),
        "rmse": regression.rmse(mean, y),
        "crps": regression.crps(mean, variance, y),
        "calibration": regression.calibration_error(mean, variance, y),
    }
    for level, covered in zip(
        levels, regression.interval_coverage(mean, variance, y, levels), strict=True
    ):
        values[f"coverage_{level:g}"] = covered
        values[f"width_{level:g}"] = regression.interval_width(mean, variance, level)
    return {f"regression/{name}": value for name, value in values.items()}
