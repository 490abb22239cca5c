"""The predictions for one set, and how they are read."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


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

    def only(self, rows: np.ndarray) -> "Part":
        """Some of the examples, their predictions, labels and groups; rows [B] of bool."""
        members = {k: getattr(self, k) for k in ("log_p", "mean", "variance")}
        each = {k: getattr(self, k) for k in ("y", "group")}
        return Part(
            self.name,
            **{k: None if a is None else a[:, rows] for k, a in members.items()},
            **{k: None if a is None else a[rows] for k, a in each.items()},
        )


def shape_text(values: np.ndarray, last: str) -> str:
    """'[5 members, 100 examples, 10 classes]'."""
    names = ("member", "example", last)
    plural = "es" if last.endswith("s") else "s"
    ends = ("s", "s", plural)
    parts = (
        f"{n:,} {name}{end if n != 1 else ''}"
        for n, name, end in zip(values.shape, names, ends, strict=True)
    )
    return f"[{', '.join(parts)}]"


def check_finite(name: str, values: np.ndarray, least: float = -np.inf) -> None:
    """Raises ValueError, with the place, where values are not finite, or not above `least`."""
    bad = np.isnan(values)
    bad |= np.isposinf(values) if name == "log_p" else np.isinf(values)
    if np.isfinite(least):
        bad |= values <= least
    if bad.any():
        at = np.unravel_index(bad.argmax(), bad.shape)
        last = "output" if name in ("mean", "variance", "y") else "class"
        axes = ("example", last) if name == "y" else ("member", "example", last)[-values.ndim :]
        axes = ("example",) if values.ndim == 1 else axes
        place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, at, strict=True))
        needed = "finite numbers" if np.isinf(least) else "positive and finite numbers"
        raise ValueError(f"{name}: {values[at]:.6g} at {place}; {needed} are expected")
