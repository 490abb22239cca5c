"""Which of several cues, each of which tells the class in training, the members use."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Evaluator, reads, reads_each
from experiments.evaluators.simplicity import above_chance
from experiments.runtime import keys

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

NONE, DIAGONAL = "none", "diagonal"


def cues(sets: Mapping[str, Any], diagonal: Any = None) -> Evaluator:
    """Off-diagonal accuracy for every cue, and the share of members that use each.

    Source: Scimeca et al. 2022, "Which shortcut cues will DNNs choose?": in the set of a cue the
    label is its value, and the other cues are independent of it. A member uses the cue whose set it
    predicts best, none if all are within three standard deviations of 1 / K; that is our rule.

    Yields, as `cues/<cue>/...`, `accuracy` of the mixture, `member_accuracy`, the mean over
    members, `share`, the share of members that use the cue (equal ones share a member), and the
    array `members` [M] of accuracies; `cues/none/share`; `cues/used`, exp of the entropy of the
    shares of the members that use one, the effective number of cues; and
    `cues/diagonal/accuracy` where it is given.

    Args:
      sets: cue -> spec of its set, such as dict(split="off_colour") of `sprites`.
      diagonal: spec of a test set in which all cues agree.

    Raises:
      ValueError: fewer than two cues, or one that is called 'none' or 'diagonal'.
    """
    if len(sets) < 2 or {NONE, DIAGONAL} & set(sets):
        raise ValueError(
            f"sets: {sorted(sets)}; two or more cues, whose names are not {NONE!r} and {DIAGONAL!r}"
        )
    specs = dict(sets) | ({} if diagonal is None else {DIAGONAL: diagonal})

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        of_members, chance = {}, {}
        for name, spec in specs.items():
            log_p, y = predict.labelled(spec)
            mixture = np.exp(log_p.astype(np.float64)).mean(0)
            yield keys.join("cues", name, "accuracy"), float(np.mean(mixture.argmax(1) == y))
            each = np.mean(log_p.argmax(2) == y, axis=1)
            yield keys.join("cues", name, "member_accuracy"), float(each.mean())
            yield keys.join("cues", name, "members"), each
            of_members[name], chance[name] = each, above_chance(log_p.shape[2], len(y))
        accuracy = np.stack([of_members[name] for name in sets])
        share = shares(accuracy, np.array([chance[name] for name in sets]))
        for name, value in zip((*sets, NONE), share, strict=True):
            yield keys.join("cues", name, "share"), float(value)
        yield "cues/used", effective(share[:-1])

    yields = {keys.join("cues", n, k) for n in specs for k in ("accuracy", "member_accuracy")}
    yields |= {keys.join("cues", name, "share") for name in (*sets, NONE)} | {"cues/used"}
    read = reads_each("sets", sets) + reads(DIAGONAL, diagonal)
    return Evaluator(run, "classification", yields, read)


def shares(accuracy: np.ndarray, least: np.ndarray) -> np.ndarray:
    """The share of members that use each cue, and of those that use none, [C + 1].

    Args:
      accuracy: [C, M].
      least: [C], what the accuracy has to exceed.
    """
    above = np.where(accuracy > least[:, None], accuracy, -1.0)
    best = (above == above.max(0)) & (above >= 0)
    uses = best / np.maximum(best.sum(0), 1)
    return np.append(uses.mean(1), np.mean(~best.any(0)))


def effective(share: np.ndarray) -> float:
    """exp of the entropy of shares [C] over their sum; 0 if all are 0."""
    if not share.any():
        return 0.0
    p = share[share > 0] / share.sum()
    return float(np.exp(-np.sum(p * np.log(p))))
