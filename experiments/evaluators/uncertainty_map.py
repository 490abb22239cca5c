"""Uncertainty over a plane of inputs, and its mean on parts of the data."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data import labels
from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, reads, reads_each
from experiments.runtime import keys
from uncertainty.build import nearest
from uncertainty.metrics.information import entropy
from uncertainty.metrics.ranking import auroc

if TYPE_CHECKING:
    from experiments.prediction.predictions import Predictions
    from experiments.prediction.predictor import Predictor

KINDS = ("entropy", "noise_std", "epistemic_std")  # of uncertainty


def uncertainty_map(
    data: Data,
    groups: Mapping[str, Any] | None = None,
    ood: Mapping[str, Any] | None = None,
    reference: str | None = None,
    limits: Sequence[float] | None = None,
    points: int = 96,
) -> Evaluator:
    """Predictions on a square grid, and the uncertainties of groups of examples.

    The total uncertainty about the label, and two parts of the variance of the latent u:

      entropy         of the mixture, in nats, at most log K
      noise_std       sqrt(mean_mk of what heads call noise of the labels)
      epistemic_std   sqrt(mean_k [mean_m of what heads call epistemic + var_m u_mk]), the distance
                      to the data and how far the members disagree, with u_m centred over k

    as far as head and ensemble define them; a plain network has neither part.

    Yields, for every group and OOD set, the mean of each as `map/<group>/<uncertainty>` and, given
    a reference, the AUROC of separating the others from it as `map/<group>/auroc_<uncertainty>`;
    and arrays for the figure: `map/axes` [2, G], `map/p` [G, G, K] and the uncertainties [G, G]
    with x_2 along the first axis, `map/x` and `map/y` of `data`, and `map/<set>/x` of each OOD set.

    Args:
      data: spec of the points to draw, such as the training data.
      groups: name -> spec of a part of the test data; labels are not used.
      ood: name -> spec of out-of-distribution data, which is drawn too.
      reference: the group to separate the others from, such as one without label noise.
      limits: (low, high) of both axes, in units of the data before normalisation; by default a
        square around the points of `data`, twice as wide as they are.
      points: G, along each axis.

    Raises:
      ValueError: fewer than two points, a reference that is not a group, a name shared by a group
        and an OOD set, or limits that do not ascend.
    """
    groups, ood = dict(groups or {}), dict(ood or {})
    if points < 2:
        raise ValueError(f"points: {points}; at least 2 are needed")
    if both := groups.keys() & ood.keys():
        raise ValueError(f"ood: {sorted(both)} are names of groups too")
    if reference is not None and reference not in groups:
        raise ValueError(f"reference: no group {reference!r}; {nearest(reference, groups)}")
    if limits is not None and (len(limits) != 2 or not limits[0] < limits[1]):
        raise ValueError(f"limits: {tuple(limits)}; (low, high) with low < high is needed")

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        source = predict.source(data)
        check(source)
        examples = source.raw(np.arange(len(source)))
        axes = _axes(examples["x"], limits, points)
        grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2).astype(np.float32)
        yield "map/axes", axes
        yield "map/x", examples["x"]
        yield "map/y", examples["y"]

        p = predict(_unlabelled(source, grid))
        if p.log_p is None:
            raise ValueError("uncertainty_map: needs a likelihood of classes")
        yield "map/p", np.exp(p.log_p).mean(0).reshape(points, points, -1)
        for name, value in uncertainties(p).items():
            yield f"map/{name}", value.reshape(points, points).astype(np.float32)

        sets = {**groups, **ood}
        of_sets = {}
        for name, spec in sets.items():
            p = predict(spec, labels.UNUSED)
            of_sets[name] = uncertainties(p)
            if name in ood:
                yield keys.join("map", name, "x"), p.source.raw(np.arange(len(p.source)))["x"]
        for name, values in of_sets.items():
            for kind, value in values.items():
                yield keys.join("map", name, kind), float(value.mean())
                if reference not in (None, name):
                    area = auroc(of_sets[reference][kind], value)
                    yield keys.join("map", name, f"auroc_{kind}"), area

    def check(source: Source) -> None:
        if source.shape != (2,):
            raise ValueError(f"data: {source.name}: inputs of shape {source.shape}; (2,) is needed")

    yields = {
        keys.join("map", name, f"{prefix}{kind}")
        for name in {**groups, **ood}
        for kind in KINDS
        for prefix in (("", "auroc_") if reference else ("",))
        if not (prefix and name == reference)
    }
    read = reads("data", data)
    for field, sets in (("groups", groups), ("ood", ood)):
        read += reads_each(field, sets, labels.UNUSED)
    return Evaluator(run, "classification", yields, read, check)


def uncertainties(p: "Predictions") -> dict[str, np.ndarray]:
    """The kinds of uncertainty that these predictions define, by name, [B] each."""
    kinds = {"entropy": entropy(p.log_p)}
    epistemic = None if p.epistemic is None else p.epistemic.mean((0, 2))
    if p.latent_variance is not None:
        variance = p.latent_variance
        noise = variance.mean((0, 2)) - (0.0 if epistemic is None else epistemic)
        if noise.max() > 1e-6 * variance.max():  # all of an SNGP's is epistemic
            kinds["noise_std"] = np.sqrt(np.maximum(noise, 0))
    if len(p.mean) > 1:
        centred = p.mean - p.mean.mean(2, keepdims=True)  # the softmax ignores a common shift
        epistemic = centred.var(0).mean(1) + (0.0 if epistemic is None else epistemic)
    if epistemic is not None:
        kinds["epistemic_std"] = np.sqrt(epistemic)
    return kinds


def _axes(x: np.ndarray, limits: Sequence[float] | None, points: int) -> np.ndarray:
    """Ticks of both axes, [2, G]."""
    if limits is None:
        low, high = x.min(0), x.max(0)
        middle, half = (low + high) / 2, np.max(high - low)
        return np.linspace(middle - half, middle + half, points, axis=1)
    return np.tile(np.linspace(*limits, points), (2, 1))


def _unlabelled(source: Source, x: np.ndarray) -> Source:
    """Points x [N, 2] as examples that are normalised as those of `source`."""
    return dataclasses.replace(source.with_entries(x=x), name="grid")
