"""Post-hoc methods on files of predictions: fitted on their validation set, or cross-fitted."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluators import conformal as evaluator
from experiments.prediction import archive
from experiments.scoring.parts import Part
from uncertainty.metrics.sets import coverage_range, evaluate_sets
from uncertainty.posthoc import of_ensemble
from uncertainty.specs import resolve

OF = ("mixture", "members")


class Method(NamedTuple):
    """A method of `uncertainty/posthoc`, and what of an ensemble it calibrates."""

    name: str
    of: str = "mixture"

    @property
    def label(self) -> str:
        """Of its row in a table."""
        return self.name + " of members" * (self.of == "members")


def methods(text: str) -> list[Method]:
    """The methods of 'temperature,members:temperature'.

    Raises:
      ValueError: an unknown method, or one that is named twice.
    """
    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        of, colon, name = word.rpartition(":")
        if colon and of not in OF:
            raise ValueError(f"--posthoc: {word!r}; NAME, or members:NAME for each member alone")
        try:
            resolve("posthoc", name, "--posthoc")
        except ValueError as error:
            raise ValueError(str(error).replace("--posthoc.name", "--posthoc")) from error
        found.append(Method(name, of or "mixture"))
    if len(set(found)) < len(found):
        raise ValueError(f"--posthoc: {text!r} names a method twice")
    return found


def same_examples(part: Part, test: Part) -> bool:
    """Whether a set has the examples of the test set, as corrupted ones do: by its labels."""
    return part.name == archive.TEST or (
        part.name.startswith("corruption/") and np.array_equal(part.y, test.y)
    )


def halves(part: Part, test: Part, seed: int) -> np.ndarray:
    """Which half an example is in, [B] of bool; those of one group are in one half.

    A set with the examples of the test set is divided as it is, so that no calibrator is used on an
    example that it was fitted on.
    """
    of = test if same_examples(part, test) else part
    names, member = np.unique(
        np.arange(of.examples) if of.group is None else of.group, return_inverse=True
    )
    if len(names) < 2:
        raise ValueError(f"--cross-fit: {of.name} has {len(names)} group; at least 2 are needed")
    rng = np.random.default_rng((seed, zlib.crc32(of.name.encode())))
    first = np.zeros(len(names), bool)
    first[rng.permutation(len(names))[: len(names) // 2]] = True
    return first[member]


def fitted(
    method: Method, test: Part, validation: Part | None, seed: int
) -> Callable[[Part], Part]:
    """A function that calibrates a set.

    Args:
      method: of `methods`.
      test: the test set.
      validation: held-out examples; None to fit on each half of the test set, for the other half.
      seed: of the halves.

    Raises:
      ValueError: predictions that the method cannot be fitted to.
    """
    fit = resolve("posthoc", method.name, "--posthoc")

    def fit_on(log_p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        try:
            return of_ensemble(fit, log_p, y, method.of)
        except ValueError as error:
            raise ValueError(f"--posthoc {method.name}: {error}") from error

    if validation is not None:
        calibrator = fit_on(validation.log_p, validation.y)
        return lambda part: _replaced(part, calibrator(part.log_p))
    half = halves(test, test, seed)
    pair = [fit_on(test.log_p[:, ~of], test.y[~of]) for of in (half, ~half)]

    def calibrate(part: Part) -> Part:
        of = halves(part, test, seed)
        each = [calibrator(part.log_p) for calibrator in pair]
        return _replaced(part, np.where(of[:, None], *each))

    return calibrate


def _replaced(part: Part, log_p: np.ndarray) -> Part:
    """Calibrated predictions; latents and other scores are not of these."""
    return part._replace(log_p=np.asarray(log_p), logits=None, epistemic=None, scores={})


class Sets(NamedTuple):
    """Conformal sets of a test set."""

    label: str
    chosen: np.ndarray  # [B, K], whether a class is in the set of an example
    metrics: dict[str, float]


def check_sets(names: Sequence[str], alpha: float) -> dict[str, dict[str, Any]]:
    """The specs of conformal methods by their labels.

    Raises:
      ValueError: an unknown method, or a wrong alpha.
    """
    try:
        return evaluator.labelled(names, alpha, None)
    except ValueError as error:
        raise ValueError(f"--conformal: {error}") from error


def conformal(
    names: Sequence[str],
    alpha: float,
    test: Part,
    validation: Part | None,
    seed: int,
) -> list[Sets]:
    """Sets of each method of `uncertainty/conformal` for classes, of the mixture.

    Args:
      names: of the methods.
      alpha: the share of labels that the sets may miss.
      test: the test set.
      validation: held-out examples; None to calibrate on each half of the test set, for the other.
      seed: of the halves, and of the draws of randomised methods.

    Raises:
      ValueError: an unknown method or field, or wrong values.
    """
    specs = check_sets(names, alpha)
    log_p, rng = evaluator.mixture(test.log_p), np.random.default_rng((seed, 3))
    u = rng.random(test.examples)
    every = np.ones(test.examples, bool)
    if validation is None:
        half = halves(test, test, seed)
        parts = [(log_p[~of], test.y[~of], of) for of in (half, ~half)]
    else:
        parts = [(evaluator.mixture(validation.log_p), validation.y, every)]
    made = []
    for label, spec in specs.items():
        chosen = np.zeros(log_p.shape, bool)
        infinite = []
        for of_fit, y, at in parts:
            predictor = evaluator.fit_sets(spec, of_fit, y, rng.random(len(y)), None, "--conformal")
            chosen[at] = predictor(log_p[at], u=u[at], groups=None)
            infinite.append(np.isinf(predictor.quantile).mean())
        metrics = evaluate_sets(chosen, test.y, alpha)
        metrics["unbounded"] = float(np.mean(infinite))
        if validation is not None:
            low, high = coverage_range(validation.examples, test.examples, alpha)
            metrics |= {"expected_low": float(low), "expected_high": float(high)}
        made.append(Sets(label, chosen, metrics))
    return made


def noted(names: Sequence[str], validation: Part | None) -> str:
    """How methods were fitted, in a sentence; empty for none."""
    if not names:
        return ""
    names = ", ".join(names)
    if validation is not None:
        return f"{names}: fitted on the validation set, {validation.examples:,} examples"
    return f"{names}: cross-fitted, on each half of the test set for the other"
