"""What members, kinds of members and combinations are worth, on the test set."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.combining.pool import Pool
from experiments.evaluators import combination, kinds
from experiments.evaluators.posthoc import measured
from experiments.prediction import archive
from uncertainty.metrics import classification


class Found(NamedTuple):
    """Numbers of a pool."""

    members: list[dict[str, float]]  # of each: validation and test accuracy and NLL
    kinds: dict[str, float]  # the metrics of the evaluator `kinds`
    class_accuracy: np.ndarray  # of kinds on the test set, [kinds, K]
    fits: dict[str, Any]  # method -> combination; None for all members
    metrics: dict[str, dict[str, float]]  # method -> metrics on the test set


def measure(
    pool: Pool, specs: Mapping[str, Mapping[str, Any]], counts: Sequence[int], bins: int = 15
) -> Found:
    """Fits each method on the validation set, and measures all on the test set.

    Args:
      pool: of members.
      specs: label -> spec of a method of `uncertainty/combining`.
      counts: members of mixtures by which kinds are compared.
      bins: of calibration errors.

    Raises:
      ValueError: see the methods.
    """
    held_out, test = pool.sets[archive.VALIDATION], pool.sets[archive.TEST]
    members = [
        {
            f"{name}_{metric}": float(of(part.log_p[m : m + 1], part.y))
            for name, part in ((archive.VALIDATION, held_out), (archive.TEST, test))
            for metric, of in (("accuracy", classification.accuracy), ("nll", classification.nll))
        }
        for m in range(len(pool.members))
    ]
    of_kinds = dict(kinds.measured(test.log_p, test.y, pool.kinds, counts))
    class_accuracy = of_kinds.pop("kinds/class_accuracy")
    fits: dict[str, Any] = {combination.ALL: None}
    for label, spec in specs.items():
        fits[label] = combination.fit_of(spec, held_out.log_p, held_out.y, "--methods")
    metrics = {
        label: measured(test.log_p if combine is None else combine(test.log_p), test.y, bins)
        for label, combine in fits.items()
    }
    return Found(members, of_kinds, class_accuracy, fits, metrics)
