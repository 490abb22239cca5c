"""GradNorm (Huang et al. 2021, "On the importance of gradients for detecting ...")."""

from typing import NamedTuple

import numpy as np
from scipy import special

from uncertainty.ood import _outputs
from uncertainty.ood._outputs import Outputs


class GradNorm(NamedTuple):
    """-|| d/dW cross-entropy(uniform, softmax(u / T)) ||_1 of the last layer's kernel W."""

    temperature: float

    def __call__(self, outputs: Outputs) -> np.ndarray:
        u = _outputs.logits(outputs)
        p = special.softmax(u / self.temperature, axis=1)
        away = np.abs(p - 1 / u.shape[1]).sum(1) / self.temperature
        return -np.abs(_outputs.features(outputs)).sum(1) * away


def grad_norm(train: Outputs, temperature: float = 1.0) -> GradNorm:
    """-(sum_d |phi_d|) (sum_k |p_k - 1 / K|) / T, p = softmax(u / T).

    This is the L1 norm of the gradient of mean_k -log p_k with respect to the kernel of a dense
    last layer, dL/dW_dk = phi_d (p_k - 1 / K) / T, so no gradient has to be computed.

    Args:
      train: only whether there is a dense last layer is used.
      temperature: T.

    Raises:
      ValueError: no dense last layer, or a temperature that is not positive.
    """
    _outputs.last(train)
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature!r}; allowed above 0")
    return GradNorm(temperature)
