"""One member, chosen by few labels of the examples on which the members differ most."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, reads
from experiments.runtime import keys
from uncertainty.metrics.information import disagreement

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

CHOICES = ("accuracy", "random_accuracy")


def disambiguation(
    data: Data, pool: Data, labels: Sequence[int] = (16,), draws: int = 20, seed: int = 0
) -> Evaluator:
    """Accuracy of the member that few labels choose, on a test set.

    Source: Lee et al. 2023, "Diversify and disambiguate", section 3.2, and their code: the pool's n
    examples with the largest mean over pairs of members of sum_k |p_ik - p_jk| are labelled, and
    the member with the best accuracy on them is chosen (equal ones share the choice: the result is
    their mean).

    Yields, for each n, `disambiguation/<n>/accuracy`, and `random_accuracy` where the n examples
    are drawn at random instead, mean over draws; `disambiguation/best_member` and `worst_member`,
    the largest and smallest accuracy of a member on the test set, between which the choice lies;
    `disambiguation/mixture`, the accuracy of all members together; `disambiguation/disagreement`,
    the share of pairs of members with different classes on the pool; and the array
    `disambiguation/members` [M] of accuracies.

    Args:
      data: spec of the test set.
      pool: spec of the examples that may be labelled, such as the unlabelled stream's; apart from
        the test set.
      labels: numbers n.
      draws: of random examples.
      seed: of these.

    Raises:
      ValueError: no number of labels, one below 1 or above the size of the pool, a pool that is the
        test set, no draw, or a single member.
    """
    if not labels or min(labels) < 1 or draws < 1:
        raise ValueError(f"labels: {list(labels)}, draws: {draws}; numbers from 1 are needed")
    if pool == data:
        raise ValueError("pool: is the test set, whose labels may choose nothing")

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        log_p, y = predict.labelled(pool)
        if len(log_p) < 2:
            raise ValueError("disambiguation: there is one member; at least 2 are needed")
        if max(labels) > len(y):
            raise ValueError(f"labels: {max(labels)}; the pool has {len(y)} examples")
        right = log_p.argmax(2) == y  # [M, B]
        apart = differences(np.exp(log_p))
        log_p_test, y_test = predict.labelled(data)
        tested = np.mean(log_p_test.argmax(2) == y_test, axis=1)
        order, rng = np.argsort(-apart, kind="stable"), np.random.default_rng(seed)
        random = [rng.permutation(len(y)) for _ in range(draws)]
        for n in labels:
            name = str(n)
            chosen = of_best(right[:, order[:n]], tested)
            yield keys.join("disambiguation", name, "accuracy"), chosen
            mean = np.mean([of_best(right[:, one[:n]], tested) for one in random])
            yield keys.join("disambiguation", name, "random_accuracy"), float(mean)
        mixture = np.exp(log_p_test.astype(np.float64)).mean(0).argmax(1)
        yield "disambiguation/best_member", float(tested.max())
        yield "disambiguation/worst_member", float(tested.min())
        yield "disambiguation/mixture", float(np.mean(mixture == y_test))
        yield "disambiguation/disagreement", disagreement(log_p)
        yield "disambiguation/members", tested

    of_all = ("best_member", "worst_member", "mixture", "disagreement")
    yields = {f"disambiguation/{name}" for name in of_all}
    yields |= {keys.join("disambiguation", str(n), name) for n in labels for name in CHOICES}
    read = reads("data", data) + reads("pool", pool, reported=False)
    return Evaluator(run, "classification", yields, read)


def differences(p: np.ndarray) -> np.ndarray:
    """Mean over pairs i < j of sum_k |p_ik - p_jk| of probabilities [M, B, K], [B].

    Of M values in ascending order the i-th (from 0) has the factor 2 i - M + 1 in the sum of
    differences, so that no pair is formed.
    """
    M = len(p)
    factors = 2 * np.arange(M) - M + 1
    total = np.einsum("m,mbk->b", factors, np.sort(p.astype(np.float64), axis=0))
    return total / (M * (M - 1) / 2)


def of_best(right: np.ndarray, tested: np.ndarray) -> float:
    """The test accuracy of the members that are right most often.

    Args:
      right: [M, n], of the labelled examples.
      tested: accuracies [M] on the test set.
    """
    count = right.sum(1)
    return float(tested[count == count.max()].mean())
