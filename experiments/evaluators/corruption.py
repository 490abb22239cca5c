"""Accuracy and calibration under corruptions of growing severity."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments import keys
from experiments.data import corruptions
from experiments.data.source import load
from uncertainty import metrics

SHOWN = {"accuracy": "classification", "nll": "classification", "ece": "calibration"}


def corruption(
    predict: Any,
    data: Any,
    kinds: Sequence[str] = corruptions.IMAGE,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    bins: int = 15,
) -> Iterator[tuple[str, Any]]:
    """Each metric for each kind and severity, and their plain mean over both.

    Args:
      predict: `predict.Predictor`.
      data: the clean source's spec.
      kinds: names in `experiments/data/corruptions.py`.
      severities: 1 (mild) to 5.
      bins: of the calibration error.
    """
    clean = load(data)
    total = {name: [] for name in SHOWN}
    for kind in kinds:
        for severity in severities:
            p = predict(corruptions.corrupted(clean, kind, severity))
            result = metrics.evaluate_classification(p.log_p, p.y, bins)
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
