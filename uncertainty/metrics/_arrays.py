"""Common code of metrics of log-probabilities: checked arrays, chunks, the mixture over members.

Arithmetic is in float64 for any precision of the input. Work is done in chunks of examples whose
temporaries stay in the cache, so that memory is read once, and that are large enough for threads.
"""

import functools
import operator
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# Log-probabilities in a chunk: 2 MB of float64. With less, threads wait for the interpreter's lock.
CHUNK = 1 << 18
FLOOR = -1000.0  # exp of it is 0 in float64, and 0 * FLOOR is 0 where 0 * -inf is not


def checked(log_p: Any, labels: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """log_p [M, B, K] as float32 or float64 and labels [B] as integers, zeros for None.

    Raises:
      ValueError: a wrong shape or type. `over` checks the values.
    """
    log_p = np.asarray(log_p)
    if log_p.ndim != 3 or 0 in log_p.shape:
        raise ValueError(
            f"log_p: [members, examples, classes] is expected, none of them 0; got {log_p.shape}"
        )
    if log_p.dtype not in (np.float32, np.float64):
        log_p = log_p.astype(np.float64 if log_p.dtype.kind in "iu" else np.float32)
    B = log_p.shape[1]
    labels = np.zeros(B, np.intp) if labels is None else np.asarray(labels)
    if labels.shape != (B,):
        raise ValueError(
            f"labels: shape ({B},) is expected, as log_p has {B} examples; got {labels.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels: integers are expected; got {labels.dtype}")
    return log_p, labels


def checked_bins(bins: int) -> int:
    """A number of bins, at least 1."""
    if bins != int(bins) or bins < 1:
        raise ValueError(f"bins: an integer of at least 1 is expected; got {bins!r}")
    return int(bins)


def over(
    function: Callable[[slice, np.ndarray, np.ndarray], Any],
    log_p: np.ndarray,
    labels: np.ndarray,
    add: Callable[[Any, Any], Any] = operator.add,
) -> Any:
    """Sum over chunks of function(slice of the examples, their log_p [M, b, K], their labels [b]).

    With several chunks, a few threads process consecutive ones, as NumPy releases the interpreter's
    lock. `function` may write to its own part of an array.

    Raises:
      ValueError: NaN, a positive log-probability, or a label out of range; the message names the
        member, the example and the class.
    """
    M, B, K = log_p.shape
    size = max(16, CHUNK // (M * K))

    def chunk(first: int) -> Any:
        s = slice(first, first + size)
        x, y = log_p[:, s], labels[s]
        _check_values(x, y, first)
        return function(s, x, y.astype(np.intp, copy=False))

    def run(starts: range) -> Any:
        return functools.reduce(add, map(chunk, starts))

    starts = range(0, B, size)
    n, threads = len(starts), min(4, os.cpu_count() or 1, len(starts) // 2)
    if threads < 2:
        return run(starts)
    runs = [starts[i * n // threads : (i + 1) * n // threads] for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return functools.reduce(add, pool.map(run, runs))


def _check_values(log_p: np.ndarray, labels: np.ndarray, first: int) -> None:
    K = log_p.shape[2]
    top = log_p.max()  # NaN if any is
    if not top < 0.01:  # rounding may give probabilities slightly above 1
        m, b, k = np.unravel_index((np.isnan(log_p) | (log_p == top)).argmax(), log_p.shape)
        problem = "NaN" if np.isnan(top) else f"{top:.6g}, not a log-probability (logits passed?),"
        raise ValueError(f"log_p: {problem} at member {m}, example {first + b}, class {k}")
    if labels.min() < 0 or labels.max() >= K:
        b = ((labels < 0) | (labels >= K)).argmax()
        raise ValueError(
            f"labels: {labels[b]} at example {first + b}, but log_p has {K} classes: "
            f"0 to {K - 1} are allowed"
        )


def check_sums(p: np.ndarray, first: int = 0, independent: str = "set normalised=False") -> None:
    """Raises ValueError where the probabilities p [M, b, K] do not sum to 1, within 1 %.

    `first` is the number of the first example, `independent` what is to be done for classes that
    are, for the message.
    """
    sums = p.sum(-1)
    off = np.abs(sums - 1)
    if not off.max() <= 0.01:
        m, b = np.unravel_index(off.argmax(), off.shape)
        raise ValueError(
            f"log_p: probabilities sum to {sums[m, b]:.6g} at member {m}, example {first + b}, but "
            "1 is expected (logits passed? for independent classes, as with a sigmoid, "
            f"{independent})"
        )


def log_mean_exp(x: np.ndarray) -> np.ndarray:
    """log(mean(exp(x))) over the leading axis; -inf if all are -inf."""
    if len(x) == 1:
        return x[0]
    top = x.max(0)
    shift = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(x - shift).mean(0))


def places(labels: np.ndarray, classes: int) -> np.ndarray:
    """The flat indices of the entries x[b, labels[b]] of x [B, classes]."""
    return np.arange(len(labels)) * classes + labels


def at_labels(log_p: np.ndarray, at: np.ndarray) -> np.ndarray:
    """log_p [M, B] of each example's label; `at` is `places` of the labels."""
    return np.stack([member.ravel().take(at) for member in log_p], dtype=np.float64)


def probabilities(log_p: np.ndarray) -> np.ndarray:
    """p(class) of the mixture, [B, K] in C order, whatever that of log_p."""
    p = log_p.astype(np.float64, order="C")
    np.exp(p, out=p)
    return p[0] if len(p) == 1 else p.mean(0)


def mixture(log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of at least FLOOR and probabilities: members' [M, B, K], mixture's [B, K].

    So p log p is finite, with its limit for p -> 0. All are in C order, whatever that of log_p.
    """
    log_p = log_p.astype(np.float64, order="C")
    np.clip(log_p, FLOOR, 0.0, out=log_p)
    p = np.exp(log_p)
    if len(p) == 1:
        return log_p, p, log_p[0], p[0]
    q = p.mean(0)
    return log_p, p, np.log(np.maximum(q, np.finfo(np.float64).tiny)), q


def events(log_p: np.ndarray) -> np.ndarray:
    """Log-probabilities of independent classes [M, B, K] and of their absence: [M, B, 2 K]."""
    log_p = np.minimum(log_p, 0.0, dtype=np.float64, order="C")
    with np.errstate(divide="ignore"):
        absent = np.where(log_p > -np.log(2), np.log(-np.expm1(log_p)), np.log1p(-np.exp(log_p)))
    return np.concatenate([log_p, absent], -1)


def of_one_class(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log p(this class and no other) [..., B], from the log-probabilities of `events`."""
    rows, K = np.arange(len(labels)), log_p.shape[-1] // 2
    each = log_p[..., K:].copy()
    each[..., rows, labels] = log_p[..., rows, labels]
    return each.sum(-1)


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of a b over all entries.

    Not np.dot: BLAS starts threads for arrays of this size, which costs more than it saves, and
    much more if other processes keep the cores busy.
    """
    return np.einsum("i,i->", a.ravel(), b.ravel())


def argmax(x: np.ndarray) -> np.ndarray:
    """The first largest entry of each row of x [B, K].

    Like np.argmax, whose branches mispredict on short rows; this has no branches.
    """
    K = x.shape[1]
    if K > 64:
        return x.argmax(1)
    columns = np.ascontiguousarray(x.T)
    largest = (columns == columns.max(0)).view(np.uint8)
    largest *= np.arange(K, 0, -1, dtype=np.uint8)[:, None]  # ties go to the first
    return K - largest.max(0).astype(np.intp)


def predictions(log_p: np.ndarray) -> np.ndarray:
    """The mixture's most probable class, [B]; the first in a tie."""
    return argmax(log_p[0] if len(log_p) == 1 else probabilities(log_p))


def top(log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mixture's most probable class and its probability, [B] each."""
    p = log_p[0] if len(log_p) == 1 else probabilities(log_p)
    index = argmax(p)
    p = p.ravel().take(places(index, p.shape[1]))
    return index, (np.exp(p, dtype=np.float64) if len(log_p) == 1 else p)


def top_label(log_p: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mixture's largest probability and whether its class is the label, [B] each."""
    confidence, correct = np.empty(len(labels)), np.empty(len(labels), bool)

    def chunk(s: slice, x: np.ndarray, y: np.ndarray) -> int:
        index, confidence[s] = top(x)
        correct[s] = index == y
        return 0

    over(chunk, log_p, labels)
    return confidence, correct


def bin_edges(bins: int, dtype: Any = np.float64) -> np.ndarray:
    """j / bins for j = 0, ..., bins, each the nearest number of the given precision."""
    return (np.arange(bins + 1) / bins).astype(dtype)


def bin_index(p: np.ndarray, bins: int) -> np.ndarray:
    """The bin j of each p in [0, 1]: edge_j <= p < edge_(j + 1), and 1 falls into the last.

    Edges are `bin_edges` in the precision of p, so that decimals fall on their edges: of 100 bins,
    .29 is in [.29, .30), in float64 and in float32. Like np.histogram(p, bin_edges(bins, p.dtype)).
    """
    p = np.ascontiguousarray(p)
    if p.dtype.kind != "f":
        p = p.astype(np.float64)
    scaled = np.multiply(p, bins, dtype=np.float64)
    index = scaled.astype(np.intp)
    np.minimum(index, bins - 1, out=index)
    # The product may be rounded to the other side of an edge: values close to an edge are checked.
    off = np.rint(scaled)
    np.subtract(off, scaled, out=off)
    near = np.flatnonzero(np.abs(off, out=off) <= 2 * bins * np.finfo(p.dtype).eps)
    if len(near):
        edges, at = bin_edges(bins, p.dtype), p.ravel()[near]
        index.ravel()[near] = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, bins - 1)
    return index


def bin_classes(p: np.ndarray, at: np.ndarray, bins: int) -> np.ndarray:
    """Sums [3, K, bins]: examples, probability and labels in the bins of each class.

    Every class is one against the rest, p [B, K] its probability; `at` is `places` of the labels.
    """
    B, K = p.shape
    sums = np.zeros((3, K * bins))
    index = bin_index(p, bins)
    index += _first_bins(B, K, bins)
    index = index.ravel()
    np.add.at(sums[0], index, 1.0)
    np.add.at(sums[1], index, p.ravel())
    np.add.at(sums[2], index.take(at), 1.0)
    return sums.reshape(3, K, bins)


@functools.lru_cache(maxsize=4)
def _first_bins(rows: int, classes: int, bins: int) -> np.ndarray:
    """0, bins, 2 bins, ... in each row: adding a full array is faster than broadcasting a row."""
    return np.tile(np.arange(classes) * bins, (rows, 1))
