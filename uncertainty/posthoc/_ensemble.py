"""Post-hoc calibration of an ensemble: of its mixture, of each member, or of members jointly."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.posthoc import _arrays

OF = ("mixture", "members", "joint")


class OfMixture(NamedTuple):
    """Calibrates the mixture: log p [M, B, K] -> [1, B, K]."""

    calibrator: Any

    def __call__(self, log_p: Any) -> Any:
        return self.calibrator(_arrays.mixture(_arrays.as_floats(log_p)))[None]


class OfMembers(NamedTuple):
    """Calibrates each member by its own calibrator: log p [M, B, K] -> [M, B, K]."""

    calibrators: tuple[Any, ...]  # M

    def __call__(self, log_p: Any) -> Any:
        if len(log_p) != len(self.calibrators):
            raise ValueError(
                f"log_p: {len(log_p)} members, but the calibrators are of {len(self.calibrators)}"
            )
        log_p = _arrays.as_floats(log_p)
        xp = _arrays.namespace(log_p)
        return xp.stack([f(member) for f, member in zip(self.calibrators, log_p, strict=True)])


def of_ensemble(
    fit: Callable[[np.ndarray, np.ndarray], Any],
    log_p: ArrayLike,
    labels: ArrayLike,
    of: str = "mixture",
) -> Any:
    """Fits a method to an ensemble.

    'mixture' pools, then calibrates: what is calibrated is what predicts. 'members' calibrates,
    then pools: each member is calibrated alone, and their mixture is then less confident than it is
    right, as a mixture of calibrated forecasts is not calibrated unless they agree (Gneiting &
    Ranjan 2013; Wu & Gales 2021, "Should ensemble members be calibrated?"; Rahaman & Thiery 2021,
    "Uncertainty quantification and deep ensembles"). So 'mixture' is right for the ensemble's own
    probabilities, and 'members' where members are used alone. 'joint' has one calibrator for all
    members, such that their mixture is calibrated: `temperature` alone can be fitted so. It keeps
    the members, and so their mutual information, and fits the mixture as closely as 'mixture' does,
    without the guarantee of one optimum.

    Args:
      fit: log_p [B, K], labels [B] -> calibrator; a method of this package.
      log_p: [M, B, K] log-probabilities of each member.
      labels: [B] integers.
      of: one of `OF`.

    Returns:
      A calibrator log_p [M, B, K] -> log_p [1, B, K] of the mixture, or [M, B, K] of members.

    Raises:
      ValueError: an unknown `of`, wrong arrays, or 'joint' of a method that is for [B, K] alone.
    """
    if of not in OF:
        raise ValueError(f"of: {of!r}; one of {', '.join(map(repr, OF))}")
    log_p = np.asarray(log_p)
    if log_p.ndim != 3 or 0 in log_p.shape:
        raise ValueError(f"log_p: [members, examples, classes] is expected; got {log_p.shape}")
    labels = np.asarray(labels)
    if of == "joint":
        return OfMembers((fit(log_p, labels),) * len(log_p))
    if of == "mixture":
        return OfMixture(fit(_arrays.mixture(log_p.astype(np.float64)), labels))
    return OfMembers(tuple(fit(member, labels) for member in log_p))
