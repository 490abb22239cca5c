"""DICE (Sun & Li 2022, "DICE: leveraging sparsification for out-of-distribution detection")."""

from typing import NamedTuple

import numpy as np

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import LastLayer, Outputs
from uncertainty.ood.energy import free_energy


class Dice(NamedTuple):
    """The energy of the logits of a sparse last layer."""

    last: LastLayer

    def __call__(self, outputs: Outputs) -> np.ndarray:
        return free_energy(_outputs.features(outputs) @ self.last.kernel + self.last.bias)


def dice(train: Outputs, sparsity: float = 0.9) -> Dice:
    """Energy with W_dk = 0 where mean(phi_d) W_dk is not above the quantile `sparsity` of all.

    Args:
      train: features and the last layer.
      sparsity: the fraction of weights that become 0; .9 is the paper's for CIFAR.

    Raises:
      ValueError: no dense last layer, features that are not valid, or a fraction outside of (0, 1).
    """
    last = _outputs.last(train)
    contribution = _outputs.features(train).mean(0)[:, None] * last.kernel
    threshold = np.quantile(contribution, _outputs.fraction(sparsity, "sparsity"))
    kernel = np.where(contribution > threshold, last.kernel, 0.0)
    return Dice(LastLayer(kernel, last.bias))
