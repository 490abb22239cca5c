"""Execution of an experiment: the mesh, the placement of the state, and the compiled programs.

The mesh has four axes. `data` and `expert` shard the batch, `particle` shards P, and `expert` and
`model` shard parameters: those of experts over `expert`, where tokens move by all-to-all
(`uncertainty/layers/moe/all_to_all.py`), and others by the rules of `config.sharding`. For a
network without experts, `expert` acts like `data`. A config gives the same training on any mesh and
with any executor, up to the rounding of sums; bits are equal only if all of `rounding` is.
"""

import contextlib
import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.runtime import allocator
from uncertainty import cpu, rules
from uncertainty.build import ConfigError, nearest
from uncertainty.inference import examples, executors
from uncertainty.types import Batch, Inference, Metrics, State

AXES = ("data", "particle", "expert", "model")
BATCH = ("data", "expert")  # the axes that shard a batch
PARTICLE = PartitionSpec("particle")
LARGE = 100_000  # parameters of a particle


def prepare() -> None:
    """Sets up the allocator and a persistent compilation cache; call it before the first array.

    The cache is in $JAX_COMPILATION_CACHE_DIR or the user's cache folder.
    """
    allocator.keep_freed_memory()
    if not jax.config.jax_compilation_cache_dir:
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        folder = pathlib.Path(cache).expanduser() / "uncertainty" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config's `mesh`, axis -> number of devices; `data` takes the rest by default.

    The devices of a process stand next to each other, so that it reads a contiguous share of a
    batch; on TPU slices they are not numbered so.

    Raises:
      ConfigError: an unknown axis, sizes that do not match the number of devices, or processes that
        would read shares of different sizes.
    """
    devices = jax.devices() if devices is None else list(devices)
    devices = sorted(devices, key=lambda device: device.process_index)
    for axis, size in sizes.items():
        if axis not in AXES:
            raise ConfigError(f"mesh.{axis}: no such axis; {nearest(axis, AXES)}")
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"mesh.{axis}: {size!r} devices; a whole number from 1")
    sizes = dict(sizes)
    others = math.prod(size for axis, size in sizes.items() if axis != "data")
    sizes.setdefault("data", max(len(devices) // others, 1))
    total = others * sizes["data"]
    if total > len(devices) or (jax.process_count() > 1 and total != len(devices)):
        requested = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise ConfigError(f"mesh: {requested} = {total} devices, but there are {len(devices)}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    mesh = Mesh(np.asarray(devices[:total]).reshape(shape), AXES)
    shares(mesh)
    return mesh


@functools.lru_cache
def shares(mesh: Mesh) -> dict[int, tuple[int, int]]:
    """process -> (i, n): it reads the i-th of n equal, contiguous shares of every batch.

    Processes whose devices have the same examples, of other particles for instance, read the same
    share.

    Raises:
      ConfigError: the axes do not fit the devices of a process.
    """
    found = shares_of(np.vectorize(lambda device: device.process_index)(mesh.devices))
    if found is None:
        axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
        raise ConfigError(
            f"mesh: {axes}: processes would read shares of a batch that overlap in part; devices "
            "of a process have to be a divisor or a multiple of particle x expert x model"
        )
    return found


def shares_of(owners: np.ndarray) -> dict[int, tuple[int, int]] | None:
    """`shares` of a mesh [data, particle, expert, model] of processes; None without equal ones."""
    owners = owners.transpose([AXES.index(axis) for axis in (*BATCH, "particle", "model")])
    owners = owners.reshape(math.prod(owners.shape[: len(BATCH)]), -1)  # [shards of a batch, ...]
    held = {int(i): tuple(np.flatnonzero((owners == i).any(1))) for i in np.unique(owners)}
    different = sorted(set(held.values()))
    size = len(owners) // len(different)
    if different != [tuple(range(i, i + size)) for i in range(0, len(owners), size)]:
        return None
    return {process: (different.index(rows), len(different)) for process, rows in held.items()}


def share(mesh: Mesh) -> dict[str, int]:
    """This process's share of every batch, as `process_index` and `process_count` of readers."""
    index, count = shares(mesh)[jax.process_index()]
    return dict(process_index=index, process_count=count)


