"""Metrics of real-valued targets under an equal mixture of the members' Gaussians.

mean and variance [M, B, K] are those of each member, in the units of y [B, K] and their square. The
K targets are independent given the member.
"""

import numpy as np
from numpy.typing import ArrayLike

from uncertainty.metrics._arrays import log_mean_exp


def nll(mean: ArrayLike, variance: ArrayLike, y: ArrayLike) -> float:
    """-mean_b log mean_m prod_k N(y_bk; mean_mbk, variance_mbk), in nats per example."""
    return nlls(mean, variance, y).mean()


def nlls(mean: ArrayLike, variance: ArrayLike, y: ArrayLike) -> np.ndarray:
    """The negative log-likelihood of each example, [B]; its mean is `nll`."""
    return -log_mean_exp(_log_density(*_checked(mean, variance, y)))


def member_nll(mean: ArrayLike, variance: ArrayLike, y: ArrayLike) -> float:
    """Mean of the members' negative log-likelihoods, in nats; at least `nll`."""
    return -_log_density(*_checked(mean, variance, y)).mean()


def rmse(mean: ArrayLike, y: ArrayLike) -> float:
    """Root of the mean squared error of the mixture's mean, over examples and targets."""
    mean, _, y = _checked(mean, np.ones_like(mean), y)
    return np.sqrt(np.mean((mean.mean(0) - y) ** 2))


