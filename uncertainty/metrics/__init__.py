"""Metrics of predictions, on the host.

Classification metrics are pure functions of the members' log-probabilities log_p [M, B, K] and of
labels [B]; NumPy or JAX arrays go in, NumPy float64 comes out, and arithmetic is in float64. What
an ensemble predicts is the mixture: the mean of its members' probabilities.

    classification  accuracy, NLL, Brier score and its decomposition
    calibration     reliability bins; ECE with bins of equal width or mass, class-wise ECE
    information     entropy, mutual information, disagreement, pairwise KL
    selective       risk-coverage curve and the area under it
    scores          out-of-distribution scores
    ranking         AUROC, AUPR, FPR95 of any score
    regression      NLL, RMSE, CRPS, interval coverage of Gaussian mixtures
    streaming       those that follow from sums, over data in parts
"""

from uncertainty.metrics.evaluate import (
    evaluate_classification,
    evaluate_regression,
    of_tally,
    per_example,
)
from uncertainty.metrics.ranking import ranking
from uncertainty.metrics.scores import ood_scores

__all__ = [
    "evaluate_classification",
    "evaluate_regression",
    "of_tally",
    "ood_scores",
    "per_example",
    "ranking",
]
