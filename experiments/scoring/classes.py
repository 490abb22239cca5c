"""Checks predictions of classes, and makes log-probabilities [M, B, K] of them."""

from typing import Any

import numpy as np
from scipy import special

from experiments.prediction import archive
from experiments.scoring.files import File
from experiments.scoring.parts import Options, Part, check_finite, shape_text

EXACT = 1e-5  # rows that sum to 1 within this are taken as they are


def classes(
    name: str, arrays: dict[str, np.ndarray], file: File, options: Options, test: Part | None
) -> tuple[Part, list[str]]:
    given = [key for key in archive.CLASSES if key in arrays]
    kinds = [key for key in given if key != "logits"] or given
    if len(kinds) != 1:
        raise ValueError(
            f"{' and '.join(kinds)} are both given; one is expected"
            if kinds
            else f"no predictions; {', '.join(archive.CLASSES)}: one is expected"
        )
    kind = kinds[0]
    own = file.metadata.get("format") == archive.FORMAT
    independent = options.independent or file.metadata.get("normalised") is False
    raw_y = arrays.get("y")
    count = None if raw_y is None else len(np.atleast_1d(raw_y))
    values = _with_members(kind, _floats(kind, arrays[kind]), count, test, own)
    stored = arrays[kind].dtype
    said = [f"{kind} {shape_text(values, 'class')}, {stored}"]
    exact = options.tolerance if own else EXACT
    log_p, how = _log_probabilities(kind, values, stored, independent, options, exact)
    said[0] += f"; {how}" if how else ""
    if name.partition("/")[0] == "ood":
        y = _of_other_classes(raw_y, log_p.shape[1])
    else:
        y, more = _labels(raw_y, log_p.shape, file.metadata.get("class_names"))
        said += more
        if y is None:
            raise ValueError("`y` is missing: the labels [B], integers from 0 (or --labels FILE)")
        _check_from_zero(log_p, y)
    logits = epistemic = None
    if "logits" in arrays:
        logits = values if kind == "logits" else _auxiliary("logits", arrays["logits"], log_p.shape)
        if kind != "logits" and not own and not independent:
            off = np.abs(np.exp(special.log_softmax(logits, -1)) - np.exp(log_p)).max()
            if off > 1e-3:
                said.append(
                    f"softmax(logits) differs from {kind} by up to {off:.2g}: logits serve the "
                    "scores max_logit and dempster_shafer alone"
                )
    if "epistemic" in arrays:
        epistemic = _auxiliary("epistemic", arrays["epistemic"], log_p.shape)
    return Part(name, log_p=log_p, y=y, logits=logits, epistemic=epistemic), said


def _floats(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: numbers are expected; got {array.dtype}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _with_members(
    name: str, values: np.ndarray, count: int | None, test: Part | None, own: bool
) -> np.ndarray:
    """[M, B, K] of [M, B, K] or [B, K]; count is B where labels say it."""
    if values.ndim == 1:
        raise ValueError(
            f"{name}: [examples, classes] or [members, examples, classes] is expected; got "
            f"{list(values.shape)} (of two classes give both columns, 1 - p and p)"
        )
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"{name}: [examples, classes] or [members, examples, classes] is expected, none of "
            f"them 0; got {list(values.shape)}"
        )
    shape = values.shape
    values = values[None] if values.ndim == 2 else values
    if values.shape[2] < 2:
        raise ValueError(f"{name}: {list(shape)} has one class; at least 2 are expected")
    M, B, K = values.shape
    hint = ""
    if len(shape) == 3 and M in (count, test and test.examples) and M != B:
        hint = "; the members' axis is the first: np.moveaxis(array, 1, 0)"
    if count is not None and count != B:
        raise ValueError(f"{name}: {list(shape)} has {B} examples, but y has {count}{hint}")
    if test is not None and test.shape[2] != K:
        raise ValueError(f"{name}: {K} classes, but the test set has {test.shape[2]}{hint}")
    if test is not None and len(test.log_p) != M and not own:
        swapped = len(shape) == 3 and len(test.log_p) == B
        hint = "; the members' axis is the first: np.moveaxis(array, 1, 0)" * swapped
        raise ValueError(
            f"{name}: {M} member{'s' * (M > 1)}, but the test set has {len(test.log_p)}, so their "
            f"scores cannot be compared{hint}"
        )
    return values


def _log_probabilities(
    kind: str,
    values: np.ndarray,
    stored: np.dtype,
    independent: bool,
    options: Options,
    exact: float,
) -> tuple[np.ndarray, str]:
    """log_p [M, B, K], and what was done in words; rows are kept that sum to 1 within `exact`."""
    check_finite(kind, values)
    if kind == "logits":
        if ((values >= 0) & (values <= 1)).all() and _off(values) < options.tolerance:
            raise ValueError(
                "logits: every row is in [0, 1] and sums to 1, as probabilities do; if they are, "
                "name them probs"
            )
        wide = values.astype(np.float64)
        log_p = special.log_expit(wide) if independent else special.log_softmax(wide, -1)
        how = "log_p is their log " + ("sigmoid" if independent else "softmax")
        return _floored(log_p, options, how, independent)
    if kind == "probs":
        if (worst := values.min()) < 0:
            raise ValueError(f"probs: {_at(values, values == worst)} is negative{_logits(values)}")
        if (worst := values.max()) > 1 + options.tolerance:
            raise ValueError(f"probs: {_at(values, values == worst)} is above 1" + _logits(values))
        with np.errstate(divide="ignore"):
            log_p, sums = np.log(values, dtype=np.float64), values.sum(-1, dtype=np.float64)
    else:
        if (worst := values.max()) > options.tolerance:
            probabilities = values.min() >= 0 and _off(values) < options.tolerance
            raise ValueError(
                f"log_p: {_at(values, values == worst)} is not a log-probability"
                + ("; rows sum to 1: name them probs" if probabilities else _logits(values))
            )
        log_p, sums = values, np.exp(special.logsumexp(values, axis=-1))
    if independent:
        return _floored(np.minimum(log_p, 0), options, "classes are independent", independent)
    off = np.abs(sums - 1)
    if off.max() > options.tolerance:
        m, b = np.unravel_index(off.argmax(), off.shape)
        raise ValueError(
            f"{kind}: probabilities sum to {sums[m, b]:.6g} at {_place(m, b)}; 1 is expected "
            f"within {options.tolerance:g} (--tolerance; for independent classes, --independent)"
        )
    if off.max() <= exact:
        within = f"rows sum to 1 within {max(off.max(), EXACT):.1g}"
        return _floored(log_p, options, within, independent)
    half = " (float16)" if stored == np.float16 else " (rounded?)"
    how = f"rows sum to 1 within {off.max():.1g}{half}: divided by their sums"
    log_p = log_p - np.log(sums)[..., None]
    return _floored(log_p, options, how, independent)


