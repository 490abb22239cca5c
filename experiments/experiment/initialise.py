"""Initial parameters from a file: the `pretrained` section of a config.

    config.pretrained = dict(
        path="gs://BUCKET/FILE.npz",  # or a local one
        layout="vit",  # one of uncertainty/restore/layouts.py
        rules=(("pre_logits/.*", None),),  # before the layout's own; see restore/plan.py
        keep=("head/",), # stays as initialised, different in each particle
        grid=(14, 14), # rows and columns of patches in the file, if its positions are ambiguous
    )

Buckets need the extra of their scheme (`gcs`, `s3`). Only a new run reads the file; resuming and
evaluation do not need it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment.readers import READERS, Checkpoint, patches_of
from experiments.runtime import storage
from uncertainty.build import ConfigError, nearest
from uncertainty.inference.loss import NAME as OBJECTIVE
from uncertainty.model import FROZEN
from uncertainty.restore.plan import Move, plan
from uncertainty.rules import path_of
from uncertainty.specs import check_fields
from uncertainty.types import State

logger = logging.getLogger(__name__)


def check(
    spec: Mapping[str, Any],
    network: nn.Module,
    shape: Sequence[int],
    shapes: State,
    required: bool = False,
) -> None:
    """Checks from shapes that the checkpoint fits the run; its arrays are not read.

    Args:
      spec: the config's `pretrained`.
      network: of the run.
      shape: of an input.
      shapes: of the run's state.
      required: whether the file has to exist. A run that resumes does not need it.

    Raises:
      ConfigError: an unknown field, or a checkpoint that does not fit.
    """
    _check_spec(spec)
    try:
        checkpoint = _open(spec)
    except OSError as error:
        if required:
            raise ConfigError(
                f"pretrained.path: {error}. To start from the parameters of a run alone, "
                "set --config.pretrained={}"
            ) from error
        logger.warning("pretrained.path: %s; not needed to resume", error)
        return
    plan_of(spec, network, shape, checkpoint, _tree(shapes))


def load(
    spec: Mapping[str, Any], network: nn.Module, shape: Sequence[int], state: State, optimiser: Any
) -> State:
    """A state at step 0 with the checkpoint's arrays, the same in each particle.

    Args:
      spec: the config's `pretrained`.
      network: of the run.
      shape: of an input.
      state: as initialised; what `keep` names stays.
      optimiser: of one particle; its state is initialised again.

    Raises:
      ConfigError: the checkpoint does not fit, or is not finite.
      OSError: the checkpoint cannot be read.
    """
    tree, checkpoint = _tree(state), _open(spec)
    moves = plan_of(spec, network, shape, checkpoint, tree)
    arrays = checkpoint.read({move.source for move in moves.values()})
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise ConfigError(f"pretrained.path: {name} of {spec['path']} is not finite")

    def filled(key: tuple, old: jax.Array) -> jax.Array:
        move = moves.get(path_of(key))
        if move is None:
            return old
        new = move(arrays[move.source], old.shape[1:]).astype(old.dtype)
        return jnp.broadcast_to(jnp.asarray(new), old.shape)

    new = jax.tree_util.tree_map_with_path(filled, tree)
    params = {key: new[key] for key in state.params}
    collections = {
        name: {part: new[part] for part in value} if name == FROZEN else new[name]
        for name, value in state.collections.items()
    }
    kept = sorted(_targets(state.params).keys() - moves.keys())
    logger.info(
        "%d arrays of %s; as initialised: %s",
        len(arrays),
        spec["path"],
        ", ".join(kept) or "nothing",
    )
    if len(state.key) > 1 and all((a == a[:1]).all() for a in jax.tree.leaves(params)):
        logger.warning(
            "pretrained: all %d particles start from the same parameters and differ by "
            "noise alone; name a layer in `keep` that is initialised with random "
            "numbers",
            len(state.key),
        )
    return state.replace(
        params=params,
        collections=collections,
        opt_state=jax.vmap(optimiser.init)(params),
    )


def _pretrained(
    path: str,
    layout: str,
    rules: Sequence[Any] = (),
    keep: Sequence[str] = (),
    particle: int | None = None,
    grid: Sequence[int] | None = None,
) -> None:
    """The fields of `pretrained`; `particle` is for the layout 'own', if the run has several."""


def _check_spec(spec: Mapping[str, Any]) -> None:
    check_fields(_pretrained, spec, "pretrained.")
    if spec["layout"] not in READERS:
        raise ConfigError(
            f"pretrained.layout: {spec['layout']!r}; {nearest(spec['layout'], READERS)}"
        )
    if spec.get("particle") is not None and spec["layout"] != "own":
        raise ConfigError(f"pretrained.particle: {spec['particle']!r}; for layout 'own' only")
    grid = spec.get("grid")
    pair = isinstance(grid, list | tuple) and len(grid) == 2
    if grid is not None and not (pair and all(type(n) is int and n > 0 for n in grid)):
        raise ConfigError(f"pretrained.grid: {grid!r}; (rows, columns) of the file's patches")


def _tree(state: State) -> dict[str, Any]:
    """Parameters and collections; paths of the latter begin with the collection's name.

    Parameters that are not trained have their paths in the network, as those that are.
    """
    collections = dict(state.collections)
    return {**state.params, **collections.pop(FROZEN, {}), **collections}


def _targets(tree: Any) -> dict[str, tuple[int, ...]]:
    """path -> shape, of one particle."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(key): tuple(leaf.shape[1:]) for key, leaf in leaves}


def plan_of(
    spec: Mapping[str, Any],
    network: nn.Module,
    shape: Sequence[int],
    checkpoint: Checkpoint,
    tree: Any,
) -> dict[str, Move]:
    """`uncertainty.restore.plan.plan` of a spec, for a tree of parameters and collections.

    Raises:
      ConfigError: the checkpoint does not fit.
    """
    targets = _targets(tree)
    grid = spec.get("grid")
    if None not in (grid, checkpoint.grid) and tuple(grid) != checkpoint.grid:
        raise ConfigError(
            f"pretrained.grid: {tuple(grid)}, but {spec['path']} has {checkpoint.grid} patches"
        )
    # Other collections (counts, estimates, masks) are initialised if the file lacks them.
    required = ("backbone", "head", "batch_stats")
    optional = [path for path in targets if path.split("/")[0] not in required]
    rules = list(spec.get("rules", ()))
    if any(_of_objective(p) for p in checkpoint.shapes) and not any(map(_of_objective, targets)):
        rules.append((f"{OBJECTIVE}/.*", None))  # such as a projector, of pre-training alone
    try:
        return plan(
            checkpoint.shapes,
            targets,
            spec["layout"],
            rules=rules,
            keep=spec.get("keep", ()),
            optional=optional,
            patches=patches_of(network, shape),
            grid=grid or checkpoint.grid,
        )
    except ValueError as error:
        raise ConfigError(f"pretrained: {spec['path']} ({spec['layout']}): {error}") from error


def _of_objective(path: str) -> bool:
    """Whether a parameter is one of the objective's own."""
    return path.startswith(f"{OBJECTIVE}/")


def _open(spec: Mapping[str, Any]) -> Checkpoint:
    """The paths and shapes of a checkpoint.

    Raises:
      OSError: the file is missing or not readable.
      ConfigError: the file has another format.
    """
    path = storage.path(str(spec["path"])).expanduser()
    more = {} if spec.get("particle") is None else dict(particle=spec["particle"])
    try:
        return READERS[spec["layout"]](path, **more)
    except ImportError as error:
        raise OSError(f"{path}: {error}") from error