def pit(mean: ArrayLike, variance: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Probability integral transform F(y) under the mixture, [B, K]; uniform if calibrated."""
    from scipy.special import ndtr

    mean, variance, y = _checked(mean, variance, y)
    return ndtr((y - mean) / np.sqrt(variance)).mean(0)


def interval_coverage(
    mean: ArrayLike, variance: ArrayLike, y: ArrayLike, levels: ArrayLike = (0.5, 0.9, 0.95)
) -> np.ndarray:
    """Fraction of targets inside the mixture's central interval of each level.

    y is inside if (1 - level) / 2 <= F(y) <= (1 + level) / 2, so no quantiles are needed.

    Args:
      levels: [L] in [0, 1].

    Returns:
      [L].
    """
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"levels: numbers in [0, 1] are expected; got {levels}")
    distance = np.sort(2 * np.abs(pit(mean, variance, y) - 0.5), axis=None)
    return np.searchsorted(distance, levels, side="right") / len(distance)


def quantile(mean: ArrayLike, variance: ArrayLike, level: float) -> np.ndarray:
    """q with F(q) = level under the mixture, [B, K], exact to rounding.

    It is between the smallest and the largest of the members' quantiles, and found by 50
    bisections.

    Raises:
      ValueError: a level outside [0, 1].
    """
    from scipy.special import ndtr, ndtri

    if not 0 <= level <= 1:
        raise ValueError(f"level: a number in [0, 1] is expected; got {level}")
    mean, variance, _ = _checked(mean, variance, np.zeros(np.shape(mean)[1:]))
    deviation = np.sqrt(variance)
    own = mean + deviation * ndtri(level)
    low, high = own.min(0), own.max(0)
    for _ in range(50 if len(mean) > 1 else 0):
        middle = (low + high) / 2
        below = ndtr((middle - mean) / deviation).mean(0) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def interval_width(mean: ArrayLike, variance: ArrayLike, level: float = 0.9) -> float:
    """Mean width of the mixture's central interval, in the units of y.

    The interval that `interval_coverage` counts, from quantile (1 - level) / 2 to (1 + level) / 2.
    Of two predictions with the right coverage, the one with narrower intervals is more informative.
    """
    high = quantile(mean, variance, (1 + level) / 2)
    return np.mean(high - quantile(mean, variance, (1 - level) / 2))


def calibration_error(mean: ArrayLike, variance: ArrayLike, y: ArrayLike) -> float:
    """Mean over the levels 0.05, 0.1, ..., 0.95 of |coverage - level| of central intervals."""
    levels = np.arange(1, 20) / 20
    return np.abs(interval_coverage(mean, variance, y, levels) - levels).mean()


def crps(mean: ArrayLike, variance: ArrayLike, y: ArrayLike) -> float:
    """Continuous ranked probability score of the mixture, exact, mean over examples and targets.

        mean_m A(y - mu_m, v_m) - mean_{m, n} A(mu_m - mu_n, v_m + v_n) / 2
        A(d, v) = E|N(d, v)| = 2 s phi(d / s) + d (2 Phi(d / s) - 1), s = sqrt(v)

    with mean mu and variance v, in the units of y (Grimit et al., 2006).
    """
    return np.mean(crps_of_targets(mean, variance, y))


def crps_of_targets(mean: ArrayLike, variance: ArrayLike, y: ArrayLike) -> np.ndarray:
    """The continuous ranked probability score of each example and target, [B, K]; see `crps`."""
    mean, variance, y = _checked(mean, variance, y)
    M = len(mean)
    spread = _mean_absolute(0.0, 2 * variance).sum(0)
    for m in range(1, M):  # each unordered pair once
        pairs = _mean_absolute(mean[m] - mean[:m], variance[m] + variance[:m])
        spread += 2 * pairs.sum(0)
    return _mean_absolute(y - mean, variance).mean(0) - spread / (2 * M**2)


def ood_scores(
    mean: ArrayLike, variance: ArrayLike, scale: ArrayLike = 1.0
) -> dict[str, np.ndarray]:
    """Out-of-distribution scores by name, [B] each: the higher, the more out of distribution.

        aleatoric_variance   mean_k (mean_m v_mbk) / s_k
        epistemic_variance   mean_k (var_m mu_mbk) / s_k
        predictive_variance  their sum, the total variance of the mixture

    with mean mu and variance v, by the law of total variance (Depeweg et al. 2018, "Decomposition
    of uncertainty in Bayesian deep learning ..."). What a member's own variance has of epistemic
    uncertainty, as that of a Gaussian process, counts as aleatoric here. A single member has no
    parts, and `predictive_variance` alone.

    Args:
      mean: [M, B, K] of each member.
      variance: [M, B, K].
      scale: s [K] or a number, in the square of the units of the targets: variances of several
        targets are added in units of it. With that of the targets, 1 is the uncertainty of a
        prediction that knows their mean and variance alone.

    Raises:
      ValueError: a wrong shape; NaN; a variance or scale that is not positive and finite.
    """
    mean, variance, _ = _checked(mean, variance, np.zeros(np.shape(mean)[1:]))
    K = mean.shape[2]
    scale = np.asarray(scale, np.float64)
    if scale.shape not in ((), (K,)) or not ((scale > 0) & np.isfinite(scale)).all():
        raise ValueError(f"scale: {K} positive and finite numbers, or one; got {scale}")
    aleatoric = (variance.mean(0) / scale).mean(1)
    if len(mean) == 1:
        return {"predictive_variance": aleatoric}
    epistemic = (mean.var(0) / scale).mean(1)
    return {
        "predictive_variance": aleatoric + epistemic,
        "epistemic_variance": epistemic,
        "aleatoric_variance": aleatoric,
    }


def _mean_absolute(d: ArrayLike, v: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    z = d / np.sqrt(2 * v)
    return np.sqrt(2 * v / np.pi) * np.exp(-(z**2)) + d * erf(z)


def _log_density(mean: np.ndarray, variance: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Log-likelihood of each member and example, [M, B]."""
    return -0.5 * ((y - mean) ** 2 / variance + np.log(2 * np.pi * variance)).sum(-1)


def _checked(mean: ArrayLike, variance: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, ...]:
    mean, variance, y = (np.asarray(a, np.float64) for a in (mean, variance, y))
    if mean.ndim != 3 or 0 in mean.shape:
        raise ValueError(
            f"mean: [members, examples, targets] is expected, none 0; got {mean.shape}"
        )
    if variance.shape != mean.shape or y.shape != mean.shape[1:]:
        raise ValueError(
            f"variance, y: shapes {mean.shape} and {mean.shape[1:]} are expected; "
            f"got {variance.shape} and {y.shape}"
        )
    for name, a, good in (
        ("mean", mean, np.isfinite(mean)),
        ("variance", variance, (variance > 0) & np.isfinite(variance)),
        ("y", y, np.isfinite(y)),
    ):
        if not good.all():
            at = np.unravel_index((~good).argmax(), a.shape)
            where = ", ".join(
                f"{axis} {i}"
                for axis, i in zip(("member", "example", "outcome")[-a.ndim :], at, strict=True)
            )
            positive = "positive and " if name == "variance" else ""
            raise ValueError(f"{name}: {a[at]} at {where}, but {positive}finite is expected")
    return mean, variance, y
