"""What the members of a trained state say of a whole data set."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import execution
from experiments.data.loader import epoch
from experiments.data.source import Source, load
from experiments.setup import Experiment
from uncertainty import predictive, rules
from uncertainty.build import ConfigError
from uncertainty.inference import executors, members
from uncertainty.types import Batch, State

logger = logging.getLogger(__name__)


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


class Predictor:
    """predict(source or its spec) -> Predictions, compiled once and sharded like training.

    Where the latents are integrated by draws, the draws belong to a place in the batch.

    Members whose predictions are not numbers are left out with a warning in runs with
    `on_fault='freeze'`, and an error in others.
    """

    def __init__(self, experiment: Experiment, state: State):
        self.state, self.drop = state, experiment.config["on_fault"] == "freeze"
        self.experiment = experiment
        self.batch_size = experiment.config["evaluation"]["batch_size"]
        self.shape, self.task = experiment.source.shape, experiment.source.task
        self._shares_slots = "routing" in experiment.final_shapes.collections
        self._put = execution.put_batch(experiment.mesh)
        latents = execution.on_mesh(
            lambda state, batch: experiment.inference.predict(state, batch["x"], batch.get("mask")),
            experiment.mesh,
        )
        likelihood = experiment.model.likelihood

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
        self._memory: dict[str, Predictions] = {}

    def __call__(self, spec: Mapping[str, Any] | Source) -> Predictions:
        """Predicts a whole source, given as it is or as what `data.source.load` takes."""
        memo = json.dumps(spec, sort_keys=True, default=str) if isinstance(spec, Mapping) else None
        if memo in self._memory:
            return self._memory[memo]
        source = self._source(spec)
        parts, labels, seconds = [], [], 0.0
        for batch, y in self._batches(source):
            if ("mask" in batch) not in self._compiled:
                jax.block_until_ready(self._predict(self.state, batch))
                self._compiled.add("mask" in batch)
            began = time.monotonic()
            out = execution.host(self._predict(self.state, batch))
            seconds += time.monotonic() - began
            parts.append({key: value[:, : len(y)] for key, value in out.items()})
            labels.append(y)
        joined = {key: np.concatenate([p[key] for p in parts], axis=1) for key in parts[0]}
        joined = self._finite_members(joined, source.name)
        result = Predictions(
            y=np.concatenate(labels),
            mean=joined["mean"],
            log_p=joined.get("log_p"),
            variance=joined.get("variance"),
            latent_variance=joined.get("latent_variance"),
            epistemic=joined.get("epistemic"),
            source=source,
            seconds=seconds,
        )
        if memo is not None:
            self._memory = {memo: result}
        return result

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
        for batch, y in self._batches(self._source(spec)):
            found = execution.host(run(self.state, batch))
            yield y, dict(zip(rules.paths(found), jax.tree.leaves(found), strict=True))

    def features(self, spec: Mapping[str, Any] | Source) -> tuple[np.ndarray, np.ndarray]:
        """Features of a whole source, members' and particles' side by side, and its labels.

        Returns:
          phi: [B, P M D] float32; members that share features have them once.
          y: [B].
        """
        phi, labels = [], []
        for batch, y in self._batches(self._source(spec)):
            out = execution.host(self._features(self.state, batch))  # [P S, M, B, D]
            phi.append(np.moveaxis(out[:, :, : len(y)], 2, 0).reshape(len(y), -1))
            labels.append(y)
        return np.concatenate(phi), np.concatenate(labels)

    def _of_particles(self, fn: Callable[[Any, Batch], Any]) -> Callable:
        """(state, batch) -> fn(particle, batch) of all that predict, [P S, ...]: `predicting`."""
        over = executors.mapping(self.experiment.config["inference"].get("executor", "auto"))
        mesh = self.experiment.mesh
        return jax.jit(
            execution.on_mesh(lambda state, batch: over(fn)(members.predicting(state), batch), mesh)
        )

    def _source(self, spec: Mapping[str, Any] | Source) -> Source:
        source = load(spec) if isinstance(spec, Mapping) else spec
        if tuple(source.shape) != tuple(self.shape):
            raise ConfigError(
                f"{source.name}: inputs of shape {tuple(source.shape)}, but the model was trained "
                f"on {tuple(self.shape)}"
            )
        return source

    def _batches(self, source: Source) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches on the mesh, `x` and maybe `mask`, and the labels of the examples that count.

        The last one is filled up. Where examples share the slots of experts it has the `mask` [B]
        of those that count, so that what fills it up takes none (`uncertainty/mask.py`).
        """
        share = dict(process_index=jax.process_index(), process_count=jax.process_count())
        for batch in epoch(source, self.batch_size, **share):
            known = execution.host({"y": batch["y"], "mask": batch["mask"]})
            count = int(np.sum(known["mask"]))
            full = count == len(known["mask"]) or not self._shares_slots
            fields = ("x",) if full else ("x", "mask")
            yield self._put({field: batch[field] for field in fields}), known["y"][:count]

    def _finite_members(self, arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
        bad = np.isnan(arrays.get("log_p", arrays["mean"])).any(axis=(1, 2))
        if not bad.any():
            return arrays
        members = ", ".join(map(str, np.flatnonzero(bad)))
        if not self.drop or bad.all():
            raise FloatingPointError(f"{name}: the predictions of member {members} are not numbers")
        logger.warning("%s: member %s predicts no numbers and is left out", name, members)
        return {key: value[~bad] for key, value in arrays.items()}
