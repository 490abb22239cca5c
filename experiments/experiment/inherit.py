"""A run that starts from the parameters of another run."""

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment.build import Experiment
from experiments.experiment.readers import patches_of
from experiments.runtime import execution
from uncertainty.build import ConfigError
from uncertainty.types import Collections, State


def inherited(start: Any, old: Experiment, trained: State, new: Experiment) -> State:
    """The state of a new run with the parameters of another one.

    Collections that both have, hyper-parameters and samples are taken over too; what only the new
    run has stays as initialised, as does what training shows alone (`Model.monitors`).

    Args:
      start: directory of the other run, for messages.
      old, trained: the other run, and its state.
      new: the new run.

    Raises:
      ConfigError: parameters, positions, hyper-parameters or samples of the two differ, or
        collections that both have in shape, such as masks or random features.
    """
    state = new.init()
    shown = {name for monitor in new.model.monitors for name in monitor.collections}
    _check_parameters(start, _shapes(trained.params), _shapes(state.params))
    grids = [patches_of(e.network, e.source.shape) for e in (old, new)]
    if grids[0] != grids[1]:  # equally many patches, but another grid
        raise ConfigError(
            "start: position embeddings of {} x {} patches, of which the new config "
            "has {} x {}".format(*grids[0][1:], *grids[1][1:])
        )
    hyper = [None if s.hyper is None else sorted(s.hyper) for s in (state, trained)]
    if hyper[0] != hyper[1]:
        raise ConfigError(
            f"start: {start} has the hyper-parameters {hyper[1]}, the new config "
            f"{hyper[0]}; they belong to its particles"
        )
    samples = [None if s.samples is None else s.samples.taken.shape for s in (state, trained)]
    if samples[0] != samples[1]:
        mine, theirs = (0 if shape is None else shape[1] for shape in samples)
        raise ConfigError(
            f"inference.collect: {start} has {theirs} samples of each particle, "
            f"the new config {mine}; they belong to its particles"
        )
    state = state.replace(
        step=trained.step,
        params=trained.params,
        hyper=trained.hyper,
        collections=_joined(start, shown, state.collections, trained.collections),
    )
    if state.slow is not None:
        state = new.inference.restart(state)
    if trained.samples is None:
        return state
    S = samples[0][1]
    initial = jax.tree.map(lambda a: jnp.stack([a] * S, axis=1), state.collections)
    collections = _joined(start, shown, initial, trained.samples.collections)
    return state.replace(samples=trained.samples.replace(collections=collections))


def same(a: Any, b: Any) -> bool:
    """Whether two trees of one structure have equal arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in execution.host(list(pairs)))


def _check_parameters(start: Any, there: dict[str, tuple], here: dict[str, tuple]) -> None:
    different = sorted(k for k in here | there if here.get(k) != there.get(k))
    if different:
        raise ConfigError(_different(start, "parameters", different, there, here))


def _different(start: Any, kind: str, paths: list[str], there: dict, here: dict) -> str:
    lines = [f"  {k}: {there.get(k)} -> {here.get(k)}" for k in paths[:10]]
    return f"start: {kind} of {start} that differ in the new config:\n" + "\n".join(lines)


def _joined(start: Any, shown: set[str], mine: Collections, theirs: Collections) -> Collections:
    """`mine`, with the arrays of `theirs` that have the same path.

    Raises:
      ConfigError: one has another shape, but for collections `shown` alone, which stay `mine`.
    """
    shapes = [_shapes(collections) for collections in (theirs, mine)]
    different = sorted(k for k in shapes[0].keys() & shapes[1] if shapes[0][k] != shapes[1][k])
    if wrong := [path for path in different if path.partition("/")[0] not in shown]:
        raise ConfigError(_different(start, "collections", wrong, *shapes))
    mine, theirs = (flax.traverse_util.flatten_dict(c, sep="/") for c in (mine, theirs))
    shared = {k: theirs[k] for k in mine if k in theirs and k not in different}
    return flax.traverse_util.unflatten_dict({**mine, **shared}, sep="/")


def _shapes(params: Any) -> dict[str, tuple]:
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}
