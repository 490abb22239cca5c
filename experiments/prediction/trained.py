"""Functions of a trained state, over whole data sets: compiled once, sharded like training."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.data.loader import epoch
from experiments.data.source import Source
from experiments.data.streams import Data
from experiments.runtime import execution
from uncertainty import predictive
from uncertainty.inference import samples
from uncertainty.types import Batch, Inference, Latent, Model, State

Function = Callable[[Any, Batch], Any]  # (state, batch) or (particle, batch) -> a tree of arrays


class Part(NamedTuple):
    """The result of a function for the examples of one batch, on the host."""

    examples: dict[str, np.ndarray]  # entries of the data set except x: y [B] or [B, K], ...
    out: Any  # a tree of arrays
    seconds: float = 0.0  # of computing, without compilation

    @property
    def size(self) -> int:
        """B."""
        return len(self.examples["y"])


class Run(Protocol):
    """The parts of an experiment that predictions need."""

    config: Mapping[str, Any]
    data: Data
    mesh: Mesh
    model: Model
    over: Callable[[Callable], Callable]
    inference: Inference
    shapes: State
    final_shapes: State

    @property
    def source(self) -> Source:
        """The training data."""


class Trained:
    """An experiment and one of its states.

    Attributes:
      state: may be replaced by another one of the same shapes without compiling again.
      batch_size: of the global batch, from the config.
    """

    def __init__(self, experiment: Run, state: State):
        self.experiment, self.state = experiment, state
        self.batch_size = experiment.config["evaluation"]["batch_size"]
        self.likelihood = experiment.model.likelihood
        self._over = experiment.over
        self._needs_mask = experiment.model.batch_dependent
        self._put = execution.put_batch(experiment.mesh)
        self._latents = execution.on_mesh(
            lambda state, batch: experiment.inference.predict(state, batch["x"], batch.get("mask")),
            experiment.mesh,
        )
        self._programs: dict[tuple[Function, bool, int], Function] = {}
        self._ran: set[tuple] = set()
        self._sowing = functools.cache(self._sowing_of)

    def latents(self, state: State, batch: Batch) -> Latent:
        """The latents of all members, [P M, B, K]; for use in functions that `map` takes."""
        return self._latents(state, batch)

    def map(
        self,
        fn: Function,
        source: Source,
        *,
        particles: bool = False,
        axis: int | None = 1,
        entries: Sequence[str] = ("x",),
    ) -> Iterator[Part]:
        """The results of `fn` for all batches of a source, in order.

        `fn` is pure and is jitted; the same object is compiled once. It may compute gradients, also
        with respect to the inputs:

            def saliency(state, batch):
                nll = lambda x: likelihood.nll(
                    trained.latents(state, {**batch, "x": x}), batch["y"], jax.random.key(0)).sum()
                return jax.grad(nll)(batch["x"])

            for part in trained.map(saliency, source, axis=0, entries=("x", "y")): ...

        Args:
          fn: (state, batch) -> a tree of arrays; it takes latents from `latents`, which knows the
            mesh. With `particles` (particle, batch), a particle being (params, collections, key),
            mapped over all that predict: what it returns gets a leading axis [P S, ...].
          source: the data.
          particles: see `fn`.
          axis: of the examples in what `fn` returns, counting the leading axis of `particles`; the
            padding of the last batch is cut off there. None leaves arrays unchanged.
          entries: of a batch. The last batch, if padded, also has `mask` [B], False for padding, if
            examples depend on one another at prediction.
        """
        program = self._program(fn, particles)
        for batch, examples in self._batches(source, entries):
            program_key = (fn, particles, *batch)
            if program_key not in self._ran:
                jax.block_until_ready(program(self.state, batch))
                self._ran.add(program_key)
            began = time.monotonic()
            out = execution.host(program(self.state, batch))
            seconds = time.monotonic() - began
            if axis is not None:
                cut = (slice(None),) * axis + (slice(len(examples["y"])),)
                out = jax.tree.map(lambda a, cut=cut: a[cut], out)
            yield Part(examples, out, seconds)

    def predictions(self, source: Source) -> Iterator[Part]:
        """Arrays [P M, B, ...] by their names in `predictions.Predictions`."""
        return self.map(self._predict, source)

    def trace(self) -> jax.stages.Traced:
        """The program of `predictions` for a full batch; the state may be shapes."""
        mesh = self.experiment.mesh
        shape = (execution.padded(self.batch_size, mesh), *self.experiment.source.shape)
        batch = execution.put_shapes({"x": jax.ShapeDtypeStruct(shape, np.float32)}, mesh)
        return self._program(self._predict, False).trace(self.state, batch)

    def features(self, source: Source) -> Iterator[Part]:
        """The features of each particle, [P S, M, B, D]; M is 1 if members share them."""
        return self.map(self._features, source, particles=True, axis=2)

    def sown(self, source: Source, collection: str) -> Iterator[Part]:
        """What layers store in a Flax collection, [P S, ...], for padded batches."""
        return self.map(self._sowing(collection), source, particles=True, axis=None)

    def _predict(self, state: State, batch: Batch) -> dict[str, jax.Array]:
        latent = self._latents(state, batch)
        arrays = {}
        if not predictive.is_certain(latent):
            arrays["latent_variance"] = predictive.marginal_variance(latent)
        if latent.epistemic is not None:
            arrays["epistemic"] = latent.epistemic
        if self.likelihood.log_probs is None:
            mean, variance = self.likelihood.moments(latent)
            return dict(mean=mean, variance=variance, **arrays)
        log_p = self.likelihood.log_probs(latent, jax.random.key(0))
        return dict(log_p=log_p, mean=latent.mean, **arrays)

    def _features(self, particle: Any, batch: Batch) -> jax.Array:
        params, collections, key = particle
        x, mask = batch["x"], batch.get("mask")
        return self.experiment.model.features(params, collections, x, key, mask)

    def _sowing_of(self, collection: str) -> Function:
        forward = self.experiment.model.forward

        def sow(particle: Any, batch: Batch) -> Any:
            params, collections, key = particle
            options = dict(train=False, mutable=(collection,), mask=batch.get("mask"))
            updated = forward(params, collections, batch["x"], key, **options)[1]
            return updated.get(collection, {})

        return sow

    def _program(self, fn: Function, particles: bool) -> Function:
        key, size = (fn, particles, self.batch_size), self.batch_size
        if key not in self._programs:
            program = fn
            if particles:
                program = execution.on_mesh(
                    lambda state, batch: self._over(fn)(samples.predicting(state), batch),
                    self.experiment.mesh,
                )

            def cut(state: Any, batch: Batch) -> Any:  # of what devices need to share a batch
                return program(state, {name: a[:size] for name, a in batch.items()})

            self._programs[key] = jax.jit(cut)
        return self._programs[key]

    def _batches(
        self, source: Source, entries: Sequence[str]
    ) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
        """Batches on the mesh, and on the host all entries except x, without padding."""
        mesh = self.experiment.mesh
        padded = execution.padded(self.batch_size, mesh)
        for batch in epoch(source, self.batch_size, padded=padded, **execution.share(mesh)):
            examples = execution.whole(mesh, {k: a for k, a in batch.items() if k != "x"})
            mask = examples.pop("mask")
            count = int(np.sum(mask))
            full = count == self.batch_size or not self._needs_mask
            fields = entries if full else (*entries, "mask")
            examples = {name: array[:count] for name, array in examples.items()}
            yield self._put({field: batch[field] for field in fields}), examples


def aligned(streams: Sequence[Iterator[Part]]) -> Iterator[list[Part]]:
    """Aligns the parts of several runs to the same examples, whatever their batch sizes.

    Args:
      streams: of `Trained.predictions`, on one source.
    """
    waiting: list[Part | None] = [None] * len(streams)
    while True:
        for i, stream in enumerate(streams):
            waiting[i] = waiting[i] or next(stream, None)
        parts = [part for part in waiting if part is not None]
        if len(parts) < len(streams):
            return
        size = min(part.size for part in parts)
        yield [_slice(part, slice(size))._replace(seconds=part.seconds) for part in parts]
        waiting = [_slice(p, slice(size, None)) if p.size > size else None for p in parts]


def _slice(part: Part, examples: slice) -> Part:
    return Part(
        {name: array[examples] for name, array in part.examples.items()},
        jax.tree.map(lambda a: a[:, examples], part.out),
    )
