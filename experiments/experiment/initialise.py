"""Initial parameters from a file: the `pretrained` section of a config.

    config.pretrained = dict(
        path="gs://BUCKET/FILE.npz",  # or a local one
        layout="vit",  # one of uncertainty/restore/layouts.py
        rules=(("pre_logits/.*", None),),  # before the layout's own; see restore/plan.py
        keep=("head/",), # stays as initialised, different in each particle
        grid=(14, 14), # rows and columns of patches in the file, if its positions are ambiguous
        particle=1,  # of a run with several, layout 'own', for all particles
    )

`particle="each"` is particle p for particle p, and a list names one for each; `path` may be a list
of a file for each particle too. {seed} in a path is the config's seed. An objective's own
parameters in a run, such as a projector, are dropped where the new objective has none.

Buckets need the extra of their scheme (`gcs`, `s3`). Only a new run reads the file; resuming and
evaluation do not need it.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.examples import Source
from experiments.data.normalisation import compact
from experiments.experiment.readers import READERS, Checkpoint, patches_of
from experiments.runtime import storage
from experiments.runtime.workdir import CONFIG, DATA, read_json
from uncertainty.build import ConfigError, nearest
from uncertainty.inference.loss import NAME as OBJECTIVE
from uncertainty.model import FROZEN
from uncertainty.restore.plan import Move, plan
from uncertainty.rules import path_of
from uncertainty.specs import check_fields
from uncertainty.types import State

logger = logging.getLogger(__name__)

EACH = "each"


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
        opened = [(one, _open(one)) for one in sources(spec, shapes.key.shape[0])]
    except OSError as error:
        if required:
            raise ConfigError(
                f"pretrained.path: {error}. To start from the parameters of a run alone, "
                "set --config.pretrained={}"
            ) from error
        logger.warning("pretrained.path: %s; not needed to resume", error)
        return
    tree = _tree(shapes)
    for one, checkpoint in opened:
        plan_of(one, network, shape, checkpoint, tree)


def load(
    spec: Mapping[str, Any], network: nn.Module, shape: Sequence[int], state: State, optimiser: Any
) -> State:
    """A state at step 0 with the checkpoint's arrays, the same in each particle or those of its own
    source (`sources`).

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
    tree, P = _tree(state), state.key.shape[0]
    given = sources(spec, P)
    read = [_read(one, network, shape, tree) for one in given]

    def filled(key: tuple, old: jax.Array) -> jax.Array:
        path, shape = path_of(key), old.shape[1:]
        if not any(path in moves for moves, _ in read):
            return old
        new = [
            jnp.asarray(moves[path](arrays[moves[path].source], shape)).astype(old.dtype)
            if path in moves
            else old[p]
            for p, (moves, arrays) in enumerate(read)
        ]
        return jnp.stack(new) if len(new) > 1 else jnp.broadcast_to(new[0], old.shape)

    new = jax.tree_util.tree_map_with_path(filled, tree)
    params = {key: new[key] for key in state.params}
    collections = {
        name: {part: new[part] for part in value} if name == FROZEN else new[name]
        for name, value in state.collections.items()
    }
    for one, (moves, arrays) in zip(given, read, strict=True):
        kept = sorted(_targets(state.params).keys() - moves.keys())
        logger.info(
            "%d arrays of %s; as initialised: %s",
            len(arrays),
            one["path"] if len(given) == 1 else f"{one['path']}, particle {one['particle']}",
            ", ".join(kept) or "nothing",
        )
    if P > 1 and all((a == a[:1]).all() for a in jax.tree.leaves(params)):
        logger.warning(
            "pretrained: all %d particles start from the same parameters and differ by "
            "noise alone; name a layer in `keep` that is initialised with random "
            "numbers",
            P,
        )
    return state.replace(
        params=params,
        collections=collections,
        opt_state=jax.vmap(optimiser.init)(params),
    )


