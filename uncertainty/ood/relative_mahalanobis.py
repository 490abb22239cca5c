"""Relative Mahalanobis distance (Ren et al. 2021, "A simple fix to Mahalanobis distance ...")."""

from typing import NamedTuple

import numpy as np

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import Outputs
from uncertainty.ood.mahalanobis import Gaussians, gaussians


class RelativeMahalanobis(NamedTuple):
    """min_c d_c(phi) - d_0(phi)."""

    classes: Gaussians
    background: Gaussians

    def __call__(self, outputs: Outputs) -> np.ndarray:
        phi = _outputs.features(outputs)
        return self.classes.distances(phi).min(1) - self.background.distances(phi)[:, 0]


def relative_mahalanobis(train: Outputs, ridge: float = 1e-6) -> RelativeMahalanobis:
    """min_c d_c(phi) - d_0(phi): d_c as in `mahalanobis`, d_0 of one Gaussian for all classes.

    Args:
      train: features and labels.
      ridge: added to the diagonal of Sigma, times its mean; for features that are always 0.

    Raises:
      ValueError: see `mahalanobis`.
    """
    phi, labels = _outputs.features(train), _outputs.labels(train)
    return RelativeMahalanobis(
        gaussians(phi, labels, ridge), gaussians(phi, np.zeros(len(phi), int), ridge)
    )
