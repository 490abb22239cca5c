"""Mahalanobis distance (Lee et al. 2018, "A simple unified framework for detecting ...")."""

from typing import NamedTuple

import numpy as np

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import Outputs


class Gaussians(NamedTuple):
    """Gaussians with one covariance."""

    means: np.ndarray  # [C, D]
    whiten: np.ndarray  # [D, D], W with W W^T = Sigma^-1

    def distances(self, features: np.ndarray) -> np.ndarray:
        """(phi - m_c)^T Sigma^-1 (phi - m_c), [B, D] -> [B, C]."""
        z, means = features @ self.whiten, self.means @ self.whiten
        return np.stack([((z - m) ** 2).sum(1) for m in means], axis=1)


class Mahalanobis(NamedTuple):
    """min_c (phi - m_c)^T Sigma^-1 (phi - m_c)."""

    classes: Gaussians

    def __call__(self, outputs: Outputs) -> np.ndarray:
        return self.classes.distances(_outputs.features(outputs)).min(1)


def mahalanobis(train: Outputs, ridge: float = 1e-6) -> Mahalanobis:
    """min_c (phi - m_c)^T Sigma^-1 (phi - m_c), means by class, Sigma that within classes.

    Args:
      train: features and labels.
      ridge: added to the diagonal of Sigma, times its mean; for features that are always 0.

    Raises:
      ValueError: features or labels that are missing or not valid, a negative ridge, or a Sigma
        that is singular.
    """
    return Mahalanobis(gaussians(_outputs.features(train), _outputs.labels(train), ridge))


def gaussians(features: np.ndarray, labels: np.ndarray, ridge: float) -> Gaussians:
    """Means [C, D] by label, and the covariance about them, sum / B; errors as in `mahalanobis`."""
    if ridge < 0:
        raise ValueError(f"ridge: {ridge!r}; allowed from 0")
    if len(features) != len(labels):
        raise ValueError(f"labels: {len(labels)} for {len(features)} examples")
    means = np.stack([features[labels == c].mean(0) for c in range(labels.max() + 1)])
    centred = features - means[labels]
    sigma = centred.T @ centred / len(features)
    sigma += ridge * np.trace(sigma) / len(sigma) * np.eye(len(sigma))
    try:
        factor = np.linalg.cholesky(sigma)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"ridge: {ridge!r}; the covariance of the features is singular, a larger one is needed"
        ) from None
    return Gaussians(means, np.linalg.inv(factor).T)