def warn(spec: Mapping[str, Any], particles: int, source: Source) -> None:
    """Warns where what a run of layout 'own' predicts with, or its inputs, are not what is taken.

    Args:
      spec: the config's `pretrained`.
      particles: of the run.
      source: the training data.
    """
    if spec["layout"] != "own":
        return
    axes = len(source.shape) - 1
    mine = dict(mean=compact(source.mean, axes), std=compact(source.std, axes))
    for path in dict.fromkeys(str(one["path"]) for one in sources(spec, particles)):
        config, theirs = (_noted(path, name) for name in (CONFIG, DATA))
        further = ["stages"] * bool(config.get("stages"))
        collected = config.get("inference")
        if isinstance(collected, Mapping) and collected.get("collect"):
            further.append("inference.collect")
        if further:
            logger.warning(
                "pretrained.path: %s: the parameters of the last training step are taken, not "
                "those of its %s that it predicts with",
                path,
                " and ".join(further),
            )
        other = [name for name in ("mean", "std") if name in theirs and _differ(name, mine, theirs)]
        if other:
            logger.warning(
                "pretrained.path: %s was trained on inputs with %s, and data.train has %s; its "
                "features are those of inputs that are normalised alike",
                path,
                *(", ".join(f"{name} {of[name]}" for name in other) for of in (theirs, mine)),
            )


def _noted(path: str, name: str) -> Mapping[str, Any]:
    """A JSON file of a workdir; {} if it cannot be read."""
    try:
        content = read_json(storage.path(path).expanduser() / name)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _differ(name: str, *descriptions: Mapping[str, Any]) -> bool:
    """Whether the mean or std of two descriptions of data differ; None is 0 or 1."""
    absent = dict(mean=0.0, std=1.0)[name]
    values = [np.asarray(absent if d[name] is None else d[name]) for d in descriptions]
    try:
        return not np.allclose(*values, rtol=1e-6, atol=1e-7)
    except ValueError:  # of pixels, for images of other sizes
        return True


def _read(
    spec: Mapping[str, Any], network: nn.Module, shape: Sequence[int], tree: Any
) -> tuple[dict[str, Move], dict[str, np.ndarray]]:
    """The plan and the arrays of one source.

    Raises:
      ConfigError: it does not fit, or is not finite.
    """
    checkpoint = _open(spec)
    moves = plan_of(spec, network, shape, checkpoint, tree)
    arrays = checkpoint.read({move.source for move in moves.values()})
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise ConfigError(f"pretrained.path: {name} of {spec['path']} is not finite")
    return moves, arrays


def sources(spec: Mapping[str, Any], particles: int) -> list[dict[str, Any]]:
    """One spec for all particles, or one for each: with a single path, and at most one particle.

    Args:
      spec: the config's `pretrained`.
      particles: of the run.

    Raises:
      ConfigError: a list that does not have one entry for each particle.
    """
    path, particle = spec["path"], spec.get("particle")
    particle = list(range(particles)) if particle == EACH else particle
    given = {
        field: list(value)
        for field, value in dict(path=path, particle=particle).items()
        if isinstance(value, list | tuple)
    }
    for field, values in given.items():
        if len(values) != particles:
            raise ConfigError(
                f"pretrained.{field}: {values}; one for each of the {particles} particles of the "
                "run (inference.size), or one for all"
            )
    common = dict(spec, path=path, particle=particle)
    return [
        common | {field: values[p] for field, values in given.items()}
        for p in range(particles if given else 1)
    ]


def _pretrained(
    path: Any,
    layout: str,
    rules: Sequence[Any] = (),
    keep: Sequence[str] = (),
    particle: Any = None,
    grid: Sequence[int] | None = None,
) -> None:
    """The fields of `pretrained`; `particle` is for the layout 'own', if the run has several."""


def _check_spec(spec: Mapping[str, Any]) -> None:
    check_fields(_pretrained, spec, "pretrained.")
    if spec["layout"] not in READERS:
        raise ConfigError(
            f"pretrained.layout: {spec['layout']!r}; {nearest(spec['layout'], READERS)}"
        )
    path, particle = spec["path"], spec.get("particle")
    paths = path if isinstance(path, list | tuple) else [path]
    if not paths or not all(one and isinstance(one, str | os.PathLike) for one in paths):
        raise ConfigError(f"pretrained.path: {path!r}; a path, or a list of one for each particle")
    chosen = particle if isinstance(particle, list | tuple) else [particle]
    if particle not in (None, EACH) and not all(type(p) is int for p in chosen):
        raise ConfigError(
            f"pretrained.particle: {particle!r}; a number, a list of one for each particle, or "
            f"{EACH!r}"
        )
    if particle is not None and spec["layout"] != "own":
        raise ConfigError(f"pretrained.particle: {particle!r}; for layout 'own' only")
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
    """`uncertainty.restore.plan.plan` of one source, for a tree of parameters and collections.

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
    lost = any(map(_of_objective, checkpoint.shapes)) and not any(map(_of_objective, targets))
    if lost and OBJECTIVE not in str(rules):
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
