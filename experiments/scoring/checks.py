"""Checks what the arrays of a file are, and makes predictions [M, B, ...] of them.

Names decide what an array is; its values have to agree. What is converted is noted, for the
terminal and the report; nothing is guessed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from experiments.prediction import archive
from experiments.scoring.files import File
from uncertainty.specs import nearest

EXACT = 1e-5  # rows that sum to 1 within this are taken as they are


class Options(NamedTuple):
    """How predictions are read."""

    tolerance: float = 0.01  # of the sums of probabilities; rows within it are divided by their sum
    floor: float = 0.0  # the least probability of a class
    independent: bool = False  # classes are independent, as with a sigmoid: rows need not sum to 1

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        for name, value in (("tolerance", self.tolerance), ("floor", self.floor)):
            if not 0 <= value < 0.5:
                raise ValueError(f"--{name}: {value}; a number in [0, 0.5) is expected")


class Part(NamedTuple):
    """The predictions for one set."""

    name: str
    log_p: np.ndarray | None = None  # [M, B, K], of classes
    mean: np.ndarray | None = None  # [M, B, K], of targets
    variance: np.ndarray | None = None
    y: np.ndarray | None = None  # [B], or [B, K] targets; None without labels
    group: np.ndarray | None = None  # [B]
    logits: np.ndarray | None = None  # [M, B, K]
    epistemic: np.ndarray | None = None  # [M, B, 1 or K]
    scores: Mapping[str, np.ndarray] = {}  # OOD scores of one's own, [B]
    x: np.ndarray | None = None  # [B, 1 or 2]
    batches: tuple[int, ...] = ()  # sizes of the parts over which a run's evaluation summed

    @property
    def shape(self) -> tuple[int, ...]:
        """M, B, K."""
        return (self.mean if self.log_p is None else self.log_p).shape

    @property
    def examples(self) -> int:
        """B."""
        return self.shape[1]


def task_of(file: File) -> str:
    """'classification' or 'regression', by the names in the test set.

    Raises:
      ValueError: neither, both, or no test set.
    """
    names = file.sets.get(archive.TEST)
    if names is None:
        raise ValueError(
            f"{file.path}: no test set (arrays with plain names, `log_p` and `y`); its sets are "
            f"{', '.join(file.sets) or 'none'}"
        )
    classes = [name for name in archive.CLASSES if name in names]
    moments = [name for name in (*archive.MOMENTS, "std") if name in names]
    if classes and moments:
        raise ValueError(
            f"{file.path}: {classes[0]} is of classes and {moments[0]} of regression; one of both "
            "is expected"
        )
    if not classes and not moments:
        valid = (*archive.CLASSES, *archive.MOMENTS)
        hints = [f"{name!r}: {nearest(name, valid)}" for name in names if name != "y"]
        raise ValueError(
            f"{file.path}: no predictions; {', '.join(valid[:-1])} or {valid[-1]} is expected. "
            + ("Found " + "; ".join(hints[:3]) if hints else "It has labels alone")
        )
    return "classification" if classes else "regression"


def checked(
    file: File,
    name: str,
    options: Options,
    notes: list[str],
    *,
    test: Part | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
) -> Part:
    """The predictions of a set.

    Args:
      file: of predictions.
      name: of the set.
      options: how they are read.
      notes: gets a line for what was found and converted.
      test: the test set, for others.
      labels: `y` and `group` of a file of labels, for a test set that has none.

    Raises:
      ValueError: wrong values; the message names the file, the array, and where.
    """
    arrays = {key: read() for key, read in file.sets[name].items()}
    where = f"{file.path}: " + ("" if name == archive.TEST else f"{name}: ")
    if labels is not None:
        if "y" in arrays:
            raise ValueError(f"{where}has `y`, so --labels does not apply to it")
        arrays |= labels
    try:
        make = _targets if task_of(file) == "regression" else _classes
        about = file.metadata.get("sets", {}).get(name, {})
        part, said = make(name, arrays, file, options, test)
        part = part._replace(
            group=_group(arrays.get("group"), part.examples),
            x=_inputs(arrays.get("x"), part.examples),
            scores=_scores(arrays, part.examples),
            batches=tuple(about.get("batches", ())),
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(file.path)) else where + message) from (
            error
        )
    if sum(part.batches) != part.examples:
        part = part._replace(batches=())
    notes += said
    return part


# Classes


def _classes(
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
    said = [f"{kind} {_shape(values, 'classes')}, {stored}"]
    exact = options.tolerance if own else EXACT
    log_p, how = _log_probabilities(kind, values, stored, independent, options, exact)
    said[0] += f"; {how}" if how else ""
    y, more = _labels(raw_y, log_p.shape, file.metadata.get("class_names"))
    said += more
    if y is None and name.partition("/")[0] != "ood":
        raise ValueError("`y` is missing: the labels [B], integers from 0 (or --labels FILE)")
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
    known = {*archive.CLASSES, *archive.UNITS, "y", "group", "epistemic", "x", "run"}
    own_entries = own and file.metadata.get("sets", {}).get(name, {}).get("arrays", {})
    unread = [
        key
        for key in arrays
        if key not in known and not key.startswith(archive.SCORE) and key not in (own_entries or ())
    ]
    if unread:
        said.append(f"arrays that are not read: {', '.join(unread)}")
    return Part(name, log_p=log_p, y=y, logits=logits, epistemic=epistemic), said


def _floats(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: numbers are expected; got {array.dtype}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _shape(values: np.ndarray, last: str) -> str:
    names = ("members", "examples", last)
    texts = [f"{n:,} {name[: len(name) - (n == 1) * _plural(name)]}" for n, name in zip(
        values.shape, names, strict=True)]  # fmt: skip
    return f"[{', '.join(texts)}]"


def _plural(name: str) -> int:
    return 2 if name == "classes" else 1


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
    _check_finite(kind, values)
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


def _check_finite(name: str, values: np.ndarray) -> None:
    bad = np.isnan(values)
    bad |= np.isposinf(values) if name == "log_p" else np.isinf(values)
    if bad.any():
        at = np.unravel_index(bad.argmax(), bad.shape)
        axes = ("member", "example", "class")[-values.ndim :]
        place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, at, strict=True))
        raise ValueError(f"{name}: {values[at]} at {place}; finite numbers are expected")


def _auxiliary(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = _floats(name, array)
    values = values[None] if values.ndim == 2 else values
    last = (1, shape[2]) if name == "epistemic" else (shape[2],)
    if values.ndim != 3 or values.shape[:2] != shape[:2] or values.shape[2] not in last:
        raise ValueError(
            f"{name}: {list(array.shape)}; {list(shape)} as the predictions' is needed"
        )
    _check_finite(name, values)
    return values


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
            f"y: {y[0]!r} is not a number; labels are 0 to {K - 1}, the order of the classes"
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


def _group(group: np.ndarray | None, count: int) -> np.ndarray | None:
    if group is None:
        return None
    group = group[:, 0] if group.ndim == 2 and group.shape[1] == 1 else group
    if group.shape != (count,):
        raise ValueError(f"group: {list(group.shape)}; [{count}] is expected, one for each example")
    if group.dtype.kind == "f" and np.isnan(group).any():
        raise ValueError(f"group: NaN at example {np.isnan(group).argmax()}")
    return group


def _inputs(x: np.ndarray | None, count: int) -> np.ndarray | None:
    """Inputs of one or two features, for figures; others are not needed."""
    return x if x is not None and x.shape in ((count, 1), (count, 2)) else None


def _scores(arrays: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    scores = {}
    for key, array in arrays.items():
        if key.startswith(archive.SCORE):
            if array.shape != (count,) or array.dtype.kind not in "fiu":
                raise ValueError(f"{key}: {list(array.shape)}; [{count}] numbers are expected")
            _check_finite(key, array.astype(np.float64))
            scores[key.removeprefix(archive.SCORE)] = array
    return scores


# Regression


def _targets(
    name: str, arrays: dict[str, np.ndarray], file: File, options: Options, test: Part | None
) -> tuple[Part, list[str]]:
    if "variance" not in arrays or "mean" not in arrays:
        have = next((key for key in ("std", *archive.MOMENTS) if key in arrays), "nothing")
        hint = "; the variance is std ** 2" if "std" in arrays else ""
        raise ValueError(f"`mean` and `variance` are both needed; there is {have}{hint}")
    if "y" not in arrays:
        raise ValueError("`y` is missing: the targets, [B] or [B, K] (or --labels FILE)")
    y = np.asarray(_numeric("y", arrays["y"]), np.float64)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or 0 in y.shape:
        raise ValueError(f"y: {list(y.shape)}; [examples] or [examples, outputs] is expected")
    mean, variance = (
        _with_outputs(key, _numeric(key, arrays[key]), y.shape) for key in archive.MOMENTS
    )
    if mean.shape != variance.shape:
        raise ValueError(
            f"variance: {list(variance.shape)}; {list(mean.shape)} as `mean` is needed"
        )
    for key, values in (("mean", mean), ("variance", variance), ("y", y)):
        bad = ~np.isfinite(values) | (values <= 0 if key == "variance" else False)
        if bad.any():
            at = np.unravel_index(bad.argmax(), bad.shape)
            names = ("member", "example", "output")[-values.ndim :]
            place = ", ".join(f"{axis} {i}" for axis, i in zip(names, at, strict=True))
            needed = "positive and finite" if key == "variance" else "finite"
            raise ValueError(f"{key}: {values[at]:.6g} at {place}; {needed} numbers are expected")
    said = [f"mean and variance {_shape(mean, 'outputs')}, {arrays['mean'].dtype}"]
    if any(key in arrays for key in archive.UNITS):
        if not all(key in arrays for key in archive.UNITS):
            raise ValueError("y_mean and y_std: one alone; both are needed")
        shift, scale = (np.asarray(arrays[key], np.float64).reshape(-1) for key in archive.UNITS)
        if not (scale > 0).all():
            raise ValueError(f"y_std: {scale.min():g}; positive numbers are expected")
        mean, variance, y = mean * scale + shift, variance * scale**2, y * scale + shift
        said.append("y_mean and y_std: mean, variance and y are multiplied back to stored units")
    return Part(name, mean=mean, variance=variance, y=y), said


def _numeric(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: numbers are expected; got {array.dtype}")
    return array


def _with_outputs(name: str, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[M, B, K] of [B], [B, K], [M, B] or [M, B, K], given the shape [B, K] of y."""
    values = np.asarray(values, np.float64)
    B, K = shape
    forms = [(1, B, K) if values.shape == (B, K) or (K == 1 and values.shape == (B,)) else None]
    if values.ndim and (values.shape[1:] == (B, K) or (K == 1 and values.shape[1:] == (B,))):
        forms.append((values.shape[0], B, K))
    found = {form for form in forms if form}
    if len(found) != 1:
        raise ValueError(
            f"{name}: {list(values.shape)}; with y {list(shape)}, [examples, outputs] or [members, "
            "examples, outputs] is expected"
            + (" (ambiguous: give the members' axis)" if found else "")
        )
    return values.reshape(found.pop())
