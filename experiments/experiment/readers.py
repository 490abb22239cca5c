"""Readers of checkpoints in each layout, without the libraries that wrote them."""

import contextlib
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.runtime import shards, storage
from experiments.runtime.checkpoint import CHECKSUMS, ITEM, LEAVES, Checkpoints, verify
from experiments.runtime.workdir import CONFIG, DATA, read_json
from uncertainty import build
from uncertainty.build import ConfigError


class Checkpoint(NamedTuple):
    """Arrays on disk or in a bucket."""

    shapes: dict[str, tuple[int, ...]]  # by path
    read: Callable[[Collection[str]], dict[str, np.ndarray]]
    grid: tuple[int, int] | None = None  # rows and columns of patches, if the file has them


def patches_of(network: nn.Module, shape: Sequence[int]) -> tuple[int, int, int] | None:
    """The patches that a network's position embeddings refer to (`vit.ViT.patches`), or None.

    Args:
      network: of a run.
      shape: of its inputs.
    """
    return network.backbone.patches(shape)


@contextlib.contextmanager
def reading(path: Any, kind: str) -> Iterator[None]:
    """Turns errors of a parser into one line with the file's name.

    Raises:
      ConfigError: in place of any error except OSError.
    """
    try:
        yield
    except (ConfigError, OSError, ImportError):
        raise
    except Exception as error:  # parsers raise many types, RecursionError too
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ConfigError(f"pretrained.path: {path} is not a valid {kind}: {reason}") from error


def npz(path: Any) -> Checkpoint:
    """A NumPy archive; what PyTorch saved has to be written as one first."""

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        with reading(path, ".npz file"), path.open("rb") as file, np.load(file) as archive:
            return {name: _known(archive[name]) for name in names}

    if path.is_dir():
        raise FileNotFoundError(f"{path} is a directory, not an .npz file")
    if path.suffix in (".pt", ".pth", ".th", ".bin"):
        raise ConfigError(
            f"pretrained.path: {path} is a file of PyTorch; an .npz file is needed: np.savez(FILE, "
            "**{k: v.numpy() for k, v in state_dict.items()}), where a file of PyTorch's is read "
            "by torch.load(path, weights_only=True, map_location='cpu')"
        )
    shapes = {}
    with reading(path, ".npz file"), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shapes[name.removesuffix(".npy")] = header(member)[0]
    return Checkpoint(shapes, read)


def _known(x: np.ndarray) -> np.ndarray:
    """Restores bfloat16, which NumPy saves as two untyped bytes."""
    return x.view(jnp.bfloat16) if x.dtype.kind == "V" and x.dtype.itemsize == 2 else x


def released_vmoe(path: Any) -> Checkpoint:
    """A checkpoint of google-research/vmoe: PREFIX.index and PREFIX.data-00000-of-00032, ....

    MessagePack in Flax's format, with further types. The index has the shape of each array, its
    slices, and the file of each slice; array i is that of the i-th path in order. A data file has a
    list of (flat parts, slice) for each array that it contains parts of.
    """
    from flax.serialization import msgpack, msgpack_restore
    from flax.traverse_util import flatten_dict

    def plain(packed: bytes) -> Any:
        return msgpack.unpackb(packed, raw=True, strict_map_key=False)

    def slices(packed: bytes) -> tuple[slice, ...]:
        return tuple(slice(*plain(one)[:2]) for one in plain(packed))

    path = path.parent / path.name.removesuffix(".index")
    with reading(f"{path}.index", "index of V-MoE"):
        index = msgpack_restore((path.parent / f"{path.name}.index").read_bytes())
        entries = {k: plain(v.data) for k, v in sorted(flatten_dict(index["index"]).items())}
        count = int(index["shard_count"])
        shapes = {"/".join(k): _shape(plain(info[0])[0]) for k, info in entries.items()}

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        ids = {i: name for i, name in enumerate(shapes) if name in names}
        infos = list(entries.values())
        with reading(f"{path}.index", "index of V-MoE"):
            types = {i: plain(infos[i][0])[1].decode() for i in ids}
            arrays = {i: np.zeros(shapes[name], jnp.dtype(types[i])) for i, name in ids.items()}
            missing = {i: arrays[i].size for i in ids}
            shards = sorted({int(s) for i in ids for s in infos[i][2]})
        for shard in shards:
            file = path.parent / f"{path.name}.data-{shard:05d}-of-{count:05d}"
            with reading(file, "data file of V-MoE"):
                stored = msgpack_restore(file.read_bytes())
                for i in ids:
                    for parts, where in stored.get(str(i), ()):
                        at = slices(where.data)
                        part = arrays[i][at]
                        arrays[i][at] = np.concatenate(parts).reshape(part.shape)
                        missing[i] -= part.size
        for i, left in missing.items():
            if left:
                raise ConfigError(
                    f"pretrained.path: {left} values of {ids[i]} are in no file of {path}"
                )
        return {name: arrays[i] for i, name in ids.items()}

    return Checkpoint(shapes, read)


