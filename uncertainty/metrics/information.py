"""Entropies of predictions, and the disagreement of members.

Each takes log-probabilities log_p [M, B, K] of classes that exclude one another; a class of
probability 0 adds 0 log 0 = 0.
"""

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics._arrays import (
    argmax,
    checked,
    events,
    inner,
    mixture,
    over,
    top_label,
)


def entropy(log_p: ArrayLike) -> np.ndarray:
    """Entropy of the mixture, [B] in nats: all uncertainty about the label."""
    return entropies(log_p)[0]


def expected_entropy(log_p: ArrayLike) -> np.ndarray:
    """Mean entropy of the members, [B] in nats: what is uncertain within a member."""
    return entropies(log_p)[1]


def mutual_information(log_p: ArrayLike) -> np.ndarray:
    """Mutual information between label and member, [B] in nats, from 0 to log M.

    `entropy` - `expected_entropy`: the mean over members of KL(member || mixture), their
    disagreement (Houlsby et al., 2011). The difference has rounding errors of about 1e-15; negative
    values become 0.
    """
    total, expected = entropies(log_p)
    return np.maximum(total - expected, 0.0)


def entropies(log_p: ArrayLike, normalised: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of the mixture and mean entropy of the members, [B] each.

    With normalised=False sums of those of K independent classes, each of which is there or not.
    """
    log_p, none = checked(log_p)
    M, B, _ = log_p.shape
    total, expected = np.empty(B), np.empty(B)

    def chunk(s: slice, x: np.ndarray, _: np.ndarray) -> int:
        members, p, log_q, q = mixture(x if normalised else events(x))
        total[s] = -np.einsum("bk,bk->b", q, log_q)
        if M > 1:
            # Over members first, as sums over few classes are slow.
            expected[s] = -np.einsum("bk->b", np.einsum("mbk,mbk->bk", p, members)) / M
        return 0

    over(chunk, log_p, none)
    return total, (expected if M > 1 else total)


def max_probability(log_p: ArrayLike) -> np.ndarray:
    """Probability of the mixture's most probable class, [B]."""
    return top_label(*checked(log_p))[0]


def disagreement(log_p: ArrayLike) -> float:
    """Fraction of different most probable classes, mean over pairs of members and examples."""
    log_p, none = checked(log_p)
    _needs_pairs(log_p)
    total = over(lambda _, x, __: disagreements(x), log_p, none)
    return np.float64(total / log_p.shape[1])


def pairwise_kl(log_p: ArrayLike) -> float:
    """KL(member m || member n), mean over ordered pairs m != n and examples, in nats.

    Infinite if a member gives probability 0 to a class that another one does not. O(M) by the
    identity

        sum_{m, n} KL(p_m || p_n) = sum_k [M sum_m p_mk log p_mk - sum_m p_mk sum_n log p_nk]
    """
    log_p, none = checked(log_p)
    _needs_pairs(log_p)

    def chunk(_: slice, x: np.ndarray, __: np.ndarray) -> float:
        members, p, _log_q, q = mixture(x)
        return divergences(x, members, p, q)

    return np.float64(max(over(chunk, log_p, none), 0.0) / log_p.shape[1])


def _needs_pairs(log_p: np.ndarray) -> None:
    if len(log_p) < 2:
        raise ValueError("log_p: at least 2 members are needed to compare them; got 1")


def disagreements(log_p: np.ndarray) -> float:
    """Sum over examples of the fraction of pairs of members whose top classes differ."""
    M, B, K = log_p.shape
    top = np.sort(argmax(log_p.reshape(M * B, K)).reshape(M, B), axis=0)
    run, equal = np.zeros(B, np.intp), 0
    for m in range(1, M):  # sorted: a member equals those before it in its run
        run = (run + 1) * (top[m] == top[m - 1])
        equal += run.sum()
    return B - 2 * equal / (M * (M - 1))


def divergences(log_p: np.ndarray, members: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    """Sum over examples of the mean KL over ordered pairs; the last three are from `mixture`."""
    M = len(log_p)
    # Not the floored log-probabilities: a probability of 0 against q > 0 gives infinity.
    others = log_p.sum(0, dtype=np.float64)
    cross = inner(q, others)
    if np.isnan(cross):  # 0 * -inf
        cross = np.sum(q[q > 0] * others[q > 0])
    return (inner(p, members) - cross) / (M - 1)
