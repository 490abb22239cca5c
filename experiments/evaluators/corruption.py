"""Accuracy and calibration under corruptions of growing severity."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data import cifar_c, corruptions
from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, Predicted, reads
from experiments.evaluators.classification import check_bins
from experiments.runtime import keys
from uncertainty import metrics
from uncertainty.build import nearest

if TYPE_CHECKING:
    from experiments.prediction.predictions import Summary
    from experiments.prediction.predictor import Predictor

SHOWN = {"accuracy": "classification", "nll": "classification", "ece": "calibration"}
SEVERITIES = (1, 2, 3, 4, 5)


def corruption(
    data: Data,
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    bins: int = 15,
    family: str = corruptions.OWN,
    textures: str | None = None,
) -> Evaluator:
    """Each metric for each kind and severity, and their plain mean over both.

    Args:
      data: the clean source's spec.
      kinds: names in `experiments/data/corruptions.py`; by default all that apply to the data.
      severities: 1 (mild) to 5.
      bins: of the calibration error.
      family: 'own', or 'cifar_c' for the 19 corruptions of CIFAR-10-C (`data/cifar_c.py`).
      textures: a file with those of its 'frost'; without it, `kinds` has to leave 'frost' out.

    Raises:
      ValueError: fewer than one bin, an unknown family, no kind or severity, or no textures.
    """
    check_bins(bins)
    if family not in corruptions.FAMILIES:
        raise ValueError(f"family: {family!r}; {nearest(family, corruptions.FAMILIES)}")
    every = corruptions.IMAGE if family == corruptions.OWN else cifar_c.KINDS
    if family == corruptions.CIFAR_C and textures is None and "frost" in (kinds or every):
        raise ValueError("textures: None; 'frost' needs a file, or `kinds` without it")
    _check_some("kinds", kinds, None)
    _check_some("severities", severities, None)

    def corrupted(predict: "Predictor") -> Iterator[tuple[str, int, Source]]:
        clean = predict.source(data)
        for kind in kinds or corruptions.kinds_for(clean, family):
            for severity in severities:
                source = corruptions.corrupted(clean, kind, severity, family, textures)
                yield kind, severity, source

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        return measured(
            (kind, str(severity), predict.summary(source, bins=bins, scores=False))
            for kind, severity, source in corrupted(predict)
        )

    def predicted(predict: "Predictor") -> Iterator[Predicted]:
        for kind, severity, source in corrupted(predict):
            yield Predicted(keys.join("corruption", kind, str(severity)), source)

    def check(source: Source) -> None:
        available = corruptions.kinds_for(source, family)
        _check_some("kinds", kinds, available)
        _check_some("severities", severities, SEVERITIES)
        corruptions.corrupted(source, available[0], 1, family)

    yields = {f"corruption/{name}" for name in SHOWN} | {
        keys.join("corruption", kind, str(severity), name)
        for kind in kinds or every
        for severity in severities
        for name in SHOWN
    }
    return Evaluator(run, "classification", yields, reads("data", data), check, predicted)


def measured(sets: Iterable[tuple[str, str, "Summary"]]) -> Iterator[tuple[str, Any]]:
    """The metrics of each corrupted set, and their means.

    Args:
      sets: (kind, severity, summary).
    """
    values: dict[str, list[float]] = {name: [] for name in SHOWN}
    for kind, severity, p in sets:
        result = metrics.of_tally(p.tally, p.confidence, p.correct)
        for name, group in SHOWN.items():
            value = result[f"{group}/{name}"]
            values[name].append(value)
            yield keys.join("corruption", kind, severity, name), value
    for name, each in values.items():
        yield f"corruption/{name}", float(np.mean(each))


def _check_some(field: str, values: Sequence[Any] | None, valid: Sequence[Any] | None) -> None:
    """Raises ValueError unless `values` are valid; None means all valid ones."""
    if values is None:
        return
    if not values:
        raise ValueError(f"{field}: {values!r}; at least one is needed")
    for value in values:
        if valid is not None and value not in valid:
            raise ValueError(f"{field}: {value!r}; these data can have {valid}")
