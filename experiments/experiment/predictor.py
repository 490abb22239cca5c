"""What the members of a trained state say of a whole data set."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from experiments.data import labels as labels_lib
from experiments.data.derived import key_of
from experiments.data.files import free_memory
from experiments.data.loader import epoch
from experiments.data.source import Source, load
from experiments.experiment.build import Experiment
from experiments.runtime import execution
from uncertainty import metrics, predictive, rules
from uncertainty.build import ConfigError
from uncertainty.inference import executors, samples
from uncertainty.metrics import streaming
from uncertainty.types import Batch, State

logger = logging.getLogger(__name__)
T = TypeVar("T")
LARGE = 1 << 30  # bytes of predictions from which on it is said what they take


class Predictions(NamedTuple):
    """What the members say of every example of a source, on the host."""

    y: np.ndarray  # [B] or [B, K]
    mean: np.ndarray  # of the latents, or of y for real outcomes, [M, B, K]
    log_p: np.ndarray | None  # [M, B, K], for classes
    variance: np.ndarray | None  # of y, [M, B, K], for real outcomes
    latent_variance: np.ndarray | None  # marginal variance of the latents, [M, B, K]
    epistemic: np.ndarray | None  # the part of it that the parameters leave open, [M, B, 1 or K]
    source: Source
    seconds: float  # of computing, compilation left out


class Summary(NamedTuple):
    """What metrics of classes need of a source: sums, and arrays [B] of each example."""

    tally: streaming.Accumulator | None  # None where labels are unused
    confidence: np.ndarray
    correct: np.ndarray
    examples: dict[str, np.ndarray]  # `metrics.per_example`
    scores: dict[str, np.ndarray]  # `metrics.ood_scores`
    source: Source
    seconds: float


class Predictor:
    """predict(source or its spec) -> Predictions, compiled once and sharded like training.

    Where the latents are integrated by draws, the draws belong to a place in the batch.

    What a spec leaves open is read as the training data were (`data.source.load`, `like`).

    Members whose predictions are not finite are left out with a warning in runs with
    `on_fault='freeze'`, and an error in others.

    Attributes:
      read: `_key` of a spec or source -> `described` of it, for all that was read.
    """

    def __init__(self, experiment: Experiment, state: State):
        self.state, self.drop = state, experiment.config["on_fault"] == "freeze"
        self.experiment = experiment
        self.batch_size = experiment.config["evaluation"]["batch_size"]
        self.shape, self.task = experiment.source.shape, experiment.source.task
        self._shares_slots = experiment.model.batch_dependent
        self._put = execution.put_batch(experiment.mesh)
        latents = execution.on_mesh(
            lambda state, batch: experiment.inference.predict(state, batch["x"], batch.get("mask")),
            experiment.mesh,
        )
        likelihood = experiment.model.likelihood
        self.normalised = likelihood.normalised

        def predict(state: State, batch: Batch) -> dict[str, jax.Array]:
            latent = latents(state, batch)
            known = {}
            if not predictive.is_certain(latent):
                known["latent_variance"] = predictive.marginal_variance(latent)
            if latent.epistemic is not None:
                known["epistemic"] = latent.epistemic
            if likelihood.log_probs is None:
                mean, variance = likelihood.moments(latent)
                return dict(mean=mean, variance=variance, **known)
            log_p = likelihood.log_probs(latent, jax.random.key(0))
            return dict(log_p=log_p, mean=latent.mean, **known)

        def features(particle: Any, batch: Batch) -> jax.Array:
            params, collections, key = particle
            x, mask = batch["x"], batch.get("mask")
            return experiment.model.features(params, collections, x, key, mask)

        self._features = self._of_particles(features)
        self._predict = jax.jit(predict)
        self._compiled: set[bool] = set()  # without and with a mask
        self._sources: dict[tuple[str, str], Source] = {}  # the last one
        self._summaries: dict[tuple, Summary] = {}
        self.read: dict[str, dict[str, Any]] = {}

    def __call__(
        self, spec: Mapping[str, Any] | Source, labels: str = labels_lib.ALIKE
    ) -> Predictions:
        """Predicts a whole source, given as it is or as what `data.source.load` takes.

        All of it is held in memory; what needs sums and numbers of each example alone is found by
        `summary`, in parts.

        Raises:
          ValueError: the predictions take more memory than is free.
        """
        source = self.source(spec, labels)
        sized = []

        def kept(part: Predictions) -> Predictions:
            if not sized:
                size = sum(a.nbytes for a in part if isinstance(a, np.ndarray))
                self._require(source, size * len(source) / len(part.y))
                sized.append(True)
            return part

        found = self._over(source, kept)
        return Predictions(
            *(_joined([part[i] for part in found], int(i > 0)) for i in range(6)),
            source=source,
            seconds=sum(part.seconds for part in found),
        )

    def summary(
        self,
        spec: Mapping[str, Any] | Source,
        labels: str = labels_lib.ALIKE,
        bins: int = 15,
        scores: bool = True,
    ) -> Summary:
        """What metrics need of a source whose likelihood is of classes, batch by batch.

        Args:
          spec: of a data set, or a source.
          labels: see `data.source.load`.
          bins: of the calibration errors.
          scores: whether those of `metrics.ood_scores` and `metrics.per_example` are wanted too.

        Raises:
          ValueError: the likelihood is of another kind.
        """
        memo = (_key(spec), labels, bins, scores)
        if memo in self._summaries:
            return self._summaries[memo]
        source = self.source(spec, labels)
        known = source.labelled

        def part(p: Predictions) -> tuple:
            if p.log_p is None:
                raise ValueError(f"{source.name}: the likelihood is not of classes")
            examples, found = {}, {}
            if scores:
                examples = metrics.per_example(p.log_p, p.y if known else None)
                found = metrics.ood_scores(p.log_p, p.mean, p.epistemic)
            none = np.zeros(0)
            sums = (
                streaming.tally(p.log_p, p.y, bins, self.normalised)
                if known
                else (None, none, none)
            )
            return *sums, examples, found, p.seconds

        tallies, confidence, correct, examples, found, seconds = zip(
            *self._over(source, part), strict=True
        )
        result = Summary(
            tally=functools.reduce(streaming.merge, tallies) if known else None,
            confidence=np.concatenate(confidence),
            correct=np.concatenate(correct),
            examples={key: np.concatenate([e[key] for e in examples]) for key in examples[0]},
            scores={key: np.concatenate([f[key] for f in found]) for key in found[0]},
            source=source,
            seconds=sum(seconds),
        )
        if isinstance(spec, Mapping):
            self._summaries[memo] = result
        return result

    def _over(self, source: Source, fn: Callable[[Predictions], T]) -> list[T]:
        """fn of the predictions of each batch, in order.

        Members that are to be left out show in some batch; then all begins again without them.
        """
        left_out = np.zeros(0, bool)
        while True:
            found: list[T] = []
            for batch, y in self._batches(source):
                if ("mask" in batch) not in self._compiled:
                    jax.block_until_ready(self._predict(self.state, batch))
                    self._compiled.add("mask" in batch)
                began = time.monotonic()
                out = execution.host(self._predict(self.state, batch))
                seconds = time.monotonic() - began
                out = {key: value[:, : len(y)] for key, value in out.items()}
                bad = np.isnan(out.get("log_p", out["mean"])).any(axis=(1, 2))
                if not len(left_out):
                    left_out = np.zeros(len(bad), bool)
                if (bad & ~left_out).any():
                    left_out |= bad
                    self._leave_out(left_out, source.name)
                    break
                out = {key: value[~left_out] for key, value in out.items()}
                found.append(fn(_predictions(out, y, source, seconds)))
            else:
                return found

    def _leave_out(self, bad: np.ndarray, name: str) -> None:
        which = ", ".join(map(str, np.flatnonzero(bad)))
        if not self.drop or bad.all():
            raise FloatingPointError(f"{name}: the predictions of member {which} are not finite")
        logger.warning("%s: the predictions of member %s are not finite and are left out", name,
                       which)  # fmt: skip

    def _require(self, source: Source, size: float) -> None:
        """Says what predictions of `size` bytes take; twice as much while they are joined."""
        needed = 2 * size
        if needed < LARGE:
            return
        text = f"{source.name}: its predictions take {needed / 2**30:,.1f} GiB of memory"
        if needed > (free := free_memory()):
            raise ValueError(f"{text}, and {free / 2**30:,.1f} are free; take a part of the set, "
                             "such as split='test[:10%]'")  # fmt: skip
        logger.info(text)

    def sown(
        self, spec: Mapping[str, Any] | Source, collection: str
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """What layers keep in a Flax collection as they predict a source, one batch at a time.

        Args:
          spec: of a data set, or a source.
          collection: its name; it is mutable then, and may not be one that predictions need.

        Yields:
          The labels of a batch, and path -> array [P S, ...] on the host. A last batch is filled up
          with copies of its last example, so that its arrays have more rows than labels.
        """
        forward = self.experiment.model.forward

        def kept(particle: Any, batch: Batch) -> Any:
            params, collections, key = particle
            options = dict(train=False, mutable=(collection,), mask=batch.get("mask"))
            found = forward(params, collections, batch["x"], key, **options)[1]
            return found.get(collection, {})

        run = self._of_particles(kept)
        for batch, y in self._batches(self.source(spec)):
            found = execution.host(run(self.state, batch))
            yield y, dict(zip(rules.paths(found), jax.tree.leaves(found), strict=True))

    def features(self, spec: Mapping[str, Any] | Source) -> tuple[np.ndarray, np.ndarray]:
        """Features of a whole source, members' and particles' side by side, and its own labels.

        Returns:
          phi: [B, P M D] float32; members that share features have them once.
          y: [B].
        """
        phi, labels = [], []
        for batch, y in self._batches(self.source(spec, labels_lib.OWN)):
            out = execution.host(self._features(self.state, batch))  # [P S, M, B, D]
            phi.append(np.moveaxis(out[:, :, : len(y)], 2, 0).reshape(len(y), -1))
            labels.append(y)
        return np.concatenate(phi), np.concatenate(labels)

    def _of_particles(self, fn: Callable[[Any, Batch], Any]) -> Callable:
        """(state, batch) -> fn(particle, batch) of all that predict, [P S, ...]: `predicting`."""
        over = executors.mapping(self.experiment.config["inference"].get("executor", "auto"))
        mesh = self.experiment.mesh
        return jax.jit(
            execution.on_mesh(lambda state, batch: over(fn)(samples.predicting(state), batch), mesh)
        )

    def source(self, spec: Mapping[str, Any] | Source, labels: str = labels_lib.ALIKE) -> Source:
        """The examples of a spec, read as the training data were; the last ones are kept.

        Args:
          spec: of a data set, or a source.
          labels: see `data.source.load`.

        Raises:
          ConfigError: inputs of another shape than the model was trained on, or as `load`.
        """
        key, source = _key(spec), spec
        if isinstance(spec, Mapping):
            if (key, labels) not in self._sources:
                self._sources.clear()  # before the next one takes its place in memory
                source = load(spec, like=self.experiment.source, labels=labels)
                self._sources[key, labels] = source
            source = self._sources[key, labels]
        elif tuple(source.shape) != tuple(self.shape):
            raise ConfigError(
                f"{source.name}: inputs of shape {tuple(source.shape)}, but the model was trained "
                f"on {tuple(self.shape)}"
            )
        if source.transform is None and key not in self.read:
            self.read[key] = described(source)
        return source

    def noted(self, spec: Mapping[str, Any] | Source) -> dict[str, Any] | None:
        """`described` of a set that was read; None for others."""
        return self.read.get(_key(spec))

    def _batches(self, source: Source) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches on the mesh, `x` and maybe `mask`, and the labels of the examples that count.

        The last one is filled up. Where examples share the slots of experts it has the `mask` [B]
        of those that count, so that what fills it up takes none (`uncertainty/layers/moe/mask.py`).
        """
        share = dict(process_index=jax.process_index(), process_count=jax.process_count())
        for batch in epoch(source, self.batch_size, **share):
            known = execution.host({"y": batch["y"], "mask": batch["mask"]})
            count = int(np.sum(known["mask"]))
            full = count == len(known["mask"]) or not self._shares_slots
            fields = ("x",) if full else ("x", "mask")
            yield self._put({field: batch[field] for field in fields}), known["y"][:count]


def described(source: Source) -> dict[str, Any]:
    """What is noted of a set beside its metrics."""
    noted = dict(name=source.title, examples=len(source), digest=source.digest())
    return noted | ({"notes": list(source.notes)} if source.notes else {})


def _key(spec: Mapping[str, Any] | Source) -> str:
    return key_of(spec) if isinstance(spec, Mapping) else f"{spec.name} {id(spec)}"


def _predictions(
    out: Mapping[str, np.ndarray], y: np.ndarray, source: Source, seconds: float
) -> Predictions:
    return Predictions(
        y=y,
        mean=out["mean"],
        log_p=out.get("log_p"),
        variance=out.get("variance"),
        latent_variance=out.get("latent_variance"),
        epistemic=out.get("epistemic"),
        source=source,
        seconds=seconds,
    )


def _joined(parts: list[np.ndarray | None], axis: int) -> np.ndarray | None:
    return None if parts[0] is None else np.concatenate(parts, axis)
