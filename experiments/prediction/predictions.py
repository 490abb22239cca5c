"""What members predict of a data set: its types, and how parts of it are joined."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.data.source import Source
from uncertainty.metrics import streaming


class Predictions(NamedTuple):
    """What the members say of every example of a source, on the host."""

    y: np.ndarray  # [B] or [B, K]
    mean: np.ndarray  # of the latents, or of y in regression, [M, B, K]
    log_p: np.ndarray | None  # [M, B, K], for classes
    variance: np.ndarray | None  # of y, [M, B, K], in regression
    latent_variance: np.ndarray | None  # marginal variance of the latents, [M, B, K]
    epistemic: np.ndarray | None  # the part of it that the parameters leave open, [M, B, 1 or K]
    source: Source
    seconds: float  # of computing, compilation left out
    entries: Mapping[str, np.ndarray] = MappingProxyType({})  # beside x and y, [B, ...]
    run: np.ndarray | None = None  # of several, which one a member is of, [M]


class Summary(NamedTuple):
    """What metrics of classes need of a source: sums, and arrays [B] of each example."""

    tally: streaming.Accumulator | None  # None where labels are unused
    confidence: np.ndarray
    correct: np.ndarray
    examples: dict[str, np.ndarray]  # `metrics.per_example`
    scores: dict[str, np.ndarray]  # `metrics.ood_scores`
    source: Source
    seconds: float


class Features(NamedTuple):
    """phi(x) of a whole source and the source's own labels."""

    phi: np.ndarray  # [B, P M D] float32
    y: np.ndarray  # [B]


class Sown(NamedTuple):
    """What layers keep in a collection for one batch."""

    y: np.ndarray  # labels of the examples that count
    arrays: dict[str, np.ndarray]  # by path, [P S, ...], with rows for what fills up the batch too


ARRAYS = ("mean", "log_p", "variance", "latent_variance", "epistemic")  # [M, B, K]


def side_by_side(outs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The members of several runs along one axis; an array that a run lacks is 0, see `Latent`."""
    if len(outs) == 1:
        return dict(outs[0])
    joined = {}
    for name in (name for name in ARRAYS if any(name in out for out in outs)):
        width = max(out[name].shape[-1] for out in outs if name in out)
        joined[name] = np.concatenate(
            [
                np.broadcast_to(out.get(name, np.float32(0)), (*out["mean"].shape[:2], width))
                for out in outs
            ]
        )
    return joined


def joined(parts: Sequence[Predictions], source: Source) -> Predictions:
    """The predictions of a whole source, of those of its parts in order."""

    def array(name: str) -> np.ndarray | None:
        each = [part._asdict()[name] for part in parts]
        return None if each[0] is None else np.concatenate(each, axis=1)

    return Predictions(
        np.concatenate([part.y for part in parts]),
        *map(array, ARRAYS),
        source=source,
        seconds=sum(part.seconds for part in parts),
        entries={k: np.concatenate([p.entries[k] for p in parts]) for k in parts[0].entries},
        run=parts[0].run,
    )