def _floored(
    log_p: np.ndarray, options: Options, how: str, independent: bool
) -> tuple[np.ndarray, str]:
    low = log_p < np.log(options.floor) if options.floor else np.zeros(1, bool)
    if independent and options.floor:  # of the absence of a class too
        most = np.log1p(-options.floor)
        low, log_p = low | (log_p > most), np.minimum(log_p, most, dtype=np.float64)
    if not low.any():
        return log_p, how
    log_p = np.maximum(log_p, np.log(options.floor), dtype=np.float64)
    if not independent:
        log_p = special.log_softmax(log_p, -1)
    return log_p, f"{how}; {low.sum():,} probabilities raised to {options.floor:g}"


def _off(values: np.ndarray) -> float:
    return float(np.abs(values.sum(-1, dtype=np.float64) - 1).max())


def _logits(values: np.ndarray) -> str:
    return "; if these are logits, name them logits" if values.max() > 1 or values.min() < 0 else ""


def _place(m: int, b: int) -> str:
    return f"member {m}, example {b}"


def _at(values: np.ndarray, where: np.ndarray) -> str:
    m, b, k = np.unravel_index(where.argmax(), where.shape)
    return f"{values[m, b, k]:.6g} at {_place(m, b)}, class {k}"


def _auxiliary(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = _floats(name, array)
    values = values[None] if values.ndim == 2 else values
    last = (1, shape[2]) if name == "epistemic" else (shape[2],)
    if values.ndim != 3 or values.shape[:2] != shape[:2] or values.shape[2] not in last:
        raise ValueError(
            f"{name}: {list(array.shape)}; {list(shape)} as the predictions' is needed"
        )
    check_finite(name, values)
    return values


def _of_other_classes(y: np.ndarray | None, count: int) -> np.ndarray | None:
    """Labels of an OOD set, which only tell examples apart; None unless they are numbers [B]."""
    numbers = y is not None and y.shape == (count,) and y.dtype.kind in "iubf"
    return y if numbers and np.isfinite(y).all() else None


def _check_from_zero(log_p: np.ndarray, y: np.ndarray) -> None:
    """Refuses labels from 1 that lack the last class, as their values alone are valid ones.

    Raises:
      ValueError: no label is 0, and those less 1 are predicted far better.
    """
    if y.min() < 1 or len(y) < 20:
        return
    predicted = np.exp(log_p.astype(np.float64)).mean(0).argmax(-1)
    given, less = (predicted == y).mean(), (predicted == y - 1).mean()
    if less > given + 0.3:
        raise ValueError(
            f"y: no label is 0, and {less:.0%} of the labels less 1 are the predicted classes, but "
            f"{given:.0%} of the labels as they are; labels from 1? subtract 1"
        )


def _labels(
    y: np.ndarray | None, shape: tuple[int, ...], class_names: Any = None
) -> tuple[np.ndarray | None, list[str]]:
    """Labels [B], and what was converted."""
    _, B, K = shape
    if y is None or (y.dtype.kind == "f" and y.size and np.isnan(y).all()):
        return None, []
    said = []
    if y.ndim == 2 and y.shape == (B, 1):
        y = y[:, 0]
    if y.ndim == 2 and y.shape == (B, K):
        if not (((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all()):
            raise ValueError(
                f"y: {list(y.shape)} is not one-hot; labels [B] are expected (not label "
                "distributions)"
            )
        y, said = y.argmax(-1), ["y: one-hot [B, K], read as the labels of its ones"]
    if y.ndim != 1 or len(y) != B:
        raise ValueError(f"y: {list(y.shape)}; [{B}] is expected, as the predictions have it")
    if y.dtype.kind not in "iubf":
        raise ValueError(
            f"y: {str(y[0])!r} is not a number; labels are 0 to {K - 1}, the order of the classes"
        )
    if y.dtype.kind == "f":
        whole = np.isfinite(y) & (y == np.round(y))
        if not whole.all():
            b = (~whole).argmax()
            raise ValueError(f"y: {y[b]} at example {b} is not a label; 0 to {K - 1} are expected")
    y = y.astype(np.int64)
    if y.min() < 0 or y.max() >= K:
        b = ((y < 0) | (y >= K)).argmax()
        hint = "; labels from 1? subtract 1" if y.min() >= 1 and y.max() == K else ""
        hint = "; leave unlabelled examples out" if y.min() == -1 else hint
        raise ValueError(f"y: {y[b]} at example {b}; 0 to {K - 1} are expected{hint}")
    return y, said
