"""Detection of out-of-distribution data by the prediction's uncertainty and by fitted scores."""

import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.data import labels
from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, Predicted, reads, reads_each
from experiments.evaluators.regression import as_stored, moments_of
from experiments.runtime import keys
from uncertainty import metrics, specs
from uncertainty.metrics import regression
from uncertainty.ood import Outputs

if TYPE_CHECKING:
    from experiments.prediction.predictions import Summary
    from experiments.prediction.predictor import Predictor

ODIN = "odin"  # needs the network, not its outputs
ENERGY = "energy"  # has nothing to fit
Score = Callable[[Data], np.ndarray]  # of a data set, [B]
# Metrics and arrays by name, and in the end `ranks_of` each set that could be loaded.
Ranked = Generator[tuple[str, Any], None, dict[str, dict[str, float]]]


def ood(
    data: Data,
    sets: Mapping[str, Any],
    scores: Sequence[Any] = (),
    fit: Data | None = None,
    layers: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Evaluator:
    """AUROC, AUPR and FPR95 of every score, for every out-of-distribution set.

    The scores of classes are those of `metrics.ood_scores`, of real-valued targets those of
    `metrics.regression.ood_scores`: the variance of the mixture, and its parts.

    `ratio_entropy` and `ratio_probability_std` are the mean over the set divided by that over the
    test data (D'Angelo & Fortuin 2021).

    A set that cannot be loaded is reported after the others are done.

    Args:
      data: the in-distribution test source's spec.
      sets: name -> spec of a source with inputs of the same shape; its labels are not used.
      scores: further scores of `uncertainty/ood`, as names or dicts of fields. Logits are those of
        the members' mean, features those of all members side by side.
      fit: the data that these are fitted to, such as the training data; needed with `scores` other
        than 'energy' and 'odin'.
      layers: entries of all these data that are features of earlier layers, for
        'layers_mahalanobis'.
      groups: name -> sets, such as near=['cifar100'], whose metrics are averaged. A group of which
        a set could not be loaded has none.

    Raises:
      ValueError: scores without `fit`, an unknown score, a wrong field of one, one twice, or a
        group of unknown sets; `scores`, `fit` or `layers` of real-valued targets, which have no
        logits; when run, data without an entry of `layers`.
    """
    fitting = _fitting(scores)
    if fitting.keys() - {ODIN, ENERGY} and fit is None:
        raise ValueError("fit: missing; the data that the scores are fitted to")
    for group, names in (groups or {}).items():
        if group in sets or not names or set(names) - set(sets):
            raise ValueError(
                f"groups.{group}: {list(names)}; the sets are {list(sets)}, and no group has the "
                "name of a set"
            )

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        of_classes = predict.reader.like.task == "classification"
        missing: list[str] = []
        ranks = yield from (classes if of_classes else targets)(predict, missing)
        for group, names in (groups or {}).items():
            if all(name in ranks for name in names):
                for metric in ranks[names[0]]:
                    mean = np.mean([ranks[name][metric] for name in names])
                    yield keys.join("ood", group, metric), mean
        if missing:
            raise ValueError("; ".join(missing))

    def classes(predict: "Predictor", missing: list[str]) -> Ranked:
        inside, ranks = predict.summary(data), {}
        fitted = _fitted(predict, fitting, fit, layers)
        fitted_in = {name: score(data) for name, score in fitted.items()}
        for name, spec in sets.items():
            try:
                outside = predict.summary(spec, labels.UNUSED)
            except (OSError, ValueError, ImportError) as error:
                missing.append(f"{name}: {error}")
                continue
            fitted_out = {key: score(spec) for key, score in fitted.items()}
            yield from measured(name, inside, outside, fitted_in, fitted_out)
            ranks[name] = ranks_of(inside.scores | fitted_in, outside.scores | fitted_out)
        return ranks

    def targets(predict: "Predictor", missing: list[str]) -> Ranked:
        p = predict(data)
        mean, variance, y = moments_of(p, "ood")
        unit = scale_of(y)
        inside, ranks = regression.ood_scores(mean, variance, unit), {}
        for score, values in inside.items():
            yield f"test/{score}", values
        for name, spec in sets.items():
            try:
                of_set = predict(spec, labels.UNUSED)
            except (OSError, ValueError, ImportError) as error:
                missing.append(f"{name}: {error}")
                continue
            mean, variance, _ = as_stored(p.source, of_set.mean, of_set.variance, np.zeros(1))
            outside = regression.ood_scores(mean, variance, unit)
            ranks[name] = ranks_of(inside, outside)
            for metric, value in (ranks[name] | outside).items():
                yield keys.join("ood", name, metric), value
        return ranks

    def check(source: Source) -> None:
        if source.task == "unlabelled":
            raise ValueError(f"data: {source.name} has no labels, so that no prediction is trained")
        for field, value in dict(scores=[*fitting], fit=fit, layers=list(layers)).items():
            if value and source.task != "classification":
                raise ValueError(f"{field}: {value}; of classes alone, not of {source.task}")

    def predicted(predict: "Predictor") -> Iterator[Predicted]:
        yield Predicted("in_distribution", data)
        for name, spec in sets.items():
            yield Predicted(keys.join("ood", name), spec, labels.UNUSED)

    p = np.full((2, 2, 2), 0.5)
    every = [*metrics.ood_scores(np.log(p), p, p), *regression.ood_scores(p, p), *fitting]
    names = [f"{rank}_{s}" for s in every for rank in metrics.ranking(np.zeros(1), np.ones(1))]
    yields = {keys.join("ood", name, key) for name in [*sets, *(groups or {})] for key in names}
    ratios = ("ratio_entropy", "ratio_probability_std")
    yields |= {keys.join("ood", name, key) for name in sets for key in ratios}
    read = (
        reads("data", data)
        + reads_each("sets", sets, labels.UNUSED)
        + reads("fit", fit, reported=False)
    )
    return Evaluator(run, None, yields, read, check, predicted)


def scale_of(y: np.ndarray) -> np.ndarray:
    """The unit in which variances of several outputs are added, for targets y [B, K], [K].

    The variance of each output over the examples; of one output 1, as nothing is added.

    Raises:
      ValueError: one of several outputs is the same for all examples, so that it has no unit.
    """
    if y.shape[1] == 1:
        return np.ones(1)
    constant = np.ptp(y, axis=0) == 0
    if constant.any():
        k = constant.argmax()
        raise ValueError(
            f"y: output {k} is {y[0, k]:.6g} in all test examples; OOD scores add the variances of "
            "outputs in units of their variance there, which is 0"
        )
    return y.var(0)


def measured(
    name: str,
    inside: "Summary",
    outside: "Summary",
    fitted_in: Mapping[str, np.ndarray] = MappingProxyType({}),
    fitted_out: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Iterator[tuple[str, Any]]:
    """The metrics of one out-of-distribution set, and its arrays per example."""
    for metric, value in ranks_of(inside.scores | fitted_in, outside.scores | fitted_out).items():
        yield keys.join("ood", name, metric), value
    for score in {"entropy", "probability_std"} & outside.scores.keys():
        ratio = outside.scores[score].mean() / inside.scores[score].mean()
        yield keys.join("ood", name, f"ratio_{score}"), ratio
    for key in ("confidence", "entropy", "mutual_information"):
        if key in outside.examples:
            yield keys.join("ood", name, key), outside.examples[key]


def ranks_of(inside: Mapping[str, Any], outside: Mapping[str, Any]) -> dict[str, float]:
    """`<metric>_<score>` of every score, by the scores [B] of both sets."""
    return {
        f"{metric}_{score}": value
        for score, values in outside.items()
        for metric, value in metrics.ranking(inside[score], values).items()
    }


def _fitting(scores: Sequence[Any]) -> dict[str, Callable]:
    """The functions of `uncertainty/ood`, with their fields, by name."""
    fitting: dict[str, Callable] = {}
    for i, spec in enumerate(scores):
        name = specs.spec_of(spec, f"scores[{i}]")["name"]
        given = ("logits", "x") if name == ODIN else ("train",)
        if name in fitting:
            raise ValueError(f"scores[{i}]: {name!r} is there twice")
        fitting[name] = specs.partial("ood", spec, f"scores[{i}]", given)
    return fitting


def _fitted(
    predict: "Predictor",
    fitting: Mapping[str, Callable],
    fit: Data | None,
    layers: Sequence[str],
) -> dict[str, Score]:
    """Each score as a function of a data set, whose outputs are computed once."""
    if not fitting:
        return {}
    last = predict.last_layer()
    computed: dict[int, Outputs] = {}

    def outputs(data: Data, use: str = labels.UNUSED) -> Outputs:
        if id(data) not in computed:
            source = predict.source(data, use)
            p = predict(source, use)
            for name in layers:
                if name not in p.entries:
                    raise ValueError(
                        f"layers: {source.title} has no entry {name!r}; it has {[*p.entries]}"
                    )
            computed[id(data)] = Outputs(
                features=predict.features(source).phi,
                logits=p.mean.mean(0, dtype=np.float64),
                labels=p.y if use == labels.ALIKE else None,
                layers=tuple(p.entries[name] for name in layers),
                last=last,
            )
        return computed[id(data)]

    def score(scorer: Callable[[Outputs], np.ndarray], data: Data) -> np.ndarray:
        return scorer(outputs(data))

    fitted: dict[str, Score] = {}
    for name, make in fitting.items():
        if name == ODIN:
            fitted[name] = functools.partial(_odin, predict, make)
        else:
            try:
                scorer = make(train=None if name == ENERGY else outputs(fit, labels.ALIKE))
            except ValueError as error:
                raise ValueError(f"scores: {name}: {error}") from error
            fitted[name] = functools.partial(score, scorer)
    return fitted


def _odin(predict: "Predictor", make: Callable, data: Data) -> np.ndarray:
    """ODIN's score by the mean logits of all members."""
    latents = predict.runs[0].latents

    def score(state: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        def logits(x: jax.Array) -> jax.Array:
            return latents(state, {**batch, "x": x}).mean.mean(0)

        return make(logits=logits, x=batch["x"])

    parts = predict.map(score, data, labels.UNUSED, axis=0)
    return np.concatenate([part.out for part in parts]).astype(np.float64)
