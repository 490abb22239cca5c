"""KL matching (Hendrycks et al. 2022, "Scaling out-of-distribution detection ...")."""

from typing import NamedTuple

import numpy as np
from scipy import special

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import Outputs

LEAST = np.log(np.finfo(np.float64).tiny)


class KlMatching(NamedTuple):
    """min_k KL(p || d_k)."""

    log_typical: np.ndarray  # [C, K], log d_k of the classes that are predicted at all

    def __call__(self, outputs: Outputs) -> np.ndarray:
        log_p = special.log_softmax(_outputs.logits(outputs), axis=1)
        p = np.exp(log_p)
        return ((p * log_p).sum(1, keepdims=True) - p @ self.log_typical.T).min(1)


def kl_matching(train: Outputs) -> KlMatching:
    """min_k KL(p || d_k), d_k the mean of p over the examples that are predicted as class k.

    The paper takes the means over validation data, here they are those of `train`.

    Raises:
      ValueError: logits that are missing or not valid.
    """
    log_p = special.log_softmax(_outputs.logits(train), axis=1)
    predicted = log_p.argmax(1)
    typical = [np.exp(log_p[predicted == k]).mean(0) for k in np.unique(predicted)]
    with np.errstate(divide="ignore"):
        return KlMatching(np.maximum(np.log(typical), LEAST))
