"""Arrays in a folder of a bucket: every process writes its share, and reads what it needs.

A process writes the shards of each array that it is to write as one stream of bytes, cut into
objects of PART bytes: `arrays/<process>-<token>-<k>.bin`. `arrays/<process>-<token>.json` says
where in the stream each shard is, which part of its array it has, and its CRC-32. Any other number
of processes and any other sharding may read them. Replicated shards are written once, each by
another process in turn.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from experiments.runtime import storage
from experiments.runtime.storage import BucketPath, Path

FOLDER = "arrays"
PART = 64 << 20  # bytes of an object
TOGETHER = 4  # objects that are written at the same time
BATCH = 512 << 20  # bytes that are read before arrays are made of them

Bounds = tuple[tuple[int, int], ...]  # (start, stop) along each axis


class DamagedCheckpointError(OSError):
    """A checkpoint whose files differ from those that were written."""


class Shard(NamedTuple):
    """A part of an array, copied from its device."""

    name: str
    bounds: Bounds
    values: np.ndarray


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, such as 'params/dense/kernel'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def snapshot(tree: Any) -> list[Shard]:
    """Copies of the shards that this process is to write; the tree may be donated afterwards."""
    own = []
    for turn, (name, leaf) in enumerate(named_leaves(tree).items()):
        leaf = jax.random.key_data(leaf) if is_key(leaf) else jax.numpy.asarray(leaf)
        where = leaf.sharding.devices_indices_map(leaf.shape)
        replicas = len(where) // len({bounds(index, leaf.shape) for index in where.values()})
        for shard in leaf.addressable_shards:
            if shard.replica_id == turn % replicas:
                shard.data.copy_to_host_async()
                own.append((name, bounds(shard.index, leaf.shape), shard.data))
    return [Shard(name, where, np.array(data, order="C")) for name, where, data in own]


def bounds(index: Sequence[slice], shape: Sequence[int]) -> Bounds:
    return tuple(one.indices(size)[:2] for one, size in zip(index, shape, strict=True))


def write(folder: BucketPath, shards: Sequence[Shard], prefix: str) -> dict[str, list[int]]:
    """Writes the shards of a process and their index; returns the bytes and CRC-32 of each file.

    Args:
      folder: of the checkpoint.
      shards: of this process.
      prefix: of the names, different in each process and attempt.
    """
    sums: dict[str, list[int]] = {}
    waiting: dict[BucketPath, bytes] = {}
    parts = []
    for k, block in enumerate(_blocks([shard.values for shard in shards])):
        parts.append(f"{FOLDER}/{prefix}-{k}.bin")
        sums[parts[-1]] = [len(block), zlib.crc32(block)]
        waiting[folder / parts[-1]] = block
        if len(waiting) == TOGETHER:
            storage.write_all(waiting)
            waiting = {}
    index, start = [], 0
    for shard in shards:
        raw = _raw(shard.values)
        index.append([shard.name, shard.bounds, start, raw.size, zlib.crc32(raw)])
        start += raw.size
    text = json.dumps(dict(part=PART, parts=parts, shards=index)).encode()
    name = f"{FOLDER}/{prefix}.json"
    sums[name] = [len(text), zlib.crc32(text)]
    storage.write_all({**waiting, folder / name: text})
    return sums


def _raw(values: np.ndarray) -> np.ndarray:
    """The bytes of an array, which is contiguous."""
    return values.reshape(-1).view(np.uint8)


def _blocks(arrays: Sequence[np.ndarray]) -> Iterator[bytes]:
    """The bytes of all arrays one after another, PART at a time."""
    block = bytearray()
    for array in arrays:
        raw = memoryview(_raw(array))
        while len(raw):
            taken, raw = raw[: PART - len(block)], raw[PART - len(block) :]
            block += taken
            if len(block) == PART:
                yield bytes(block)
                block = bytearray()
    if block:
        yield bytes(block)


class Stored(NamedTuple):
    """A shard in a folder."""

    bounds: Bounds
    ranges: list[tuple[str, int, int]]  # file, start and stop, in order
    crc: int

    def meets(self, part: Bounds) -> bool:
        return overlap(self.bounds, part) is not None


def index_in(folder: Path, names: Iterable[str]) -> dict[str, list[Stored]]:
    """The shards of each array, by the index files among these; empty if there are none.

    Raises:
      DamagedCheckpointError: an index is damaged.
    """
    files = sorted(n for n in names if n.startswith(f"{FOLDER}/") and n.endswith(".json"))
    found: dict[str, dict[Bounds, Stored]] = {}
    try:
        for content in storage.read_ranges([(folder / name, 0, None) for name in files]):
            index = json.loads(content)
            for name, where, start, length, crc in index["shards"]:
                part = tuple((first, last) for first, last in where)
                ranges = _ranges(index["parts"], index["part"], start, start + length)
                found.setdefault(name, {}).setdefault(part, Stored(part, ranges, crc))
    except (ValueError, KeyError, TypeError, IndexError, FileNotFoundError) as error:
        raise DamagedCheckpointError(f"{type(error).__name__}: {error}") from error
    return {name: list(shards.values()) for name, shards in found.items()}


def _ranges(parts: Sequence[str], size: int, start: int, stop: int) -> list[tuple[str, int, int]]:
    """Where the bytes [start, stop) of a stream are that is cut into parts of `size` bytes."""
    return [
        (parts[k], max(start - k * size, 0), min(stop - k * size, size))
        for k in range(start // size, -(-stop // size))
        if start < stop
    ]


def read(folder: Path, index: Mapping[str, Sequence[Stored]], target: Any) -> Any:
    """The arrays for a tree of ShapeDtypeStructs (or arrays), whose shardings place them.

    Raises:
      DamagedCheckpointError: bytes are missing or changed.
    """
    leaves = named_leaves(target)
    wanted, shapes, shardings = {}, {}, {}
    for name, leaf in leaves.items():
        shapes[name] = jax.eval_shape(jax.random.key_data, _shape(leaf)) if is_key(leaf) else leaf
        shape = tuple(shapes[name].shape)
        sharding = getattr(leaf, "sharding", None)
        shardings[name] = sharding or SingleDeviceSharding(jax.local_devices()[0])
        indices = shardings[name].addressable_devices_indices_map(shape).values()
        wanted[name] = (shape, shapes[name].dtype, {bounds(index, shape) for index in indices})
    made = {}
    for name, parts in assembled(folder, index, wanted):
        shape = wanted[name][0]
        made[name] = jax.make_array_from_callback(
            shape,
            shardings[name],
            lambda at, shape=shape, parts=parts: parts[bounds(at, shape)],
            dtype=wanted[name][1],
        )
    arrays = [
        jax.random.wrap_key_data(made[name], impl=_implementation(leaf.dtype))
        if is_key(leaf)
        else made[name]
        for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(target), arrays)


def _implementation(dtype: Any) -> str:
    """The name of the implementation of keys of a type."""
    names = ("threefry2x32", "rbg", "unsafe_rbg")
    types = {jax.eval_shape(lambda n=n: jax.random.key(0, impl=n)).dtype: n for n in names}
    return types[dtype]


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


Wanted = tuple[tuple[int, ...], Any, set[Bounds]]  # shape, type, parts


def assembled(
    folder: Path, index: Mapping[str, Sequence[Stored]], wanted: Mapping[str, Wanted]
) -> Iterator[tuple[str, dict[Bounds, np.ndarray]]]:
    """The parts of arrays that are asked for, from the shards that overlap them.

    Raises:
      DamagedCheckpointError: bytes are missing or changed.
    """
    batch: dict[str, list[Stored]] = {}
    size = 0
    for name, (_, _, parts) in wanted.items():
        batch[name] = [s for s in index.get(name, ()) if any(map(s.meets, parts))]
        size += sum(stop - start for s in batch[name] for _, start, stop in s.ranges)
        if size >= BATCH:
            yield from _made(folder, batch, wanted)
            batch, size = {}, 0
    yield from _made(folder, batch, wanted)


def _made(
    folder: Path, batch: Mapping[str, Sequence[Stored]], wanted: Mapping[str, Wanted]
) -> Iterator[tuple[str, dict[Bounds, np.ndarray]]]:
    ranges = [one for stored in batch.values() for shard in stored for one in shard.ranges]
    try:
        contents = iter(storage.read_ranges([(folder / f, a, b) for f, a, b in ranges]))
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"a file is missing: {error.filename}") from error
    for name, stored in batch.items():
        _, dtype, parts = wanted[name]
        made = {part: np.zeros([b - a for a, b in part], dtype) for part in parts}
        missing = {part: array.size for part, array in made.items()}
        for shard in stored:
            data = b"".join(next(contents) for _ in shard.ranges)
            if zlib.crc32(data) != shard.crc:
                raise DamagedCheckpointError(f"{name} has the wrong checksum")
            values = np.frombuffer(data, dtype).reshape([b - a for a, b in shard.bounds])
            for part, array in made.items():
                both = overlap(shard.bounds, part)
                if both is not None:
                    array[_within(both, part)] = values[_within(both, shard.bounds)]
                    missing[part] -= array[_within(both, part)].size
        if any(missing.values()):
            raise DamagedCheckpointError(f"{name} lacks a part")
        yield name, made


def overlap(one: Bounds, other: Bounds) -> Bounds | None:
    """The bounds that two parts of an array share, or None; those of a scalar are ()."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return both if all(a < b for a, b in both) else None


def _within(part: Bounds, whole: Bounds) -> tuple[slice, ...]:
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(part, whole, strict=True))
