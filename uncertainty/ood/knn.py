"""Nearest neighbours (Sun et al. 2022, "Out-of-distribution detection with deep nearest ...")."""

from typing import NamedTuple

import numpy as np

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import Outputs

CHUNK = 1 << 24  # numbers in a block of distances


class Knn(NamedTuple):
    """Distance to the k-th nearest training example, of features of norm 1."""

    train: np.ndarray  # [N, D] float32, of norm 1
    k: int

    def __call__(self, outputs: Outputs) -> np.ndarray:
        phi = unit(_outputs.features(outputs))
        size = max(1, CHUNK // len(self.train))
        parts = []
        for start in range(0, len(phi), size):
            cosine = phi[start : start + size] @ self.train.T
            parts.append(np.partition(cosine, -self.k, axis=1)[:, -self.k])
        nearest = np.concatenate(parts).astype(np.float64)
        return np.sqrt(np.maximum(2 - 2 * nearest, 0))


def knn(train: Outputs, k: int = 50) -> Knn:
    """|phi / |phi| - phi_(k) / |phi_(k)||, phi_(k) the k-th nearest of the training examples.

    Args:
      train: features.
      k: 50 is the paper's for CIFAR-10, 200 for CIFAR-100, 1,000 for ImageNet.

    Raises:
      ValueError: features that are missing or not valid, or a k beyond the number of examples.
    """
    phi = unit(_outputs.features(train))
    return Knn(phi, _outputs.count(k, "k", len(phi)))


def unit(features: np.ndarray) -> np.ndarray:
    """Features divided by their norm, float32; zeros stay zeros."""
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(norm, 1e-12)).astype(np.float32)