def own(path: Any, particle: int | None = None) -> Checkpoint:
    """The newest checkpoint of a run's workdir: parameters and collections of one particle.

    They are those of the last training step, not of its stages or of `inference.collect`.
    """
    import orbax.checkpoint as ocp
    from flax.traverse_util import flatten_dict, unflatten_dict

    path = storage.path(path)
    checkpoints = Checkpoints(path, read_only=True)
    if (step := checkpoints.latest_step()) is None:
        raise FileNotFoundError(f"{path} has no checkpoint")
    directory = checkpoints.directory / str(step)
    saved = read_json(directory / LEAVES, {"key": str, str: str})  # 'key' -> such as 'uint32[2,8]'
    with reading(directory / LEAVES, "description of a checkpoint"):
        of = {name: _shape_of(text) for name, text in saved.items()}
        P = of["key"][0]
    if particle is None and P > 1:
        raise ConfigError(f"pretrained.particle: missing; {path} has {P} particles, choose one")
    p = particle or 0
    if not 0 <= p < P:
        raise ConfigError(f"pretrained.particle: {p}; {path} has {P} particles")
    full = {
        name.split("/", 1)[1]: name for name in of if name.startswith(("params/", "collections/"))
    }

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        dtypes = {full[name]: saved[full[name]].partition("[")[0] for name in names}
        verify(directory)
        if index := shards.index_in(directory, read_json(directory / CHECKSUMS)):
            parts = {name: ((p, p + 1), *((0, n) for n in of[name][1:])) for name in dtypes}
            known = {n: (of[n], np.dtype(dtype), {parts[n]}) for n, dtype in dtypes.items()}
            arrays = {n: a[parts[n]] for n, a in shards.assembled(directory, index, known)}
            return {name: arrays[full[name]][0] for name in names}
        item = unflatten_dict(
            {name: jax.ShapeDtypeStruct(of[name], dtype) for name, dtype in dtypes.items()}, sep="/"
        )
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        with (
            storage.local_copy(directory) as local,
            reading(directory, "checkpoint"),
            ocp.PyTreeCheckpointer() as checkpointer,
        ):
            if local != directory:  # the files of a run that was copied to a bucket
                verify(local)
            tree = checkpointer.restore(
                local / ITEM,
                args=ocp.args.PyTreeRestore(item, restore_args=arguments, partial_restore=True),
            )
        arrays = flatten_dict(tree, sep="/")
        return {name: arrays[full[name]][p] for name in names}

    shapes = {short: of[name][1:] for short, name in full.items()}
    positions = "backbone/position_embedding"
    has_grid = positions in full or f"frozen/{positions}" in full
    return Checkpoint(shapes, read, _grid_of(path) if has_grid else None)


def _grid_of(path: Any) -> tuple[int, int] | None:
    """The patches of the run in a workdir; None if its image size is not recorded."""
    try:
        config, data = (read_json(path / name) for name in (CONFIG, DATA))
        return patches_of(build.network(config), data["shape"])[1:]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shape(sizes: Any) -> tuple[int, ...]:
    if any(type(n) is not int or n < 0 for n in sizes):
        raise ValueError(f"{sizes!r} is no shape")
    return tuple(sizes)


def _shape_of(text: str) -> tuple[int, ...]:
    """'float32[2,8]' as (2, 8)."""
    match = re.fullmatch(r"[\w<>]+\[([0-9,]*)\]", text)
    if not match:
        raise ValueError(f"{text!r} is not like 'float32[2,8]'")
    return tuple(int(n) for n in match[1].split(",") if n)


READERS: dict[str, Callable[..., Checkpoint]] = {
    "own": own,
    "vit": npz,
    "vmoe": released_vmoe,
    "transformers": npz,
    "resnet": npz,
}
