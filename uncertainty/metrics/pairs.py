"""How members differ, pair by pair: of log-probabilities log_p [M, B, K] and labels [B].

Means over examples, as symmetric matrices [M, M]; on the diagonal a member is compared with itself.
`between` averages them over the pairs of kinds of members.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics._arrays import argmax, checked, over


def disagreement(log_p: ArrayLike) -> np.ndarray:
    """P(the most probable classes differ), [M, M]; ties: the first class."""
    log_p, none = checked(log_p)
    return over(lambda _, x, __: _differ(_top(x)), log_p, none) / log_p.shape[1]


def error_inconsistency(log_p: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """P(exactly one of both is right), [M, M].

    Source: Gontijo-Lopes et al. 2022, "No one representation to rule them all". Whoever knew which
    of a pair to follow would be right with P = (accuracy_i + accuracy_j + inconsistency_ij) / 2.
    """
    log_p, labels = checked(log_p, labels)
    return over(lambda _, x, y: _differ(_top(x) == y), log_p, labels) / log_p.shape[1]


def accuracy(log_p: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Accuracy of the mixture of each pair, [M, M]."""
    return _of_pairs(log_p, labels, lambda p, y: np.sum(argmax(p) == y))


def nll(log_p: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """NLL of the mixture of each pair in nats, [M, M]; infinite where it gives a label 0."""
    return _of_pairs(log_p, labels, lambda p, y: -_log(p[np.arange(len(y)), y]).sum())


def between(values: np.ndarray, kinds: Sequence[str]) -> dict[tuple[str, str], float]:
    """The mean of a matrix [M, M] over pairs of different members, by the kinds of both.

    Pairs of kinds are in the order in which kinds appear. A kind with one member has no pair with
    itself, which is left out.
    """
    of, means = np.asarray(kinds), {}
    for a, b in itertools.combinations_with_replacement(dict.fromkeys(kinds), 2):
        rows, columns = np.flatnonzero(of == a), np.flatnonzero(of == b)
        pairs = [(i, j) for i in rows for j in columns if i != j]
        if pairs:
            means[a, b] = float(np.mean([values[i, j] for i, j in pairs]))
    return means


def at_count(
    log_p: ArrayLike,
    labels: ArrayLike,
    kinds: Sequence[str],
    count: int,
    most: int = 200,
    seed: int = 0,
) -> dict[tuple[str, str], tuple[float, float]]:
    """Accuracy and NLL of mixtures of `count` members, by the two kinds of which they are made.

    So kinds are compared at equal member counts. A mixture of two kinds has as many members of
    each, or one more of either, in turn; the values are means over all choices of members.

    Args:
      log_p, labels: [M, B, K] and [B].
      kinds: of the M members.
      count: members of a mixture, at least 1.
      most: mixtures of each pair of kinds; where there are more, as many are drawn.
      seed: of these draws.

    Returns:
      Pairs of kinds, in the order in which they appear -> (accuracy, NLL in nats). A pair with too
      few members is left out, and so are two kinds for a count of 1.

    Raises:
      ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"count: {count} members; at least 1")
    log_p, labels = checked(log_p, labels)
    p, of = np.exp(log_p, dtype=np.float64), np.asarray(kinds)
    result = {}
    for a, b in itertools.combinations_with_replacement(dict.fromkeys(kinds), 2):
        first, second = np.flatnonzero(of == a), np.flatnonzero(of == b)
        small, large = count // 2, -(-count // 2)
        sizes = [(count, 0)] if a == b else sorted({(small, large), (large, small)})
        sizes = [(i, j) for i, j in sizes if i <= len(first) and (a == b or j <= len(second))]
        if not sizes or (a != b and count < 2):
            continue
        values = []
        for members in _choices(first, second, sizes, most, seed):
            mixture = p[members].mean(0)
            loss = -_log(mixture[np.arange(len(labels)), labels]).mean()
            values.append((np.mean(argmax(mixture) == labels), loss))
        accuracy, loss = np.mean(values, axis=0)
        result[a, b] = float(accuracy), float(loss)
    return result


def _choices(
    first: np.ndarray, second: np.ndarray, sizes: Sequence[tuple[int, int]], most: int, seed: int
) -> Iterator[list[int]]:
    """Members of mixtures of i of the first and j of the second, (i, j) in `sizes`."""
    number = sum(math.comb(len(first), i) * math.comb(len(second), j) for i, j in sizes)
    if number <= most:
        for i, j in sizes:
            for some in itertools.combinations(first.tolist(), i):
                for others in itertools.combinations(second.tolist(), j):
                    yield [*some, *others]
        return
    rng = np.random.default_rng(seed)
    for n in range(most):
        i, j = sizes[n % len(sizes)]
        yield [
            *rng.choice(first, i, replace=False).tolist(),
            *rng.choice(second, j, replace=False).tolist(),
        ]


def _top(log_p: np.ndarray) -> np.ndarray:
    """The most probable class of each member and example, [M, b]."""
    M, b, K = log_p.shape
    return argmax(log_p.reshape(M * b, K)).reshape(M, b)


def _differ(values: np.ndarray) -> np.ndarray:
    """The number of examples in which two rows of [M, b] differ, [M, M]."""
    return np.stack([np.sum(values != one, axis=1) for one in values]).astype(np.float64)


def _of_pairs(
    log_p: ArrayLike, labels: ArrayLike, of: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    """The mean over examples of a function's sums over p [b, K] of each pair's mixture."""
    log_p, labels = checked(log_p, labels)
    M, B, _ = log_p.shape

    def chunk(_: slice, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        p, values = np.exp(x, dtype=np.float64), np.empty((M, M))
        for i, j in itertools.combinations_with_replacement(range(M), 2):
            values[i, j] = values[j, i] = of((p[i] + p[j]) / 2, y)
        return values

    return over(chunk, log_p, labels) / B


def _log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p)
