"""Conformal prediction sets of classes: coverage and size, also in classes, groups and shifts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from experiments.data.source import Source
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.posthoc import (
    calibration_data,
    check_held_out,
    corrupted_sources,
    corruptions_of,
    fit_of,
    of_targets,
)
from experiments.evaluators.posthoc import labelled as maps_of
from experiments.prediction import fitted
from experiments.prediction.predictions import Predictions
from experiments.runtime import keys
from uncertainty.metrics.sets import coverage_range, evaluate_sets
from uncertainty.specs import make, resolve, signature, spec_of

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

Fitted = tuple[dict[str, Any], Any, Any]


def conformal(
    data: Data,
    fit: Data,
    methods: Sequence[Any] = ("lac", "aps", "raps"),
    alpha: float = 0.1,
    posthoc: Any = (),
    groups: str | None = None,
    corrupted: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Evaluator:
    """`metrics.sets.evaluate_sets` of each method, `conformal/<label>/<metric>`.

    Also `expected_low` and `expected_high`, between which the coverage of a valid method lies with
    a probability of 95 %; `calibration_examples`, and `unbounded`, the share of quantiles (by
    group, of those of the test set's groups) that are infinite because too few examples calibrate
    them, so that their sets have everything.

    The coverage holds for examples that are exchangeable with those of `fit`, and for no others:
    `corrupted` shows by how much it fails there. Predictors are saved beside the results
    (`prediction.fitted`).

    Args:
      data: the test source's spec.
      fit: the spec of the labelled examples that calibrate; neither training nor test examples.
      methods: names or specs of `uncertainty/conformal` for classes, each also with `label` in the
        results, by default the name, with `by_class` or `by_group`.
      alpha: the share of labels that sets may miss.
      posthoc: methods as those of the evaluator `posthoc`, such as ('temperature',). A random half
        of `fit` fits them and the other half calibrates the sets, with and without each of them, as
        <label> and <label>_<method>; so these differ by it alone, and coverage stays exact.
      groups: the entry of the data set with the group of an example, an integer from 0; for
        by='group', and for coverage within groups.
      corrupted: dict(severities=..., kinds=...) adds `conformal/<label>/severity_<s>/<metric>`,
        means over the kinds.
      seed: of the draws of randomised methods, and of the halves.

    Raises:
      ValueError: an unknown method or field, two methods of one label, also after `posthoc`, or
        examples that are not held out.
    """
    specs = labelled(methods, alpha, groups)
    severities = corruptions_of(corrupted)
    named = (posthoc,) if isinstance(posthoc, str) else posthoc or ()
    map_specs = maps_of(named, "posthoc") if len(named) else {}
    for name, spec in map_specs.items():
        if of_targets(spec):
            raise ValueError(f"posthoc: {name!r} is for targets, and these are classes")
    ends = ["", *(f"_{name}" for name in map_specs)]
    results = [label + end for label in specs for end in ends]
    if twice := [name for name in results if results.count(name) > 1]:
        raise ValueError(
            f"methods: {twice[0]!r} is the label of one, and of another after `posthoc`; give "
            "another label"
        )

    def fit_all(held_out: Predictions) -> tuple[dict[str, Fitted], np.ndarray]:
        """label -> (spec, predictor, map of log p before it), and the examples that calibrate."""
        used, maps = np.random.default_rng([seed, 1]).permutation(len(held_out.y)), [None]
        if map_specs:
            if len(used) < 2:
                raise ValueError("fit: a single example, which cannot be halved; unset posthoc")
            first, used = np.split(used, [len(used) // 2])
            of_first = held_out.log_p[:, first], held_out.y[first]
            maps += [fit_of(spec, *of_first, "posthoc") for spec in map_specs.values()]
        u = np.random.default_rng([seed, 2]).random(len(used))
        of_groups = groups_of(held_out, groups)
        of_used = None if of_groups is None else of_groups[used]
        predictors = {}
        for label, spec in specs.items():
            for end, map_ in zip(ends, maps, strict=True):
                log_p = mixture(held_out.log_p[:, used], map_)
                predictor = fit_sets(spec, log_p, held_out.y[used], u, of_used)
                predictors[label + end] = (spec, predictor, map_)
        return predictors, used

    def measured(predictors: Mapping[str, Fitted], p: Predictions) -> Iterator[tuple]:
        """(label, metric, value) of all predictors."""
        u = np.random.default_rng([seed, 3]).random(len(p.y))
        of_groups = groups_of(p, groups)
        for label, (_, predictor, map_) in predictors.items():
            chosen = predictor(mixture(p.log_p, map_), u=u, groups=of_groups)
            for name, value in evaluate_sets(chosen, p.y, alpha, of_groups).items():
                yield label, name, value

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        predictors, used = fit_all(calibration_data(predict, fit, data))
        p = predict(data)
        low, high = coverage_range(len(used), len(p.y), alpha)
        for label, (spec, predictor, map_) in predictors.items():
            yield from fitted.arrays_of("conformal", label, spec, predictor)
            if map_ is not None:
                name = max((n for n in map_specs if label.endswith(f"_{n}")), key=len)
                yield from fitted.arrays_of("posthoc", f"before_{label}", map_specs[name], map_)
            yield keys.join("conformal", label, "calibration_examples"), float(len(used))
            infinite = unbounded(predictor, groups_of(p, groups))
            yield keys.join("conformal", label, "unbounded"), infinite
            if spec.get("by", "none") == "none":
                yield keys.join("conformal", label, "expected_low"), float(low)
                yield keys.join("conformal", label, "expected_high"), float(high)
        for label, name, value in measured(predictors, p):
            yield keys.join("conformal", label, name), value
        for severity in severities:
            values: dict[tuple[str, str], list[float]] = {}
            for source in corrupted_sources(predict.source(data), corrupted, severity):
                for label, name, value in measured(predictors, predict(source)):
                    values.setdefault((label, name), []).append(value)
            for (label, name), each in values.items():
                key = keys.join("conformal", label, f"severity_{severity}", name)
                yield key, float(np.mean(each))

    def check(source: Source) -> None:
        check_held_out(source, fit)

    of_sets = evaluate_sets(
        np.eye(2, dtype=bool), np.arange(2), alpha, None if groups is None else np.arange(2)
    )
    fixed = {"calibration_examples", "unbounded", "expected_low", "expected_high"}
    yields = set()
    for label in (key + end for key in specs for end in ends):
        yields |= {keys.join("conformal", label, name) for name in {*of_sets, *fixed}}
        for severity in severities:
            place = f"severity_{severity}"
            yields |= {keys.join("conformal", label, place, name) for name in of_sets}
    read = reads("data", data) + reads("fit", fit, reported=False)
    return Evaluator(run, "classification", yields, read, check)


def mixture(log_p: np.ndarray, calibrate: Any = None) -> np.ndarray:
    """The log-probabilities of the mixture, [B, K], of members [M, B, K], calibrated or not."""
    members = np.asarray(log_p, np.float64) if calibrate is None else calibrate(log_p)
    return special.logsumexp(members, axis=0) - np.log(len(members))


def groups_of(p: Predictions, entry: str | None) -> np.ndarray | None:
    """The groups of the examples, [B]; None without an entry.

    Raises:
      ValueError: the data set has no such entry.
    """
    if entry is None:
        return None
    if entry not in p.entries:
        raise ValueError(f"groups: {p.source.title} has no entry {entry!r}; it has {[*p.entries]}")
    return np.asarray(p.entries[entry])


def unbounded(predictor: Any, groups: np.ndarray | None) -> float:
    """The share of infinite thresholds: by group, among the groups of a set of examples.

    Args:
      predictor: of `uncertainty/conformal`.
      groups: of the examples, [B]; a group that the predictor was not calibrated on has an infinite
        threshold.
    """
    infinite = np.isinf(predictor.quantile)
    if groups is None or not len(predictor.ids):
        return float(infinite.mean())
    of = dict(zip(predictor.ids.tolist(), infinite, strict=True))
    return float(np.mean([np.mean(of.get(group, True)) for group in np.unique(groups).tolist()]))


def fit_sets(
    spec: Mapping[str, Any],
    log_p: np.ndarray,
    labels: np.ndarray,
    u: np.ndarray,
    groups: np.ndarray | None,
    field: str = "methods",
) -> Any:
    """The predictor of a spec, calibrated by log_p [B, K] of the mixture and labels [B]."""
    given = dict(log_p=log_p, labels=labels)
    takes, _ = signature(resolve("conformal", spec["name"], field))
    if not {"log_p", "labels"} <= takes:
        raise ValueError(f"{field}.name: {spec['name']!r} is for targets, and these are classes")
    if "u" in takes and spec.get("randomised", True):
        given["u"] = u
    if spec.get("by") == "group":
        given["groups"] = groups
    return make("conformal", spec, field, **given)


def labelled(methods: Sequence[Any], alpha: float, groups: str | None) -> dict[str, dict[str, Any]]:
    """label -> spec of each method with alpha, all of whose fields are tried on a few examples.

    Raises:
      ValueError: none, an unknown method or field, a wrong alpha, two of one label, or groups that
        are missing.
    """
    if isinstance(methods, str | Mapping) or not methods:
        raise ValueError(f"methods: {methods!r}; a list of names or dicts, such as ['lac', 'aps']")
    specs: dict[str, dict[str, Any]] = {}
    for i, method in enumerate(methods):
        field, spec = f"methods[{i}]", spec_of(method, f"methods[{i}]")
        if "alpha" in spec:
            raise ValueError(f"{field}.alpha: alpha is a field of the evaluator, for all methods")
        by = spec.get("by", "none")
        if by == "group" and groups is None:
            raise ValueError(f"{field}.by: 'group' needs `groups`, the entry with the groups")
        label = spec.pop("label", spec["name"] + (f"_by_{by}" if by != "none" else ""))
        if label in specs:
            raise ValueError(f"{field}.label: {label!r} is taken; give another one")
        specs[label] = {**spec, "alpha": alpha}
        even = np.log(np.full((2, 2), 0.5))
        fit_sets(specs[label], even, np.arange(2), np.full(2, 0.5), np.arange(2), field)
    return specs
