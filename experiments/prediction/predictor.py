"""Predictions of the members of one or several trained states for whole data sets."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from experiments.data import labels as labels_lib
from experiments.data.files import free_memory
from experiments.data.source import Source
from experiments.prediction.predictions import (
    ARRAYS,
    Features,
    Predictions,
    Sown,
    Summary,
    joined,
    merged,
    side_by_side,
    summary,
)
from experiments.prediction.reading import Data, Reader, check_alike, key_of_data
from experiments.prediction.trained import Function, Part, Run, Trained, aligned
from uncertainty import rules
from uncertainty.types import State

if TYPE_CHECKING:
    from uncertainty.ood import LastLayer

logger = logging.getLogger(__name__)
T = TypeVar("T")
LARGE = 1 << 30  # bytes; the size of larger predictions is logged


class Predictor:
    """predict(source or its spec) -> Predictions of all members.

    Fields that a spec leaves open are read as the training data were (`data.source.load`, `like`).
    If the latents are integrated by draws, the draws depend on the position in the batch.

    Members whose predictions are not finite are left out with a warning in runs with
    `on_fault='freeze'`, and raise an error in others.

    Attributes:
      runs: the runs whose members predict.
      reader: of data sets.
      source: `Reader.source`.
    """

    def __init__(self, experiment: Run, state: State):
        self.runs = (Trained(experiment, state),)
        self.reader = Reader(experiment.source)
        self.source = self.reader.source
        self._summaries: dict[tuple, Summary] = {}

    @classmethod
    def join(cls, predictors: Mapping[str, "Predictor"]) -> "Predictor":
        """All members of several runs as one ensemble, in the order of the runs.

        Args:
          predictors: by the names of the runs, for messages.

        Raises:
          ConfigError: see `check_alike`.
        """
        check_alike({name: predictor.reader.like for name, predictor in predictors.items()})
        runs = sum((predictor.runs for predictor in predictors.values()), ())
        predictor = cls(runs[0].experiment, runs[0].state)
        predictor.runs = runs
        return predictor

    @property
    def batch_size(self) -> int:
        """The task of the first run."""
        return self.runs[0].batch_size

    def __call__(self, data: Data, labels: str = labels_lib.ALIKE) -> Predictions:
        """Predicts a whole source, or the spec of one (`data.source.load`).

        All predictions are held in memory; `over` computes in parts.

        Raises:
          ValueError: the predictions need more than the free memory.
        """
        source = self.source(data, labels)

        def part_of(part: Predictions, start: int) -> Predictions:
            if start == 0:
                size = sum(a.nbytes for a in part if isinstance(a, np.ndarray))
                _require_memory(source, size * len(source) / len(part.y))
            return part

        return joined(self.over(source, part_of), source)

    def log_probs(self, data: Data, labels: str = labels_lib.ALIKE) -> np.ndarray:
        """log p_m(y = k | x) of each member, [M, B, K].

        Raises:
          ValueError: the likelihood is not one of classes, or see `__call__`.
        """
        self._require_classes(self.source(data, labels))
        return self(data, labels).log_p

    def labelled(self, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """`log_probs` and the labels [B], which have to match the model's.

        Raises:
          ValueError: see `log_probs`.
        """
        self._require_classes(self.source(data))
        p = self(data)
        return p.log_p, p.y

    def summary(
        self, data: Data, labels: str = labels_lib.ALIKE, bins: int = 15, scores: bool = True
    ) -> Summary:
        """The inputs of classification metrics for a source, accumulated batch by batch.

        Args:
          data: spec of a data set, or a source.
          labels: see `data.source.load`.
          bins: of the calibration errors.
          scores: whether to add `metrics.ood_scores` and `metrics.per_example`.

        Raises:
          ValueError: the likelihood is not one of classes.
        """
        memo = (key_of_data(data), labels, bins, scores)
        if memo in self._summaries:
            return self._summaries[memo]
        source = self.source(data, labels)
        self._require_classes(source)
        normalised = all(run.likelihood.normalised for run in self.runs)
        options = dict(bins=bins, scores=scores, normalised=normalised)

        def part_of(p: Predictions, start: int) -> Summary:
            y = p.y if source.labelled else None
            return summary(p.log_p, y, p.mean, p.epistemic, **options, seconds=p.seconds)

        result = merged(self.over(source, part_of))
        if isinstance(data, Mapping):
            self._summaries[memo] = result
        return result

    def over(self, source: Source, fn: Callable[[Predictions, int], T]) -> list[T]:
        """Yields fn(predictions of a batch, index of its first example) for each batch, in order.

        If a batch shows that members have to be left out, iteration restarts without them at index
        0.

        Raises:
          FloatingPointError: predictions of a member are not finite, and its run does not freeze.
        """
        left_out: np.ndarray | None = None
        while True:
            results: list[T] = []
            start = 0
            for parts in aligned([run.predictions(source) for run in self.runs]):
                out = side_by_side([part.out for part in parts])
                sizes = [len(part.out["mean"]) for part in parts]
                run = np.repeat(np.arange(len(parts)), sizes)
                bad = np.isnan(out.get("log_p", out["mean"])).any(axis=(1, 2))
                left_out = np.zeros(len(bad), bool) if left_out is None else left_out
                if (bad & ~left_out).any():
                    left_out = left_out | bad
                    self._leave_out(left_out, run, source.name)
                    break
                arrays = {name: array[~left_out] for name, array in out.items()}
                results.append(fn(self._part(source, parts, arrays, run[~left_out]), start))
                start += parts[0].size
            else:
                return results

    def _part(
        self,
        source: Source,
        parts: Sequence[Part],
        arrays: Mapping[str, np.ndarray],
        run: np.ndarray,
    ) -> Predictions:
        examples = parts[0].examples
        return Predictions(
            examples["y"],
            *map(arrays.get, ARRAYS),
            source=source,
            seconds=sum(part.seconds for part in parts),
            entries={name: array for name, array in examples.items() if name != "y"},
            run=run,
        )

    def _leave_out(self, bad: np.ndarray, run: np.ndarray, name: str) -> None:
        which = ", ".join(map(str, np.flatnonzero(bad)))
        stop = [one.experiment.config["on_fault"] != "freeze" for one in self.runs]
        if bad.all() or any(stop[r] for r in run[bad]):
            raise FloatingPointError(f"{name}: the predictions of member {which} are not finite")
        logger.warning(
            "%s: the predictions of member %s are not finite and are left out", name, which
        )

    def map(
        self, fn: Function, data: Data, labels: str = labels_lib.ALIKE, **options: Any
    ) -> Iterator[Part]:
        """`Trained.map` over a source, for a single run.

        Raises:
          ValueError: there are several runs; use `runs`.
        """
        return self._only().map(fn, self.source(data, labels), **options)

    def sown(self, data: Data, collection: str) -> Iterator[Sown]:
        """What layers store in a Flax collection while predicting a source, one batch at a time.

        Args:
          data: spec of a data set, or a source.
          collection: its name; it is mutable meanwhile, so it may not be one that predictions need.

        Raises:
          ValueError: there are several runs.
        """
        for part in self._only().sown(self.source(data), collection):
            leaves = zip(rules.paths(part.out), jax.tree.leaves(part.out), strict=True)
            yield Sown(part.examples["y"], dict(leaves))

    def features(self, data: Data) -> Features:
        """Features of a whole source, concatenated over members, particles and runs.

        Labels are those of the source itself; features that members share appear once.
        """
        each, y = self.member_features(data)
        return Features(each[0] if len(each) == 1 else np.concatenate(each, axis=1), y)

    def member_features(self, data: Data) -> tuple[list[np.ndarray], np.ndarray]:
        """Features [B, D] of each member of each particle and run, and labels as in `features`.

        Members that share features appear once.
        """
        source = self.source(data, labels_lib.OWN)
        each: list[np.ndarray] = []
        for run in self.runs:
            parts = list(run.features(source))  # [P S, M, B, D]
            phi = np.concatenate([part.out for part in parts], axis=2)
            each += list(phi.reshape(-1, *phi.shape[2:]))
        y = np.concatenate([part.examples["y"] for part in parts])
        return each, y

    def last_layer(self) -> "LastLayer | None":
        """The affine last layer of a single network with one member, or None."""
        from uncertainty.ood import LastLayer

        (run, *others), state = self.runs, self.runs[0].state
        name = run.experiment.model.affine
        if others or state.samples is not None or name is None:
            return None
        layer = {key: np.asarray(array) for key, array in state.params["head"][name].items()}
        if {key: array.ndim for key, array in layer.items()} != dict(kernel=3, bias=2):
            return None  # a layer of several members
        if len(layer["kernel"]) > 1:  # particles
            return None
        return LastLayer(layer["kernel"][0], layer["bias"][0])

    def _only(self) -> Trained:
        if len(self.runs) > 1:
            raise ValueError(f"{len(self.runs)} runs are joined, but this needs a single run")
        return self.runs[0]

    def _require_classes(self, source: Source) -> None:
        if any(run.likelihood.log_probs is None for run in self.runs):
            raise ValueError(f"{source.name}: the likelihood is not one of classes")


def _require_memory(source: Source, size: float) -> None:
    """Logs the memory for predictions of `size` bytes, twice that while they are joined.

    Raises:
      ValueError: it is more than the free memory.
    """
    required = 2 * size
    if required < LARGE:
        return
    text = f"{source.name}: its predictions need {required / 2**30:,.1f} GiB of memory"
    if required > (free := free_memory()):
        raise ValueError(
            f"{text}, but {free / 2**30:,.1f} are free; use a part of the set, such as "
            "split='test[:10%]'"
        )
    logger.info(text)
