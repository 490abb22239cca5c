"""ReAct (Sun et al. 2021, "ReAct: out-of-distribution detection with rectified activations")."""

from typing import NamedTuple

import numpy as np

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import LastLayer, Outputs
from uncertainty.ood.energy import free_energy


class React(NamedTuple):
    """The energy of the logits of min(phi, c)."""

    threshold: float
    last: LastLayer

    def __call__(self, outputs: Outputs) -> np.ndarray:
        phi = np.minimum(_outputs.features(outputs), self.threshold)
        return free_energy(phi @ self.last.kernel + self.last.bias)


def react(train: Outputs, quantile: float = 0.9) -> React:
    """-log sum_k exp(W^T min(phi, c) + b)_k, c a quantile of all training activations.

    Args:
      train: features and the last layer.
      quantile: .9 is the paper's.

    Raises:
      ValueError: no dense last layer, features that are not valid, or a quantile outside of (0, 1).
    """
    phi = _outputs.features(train)
    threshold = float(np.quantile(phi, _outputs.fraction(quantile, "quantile")))
    return React(threshold, _outputs.last(train))
