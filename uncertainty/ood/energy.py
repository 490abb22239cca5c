"""Energy score (Liu et al. 2020, "Energy-based out-of-distribution detection")."""

from typing import NamedTuple

import numpy as np
from scipy import special

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import Outputs


class Energy(NamedTuple):
    """-T log sum_k exp(u_k / T)."""

    temperature: float

    def __call__(self, outputs: Outputs) -> np.ndarray:
        return free_energy(_outputs.logits(outputs), self.temperature)


def energy(train: Outputs | None, temperature: float = 1.0) -> Energy:
    """-T log sum_k exp(u_k / T) of logits u; nothing is fitted.

    Args:
      train: not used.
      temperature: T.

    Raises:
      ValueError: a temperature that is not positive.
    """
    del train
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature!r}; allowed above 0")
    return Energy(temperature)


def free_energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """-T log sum_k exp(u_k / T), [B, K] -> [B]."""
    return -temperature * special.logsumexp(logits / temperature, axis=-1)
