"""Checks predictions of real-valued targets, and makes moments [M, B, K] of them."""

import numpy as np

from experiments.prediction import archive
from experiments.scoring.files import File
from experiments.scoring.parts import Options, Part, check_finite, shape_text


def targets(
    name: str, arrays: dict[str, np.ndarray], file: File, options: Options, test: Part | None
) -> tuple[Part, list[str]]:
    of_test = file.sets.get(archive.TEST, {})
    arrays = {key: of_test[key]() for key in archive.UNITS if key in of_test} | arrays
    if "variance" not in arrays or "mean" not in arrays:
        have = next((key for key in ("std", *archive.MOMENTS) if key in arrays), "nothing")
        hint = "; the variance is std ** 2" if "std" in arrays else ""
        raise ValueError(f"`mean` and `variance` are both needed; there is {have}{hint}")
    y = _targets(arrays.get("y"))
    if y is None:
        if test is None or name.partition("/")[0] != "ood":
            raise ValueError("`y` is missing: the targets, [B] or [B, K] (or --labels FILE)")
        mean, variance = (
            _as_the_test_set(key, _numeric(key, arrays[key]), test.shape) for key in archive.MOMENTS
        )
    else:
        mean, variance = (
            _with_outputs(key, _numeric(key, arrays[key]), y.shape) for key in archive.MOMENTS
        )
    if mean.shape != variance.shape:
        raise ValueError(
            f"variance: {list(variance.shape)}; {list(mean.shape)} as `mean` is needed"
        )
    if test is not None:
        for what, here, there in zip(
            ("members", "outputs"), mean.shape[::2], test.shape[::2], strict=True
        ):
            if here != there:
                raise ValueError(f"mean: {here} {what}, but the test set has {there}")
    for key, values in (("mean", mean), ("variance", variance), ("y", y)):
        if values is not None:
            check_finite(key, values, 0.0 if key == "variance" else -np.inf)
    said = [f"mean and variance {shape_text(mean, 'output')}, {arrays['mean'].dtype}"]
    if any(key in arrays for key in archive.UNITS):
        if not all(key in arrays for key in archive.UNITS):
            raise ValueError("y_mean and y_std: one alone; both are needed")
        shift, scale = (np.asarray(arrays[key], np.float64).reshape(-1) for key in archive.UNITS)
        if not (scale > 0).all():
            raise ValueError(f"y_std: {scale.min():g}; positive numbers are expected")
        mean, variance = mean * scale + shift, variance * scale**2
        y = None if y is None else y * scale + shift
        said.append("y_mean and y_std: mean, variance and y are multiplied back to stored units")
    return Part(name, mean=mean, variance=variance, y=y), said


def _targets(y: np.ndarray | None) -> np.ndarray | None:
    """[B, K] of [B] or [B, K]; None without targets, for which a table has empty cells."""
    if y is None or (y.dtype.kind == "f" and y.size and np.isnan(y).all()):
        return None
    y = np.asarray(_numeric("y", y), np.float64)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or 0 in y.shape:
        raise ValueError(f"y: {list(y.shape)}; [examples] or [examples, outputs] is expected")
    return y


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


def _as_the_test_set(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[M, B, K] of [B], [B, K], [M, B] or [M, B, K] without y, given [M, B', K] of the test set."""
    values = np.asarray(values, np.float64)
    M, _, K = shape
    forms = {values.shape} if values.ndim == 3 else set()
    if values.ndim == 2:
        forms = {(1, *values.shape)} | ({(*values.shape, 1)} if K == 1 else set())
    if values.ndim == 1 and K == 1:
        forms = {(1, *values.shape, 1)}
    found = {form for form in forms if form[::2] == (M, K) and form[1]}
    if len(found) != 1:
        swapped = values.ndim == 3 and values.shape[1:] == (M, K)
        raise ValueError(
            f"{name}: {list(values.shape)}; [examples, outputs] or [members, examples, outputs] "
            f"is expected, with {M} member{'s' * (M > 1)} and {K} output{'s' * (K > 1)} as the "
            "test set has" + "; the members' axis is the first: np.moveaxis(array, 1, 0)" * swapped
        )
    return values.reshape(found.pop())
