"""What is left of the accuracy when simple features, or all others, are those of other examples."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, reads
from uncertainty.metrics.ranking import auroc

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

SETS = ("standard", "simple_randomised", "complex_randomised")
NUMBERS = ("accuracy", "auc", "member_accuracy", "member_auc", "best_member")
SHARES = {"simple_randomised": "complex_share", "complex_randomised": "simple_share"}


def simplicity(data: Data, simple_randomised: Data, complex_randomised: Data) -> Evaluator:
    """S-randomised and S^c-randomised accuracy and AUC, and which members use complex features.

    Source: Shah et al. 2020, "The pitfalls of simplicity bias in neural networks", section 3. The
    bias is extreme where `simple_randomised` is at chance and `complex_randomised` as good as
    `standard`: only simple features are used.

    Yields, for each of `standard` and the other two, `simplicity/<set>/accuracy` and `auc` of the
    mixture, means over members of both as `member_accuracy` and `member_auc`, the accuracy of the
    best member as `best_member`, and the members' accuracies as the array `members` [M]. The AUC is
    the mean over classes of P(p_k of an example of class k is larger than p_k of another), ties
    half.
    `simplicity/complex_share` is the share of members that use complex features: their accuracy on
    `simple_randomised` is more than three standard deviations above 1 / K. `simple_share` is the
    same of simple features, on `complex_randomised`; a member may use both.

    Args:
      data: spec of the test set.
      simple_randomised: the same examples with the simple features of others, such as this split of
        `linear_and_slabs` or `dominoes`.
      complex_randomised: those with all other features of others.
    """
    specs = dict(zip(SETS, (data, simple_randomised, complex_randomised), strict=True))

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        for name, spec in specs.items():
            log_p, y = predict.labelled(spec)
            for key, value in measured(log_p, y).items():
                yield f"simplicity/{name}/{key}", value
            if name in SHARES:
                of_members = np.mean(log_p.argmax(2) == y, axis=1)
                share = np.mean(of_members > above_chance(log_p.shape[2], len(y)))
                yield f"simplicity/{SHARES[name]}", float(share)

    yields = {f"simplicity/{name}/{key}" for name in SETS for key in NUMBERS}
    yields |= {f"simplicity/{name}" for name in SHARES.values()}
    fields = ("data", *SETS[1:])
    read = sum((reads(f, spec) for f, spec in zip(fields, specs.values(), strict=True)), ())
    return Evaluator(run, "classification", yields, read)


def measured(log_p: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The metrics of members' log-probabilities [M, B, K] and labels [B]; see `simplicity`."""
    p = np.exp(log_p.astype(np.float64))
    of_members = np.mean(log_p.argmax(2) == y, axis=1)
    return dict(
        accuracy=float(np.mean(p.mean(0).argmax(1) == y)),
        auc=auc(p.mean(0), y),
        member_accuracy=float(of_members.mean()),
        member_auc=float(np.mean([auc(one, y) for one in p])),
        best_member=float(of_members.max()),
        members=of_members,
    )


def auc(p: np.ndarray, y: np.ndarray) -> float:
    """The area under the ROC curve of each class against all others, mean over classes.

    Args:
      p: probabilities [B, K].
      y: labels [B]; classes without examples, or with all of them, are left out.

    Raises:
      ValueError: all labels are equal.
    """
    present = [k for k in range(p.shape[1]) if 0 < np.mean(y == k) < 1]
    if not present:
        raise ValueError(f"all {len(y)} examples are of one class, so there is no AUC")
    return float(np.mean([auroc(p[y != k, k], p[y == k, k]) for k in present]))


def above_chance(classes: int, n: int) -> float:
    """The accuracy over n examples that three standard deviations of 1 / K do not reach."""
    return 1 / classes + 3 * np.sqrt((1 / classes) * (1 - 1 / classes) / n)
