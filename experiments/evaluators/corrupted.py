"""Accuracy and calibration on data that were corrupted beforehand, such as cached features."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data import cifar_c
from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import check_bins
from experiments.evaluators.corruption import SEVERITIES, SHOWN
from experiments.evaluators.human import mixture
from experiments.evaluators.posthoc import check_held_out
from experiments.runtime import keys
from uncertainty import metrics
from uncertainty.posthoc.temperature import temperature

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor


def corrupted(data: Data, bins: int = 15, fit: Data | None = None) -> Evaluator:
    """The metrics of `corruption` for each kind and severity, and their plain mean over all.

    With `fit`, `corruption/fitted/` has these means for the mixture at the temperature that is best
    for other, clean examples. It changes no accuracy.

    Args:
      data: a labelled source's spec with the entries `corruption`, an index of `cifar_c.KINDS`, and
        `severity`.
      bins: of the calibration error.
      fit: the spec of labelled examples that are neither training examples nor those of `data`
        before their corruption, such as split='test[500:]' where the first 500 were corrupted.

    Raises:
      ValueError: fewer than one bin, data without these entries, or training examples as `fit`.
    """
    check_bins(bins)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        p = predict(data)
        if missing := {"corruption", "severity"} - p.entries.keys():
            raise ValueError(f"data: no entry {sorted(missing)[0]!r}; name it in `entries`")
        kinds, severities = (np.asarray(p.entries[k]) for k in ("corruption", "severity"))
        every = {"": mixture(p.log_p)}
        if fit is not None:
            held = predict(fit)
            calibrator = temperature(mixture(held.log_p), np.asarray(held.y))
            every["fitted"] = calibrator(every[""])
        values: dict[tuple[str, str], list[float]] = {}
        for number, severity in np.unique(np.stack([kinds, severities]), axis=1).T:
            rows = (kinds == number) & (severities == severity)
            for which, log_p in every.items():
                result = metrics.evaluate_classification(log_p[None, rows], p.y[rows], bins)
                for name, group in SHOWN.items():
                    value = result[f"{group}/{name}"]
                    values.setdefault((which, name), []).append(value)
                    if not which:
                        kind = cifar_c.KINDS[int(number)]
                        yield keys.join("corruption", kind, str(int(severity)), name), value
        for (which, name), each in values.items():
            yield keys.join("corruption", *filter(None, [which]), name), float(np.mean(each))

    def check(source: Source) -> None:
        if fit is not None:
            check_held_out(source, fit)

    of_means = ((), ("fitted",)) if fit is not None else ((),)
    yields = {keys.join("corruption", *of, name) for of in of_means for name in SHOWN}
    yields |= {
        keys.join("corruption", kind, str(severity), name)
        for kind in cifar_c.KINDS
        for severity in SEVERITIES
        for name in SHOWN
    }
    read = reads("data", data) + reads("fit", fit, reported=False)
    return Evaluator(run, "classification", yields, read, check)
