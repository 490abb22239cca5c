"""What an ensemble predicts for a batch, in NumPy: members, their mixture, and its uncertainty."""

import dataclasses
from collections.abc import Callable

import numpy as np

from uncertainty.metrics import information, regression

Sets = Callable[..., np.ndarray]  # log_p [B, K] of the mixture, alpha -> [B, K]
Ends = Callable[..., tuple[np.ndarray, np.ndarray]]  # alpha -> low and high, [B, K]


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """p(y = k | x) = mean over members of exp(log_p).

    >>> p = Classes(np.log([[[0.9, 0.1]], [[0.1, 0.9]]]))
    >>> p.probs, p.labels
    (array([[0.5, 0.5]]), array([0]))
    >>> p.entropy.round(3), p.mutual_information.round(3)
    (array([0.693]), array([0.368]))

    Attributes:
      log_p: log p_m(y = k | x) of each member, [M, B, K] in nats.
      conformal: (log_p [B, K] of the mixture, alpha) -> bool [B, K], the sets of a conformal method
        that is fitted on held-out examples; None without one. Of a method fit(log_p, labels, alpha)
        -> sets it is `lambda log_p, alpha: fit(held_out.mixture, labels, alpha)(log_p)`.
      normalised: whether probabilities sum to 1; with the likelihood `sigmoid` they do not, as
        each class is by itself.
      class_names: of the K classes, if the data set has them.
      alpha: of `sets` where none is given.
      pooled: whether log_p is that of a mixture [1, B, K] whose members are gone, as after post-hoc
        calibration of the mixture.
    """

    log_p: np.ndarray
    conformal: Sets | None = None
    normalised: bool = True
    class_names: tuple[str, ...] | None = None
    alpha: float = 0.1
    pooled: bool = False

    def __len__(self) -> int:
        return self.log_p.shape[1]

    @property
    def mixture(self) -> np.ndarray:
        """log of `probs`, [B, K] float64."""
        log_p = self.log_p.astype(np.float64)
        most = np.maximum(log_p.max(0), np.finfo(np.float64).min)  # -inf for every member
        return most + np.log(np.exp(log_p - most).mean(0))

    @property
    def probs(self) -> np.ndarray:
        """Probabilities of the mixture, [B, K] float64."""
        return np.exp(self.log_p.astype(np.float64)).mean(0)

    @property
    def labels(self) -> np.ndarray:
        """The most probable class, [B]."""
        return self.probs.argmax(-1)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the mixture, [B] in nats: all uncertainty about the label.

        Raises:
          ValueError: probabilities that do not sum to 1.
        """
        return information.entropy(self._normalised("entropy"))

    @property
    def mutual_information(self) -> np.ndarray:
        """Of label and member, [B] in nats: their disagreement (Houlsby et al. 2011).

        Raises:
          ValueError: probabilities that do not sum to 1.
        """
        self._require_members("mutual_information")
        return information.mutual_information(self._normalised("mutual_information"))

    @property
    def expected_entropy(self) -> np.ndarray:
        """Mean entropy of the members, [B] in nats: `entropy` - `mutual_information`.

        Raises:
          ValueError: probabilities that do not sum to 1.
        """
        self._require_members("expected_entropy")
        return information.expected_entropy(self._normalised("expected_entropy"))

    def sets(self, alpha: float | None = None, **given: np.ndarray) -> np.ndarray:
        """Which classes are in the set of each example, bool [B, K].

        On exchangeable data sets miss the label with probability at most alpha.

        Args:
          alpha: the share of misses; by default that of the method, or .1.
          **given: what the method asks for besides: `u` [B], uniform draws, of a randomised one;
            `groups` [B] of one with groups.

        Raises:
          ValueError: no conformal method is fitted, or alpha is outside (0, 1).
        """
        if self.conformal is None:
            raise ValueError(
                "sets: no conformal method is fitted on held-out examples, which their coverage "
                "needs; give one by dataclasses.replace(predicted, conformal=...)"
            )
        alpha = _checked(self.alpha if alpha is None else alpha)
        return np.asarray(self.conformal(self.mixture, alpha, **given), bool)

    def _require_members(self, name: str) -> None:
        if self.pooled:
            raise ValueError(
                f"{name}: these are the calibrated probabilities of the mixture, which has no "
                "members; predict without post-hoc calibration, or calibrate members or jointly"
            )

    def _normalised(self, name: str) -> np.ndarray:
        if not self.normalised:
            raise ValueError(f"{name}: the classes' probabilities do not sum to 1 (sigmoid)")
        return self.log_p


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussians:
    """p(y | x) = mean over members of N(member_mean, member_variance).

    >>> p = Gaussians(np.array([[[1.0]], [[3.0]]]), np.ones((2, 1, 1)))
    >>> p.mean, p.variance, p.quantile(0.5)
    (array([[2.]]), array([[2.]]), array([[2.]]))

    Attributes:
      member_mean, member_variance: of each member, [M, B, K], in the units of y.
      conformal: alpha -> the ends of intervals, [B, K] each, of a conformal method that is fitted
        on held-out examples; None without one.
      alpha: of `sets` where none is given.
    """

    member_mean: np.ndarray
    member_variance: np.ndarray
    conformal: Ends | None = None
    alpha: float = 0.1

    def __len__(self) -> int:
        return self.member_mean.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """Of the mixture, [B, K] float64."""
        return self.member_mean.mean(0, dtype=np.float64)

    @property
    def variance(self) -> np.ndarray:
        """Of the mixture, [B, K] float64: `noise` + `disagreement`."""
        return self.noise + self.disagreement

    @property
    def noise(self) -> np.ndarray:
        """Mean variance of the members, [B, K]."""
        return self.member_variance.mean(0, dtype=np.float64)

    @property
    def disagreement(self) -> np.ndarray:
        """Variance of the members' means, [B, K]."""
        return self.member_mean.var(0, dtype=np.float64)

    def quantile(self, level: float) -> np.ndarray:
        """q with P(y <= q) = level under the mixture, [B, K].

        Raises:
          ValueError: a level outside [0, 1].
        """
        return regression.quantile(self.member_mean, self.member_variance, level)

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the central interval that has y with probability `level`, [B, K] each.

        Raises:
          ValueError: a level outside [0, 1].
        """
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def sets(
        self, alpha: float | None = None, **given: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the conformal interval of each target, [B, K] each.

        On exchangeable data each misses its target with probability at most alpha; `interval` is
        the mixture's own, which promises nothing.

        Args:
          alpha: the share of misses; by default that of the method, or .1.
          **given: `groups` [B] of a method with groups.

        Raises:
          ValueError: no conformal method is fitted, or alpha is outside (0, 1).
        """
        if self.conformal is None:
            raise ValueError(
                "sets: no conformal method is fitted on held-out examples, which their coverage "
                "needs; `interval` is the mixture's own"
            )
        return self.conformal(_checked(self.alpha if alpha is None else alpha), **given)


def _checked(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha}; a number between 0 and 1, such as 0.1")
    return alpha
