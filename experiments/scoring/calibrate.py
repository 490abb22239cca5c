"""Post-hoc methods on files of predictions: fitted on their validation set, or cross-fitted."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.prediction import archive
from experiments.scoring.parts import Part
from uncertainty.posthoc import of_ensemble
from uncertainty.specs import resolve, signature

OF = ("mixture", "members")


class Method(NamedTuple):
    """A method of `uncertainty/posthoc`, and what of an ensemble it calibrates."""

    name: str
    of: str = "mixture"

    @property
    def label(self) -> str:
        """Of its row in a table."""
        return self.name + " of members" * (self.of == "members")

    @property
    def task(self) -> str:
        """'classification', or 'regression' for one of targets."""
        takes, _ = signature(resolve("posthoc", self.name, "--posthoc"))
        return "classification" if "log_p" in takes else "regression"


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
    may = part.name.startswith("corruption/") or part.name == archive.INSIDE
    return part.name == archive.TEST or (may and np.array_equal(part.y, test.y))


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


class Fold(NamedTuple):
    """Examples to fit on, and which examples of a set that fit is for, [B] of bool."""

    fit: Part
    applies: Callable[[Part], np.ndarray]


def folds(test: Part, validation: Part | None, seed: int) -> list[Fold]:
    """The validation set for all examples; without one each half of the test set for the other."""
    if validation is not None:
        return [Fold(validation, lambda part: np.ones(part.examples, bool))]
    half = halves(test, test, seed)
    return [
        Fold(test.only(~half), lambda part: halves(part, test, seed)),
        Fold(test.only(half), lambda part: ~halves(part, test, seed)),
    ]


def fitted(
    method: Method,
    test: Part,
    validation: Part | None,
    seed: int,
    notes: list[str] | None = None,
) -> Callable[[Part], Part]:
    """A function that calibrates a set.

    Args:
      method: of `methods`.
      test: the test set.
      validation: held-out examples; None to fit on each half of the test set, for the other half.
      seed: of the halves.
      notes: gets a line for what was fitted, and where that failed.

    Raises:
      ValueError: predictions that the method cannot be fitted to.
    """
    of = folds(test, validation, seed)
    fits = [_fit(method, fold.fit) for fold in of]
    if notes is not None and (said := found_by([c for fit in fits for c in fit.calibrators])):
        notes.append(f"{method.label}: {said}")

    def calibrate(part: Part) -> Part:
        made = [fit.apply(part) for fit in fits]
        if len(of) == 1:
            return made[0]
        first = of[0].applies(part)[:, None]
        arrays = {
            name: np.where(first, *(getattr(one, name) for one in made))
            for name in ("log_p", "mean", "variance")
            if getattr(made[0], name) is not None
        }
        return made[0]._replace(**arrays)

    return calibrate


class _Fit(NamedTuple):
    """A method that is fitted to held-out examples."""

    calibrators: Sequence[Any]  # of the mixture, or of each member
    apply: Callable[[Part], Part]  # a set -> its calibrated predictions


def found_by(calibrators: Sequence[Any]) -> str:
    """What was fitted, in words: a temperature or scale, and fits that failed; else empty.

    Args:
      calibrators: of one method, of all that were fitted.
    """
    words, count = [], len(calibrators)
    for name in ("temperature", "scale"):
        if hasattr(calibrators[0], name):
            each = np.concatenate([np.ravel(getattr(c, name)) for c in calibrators])
            low, high = f"{each.min():.4g}", f"{each.max():.4g}"
            words.append(f"{name} {low}" + f" to {high}" * (high != low))
    bound = sum(bool(np.any(getattr(c, "at_bound", False))) for c in calibrators)
    failed = sum(not getattr(c, "converged", True) for c in calibrators)
    for number, what in (
        (
            bound,
            "at a bound of its range, outside of which the likelihood is higher (as where "
            "every label is the most probable class)",
        ),
        (failed, "not converged"),
    ):
        if number:
            words.append(what + f" in {number} of {count} fits" * (count > 1))
    return "; ".join(words)


def _fit(method: Method, held_out: Part) -> _Fit:
    """The fit of a method on held-out examples."""
    fit = resolve("posthoc", method.name, "--posthoc")
    try:
        if method.task == "classification":
            calibrator = of_ensemble(fit, held_out.log_p, held_out.y, method.of)
            parts = getattr(calibrator, "calibrators", None) or [calibrator.calibrator]
            return _Fit(
                parts, lambda part: _replaced(part, log_p=np.asarray(calibrator(part.log_p)))
            )
        mean, variance = held_out.mean, held_out.variance
        some = [slice(None)] if method.of == "mixture" else [[m] for m in range(len(mean))]
        each = [(s, fit(mean[s], variance[s], held_out.y)) for s in some]
    except ValueError as error:
        raise ValueError(f"--posthoc {method.name}: {error}") from error

    def moments(part: Part) -> Part:
        parts = [calibrator(part.mean[s], part.variance[s]) for s, calibrator in each]
        mean, variance = map(np.concatenate, zip(*parts, strict=True))
        return _replaced(part, mean=mean, variance=variance)

    return _Fit([calibrator for _, calibrator in each], moments)


def _replaced(part: Part, **arrays: Any) -> Part:
    """Calibrated predictions; latents and other scores are not of these."""
    return part._replace(**arrays, logits=None, epistemic=None, scores={})


def noted(names: Sequence[str], validation: Part | None) -> str:
    """How methods were fitted, in a sentence; empty for none."""
    if not names:
        return ""
    names = ", ".join(names)
    if validation is not None:
        return f"{names}: fitted on the validation set, {validation.examples:,} examples"
    return f"{names}: cross-fitted, on each half of the test set for the other"
