"""ViM (Wang et al. 2022, "ViM: out-of-distribution with virtual-logit matching")."""

from typing import NamedTuple

import numpy as np

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import LastLayer, Outputs
from uncertainty.ood.energy import free_energy
from uncertainty.ood.residual import Residual, residual


class Vim(NamedTuple):
    """alpha times the residual, less log sum exp of the logits."""

    residual: Residual
    alpha: float
    last: LastLayer

    def __call__(self, outputs: Outputs) -> np.ndarray:
        u = _outputs.features(outputs) @ self.last.kernel + self.last.bias
        return self.alpha * self.residual(outputs) + free_energy(u)


def vim(train: Outputs, dimensions: int | None = None) -> Vim:
    """alpha r(phi) - log sum_k exp u_k, alpha = mean(max_k u_k) / mean(r(phi)) in training.

    Its order is that of the softmax probability of the virtual logit alpha r, r as in `residual`.

    Args:
      train: features and the last layer.
      dimensions: of the principal subspace; by default half of those of the features.

    Raises:
      ValueError: see `residual`; all training residuals are 0.
    """
    fitted, last = residual(train, dimensions), _outputs.last(train)
    u = _outputs.features(train) @ last.kernel + last.bias
    mean = fitted(train).mean()
    if not mean > 0:
        raise ValueError("dimensions: the principal subspace holds all training features")
    return Vim(fitted, float(u.max(1).mean() / mean), last)
