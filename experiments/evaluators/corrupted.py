"""Accuracy and calibration on data that were corrupted beforehand, such as cached features."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data import cifar_c
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import check_bins
from experiments.evaluators.corruption import SEVERITIES, SHOWN
from experiments.runtime import keys
from uncertainty import metrics

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor


def corrupted(data: Data, bins: int = 15) -> Evaluator:
    """The metrics of `corruption` for each kind and severity, and their plain mean over all.

    Args:
      data: a labelled source's spec with the entries `corruption`, an index of `cifar_c.KINDS`, and
        `severity`.
      bins: of the calibration error.

    Raises:
      ValueError: fewer than one bin, or data without these entries.
    """
    check_bins(bins)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        p = predict(data)
        if missing := {"corruption", "severity"} - p.entries.keys():
            raise ValueError(f"data: no entry {sorted(missing)[0]!r}; name it in `entries`")
        kinds, severities = (np.asarray(p.entries[k]) for k in ("corruption", "severity"))
        values: dict[str, list[float]] = {name: [] for name in SHOWN}
        for number, severity in np.unique(np.stack([kinds, severities]), axis=1).T:
            rows = (kinds == number) & (severities == severity)
            result = metrics.evaluate_classification(p.log_p[:, rows], p.y[rows], bins)
            for name, group in SHOWN.items():
                value = result[f"{group}/{name}"]
                values[name].append(value)
                kind = cifar_c.KINDS[int(number)]
                yield keys.join("corruption", kind, str(int(severity)), name), value
        for name, each in values.items():
            yield f"corruption/{name}", float(np.mean(each))

    yields = {f"corruption/{name}" for name in SHOWN} | {
        keys.join("corruption", kind, str(severity), name)
        for kind in cifar_c.KINDS
        for severity in SEVERITIES
        for name in SHOWN
    }
    return Evaluator(run, "classification", yields, reads("data", data))
