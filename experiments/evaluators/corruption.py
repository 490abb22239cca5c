"""Accuracy and calibration under corruptions of growing severity."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data import corruptions
from experiments.evaluators import classification
from experiments.runtime import keys
from uncertainty import metrics
from uncertainty.build import ConfigError

SHOWN = {"accuracy": "classification", "nll": "classification", "ece": "calibration"}


def corruption(
    predict: Any,
    data: Any,
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    bins: int = 15,
) -> Iterator[tuple[str, Any]]:
    """Each metric for each kind and severity, and their plain mean over both.

    Args:
      predict: `predict.Predictor`.
      data: the clean source's spec.
      kinds: names in `experiments/data/corruptions.py`; by default all for such data.
      severities: 1 (mild) to 5.
      bins: of the calibration error.
    """
    clean = predict.source(data)
    total = {name: [] for name in SHOWN}
    for kind in kinds or corruptions.kinds_for(clean):
        for severity in severities:
            corrupted = corruptions.corrupted(clean, kind, severity)
            p = predict.summary(corrupted, bins=bins, scores=False)
            result = metrics.of_tally(p.tally, p.confidence, p.correct)
            for name, group in SHOWN.items():
                value = result[f"{group}/{name}"]
                total[name].append(value)
                yield keys.join("corruption", kind, str(severity), name), value
    for name, values in total.items():
        yield f"corruption/{name}", float(np.mean(values))


def _yields(
    kinds: Sequence[str] | None = None, severities: Sequence[int] = (1, 2, 3, 4, 5), **_: Any
) -> set[str]:
    means = {f"corruption/{name}" for name in SHOWN}
    return means | {
        keys.join("corruption", kind, str(severity), name)
        for kind in kinds or corruptions.IMAGE
        for severity in severities
        for name in SHOWN
    }


corruption.task = "classification"
corruption.yields = _yields


def check(
    source: Any,
    data: Any,
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    bins: int = 15,
) -> None:
    """Raises ValueError for kinds and severities that examples like `source` cannot have."""
    classification.check(source, data, bins)
    known = corruptions.kinds_for(source)
    for field, values, valid in (("kinds", kinds or known, known),
                                 ("severities", severities, (1, 2, 3, 4, 5))):  # fmt: skip
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"{field}: {values!r}; a list of some of {valid}")
        for value in values:
            if value not in valid:
                raise ConfigError(f"{field}: {value!r}; these data can have {valid}")
    corruptions.corrupted(source, known[0], 1)
