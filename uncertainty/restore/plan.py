"""Initial parameters from a checkpoint of another layout, by rules from its paths to ours.

A rule is `(pattern, path, *ops)`: a regular expression for the whole path of an array in the
checkpoint, the path of the parameter that it becomes, and operations on it. In `path`, {0} is the
match and {1}, {2}, ... or {name} are its groups, in Python's format language:
'backbone/block{1:0>2}/norm0/scale' is block07 for 7. A path of None drops the array. The first rule
that matches is used.

Ops, by name or as a list of name and arguments:
  transpose     axes in reverse order, or in that of the arguments: ('transpose', 2, 3, 1, 0)
  merge         axis and the next one become one: ('merge', 0)
  reshape       to the parameter's shape
  tile          the same for each member (or expert), on a new leading axis, if the parameter has
                one more than the array
  positions     position embeddings [1, T, D] to the model's grid of patches
  split         first of all: the leading axis is over layers, whose number is {i} in `path`
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uncertainty.restore.layouts import LAYOUTS, Rules
from uncertainty.specs import nearest, suggestion

Shape = tuple[int, ...]
Patches = tuple[int, int, int]  # class tokens (0 or 1), rows and columns of the grid of patches


def transpose(x: np.ndarray, target: Shape, *axes: int) -> np.ndarray:
    return np.transpose(x, axes or None)


def merge(x: np.ndarray, target: Shape, axis: int) -> np.ndarray:
    a, b = x.shape[axis : axis + 2]
    return x.reshape(*x.shape[:axis], a * b, *x.shape[axis + 2 :])


def reshape(x: np.ndarray, target: Shape) -> np.ndarray:
    return x.reshape(target)


def tile(x: np.ndarray, target: Shape) -> np.ndarray:
    return x if x.ndim == len(target) else np.broadcast_to(x, (target[0], *x.shape))


def positions(
    x: np.ndarray,
    target: Shape,
    patches: Patches | None = None,
    grid: Sequence[int] | None = None,
) -> np.ndarray:
    """Position embeddings [1, T, D] -> [1, T', D], bilinear on the grid of patches.

    The corners of both grids are aligned, as in big_vision and V-MoE. The embedding of the class
    token is separate. If the checkpoint has none (newer big_vision adds positions to patches only)
    it is zero, and if the target has none it is left out.

    Args:
      x, target: the embeddings, and the target shape.
      patches: the layout of the target's T'.
      grid: rows and columns of patches of the checkpoint, plus a class token if T is one more. None
        for a square, with or without a class token. Files do not record it: if T also fits the
        target's own grid, and that is not a square, it has to be given.

    Raises:
      ValueError: other axes, numbers of positions that do not match the grids, or a missing grid.
    """
    from scipy.ndimage import zoom

    if x.ndim != 3 or len(target) != 3 or (x.shape[0], x.shape[2]) != (1, target[2]):
        raise ValueError(f"positions {list(x.shape)} are not [1, T, {target[-1]}]")
    if patches is None:
        raise ValueError("the model does not define the grid of patches of its positions")
    class_tokens, *new = patches
    if class_tokens + math.prod(new) != target[1]:
        raise ValueError(
            f"{target[1]} positions do not match {class_tokens} class tokens and "
            f"{new[0]} x {new[1]} patches"
        )
    token, *old = _patches(x.shape[1], new, grid)
    if (token, old) == (class_tokens, new):
        return x
    body = x[0, token:].reshape(*old, -1)
    if old != new:
        factors = (new[0] / old[0], new[1] / old[1], 1)
        # Rounding may put the last corner beyond the grid, where the default is 0.
        body = zoom(body.astype(np.float32), factors, order=1, mode="nearest")
    first = x[0, :1] if token else np.zeros_like(x[0, :1])
    return np.concatenate([first] * class_tokens + [body.reshape(math.prod(new), -1)])[None]


def _patches(T: int, target: Sequence[int], grid: Sequence[int] | None) -> Patches:
    """The layout of T positions of a checkpoint; see `positions`."""
    if grid is not None:
        rows, columns = grid
        token = T - rows * columns
        if token not in (0, 1):
            raise ValueError(
                f"grid: {rows} x {columns} patches, with or without a class token, do not have {T} "
                "positions"
            )
        return token, rows, columns
    sides = ((token, math.isqrt(T - token)) for token in (0, 1) if token < T)
    square = next(((token, n, n) for token, n in sides if token + n * n == T), None)
    several = target[0] != target[1] and T - math.prod(target) in (0, 1)
    if square is None or several:
        raise ValueError(
            f"{T} positions do not determine their grid of patches; set "
            "`grid`, its (rows, columns) in the checkpoint"
        )
    return square


OPS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f for f in (transpose, merge, reshape, tile, positions)
}


class Move(NamedTuple):
    """The mapping of an array of the checkpoint, or of one layer of it, to a parameter."""

    source: str
    index: int | None  # type: ignore[assignment]  # tuples have a method of this name
    ops: tuple[tuple[Any, ...], ...]

    def __call__(self, x: np.ndarray, target: Shape) -> np.ndarray:
        """x as a parameter of the shape `target`."""
        x = x if self.index is None else x[self.index]
        for name, *arguments in self.ops:
            x = OPS[name](x, tuple(target), *arguments)
        return x


def plan(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    layout: str = "own",
    rules: Rules = (),
    keep: Sequence[str] = (),
    optional: Sequence[str] = (),
    patches: Patches | None = None,
    grid: Sequence[int] | None = None,
) -> dict[str, Move]:
    """Maps arrays of a checkpoint to parameters, from their shapes alone.

    Strict in both directions: every array of the checkpoint is used or dropped by a rule, and every
    parameter is filled or kept. Arrays for kept parameters are dropped.

    Args:
      source: path -> shape, of the checkpoint.
      target: path -> shape, of one particle.
      layout: one of LAYOUTS, whose rules follow `rules`.
      rules: of this run; see above. Each must match an array.
      keep: patterns (`re.search`) of parameters that stay as initialised, such as 'head/'.
      optional: paths in `target` that need not be filled.
      patches: the layout of the target's position embeddings (`vit.ViT.patches`), or None.
      grid: rows and columns of patches in the checkpoint, if they are ambiguous; see `positions`.

    Returns:
      target path -> Move.

    Raises:
      ValueError: arrays or parameters that are left over, do not fit or are filled twice; the
        message lists at most 10, with the nearest valid names.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r}; {nearest(layout, LAYOUTS)}")
    _check(rules, keep)
    every = [*rules, *LAYOUTS[layout]]
    kept = {path for path in target if any(re.search(pattern, path) for pattern in keep)}
    problems = [
        f"keep: {pattern!r} matches no parameter's path"
        for pattern in keep
        if not any(re.search(pattern, path) for path in target)
    ]
    moves: dict[str, Move] = {}
    used = set()
    for path, shape in source.items():
        i = next((i for i, rule in enumerate(every) if re.fullmatch(rule[0], path)), None)
        if i is None:
            why = next((why for pattern, why in _WHY.items() if re.search(pattern, path)), "")
            problems.append(f"{path} {list(shape)} of the checkpoint: no rule matches it" + why)
            continue
        used.add(i)
        for into, move in _moves(every[i], path, shape, (patches, grid)):
            if into in kept:
                continue
            goes = f"{path} {list(shape)} of the checkpoint goes to {into}"
            if into not in target:
                problems.append(
                    f"{goes}, which is not a parameter; {suggestion(into, target)}"
                    "a rule (pattern, None) drops it"
                )
            elif into in moves:
                problems.append(f"{goes}, and so does {moves[into].source}")
            elif problem := _misfit(move, shape, target[into]):
                problems.append(f"{goes} {list(target[into])}, but {problem}")
            else:
                moves[into] = move
            moves.setdefault(into, move)
    problems += [
        f"rules[{i}]: {rules[i][0]!r} matches nothing in the checkpoint"
        for i in range(len(rules))
        if i not in used
    ]
    missing = target.keys() - moves.keys() - kept - set(optional)
    problems += [
        f"{path} {list(shape)}: nothing in the checkpoint fills it; name it in `keep` to "
        "leave it as initialised"
        for path, shape in target.items()
        if path in missing
    ]
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise ValueError("\n  ".join(["the checkpoint does not fit:", *problems[:10], *more]))
    return moves


