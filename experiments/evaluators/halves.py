"""Calibration and conformal sets where nothing but the test data is held out: each half in turn."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.order import SPLIT, philox
from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import check_bins
from experiments.evaluators.human import against, mixture, shares
from experiments.runtime import keys
from uncertainty import metrics, specs

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

SHOWN = {"nll": "classification/nll", "brier": "classification/brier", "ece": "calibration/ece"}


def halves(
    data: Data,
    method: Any = "temperature",
    sets: Sequence[Any] = ("lac",),
    alpha: float = 0.1,
    human: str | None = None,
    bins: int = 15,
    seed: int = 0,
) -> Evaluator:
    """Two-fold calibration of the mixture: fitted on one half of the data, applied to the other.

    The examples are divided once, at random; each is predicted by the calibrator of the half that
    it is not in, and metrics are of all examples together. The two calibrators differ, so that the
    result is that of the method with half of the data, not of one calibrator.

      halves/nll, brier, ece      after calibration; a temperature leaves the accuracy unchanged
      halves/temperature          the mean of the two temperatures; NaN for another method. One at a
                                  bound of its range is logged
      halves/human_nll, human_kl  against the votes, see `evaluators/human.py`
      halves/NAME/size, coverage  of sets from the calibrated probabilities, 1 - alpha nominal
      halves/NAME/size_raw        of sets from the probabilities as they are
      halves/NAME/coverage_class  the lowest coverage of a class

    The sets' thresholds are from the half that the calibrator was fitted to, too: with one number
    fitted to thousands of examples, that breaks the exchangeability of the two halves by little.

    Args:
      data: a labelled source's spec.
      method: a method of `uncertainty/posthoc`, a name or a dict of fields.
      sets: methods of `uncertainty/conformal` for classes, likewise; randomised where they are.
      alpha: the share of labels that sets may miss.
      human: the entry of the data with votes, if there is one.
      bins: of the calibration error.
      seed: of the division and of randomised sets.

    Raises:
      ValueError: fewer than one bin, an unknown method or a wrong field of one.
    """
    check_bins(bins)
    fit = specs.partial("posthoc", method, "method", ("log_p", "labels"))
    conformal: dict[str, Callable] = {}
    for i, spec in enumerate(sets):
        name = specs.spec_of(spec, f"sets[{i}]")["name"]
        given = ("log_p", "labels", "alpha")
        conformal[name] = specs.partial("conformal", spec, f"sets[{i}]", given)

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        p = predict(data)
        log_p, y = mixture(p.log_p), np.asarray(p.y)
        B, K = log_p.shape
        calibrated, temperatures, at_bound, folds = np.empty_like(log_p), [], [], []
        for held, other in in_halves(B, seed):
            calibrator = fit(log_p=log_p[held], labels=y[held])
            folds.append((held, other, calibrator(log_p)))
            calibrated[other] = folds[-1][2][other]
            temperatures.append(getattr(calibrator, "temperature", np.nan))
            at_bound.append(getattr(calibrator, "at_bound", False))
        values = metrics.evaluate_classification(calibrated[None], y, bins)
        for name, key in SHOWN.items():
            yield f"halves/{name}", values[key]
        yield "halves/temperature", float(np.mean(temperatures))
        warn_at_bound("halves", at_bound)
        if human is not None:
            q = shares(p.entries.get(human), K, human)
            of_people = against(calibrated, q)
            for name in ("nll", "kl"):
                yield f"halves/human_{name}", of_people[f"human/{name}"]
        u = np.random.Generator(philox(seed, SPLIT, stage=2)).random(B)
        for name, make in conformal.items():
            for kind in ("_raw", ""):
                inside = np.empty((B, K), bool)
                for held, other, after in folds:
                    q = after if not kind else log_p
                    half = _called(make, log_p=q[held], labels=y[held], alpha=alpha, u=u[held])
                    inside[other] = half(q[other], u=u[other])
                yield keys.join("halves", name, f"size{kind}"), inside.sum(1).mean()
            hit = inside[np.arange(B), y]
            yield keys.join("halves", name, "coverage"), hit.mean()
            worst = min(hit[y == k].mean() for k in np.unique(y))
            yield keys.join("halves", name, "coverage_class"), worst

    yields = {f"halves/{name}" for name in (*SHOWN, "temperature")}
    yields |= {f"halves/human_{name}" for name in ("nll", "kl") if human is not None}
    yields |= {
        keys.join("halves", name, key)
        for name in conformal
        for key in ("size", "size_raw", "coverage", "coverage_class")
    }
    return Evaluator(run, "classification", yields, reads("data", data))


def in_halves(count: int, seed: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Indices of a half of the examples, and of the other half; then the other way round.

    The division, and the order within a half, are drawn once for each seed.
    """
    order = np.argsort(philox(seed, SPLIT, stage=1).random_raw(count), kind="stable")
    first, second = order[: count // 2], order[count // 2 :]
    return (first, second), (second, first)


def warn_at_bound(evaluator: str, at_bound: Sequence[Any]) -> None:
    """Warns of fits to a half whose best temperature is outside of its range."""
    if any(at_bound):
        logger.warning(
            "%s: the best temperature of %d of %d halves is outside of its range, as where every "
            "label is the most probable class; it is at the bound",
            evaluator,
            sum(map(bool, at_bound)),
            len(at_bound),
        )


def _called(make: Callable, u: np.ndarray, **arguments: Any) -> Any:
    """A conformal method's fit, with draws if it takes them."""
    takes = specs.signature(getattr(make, "func", make))[0]
    return make(**arguments, **({"u": u} if "u" in takes else {}))
