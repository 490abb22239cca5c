"""Mahalanobis distance at several layers (Lee et al. 2018)."""

from typing import NamedTuple

import numpy as np

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import Outputs
from uncertainty.ood.mahalanobis import Gaussians, gaussians


class LayersMahalanobis(NamedTuple):
    """sum_l min_c d_c of the features of layer l."""

    layers: tuple[Gaussians, ...]

    def __call__(self, outputs: Outputs) -> np.ndarray:
        each = zip(self.layers, _all(outputs), strict=True)
        return np.sum([fitted.distances(phi).min(1) for fitted, phi in each], axis=0)


def layers_mahalanobis(train: Outputs, ridge: float = 1e-6) -> LayersMahalanobis:
    """sum_l min_c d_c(phi_l) over the earlier layers and the last, d_c as in `mahalanobis`.

    Layers have equal weights, as no out-of-distribution data are used for the fit. The paper learns
    weights on such data, and moves the input first.

    Args:
      train: features, those of earlier layers, and labels.
      ridge: added to the diagonal of Sigma, times its mean; for features that are always 0.

    Raises:
      ValueError: see `mahalanobis`; no features of earlier layers.
    """
    labels = _outputs.labels(train)
    return LayersMahalanobis(tuple(gaussians(phi, labels, ridge) for phi in _all(train)))


def _all(outputs: Outputs) -> list[np.ndarray]:
    if not outputs.layers:
        raise ValueError("layers: this score needs features of earlier layers, and there are none")
    return [*(_outputs.matrix(a, "layers") for a in outputs.layers), _outputs.features(outputs)]