def check_divides(field: str, value: int, mesh: Mesh, *axes: str) -> None:
    """Raises ConfigError unless the number of devices along `axes` divides `value`."""
    size = math.prod(mesh.shape[axis] for axis in axes)
    if value % size:
        several = [axis for axis in axes if mesh.shape[axis] > 1]
        named = f"mesh ax{'e' if several[1:] else 'i'}s {' x '.join(map(repr, several))}"
        near = sorted({max(value // size, 1) * size, -(-value // size) * size})
        raise ConfigError(
            f"{field}: {value} is not divisible by the {size} devices of {named}; nearest: "
            f"{' or '.join(map(str, near))} (or set mesh.{several[0]})"
        )


def check_executor(executor: str, inference: Inference, mesh: Mesh) -> None:
    """Raises ConfigError for 'loop' if particles interact or are sharded."""
    if executor != "loop":
        return
    if mesh.shape["particle"] > 1:
        raise ConfigError("inference.executor: 'loop' runs on one device; unset mesh.particle")
    try:
        executors.Loop(inference)
    except ValueError as error:
        raise ConfigError(f"inference.{error}") from error


def state_shardings(
    state: State, mesh: Mesh, sharding_rules: rules.Rules = (), defaults: rules.Rules = ()
) -> State:
    """The NamedSharding of every leaf: P over `particle`, then by the first rule that matches.

    A rule maps a parameter path to the mesh axes of its trailing dimensions, for example
    `('dense0/kernel', (None, 'model'))`, or to the name of one axis, which then shards the largest
    dimension that its devices divide: `('.*', 'data')` shards all parameters over the devices that
    share the batch (fully sharded data parallelism). Collections and optimiser state follow the
    path of their parameter. Leaves without a rule, and those that one axis does not divide, are
    replicated over the other axes.

    Args:
      state: arrays, or their shapes.
      mesh: of all devices.
      sharding_rules: of the config; each has to match a parameter.
      defaults: the model's rules (`Model.sharding`), for axes with several devices.

    Raises:
      ValueError: a rule that matches no parameter, an unknown axis, or one that does not divide a
        dimension that a rule names it for.
    """
    rules.match(sharding_rules, state.params, field="sharding", default=())
    for i, (_, axes) in enumerate(sharding_rules):
        _check_axes(f"sharding[{i}]", axes)
    defaults = [
        (path, axes)
        for path, axes in defaults
        if all(mesh.shape[axis] > 1 for axis in axes if axis)
    ]

    def shard(key_path: tuple, leaf: Any) -> NamedSharding:
        path = rules.path_of(key_path)
        lead = 2 if path.startswith("samples/") else 1  # [P, S, ...] or [P, ...]
        matching = (axes for r, axes in (*sharding_rules, *defaults) if rules.re.search(r, path))
        axes = next(matching, ())
        if isinstance(axes, str):
            axes = largest(leaf.shape[lead:], axes, mesh)
        axes = (*(None,) * (lead - 1), *axes)
        if len(axes) >= leaf.ndim:  # such as a scalar of the optimiser
            axes = ()
        sharding = NamedSharding(mesh, PartitionSpec("particle", *axes))
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError as error:
            raise ValueError(f"sharding: of {path}, {error}") from error
        return sharding

    shardings = jax.tree_util.tree_map_with_path(shard, state.replace(step=None))
    return shardings.replace(step=NamedSharding(mesh, PartitionSpec()))


def _check_axes(field: str, axes: Any) -> None:
    """Checks the value of a rule of `config.sharding`.

    Raises:
      ValueError: it is not the name of an axis, or of one or none for each dimension.
    """
    named = (axes,) if isinstance(axes, str) else axes
    if not isinstance(named, list | tuple) or not all(isinstance(a, str | None) for a in named):
        raise ValueError(
            f"{field}: {axes!r}; the name of a mesh axis, or a list of one name or null for each "
            'dimension, such as [null, "model"]'
        )
    names = [axis for axis in named if axis is not None]
    for axis in names:
        if axis not in AXES:
            raise ValueError(f"{field}: {axis!r} is no mesh axis; {nearest(axis, AXES)}")
        if axis == "particle":
            raise ValueError(f"{field}: 'particle' already shards the particles of all parameters")
        if names.count(axis) > 1:
            raise ValueError(f"{field}: {axis!r} cannot shard two dimensions")


def largest(shape: Sequence[int], axis: str, mesh: Mesh) -> tuple[str | None, ...]:
    """The axes of an array whose largest dimension that `axis` divides is sharded over it."""
    divided = [size if size % mesh.shape[axis] == 0 else 0 for size in shape]
    if not any(divided):
        return ()
    return tuple(axis if i == divided.index(max(divided)) else None for i in range(len(shape)))


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays, of which every process has a full copy, onto the mesh."""

    def put(leaf, sharding):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)


def put_batch(
    mesh: Mesh, own_examples: bool = False
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Puts this process's rows of a global batch (`share`) onto the mesh.

    Arrays are [B, ...], in nested dicts too. If particles have their own examples, arrays at the
    top level are [P, B, ...], of all particles; those in nested dicts are shared.

    On a single CPU device NumPy arrays are left as they are: the compiled program copies them
    faster.
    """

    def put(batch: Mapping[str, Any]) -> dict[str, Any]:
        if one_cpu(mesh):
            return dict(batch)
        shardings = batch_shardings(batch, mesh, own_examples)
        if jax.process_count() > 1:
            return jax.tree.map(from_share, dict(batch), shardings)
        return jax.device_put(dict(batch), shardings)

    def from_share(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
        axis = sharding.spec.index(BATCH)
        size, mine = rows.shape[axis], share(mesh)
        start = mine["process_index"] * size
        shape = (*rows.shape[:axis], mine["process_count"] * size, *rows.shape[axis + 1 :])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[axis].indices(shape[axis])
            here = slice(first - start, stop - start)
            return rows[(*index[:axis], here, *index[axis + 1 :])]

        return jax.make_array_from_callback(shape, sharding, part)

    return put


def whole(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The global batch [B, ...], of this process's rows of it, on the host."""
    return dict(batch) if jax.process_count() == 1 else host(put_batch(mesh)(batch))


def padded(size: int, mesh: Mesh) -> int:
    """The smallest number of examples from `size` on that the devices can share."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH)
    return -(-size // devices) * devices


def put_shapes(batch: Batch, mesh: Mesh, own_examples: bool = False) -> Batch:
    """The shapes of a global batch with the shardings that `put_batch` gives it."""
    if one_cpu(mesh):
        return batch
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        batch,
        batch_shardings(batch, mesh, own_examples),
    )


def one_cpu(mesh: Mesh) -> bool:
    """Whether all runs on a single CPU device of one process."""
    alone = mesh.size == jax.process_count() == 1
    return alone and mesh.devices.flat[0].platform == "cpu"


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh, own_examples: bool) -> dict[str, Any]:
    """Of each array of a batch, see `put_batch`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec(*spec, BATCH)),
        batch_specs(batch, own_examples),
    )


def batch_specs(batch: Mapping[str, Any], own_examples: bool) -> dict[str, Any]:
    """PartitionSpec of each array of a batch over the particles, for arrays that lead with P."""

    mine, shared = examples.split(batch, own_examples)
    specs = jax.tree.map(lambda _: PartitionSpec(), dict(shared))
    return specs | dict.fromkeys(mine, PARTICLE)


class Update(Protocol):
    """(state, batch) -> state, metrics; compiled at the first call, donates the state."""

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]: ...

    def trace(self, state: State, batch: Batch) -> jax.stages.Traced:
        """Its program, of arrays or shapes; a call with the same shapes does not trace again."""


def update_of(
    inference: Inference, mesh: Mesh, executor: str, state: State, batch: Batch
) -> Update:
    """The update for the loop.

    `executor` 'auto' prefers one program called P times to one program for all of P, on CPU
    (`benchmarks/executors.py`), for XLA's convolutions: as fast as P copies of them in one program,
    which take P times as long to compile; and for large particles: faster than a scan, without the
    gradients and updates of all particles in memory. Where there are as many particles as cores,
    each core has one at a time.

    Args:
      inference: has the update.
      mesh: of all devices.
      executor: one of `executors.NAMES`.
      state: of the run, or its shapes, with shardings.
      batch: of the run, or its shapes.
    """
    update = on_mesh(inference.update, mesh, own_examples=inference.own_examples)
    inference, P = inference._replace(update=update), state.key.shape[0]
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    cores = cpu.cores() if on_cpu and mesh.size == 1 else 1
    threads = cores if cores <= P else 1  # fewer particles leave cores idle
    if executor == "loop":
        return executors.Loop(inference, threads)
    alone = inference.separable and P > 1 and mesh.shape["particle"] == 1
    if executor == "auto" and alone and on_cpu:
        loop = executors.Loop(inference, threads)
        parameters = sum(a.size for a in jax.tree.leaves(state.params)) // P
        if parameters >= LARGE or executors.has_convolution(loop.trace(state, batch).jaxpr.jaxpr):
            return loop
    shardings = jax.tree.map(lambda a: a.sharding, state)
    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))


