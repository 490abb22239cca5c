"""How members of different kinds differ from each other, such as those of several symmetries."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import require_normalised
from experiments.runtime import keys
from uncertainty.metrics import pairs

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor

JOINT = "+"  # between the two kinds of a pair
OF_KIND = ("member_accuracy", "member_nll", "classes_won")


def kinds(
    data: Data, kinds: Sequence[str], counts: Sequence[int] = (2,), classes: bool = False
) -> Evaluator:
    """Diversity of pairs of members and accuracy at equal member counts, by the kinds of members.

    Yields, for each two kinds a and b, a <= b in the order of their first appearance, also a = b,
    `kinds/a+b/...`, means over pairs of different members: `disagreement`, P(their most probable
    classes differ), and `error_inconsistency`, P(exactly one is right); and for each count n
    `accuracy_n` and `nll_n` of mixtures of n members, half of each kind (`metrics.pairs.at_count`).
    Pairs and counts for which there are too few members are left out.

    For each kind `kinds/a/member_accuracy` and `member_nll`, means over its members, and
    `classes_won`, the share of classes whose mean member accuracy (recall) is highest with it;
    kinds that are equal share a class. With `classes`, `kinds/a/class/<name>/accuracy` too. The
    array `kinds/class_accuracy` has these numbers, [kinds, K].

    Source: Loh et al. 2023, "Multi-symmetry ensembles": whether members of opposite hypotheses
    about a symmetry differ more than members of the same one, and win different classes.

    Args:
      data: the test source's spec.
      kinds: names, dealt to the particles in turn, as the lists of `inference.hyper` are; of
        several runs to those of one run after the other. All members of a particle are of its kind.
      counts: members of the mixtures.
      classes: whether to give the accuracy of each class.

    Raises:
      ValueError: no kind, a name with '+' or '/', a count below 1; when run, members that were left
        out, or independent classes (the likelihood 'sigmoid').
    """
    check(kinds, counts)
    names = list(dict.fromkeys(kinds))

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        require_normalised(predict, "NLLs of kinds of members")
        p = predict(data)
        particles = [len(of.state.key) for of in predict.runs]
        of = of_members(kinds, p.run, particles)
        yield from measured(p.log_p, p.y, of, counts)
        if classes:
            accuracy = class_accuracy(p.log_p, p.y, of)
            called = p.source.class_names or tuple(map(str, range(accuracy.shape[1])))
            for (i, kind), (k, name) in itertools.product(
                enumerate(dict.fromkeys(of)), enumerate(called)
            ):
                yield keys.join("kinds", kind, "class", name, "accuracy"), float(accuracy[i, k])

    metrics = ["disagreement", "error_inconsistency"]
    metrics += [f"{metric}_{n}" for n in counts for metric in ("accuracy", "nll")]
    couples = itertools.combinations_with_replacement(names, 2)
    yields = {keys.join("kinds", JOINT.join(c), name) for c in couples for name in metrics}
    yields |= {keys.join("kinds", kind, name) for kind in names for name in OF_KIND}
    if classes:
        yields |= {keys.join("kinds", kind, "class", "*", "accuracy") for kind in names}
    return Evaluator(run, "classification", yields, reads("data", data))


def check(kinds: Sequence[str], counts: Sequence[int]) -> None:
    """Raises ValueError for fields that `kinds` refuses."""
    texts = not isinstance(kinds, str) and all(isinstance(kind, str) and kind for kind in kinds)
    if not texts or not kinds or any(set(kind) & {JOINT, "/"} for kind in kinds):
        raise ValueError(f"kinds: {kinds!r}; a list of names without '+' and '/'")
    if not all(type(n) is int and n >= 1 for n in counts):
        raise ValueError(f"counts: {list(counts)}; whole numbers from 1")


def of_members(kinds: Sequence[str], run: np.ndarray | None, particles: Sequence[int]) -> list[str]:
    """The kind of each member.

    Args:
      kinds: dealt to the particles in turn.
      run: of each member, [M]; None for a single one.
      particles: of each run.

    Raises:
      ValueError: a run's members are not as many for each of its particles.
    """
    of, first = [], 0
    for r, P in enumerate(particles):
        M = int(np.sum(run == r)) if run is not None else 0
        if not M or M % P:
            raise ValueError(
                f"kinds: {M} members of {P} particles have no kinds; members were left out, as "
                "their predictions are not finite"
            )
        of += [kinds[(first + p) % len(kinds)] for p in range(P) for _ in range(M // P)]
        first += P
    return of


def measured(
    log_p: np.ndarray, y: np.ndarray, kinds: Sequence[str], counts: Sequence[int] = (2,)
) -> Iterator[tuple[str, Any]]:
    """The metrics and the array of `kinds`, of predictions [M, B, K] of members of these kinds."""
    matrices = dict(
        disagreement=pairs.disagreement(log_p),
        error_inconsistency=pairs.error_inconsistency(log_p, y),
    )
    for name, matrix in matrices.items():
        for couple, value in pairs.between(matrix, kinds).items():
            yield keys.join("kinds", JOINT.join(couple), name), value
    for n in counts:
        for couple, values in pairs.at_count(log_p, y, kinds, n).items():
            for name, value in zip(("accuracy", "nll"), values, strict=True):
                yield keys.join("kinds", JOINT.join(couple), f"{name}_{n}"), value
    names, of = list(dict.fromkeys(kinds)), np.asarray(kinds)
    right = np.mean(log_p.argmax(2) == y, axis=1)
    nll = -np.take_along_axis(log_p, y[None, :, None], 2)[..., 0].mean(1, dtype=np.float64)
    accuracy = class_accuracy(log_p, y, kinds)
    won = share_of_classes(accuracy)
    for i, kind in enumerate(names):
        values = right[of == kind].mean(), nll[of == kind].mean(), won[i]
        for name, value in zip(OF_KIND, values, strict=True):
            yield keys.join("kinds", kind, name), float(value)
    yield "kinds/class_accuracy", accuracy


def class_accuracy(log_p: np.ndarray, y: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    """Mean over the members of each kind of their accuracy on each class, [kinds, K].

    NaN for a class without examples.
    """
    of, right = np.asarray(kinds), log_p.argmax(2) == y
    accuracy = np.full((len(set(kinds)), log_p.shape[2]), np.nan)
    for i, kind in enumerate(dict.fromkeys(kinds)):
        for k in np.unique(y):
            accuracy[i, k] = right[np.ix_(of == kind, y == k)].mean()
    return accuracy


def share_of_classes(accuracy: np.ndarray) -> np.ndarray:
    """The share of classes that each row of [kinds, K] wins; equal ones share a class."""
    seen = accuracy[:, ~np.isnan(accuracy).any(0)]
    best = seen == seen.max(0)
    return (best / best.sum(0)).mean(1)
