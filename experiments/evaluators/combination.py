"""Combinations of members that are chosen by held-out examples: greedy, winners, gate."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import check_bins
from experiments.evaluators.kinds import check as check_kinds
from experiments.evaluators.kinds import of_members
from experiments.evaluators.posthoc import SHOWN, by_label, calibration_data, check_held_out
from experiments.evaluators.posthoc import measured as measured_all
from experiments.prediction import fitted
from experiments.runtime import keys
from uncertainty.build import make

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

ALL = "all"


def combination(
    data: Data,
    fit: Data,
    methods: Sequence[Any] = ("greedy",),
    kinds: Sequence[str] = (),
    bins: int = 15,
) -> Evaluator:
    """Metrics of members that were combined by held-out examples, and of all members.

    Yields `combination/<label>/...`, and likewise of `all`: accuracy, NLL, Brier score, ECE, ECE in
    bins of equal mass, class-wise and smooth ECE on the test set; `members`, how many different
    members count; and with `kinds` the share of each, `combination/<label>/share/<kind>`: of
    `greedy` how often its members were chosen, of `winners` on how many classes they are used, of
    `gate` their mean weight. Combinations are saved beside the results (`prediction.fitted`). The
    members may be those of several runs (`experiments.evaluate` with several workdirs).

    Args:
      data: the test source's spec.
      fit: the spec of the labelled examples by which members are chosen: neither training nor test
        examples, which is checked as far as examples can be compared.
      methods: names or specs of `uncertainty/combining`, each also with `label`, in the results,
        by default its name.
      kinds: names of the particles' kinds, see the evaluator `kinds`.
      bins: of the binned calibration errors.

    Raises:
      ValueError: fewer than one bin, an unknown method or field, two methods of one label, or
        examples that are not held out; in evaluation, a size above the number of members.
    """
    check_bins(bins)
    if kinds:
        check_kinds(kinds, ())
    specs = labelled(methods)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        held_out = calibration_data(predict, fit, data)
        fits = {label: fit_of(spec, held_out.log_p, held_out.y) for label, spec in specs.items()}
        p = predict(data)
        if len(p.log_p) != len(held_out.log_p):
            raise ValueError("members were left out of one of `fit` and `data`, so they differ")
        of = of_members(kinds, p.run, [len(r.state.key) for r in predict.runs]) if kinds else []
        for label, spec in specs.items():
            yield from fitted.arrays_of("combining", label, spec, fits[label])
        for label, combine in {ALL: None, **fits}.items():
            log_p = p.log_p if combine is None else combine(p.log_p)
            for name, value in measured_all(log_p, p.y, bins).items():
                yield keys.join("combination", label, name), value
            M = len(p.log_p)
            shares = np.full(M, 1 / M) if combine is None else combine.shares
            yield keys.join("combination", label, "members"), float(np.sum(shares > 0))
            for kind in dict.fromkeys(of):
                share = shares[np.asarray(of) == kind].sum()
                yield keys.join("combination", label, "share", kind), float(share)

    def check(source: Any) -> None:
        check_held_out(source, fit)

    labels = (ALL, *specs)
    names = [*SHOWN, "smooth_ece", "members"]
    yields = {keys.join("combination", label, name) for label in labels for name in names}
    yields |= {
        keys.join("combination", label, "share", kind) for label in labels for kind in set(kinds)
    }
    return Evaluator(
        run,
        "classification",
        yields,
        reads("data", data) + reads("fit", fit, reported=False),
        check,
    )


def labelled(methods: Sequence[Any], field: str = "methods") -> dict[str, dict[str, Any]]:
    """label -> spec of each method, all of whose fields are tried on a few examples.

    Raises:
      ValueError: none, an unknown method or field, or two of one label.
    """
    return by_label(methods, field, "greedy", lambda spec: spec["name"], ALL, _tried)


def fit_of(
    spec: Mapping[str, Any], log_p: np.ndarray, labels: np.ndarray, field: str = "methods"
) -> Any:
    """The combination of a spec, fitted to log_p [M, B, K] and labels [B]."""
    return make("combining", dict(spec), field, log_p=log_p, labels=labels)


def _tried(spec: Mapping[str, Any], field: str) -> None:
    """Fits a method to as many members as it asks for, which checks its fields."""
    size = spec.get("size")
    members = min(size, 1_000) if isinstance(size, int) and size > 5 else 5
    p = np.array([[0.7, 0.3], [0.4, 0.6], [0.8, 0.2], [0.45, 0.55]])
    fit_of(spec, np.log(np.stack([p] * members)), np.array([0, 1, 1, 0]), field)
