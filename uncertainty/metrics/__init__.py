"""Metrics of predictions, on the host.

Classification metrics are pure functions of the members' log-probabilities log_p [M, B, K] and of
labels [B]. They take NumPy or JAX arrays, and compute and return NumPy float64. An ensemble
predicts the mixture: the mean of its members' probabilities.

    classification  accuracy, NLL, Brier score and its decomposition
    calibration     reliability bins; ECE with bins of equal width or mass, class-wise, adaptive,
                    debiased, maximum; by group
    smooth          smooth ECE
    information     entropy, mutual information, disagreement, pairwise KL
    selective       risk-coverage curve, the areas under it, coverage at a risk
    joint           likelihood of several labels together
    sets            coverage and size of prediction sets
    scores          out-of-distribution scores
    ranking         AUROC, AUPR, FPR95 of any score
    regression      NLL, RMSE, CRPS, interval coverage and out-of-distribution scores of Gaussian
                    mixtures
    streaming       metrics that follow from sums, over data in parts
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