def rounding(mesh: Mesh, executor: str) -> dict[str, Any]:
    """name -> value of everything that changes rounding, and so the bits of a training run."""
    return dict(
        mesh=dict(mesh.shape),
        executor=executor,
        cores=cpu.cores() if mesh.devices.flat[0].platform == "cpu" else None,
        devices=mesh.devices.flat[0].device_kind,
        jax=jax.__version__,
    )


def on_mesh(
    fn: Callable[[Any, Any], Any], mesh: Mesh, particles: bool = True, own_examples: bool = False
) -> Callable[[Any, Any], Any]:
    """fn(state, batch), traced under a mesh so that layers see its axes.

    Sharded particles run under `jax.shard_map`: separable particles need no collectives, and those
    that interact call their own (`uncertainty/inference/sharded.py`).

    Args:
      fn: of a State, or of a tree with one. Arrays that it takes and returns lead with P, except
        scalars such as the step.
      mesh: of all devices.
      particles: whether `fn` may be called on each device's own particles.
      own_examples: see `put_batch`.
    """
    if particles and mesh.shape["particle"] > 1:
        fn = over_particles(fn, mesh, own_examples)
    platform, several = mesh.devices.flat[0].platform, mesh.size > 1

    def traced(state: Any, shared: Any) -> Any:
        axes = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        with cpu.compiling_for(platform), axes if several else contextlib.nullcontext():
            return fn(state, shared)

    return traced


def over_particles(
    fn: Callable[[Any, Any], Any], mesh: Mesh, own_examples: bool = False
) -> Callable[[Any, Any], Any]:
    """fn(state, batch) on each device's own particles; see `on_mesh`.

    The other axes stay automatic, so batch statistics are still those of the global batch.
    """

    def leading(tree: Any) -> Any:
        return jax.tree.map(lambda a: PARTICLE if a.ndim else PartitionSpec(), tree)

    def mapped(state: Any, shared: Any) -> Any:
        return jax.shard_map(
            fn,
            mesh=mesh,
            in_specs=(
                leading(state),
                batch_specs(shared, True) if own_examples else PartitionSpec(),
            ),
            out_specs=leading(jax.eval_shape(fn, state, shared)),
            axis_names={"particle"},
            check_vma=False,
        )(state, shared)

    return mapped


def host(tree: Any) -> Any:
    """A tree as NumPy arrays; its arrays may be sharded over processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    if jax.default_backend() == "cpu":  # nothing to copy, and ten times as fast as `device_get`
        return jax.tree.map(np.asarray, tree)
    return jax.device_get(tree)
