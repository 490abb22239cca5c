"""What the metrics of log-probabilities share: checked arrays, chunks, the mixture over members.

Arithmetic is in float64 whatever the precision of the input. Work goes by chunks of examples whose
temporaries stay in a core's L2 cache, so that memory is read once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

CHUNK = 1 << 16  # log-probabilities in a chunk: half a megabyte of float64
FLOOR = -1000.0  # exp of it is 0 in float64, and 0 * FLOOR is 0 where 0 * -inf is not


def checked(log_p: Any, labels: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
    """log_p [M, B, K] as float32 or float64, and labels [B] as integers that index its classes.

    Raises:
      ValueError: a wrong shape or type, NaN, a positive log-probability, a label out of range;
        the message names the member, the example and the class.
    """
    log_p = np.asarray(log_p)
    if log_p.ndim != 3 or 0 in log_p.shape:
        raise ValueError(
            f"log_p: [members, examples, classes] is expected, none of them 0; got {log_p.shape}"
        )
    if log_p.dtype not in (np.float32, np.float64):
        log_p = log_p.astype(np.float64 if log_p.dtype.kind in "iu" else np.float32)
    top = log_p.max()  # NaN if any is
    if not top < 0.01:  # rounding may push a probability of 1 a little beyond
        bad = np.isnan(log_p) if np.isnan(top) else log_p == top
        m, b, k = np.unravel_index(bad.argmax(), log_p.shape)
        what = "NaN" if np.isnan(top) else f"{top:.6g} is no log-probability (were logits passed?)"
        raise ValueError(f"log_p: {what}, at member {m}, example {b}, class {k}")
    if labels is None:
        return log_p, None
    _, B, K = log_p.shape
    labels = np.asarray(labels)
    if labels.shape != (B,):
        raise ValueError(f"labels: shape [{B}] is expected, as log_p has {B} examples; got "
                         f"{labels.shape}")  # fmt: skip
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels: integers are expected; got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= K:
        b = ((labels < 0) | (labels >= K)).argmax()
        raise ValueError(
            f"labels: {labels[b]} at example {b}, but log_p has {K} classes: 0 to {K - 1} allowed"
        )
    return log_p, labels.astype(np.intp, copy=False)


def checked_bins(bins: int) -> int:
    """A number of bins, at least 1."""
    if bins != int(bins) or bins < 1:
        raise ValueError(f"bins: an integer of at least 1 is expected; got {bins!r}")
    return int(bins)


def chunks(log_p: np.ndarray) -> Iterator[slice]:
    """Slices of the example axis of log_p [M, B, K]."""
    M, B, K = log_p.shape
    size = max(16, CHUNK // (M * K))
    return (slice(i, i + size) for i in range(0, B, size))


def log_mean_exp(x: np.ndarray) -> np.ndarray:
    """log(mean(exp(x))) over the leading axis; -inf where all is."""
    if len(x) == 1:
        return x[0]
    top = x.max(0)
    shift = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(x - shift).mean(0))


def at_labels(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log_p of each example's label, [M, B]."""
    return log_p[:, np.arange(len(labels)), labels].astype(np.float64)


def probabilities(log_p: np.ndarray) -> np.ndarray:
    """p(class) of the mixture, [B, K]."""
    p = np.exp(log_p, dtype=np.float64)
    return p[0] if len(p) == 1 else p.mean(0)


def mixture(log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of at least FLOOR and probabilities: members' [M, B, K], mixture's [B, K].

    Each p log p of them is finite and as in the limit p -> 0.
    """
    log_p = log_p.astype(np.float64)
    np.maximum(log_p, FLOOR, out=log_p)
    p = np.exp(log_p)
    if len(p) == 1:
        return log_p, p, log_p[0], p[0]
    q = p.mean(0)
    return log_p, p, np.log(np.maximum(q, np.finfo(np.float64).tiny)), q


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of a b over all entries.

    Not np.dot: BLAS wakes threads for arrays of this size, which costs more than it gains, and
    very much more where other processes keep the cores busy.
    """
    return np.einsum("i,i->", a.ravel(), b.ravel())


def argmax(x: np.ndarray) -> np.ndarray:
    """The first largest entry of each row of x [B, K].

    As np.argmax, whose branches mispredict on short rows; this has none.
    """
    if x.shape[1] > 64:
        return x.argmax(1)
    columns = np.ascontiguousarray(x.T)
    best, index = columns[0], np.zeros(len(x), np.uint8)
    for k in range(1, len(columns)):
        larger = (columns[k] > best).view(np.uint8)
        index = np.maximum(index, np.multiply(larger, np.uint8(k), out=larger), out=index)
        best = np.maximum(best, columns[k])
    return index.astype(np.intp)


def predictions(log_p: np.ndarray) -> np.ndarray:
    """The mixture's most probable class, [B]; the first of equals."""
    return argmax(log_p[0] if len(log_p) == 1 else probabilities(log_p))


def top_label(log_p: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mixture's largest probability and whether its class is the label, [B] each."""
    confidence, correct = np.empty(len(labels)), np.empty(len(labels), bool)
    for s in chunks(log_p):
        x = log_p[0, s] if len(log_p) == 1 else probabilities(log_p[:, s])
        index = argmax(x)
        correct[s] = index == labels[s]
        confidence[s] = x[np.arange(len(x)), index]
    return (np.exp(confidence) if len(log_p) == 1 else confidence), correct


def bin_index(p: np.ndarray, bins: int) -> np.ndarray:
    """floor(p bins): bin j is [j / bins, (j + 1) / bins), and 1 falls into the last."""
    index = np.multiply(p, bins).astype(np.intp)
    return np.minimum(index, bins - 1, out=index)


def bin_classes(p: np.ndarray, labels: np.ndarray, sums: np.ndarray) -> None:
    """Adds to sums [3, K, bins]: examples, probability and labels in the bins of each class.

    Every class is one against the rest, p [B, K] its probability.
    """
    _, K, bins = sums.shape
    count, probability, label = sums.reshape(3, K * bins)
    index = bin_index(p, bins)
    index += np.arange(K) * bins
    np.add.at(count, index.ravel(), 1.0)
    np.add.at(probability, index.ravel(), p.ravel())
    np.add.at(label, index[np.arange(len(p)), labels], 1.0)