def _moves(
    rule: Sequence[Any], path: str, shape: Shape, grids: tuple[Any, Any]
) -> list[tuple[str, Move]]:
    """(target path, Move) of each parameter that a rule makes of an array."""
    pattern, into, *ops = rule
    if into is None:
        return []
    calls = tuple((op,) if isinstance(op, str) else tuple(op) for op in ops)
    calls = tuple((*op, *grids) if op[:1] == ("positions",) else op for op in calls)
    split = calls[:1] == (("split",),)
    match = re.fullmatch(pattern, path)
    moves: list[tuple[str, Move]] = []
    if match is None:
        return moves
    for i in range(shape[0]) if split and shape else [None]:
        try:
            to = into.format(match[0], *match.groups(""), **match.groupdict(""), i=i)
        except (LookupError, ValueError, TypeError) as error:
            raise ValueError(
                f"rules: {into!r} cannot be formatted for {pattern!r}: {error}"
            ) from None
        moves.append((to, Move(path, i, calls[1:] if split else calls)))
    return moves


def _misfit(move: Move, shape: Shape, target: Shape) -> str:
    """Why a move does not give the target's shape, or ''. It allocates no array of that size."""
    try:
        result = move(np.broadcast_to(np.float32(0), shape), target).shape
    except (ValueError, LookupError, TypeError) as error:
        return str(error)
    return "" if result == tuple(target) else f"it becomes {list(result)}"


def _check(rules: Rules, keep: Sequence[str]) -> None:
    """Raises ValueError for invalid rules or patterns."""
    for i, rule in enumerate(rules):
        form = f"rules[{i}]: {rule!r} is not (pattern, path or None, *ops)"
        if not isinstance(rule, list | tuple) or len(rule) < 2 or not isinstance(rule[0], str):
            raise ValueError(form)
        if not isinstance(rule[1], str | None):
            raise ValueError(form)
        for at, op in enumerate(rule[2:]):
            name = op if isinstance(op, str) else (list(op) or [None])[0]
            if name not in OPS and (name, at) != ("split", 0):
                raise ValueError(
                    f"rules[{i}]: no op {name!r} here; {suggestion(str(name), OPS)}one of "
                    f"{', '.join(OPS)}, or split as the first op"
                )
    for field, patterns in dict(rules=[rule[0] for rule in rules], keep=keep).items():
        if isinstance(patterns, str):
            raise ValueError(f"{field}: {patterns!r} is not a list")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ValueError(
                    f"{field}: {pattern!r} is not a regular expression: {error}"
                ) from None


_WHY = {
    "MAPHead|probe": "; vit.ViT has no pooling by attention (MAP head): a rule (pattern, None) "
    "drops it, but another pooling has to be trained"
}
