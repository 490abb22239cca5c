"""Post-hoc calibration: fitted on held-out examples, its metrics beside the uncalibrated ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data import corruptions
from experiments.data.derived import key_of
from experiments.data.overlap import require_apart
from experiments.data.source import Source, load
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import check_bins
from experiments.evaluators.regression import moments_of
from experiments.prediction import fitted
from experiments.prediction.held_out import require_held_out
from experiments.runtime import keys
from uncertainty import metrics
from uncertainty import posthoc as methods_lib
from uncertainty.metrics.smooth import smooth_ece
from uncertainty.specs import make, resolve, signature, spec_of

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

SHOWN = {
    "accuracy": "classification/accuracy",
    "nll": "classification/nll",
    "brier": "classification/brier",
    "ece": "calibration/ece",
    "ece_mass": "calibration/ece_mass",
    "ece_classwise": "calibration/ece_classwise",
}
UNCALIBRATED = "uncalibrated"


def posthoc(
    data: Data,
    fit: Data,
    methods: Sequence[Any] = ("temperature",),
    corrupted: Mapping[str, Any] | None = None,
    bins: int = 15,
) -> Evaluator:
    """Metrics of the calibrated predictions, `posthoc/<label>/<metric>`, and of the uncalibrated.

    Accuracy, NLL, Brier score, ECE, ECE in bins of equal mass, class-wise and smooth ECE; and the
    numbers of which a calibrator consists, such as `posthoc/temperature/temperature`. Calibrators
    are saved beside the results (`prediction.fitted`).

    Of methods of targets (`variance_scale`) the NLL, CRPS, RMSE, calibration error, and coverage
    and width of intervals of 90 %, in the stored units of y.

    Args:
      data: the test source's spec.
      fit: the spec of the labelled examples on which calibrators are fitted. They may be neither
        training nor test examples, which is checked as far as examples can be compared.
      methods: names or specs of `uncertainty/posthoc`, all of classes or all of targets, each also
        with
        of: 'mixture' (default), 'members' or 'joint', see `posthoc.of_ensemble`;
        label: in the results, by default the name, with `of` unless that is the mixture.
        Targets are calibrated as the mixture.
      corrupted: dict(severities=..., kinds=...) of the evaluator `corruption` adds the means over
        the kinds, `posthoc/<label>/severity_<s>/<metric>`, as calibration on clean examples says
        nothing of others.
      bins: of the binned calibration errors.

    Raises:
      ValueError: fewer than one bin, an unknown method or field, two methods of one label, or
        examples that are not held out.
    """
    check_bins(bins)
    specs = labelled(methods)
    severities = corruptions_of(corrupted)
    if any(of_targets(spec) for spec in specs.values()):
        return _of_targets(data, fit, specs, severities)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        held_out = calibration_data(predict, fit, data)
        calibrators: dict[str, Any] = {UNCALIBRATED: lambda log_p: log_p}
        for label, spec in specs.items():
            calibrators[label] = fit_of(spec, held_out.log_p, held_out.y)
            yield from fitted.arrays_of("posthoc", label, spec, calibrators[label])
        p = predict(data)
        for label, calibrator in calibrators.items():
            for name, value in measured(calibrator(p.log_p), p.y, bins).items():
                yield keys.join("posthoc", label, name), value
            if label != UNCALIBRATED:
                yield from numbers_of(label, calibrator)
        for severity in severities:
            yield from _under_corruption(predict, calibrators, severity)

    def _under_corruption(
        predict: "Predictor", calibrators: Mapping[str, Any], severity: int
    ) -> Iterator[tuple[str, float]]:
        values: dict[tuple[str, str], list[float]] = {}
        for source in corrupted_sources(predict.source(data), corrupted, severity):
            p = predict(source)
            for label, calibrator in calibrators.items():
                for name, value in measured(calibrator(p.log_p), p.y, bins).items():
                    values.setdefault((label, name), []).append(value)
        for (label, name), each in values.items():
            yield keys.join("posthoc", label, f"severity_{severity}", name), float(np.mean(each))

    def check(source: Source) -> None:
        check_held_out(source, fit)

    names = [*SHOWN, "smooth_ece"]
    yields = {
        keys.join("posthoc", label, *place, name)
        for label in (UNCALIBRATED, *specs)
        for place in ((), *((f"severity_{s}",) for s in severities))
        for name in names
    }
    yields |= {name for label, spec in specs.items() for name, _ in numbers_of(label, _tried(spec))}
    read = reads("data", data) + reads("fit", fit, reported=False)
    return Evaluator(run, "classification", yields, read, check)


OF_TARGETS = ("nll", "crps", "rmse", "calibration", "coverage_0.9", "width_0.9")


def of_targets(spec: Mapping[str, Any], field: str = "methods") -> bool:
    """Whether a method is of targets: a function of mean, variance and y."""
    return "log_p" not in signature(resolve("posthoc", spec["name"], field))[0]


def _of_targets(
    data: Data, fit: Data, specs: Mapping[str, Any], severities: Sequence[int]
) -> Evaluator:
    """The evaluator of methods of targets."""
    if not all(of_targets(spec) for spec in specs.values()):
        raise ValueError(f"methods: {[*specs]}; all are of classes, or all of targets")
    if severities:
        raise ValueError("corrupted: corruptions are of images with classes; leave it out")

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        held_out = moments_of(calibration_data(predict, fit, data), "posthoc")
        mean, variance, y = moments_of(predict(data), "posthoc")
        made = {UNCALIBRATED: (mean, variance)}
        for label, spec in specs.items():
            calibrator = fit_moments(spec, *held_out)
            yield from fitted.arrays_of("posthoc", label, spec, calibrator)
            made[label] = calibrator(mean, variance)
            for name, value in calibrator._asdict().items():
                yield keys.join("posthoc", label, name), float(np.mean(value))
        for label, moments in made.items():
            values = metrics.evaluate_regression(*moments, y)
            for name in OF_TARGETS:
                yield keys.join("posthoc", label, name), float(values[f"regression/{name}"])

    def check(source: Source) -> None:
        check_held_out(source, fit)

    yields = {keys.join("posthoc", k, name) for k in (UNCALIBRATED, *specs) for name in OF_TARGETS}
    for label, spec in specs.items():
        numbers = _tried(spec)._asdict()
        yields |= {keys.join("posthoc", label, name) for name in numbers}
    read = reads("data", data) + reads("fit", fit, reported=False)
    return Evaluator(run, "regression", yields, read, check)


def fit_moments(
    spec: Mapping[str, Any],
    mean: np.ndarray,
    variance: np.ndarray,
    y: np.ndarray,
    field: str = "methods",
) -> Any:
    """The calibrator of a spec of targets, fitted to mean and variance [M, B, K] and y [B, K]."""
    if spec.get("of", "mixture") != "mixture":
        raise ValueError(f"{field}.of: {spec['of']!r}; targets are calibrated as the mixture")
    fields = {key: value for key, value in spec.items() if key != "of"}
    return make("posthoc", fields, field, mean=mean, variance=variance, y=y)


def labelled(methods: Sequence[Any], field: str = "methods") -> dict[str, dict[str, Any]]:
    """label -> spec of each method, all of whose fields are tried on a few examples.

    A method is in a list, not in a dict of the config, where a dict with a name is a data set.

    Raises:
      ValueError: none, an unknown method or field, or two of one label.
    """

    def own(spec: Mapping[str, Any]) -> str:
        of = spec.get("of", "mixture")
        return spec["name"] if of == "mixture" else f"{spec['name']}_{of}"

    return by_label(methods, field, "temperature", own, UNCALIBRATED, _tried)


def by_label(
    methods: Sequence[Any],
    field: str,
    example: str,
    own: Callable[[Mapping[str, Any]], str],
    taken: str,
    tried: Callable[[Mapping[str, Any], str], Any],
) -> dict[str, dict[str, Any]]:
    """label -> spec of each method, for which `tried(spec, field)` raises no error.

    Args:
      example: a name for the message.
      own: the label of a spec that has none.
      taken: a label that no method may have.

    Raises:
      ValueError: see `labelled`.
    """
    if isinstance(methods, str | Mapping) or not methods:
        raise ValueError(f"{field}: {methods!r}; a list of names or dicts, such as ['{example}']")
    specs: dict[str, dict[str, Any]] = {}
    for i, method in enumerate(methods):
        spec = spec_of(method, f"{field}[{i}]")
        label = spec.pop("label", own(spec))
        if label in specs or label == taken:
            raise ValueError(f"{field}[{i}].label: {label!r} is taken; give another one")
        tried(spec, f"{field}[{i}]")
        specs[label] = spec
    return specs


def fit_of(
    spec: Mapping[str, Any], log_p: np.ndarray, labels: np.ndarray, field: str = "methods"
) -> Any:
    """The calibrator of a spec, fitted to log_p [M, B, K] and labels [B]."""
    fields = {key: value for key, value in spec.items() if key != "of"}
    if spec.get("of") == "joint" and spec["name"] != "temperature":
        raise ValueError(f"{field}.of: 'joint' is for 'temperature', not for {spec['name']!r}")

    def one(log_p: np.ndarray, labels: np.ndarray) -> Any:
        return make("posthoc", fields, field, log_p=log_p, labels=labels)

    return methods_lib.of_ensemble(one, log_p, labels, spec.get("of", "mixture"))


def _tried(spec: Mapping[str, Any], field: str = "methods") -> Any:
    """The calibrator of two members and four examples, which checks the fields."""
    if of_targets(spec, field):
        at = np.arange(8.0).reshape(2, 4, 1)
        return fit_moments(spec, at, np.ones_like(at), at[0] + 1, field)
    p = np.array([[0.7, 0.3], [0.4, 0.6], [0.8, 0.2], [0.45, 0.55]])
    return fit_of(spec, np.log(np.stack([p, p])), np.array([0, 1, 1, 0]), field)


def numbers_of(label: str, calibrator: Any) -> Iterator[tuple[str, float]]:
    """The single numbers of which a calibrator consists; of members their mean."""
    one = isinstance(calibrator, methods_lib.OfMixture)
    parts = (calibrator.calibrator,) if one else calibrator.calibrators
    for name, value in parts[0]._asdict().items():
        if np.ndim(value) == 0:
            mean = float(np.mean([float(getattr(part, name)) for part in parts]))
            yield keys.join("posthoc", label, name), mean


def measured(log_p: np.ndarray, labels: np.ndarray, bins: int) -> dict[str, float]:
    """The metrics of `SHOWN` and the smooth ECE of predictions [M, B, K]."""
    values = metrics.evaluate_classification(log_p, labels, bins)
    result = {name: float(values[key]) for name, key in SHOWN.items()}
    example = metrics.per_example(log_p, labels)
    return result | {
        "smooth_ece": smooth_ece(example["confidence"], example["prediction"] == labels)
    }


def calibration_data(predict: "Predictor", fit: Data, data: Data) -> Any:
    """Predictions for the examples to fit on.

    The first run's own examples were compared before its training, see `check_held_out`; those of
    further runs that were trained on other data are compared here.

    Raises:
      ValueError: they are the training data of a run, or more than half of them are test examples
        or training examples of a further run, or more than half of the test examples are these.
    """
    trains = [key_of(run.experiment.config["data"]["train"]) for run in predict.runs]
    if isinstance(fit, Mapping) and key_of(fit) in trains:
        raise ValueError(f"fit: {fit} is the training data; take held-out examples")
    source, test = predict.source(fit), predict.source(data)
    require_apart("fit", source, test, "the test data of this evaluator")
    require_apart("data", test, source, "the examples to fit on")
    require_held_out("fit", source, predict.runs)
    return predict(source)


def check_held_out(source: Source, fit: Data) -> None:
    """Raises ValueError if the examples to fit on are training examples of this run."""
    held_out = fit if isinstance(fit, Source) else load(fit, "fit", like=source, labels="alike")
    require_apart("fit", held_out, source, "the training data")


def corruptions_of(corrupted: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The severities of a field `corrupted`; empty for None.

    Raises:
      ValueError: an unknown field, kind or severity.
    """
    if corrupted is None:
        return ()
    unknown = set(corrupted) - {"severities", "kinds"}
    severities = tuple(corrupted.get("severities", (1, 2, 3, 4, 5)))
    kinds = corrupted.get("kinds")
    if unknown or not severities or not set(severities) <= {1, 2, 3, 4, 5}:
        raise ValueError(
            f"corrupted: {dict(corrupted)}; dict(severities=..., kinds=...), severities from 1 to 5"
        )
    if kinds is not None and (isinstance(kinds, str) or not kinds):
        raise ValueError(f"corrupted: kinds {kinds!r}; a list of names, or left out for all")
    return severities


def corrupted_sources(
    clean: Source, corrupted: Mapping[str, Any] | None, severity: int
) -> Iterator[Source]:
    """The clean examples under each kind of corruption."""
    for kind in (corrupted or {}).get("kinds") or corruptions.kinds_for(clean):
        yield corruptions.corrupted(clean, kind, severity)
