"""Joint predictions of several inputs (Osband et al. 2022, "The Neural Testbed"; 2023, "Epistemic
neural networks").

    -log 1/M sum_m prod_{t=1}^tau p_m(y_t | x_t)

A member m is one function, the same at all inputs: given it, labels are independent, and what the
members do not know makes them dependent. Marginal predictions do not see that. The values are of
tau inputs together, in nats, not divided by tau.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics._arrays import (
    at_labels,
    check_sums,
    checked,
    log_mean_exp,
    over,
    places,
)


def joint_nll(log_p: ArrayLike, labels: ArrayLike, tau: int = 10, epistemic: Any = None) -> float:
    """Mean over consecutive blocks of tau examples of their joint negative log-likelihood.

    Examples after the last whole block are left out.

    Args:
      log_p: [M, B, K] of members that are functions, or draws of functions.
      labels: [B] integers.
      tau: examples of a block.
      epistemic: the epistemic variance of the latents, if there is one: then log_p is an average
        over functions at each input by itself, from which nothing joint follows.

    Raises:
      ValueError: an epistemic variance, probabilities that do not sum to 1, fewer examples than
        tau, or see `classification`.
    """
    of_labels = _of_labels(log_p, labels, epistemic)
    blocks = of_labels.shape[1] // _whole("tau", tau)
    if not blocks:
        raise ValueError(f"tau: {tau}, but there are {of_labels.shape[1]} examples")
    return of_blocks(of_labels[:, : blocks * tau].reshape(len(of_labels), blocks, tau).sum(-1))


def dyadic_nll(log_p: ArrayLike, labels: ArrayLike, tau: int = 10, epistemic: Any = None) -> float:
    """Mean over consecutive pairs of the joint NLL of tau inputs drawn from the pair.

        E_n [ -log 1/M sum_m p_m(y_1 | x_1)^n p_m(y_2 | x_2)^(tau - n) ],   n ~ Binomial(tau, 1/2)

    Random inputs are so far from each other that joint predictions of tens of them say no more than
    marginal ones; a pair that is repeated does (Osband et al. 2022, "Evaluating high-order
    predictive distributions in deep learning", with kappa = 2). For one member the value is tau
    times the NLL.

    Difference from the authors' code: the expectation over draws from the pair is exact. There each
    pair has one draw of tau indices.

    Args:
      log_p, labels, epistemic: as for `joint_nll`; an odd last example is left out.
      tau: inputs.

    Raises:
      ValueError: an epistemic variance, probabilities that do not sum to 1, fewer than two
        examples, or see `classification`.
    """
    of_labels = _of_labels(log_p, labels, epistemic)
    pairs = of_labels.shape[1] // 2
    if not pairs:
        raise ValueError("log_p: one example, but pairs are needed")
    first, second = of_labels[:, : 2 * pairs : 2], of_labels[:, 1 : 2 * pairs : 2]
    total, zero = 0.0, np.zeros_like(first)  # 0 * -inf is NaN
    for n in range(_whole("tau", tau) + 1):
        together = (n * first if n else zero) + ((tau - n) * second if n < tau else zero)
        total += math.comb(tau, n) / 2**tau * of_blocks(together)
    return total


def of_blocks(log_p: np.ndarray) -> float:
    """-mean over blocks of log mean_m exp(log_p), for joint log-probabilities [M, blocks]."""
    return float(-log_mean_exp(log_p).mean())


def _whole(name: str, value: int) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"{name}: {value!r}; a whole number from 1 is expected")
    return int(value)


def _of_labels(log_p: ArrayLike, labels: ArrayLike, epistemic: Any) -> np.ndarray:
    """log_p of the labels, [M, B] float64."""
    if epistemic is not None and np.any(np.asarray(epistemic) > 0):
        raise ValueError(
            "epistemic: these log_p are averages over a Gaussian of functions at each input by "
            "itself, which have lost how inputs depend on each other; draw functions (the "
            "evaluator 'joint' does) and give them as members"
        )
    log_p, labels = checked(log_p, labels)
    result = np.empty(log_p.shape[:2])

    def chunk(s: slice, x: np.ndarray, y: np.ndarray) -> int:
        check_sums(np.exp(x, dtype=np.float64), s.start, "there is no joint likelihood of labels")
        result[:, s] = at_labels(x, places(y, x.shape[2]))
        return 0

    over(chunk, log_p, labels)
    return result
