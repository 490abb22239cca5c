"""Residual of the principal subspace (the part of ViM that is without logits)."""

from typing import NamedTuple

import numpy as np

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import Outputs


class Residual(NamedTuple):
    """|| R^T (phi - o) ||, R the directions outside of the principal subspace."""

    origin: np.ndarray  # [D]
    outside: np.ndarray  # [D, D - dimensions]

    def __call__(self, outputs: Outputs) -> np.ndarray:
        away = (_outputs.features(outputs) - self.origin) @ self.outside
        return np.linalg.norm(away, axis=1)


def residual(train: Outputs, dimensions: int | None = None) -> Residual:
    """|| R^T (phi - o) ||_2 (Wang et al. 2022, "ViM: out-of-distribution with virtual-logit ...").

    o = -pinv(W)^T b is the point whose logits are 0 where W allows it; R are the eigenvectors of
    mean (phi - o)(phi - o)^T with the smallest eigenvalues.

    Args:
      train: features and the last layer.
      dimensions: of the principal subspace; by default half of those of the features, as in the
        paper for fewer than 768.

    Raises:
      ValueError: no dense last layer, features that are not valid, or dimensions beyond them.
    """
    phi, last = _outputs.features(train), _outputs.last(train)
    D = phi.shape[1]
    if D < 2:
        raise ValueError("features: one alone has no subspace")
    d = _outputs.count(D // 2 if dimensions is None else dimensions, "dimensions", D - 1)
    origin = -np.linalg.pinv(last.kernel.T) @ last.bias
    centred = phi - origin
    vectors = np.linalg.eigh(centred.T @ centred / len(phi))[1]  # in rising order
    return Residual(origin, vectors[:, : D - d])
