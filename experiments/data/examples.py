"""Random access to examples: the interface of every data set to training and evaluation."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import images, labels
from experiments.data.normalisation import check_finite
from experiments.data.splits import UNBOUNDED, Range, carried, carried_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The examples of one split, and how they are normalised.

    `gather` returns (raw - mean) / std, where raw is in [0, 1] for images that have a range
    (`images`), bytes / 255, and as stored otherwise. Regression targets are (y - y_mean) / y_std,
    so in the stored unit the error is y_std times as large and the NLL larger by sum(log y_std).
    Entries other than x and y are as stored, in at most 32 bits.
    """

    name: str
    # x [N, ...], y [N] int32 or [N, K] float32, already normalised, and other entries [N, ...];
    # or `records.Records`, where y is as it is stored.
    entries: Any
    classes: int | None  # None: regression, or no labels
    outputs: int  # K; 0 if unknown
    mean: np.ndarray | None = None  # of the shape of an example; None is 0
    std: np.ndarray | None = None  # likewise; None is 1
    y_mean: np.ndarray | None = None  # [K]
    y_std: np.ndarray | None = None  # [K]
    transform: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # raw x, indices
    range: Range = None  # of images, as stored
    measured: bool = False  # whether `range` was measured on a split, so other splits may exceed it
    class_names: tuple[str, ...] | None = None
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # as in `Dataset`
    notes: tuple[str, ...] = ()  # what its spec makes different from the training data
    labelled: bool = True  # False: there is no y, whatever is stored
    file: str = ""  # the file that it was read from

    def __len__(self) -> int:
        return len(self.x)

    @property
    def in_memory(self) -> bool:
        return isinstance(self.entries, dict)

    @property
    def x(self) -> Any:
        """Inputs as stored, [N, ...]; for sets on disk Records, which have shape and dtype too."""
        return self.entries["x"] if self.in_memory else self.entries

    @property
    def y(self) -> np.ndarray | None:
        """Labels or normalised targets of a set in memory; None if it has none."""
        return self.entries.get("y") if self.in_memory else None

    @property
    def names(self) -> tuple[str, ...]:
        """The entries of an example."""
        stored = self.entries if self.in_memory else self.entries.names
        return tuple(key for key in stored if key != "y" or self.labelled)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the x of one example: [H, W, C] or [D]."""
        return tuple(self.x.shape[1:])

    @property
    def task(self) -> str:
        """'classification', 'regression', or 'unlabelled' where training has no y."""
        if self.classes is None and not self.outputs:
            return "unlabelled"
        return "regression" if self.classes is None else "classification"

    @property
    def title(self) -> str:
        """The name, with the name of its file."""
        name, mark, rest = self.name.partition("/" if "/" in self.name and self.file else "[")
        return f"{name} {self.file}{mark}{rest}" if self.file else self.name

    @property
    def in_unit_range(self) -> bool:
        """Whether these are images whose values before normalisation are in [0, 1]."""
        return len(self.shape) == 3 and self.range != UNBOUNDED

    def with_entries(self, **arrays: np.ndarray) -> "Source":
        """A source in memory with these entries, read and normalised like this one."""
        return dataclasses.replace(self, entries=arrays, labelled="y" in arrays, transform=None)

    def forms(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of each entry of an example, as `gather` gives them."""
        of_targets = ((self.outputs,), np.float32) if self.classes is None else ((), np.int32)
        standard = {"x": (self.shape, np.float32), "y": of_targets}
        stored = {} if self.in_memory else self.entries.forms
        if self.in_memory:
            stored = {key: (array.shape[1:], array.dtype) for key, array in self.entries.items()}
        forms = {key: standard.get(key, stored[key]) for key in self.names}
        return {
            key: (tuple(shape), carried_dtype(self.name, key, dtype))
            for key, (shape, dtype) in forms.items()
        }

    def raw(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """x [B, ...] float32 before normalisation, y if there are labels, and the other entries.

        Raises:
          ValueError: an example of a set on disk that `check` refuses.
        """
        if self.in_memory:
            batch = {key: array.take(indices, axis=0) for key, array in self.entries.items()}
        else:
            stored = self.entries.gather(indices)
            batch = {
                key: stored[key] if key in ("x", "y") else carried(self.name, key, stored[key])
                for key in self.names
            }
            check_values(self, batch, indices)
            if "y" in batch:
                batch["y"] = targets(batch["y"], self.classes, self.y_mean, self.y_std)
        batch["x"] = images.in_units(batch["x"], self.range, clip=self.measured)
        if self.transform is not None:
            batch["x"] = self.transform(batch["x"], indices)
        return batch

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """(x - mean) / std, in place."""
        if self.mean is not None:
            x -= self.mean
        if self.std is not None:
            x /= self.std
        return x

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """`raw`, with x normalised; y is int32 [B] or float32 [B, K]."""
        batch = self.raw(indices)
        batch["x"] = self.normalise(batch["x"])
        return batch

    def digest(self) -> str:
        """Eight hexadecimal digits that identify these examples.

        A CRC-32 of the entries as stored, with zeros if there are no labels; for a set on disk, of
        its size and its first and last example.
        """
        x = self.x
        if self.in_memory:
            y = np.zeros(len(x), np.int32) if self.y is None else self.y
            if self.y is not None and self.y_mean is not None:
                y = np.asarray(y * self.y_std + self.y_mean, np.float32)
            arrays = {**self.entries, "y": y}
        else:
            arrays = {"y": np.zeros(0), **x.gather(np.array([0, len(x) - 1]))}
        crc = zlib.crc32(repr((x.shape, arrays["x"].dtype, self.classes)).encode())
        others = sorted(arrays.keys() - {"x", "y"})
        for key in ("x", "y", *others):
            if key in others:
                crc = zlib.crc32(repr((key, arrays[key].shape, arrays[key].dtype)).encode(), crc)
            crc = zlib.crc32(np.ascontiguousarray(arrays[key]), crc)
        return f"{crc:08x}"


def check(source: Source, sample: int = 256) -> None:
    """Refuses data that training could not use, or would use silently although they are wrong.

    All examples of a set in memory are checked. Of a set on disk the first `sample` are checked
    here, and each batch when it is read.

    Raises:
      ValueError: no examples; entries of different lengths; a value that is not finite (the first
        example is named); a label outside [0, K); images outside of their range.
    """
    if len(source) == 0:
        raise ValueError(f"{source.name}: the split is empty")
    if not source.in_memory:
        source.raw(np.arange(min(sample, len(source))))
        return
    for key, array in source.entries.items():
        if len(array) != len(source):
            raise ValueError(f"{source.name}: {len(source)} x but {len(array)} {key}")
    check_values(source, source.entries)


def check_values(
    source: Source, batch: Mapping[str, np.ndarray], indices: np.ndarray | None = None
) -> None:
    """The part of `check` that looks at values, for a batch with the examples `indices`."""
    check_finite(source.name, batch, indices)
    if batch["x"].ndim == 4:
        images.check(source.name, batch["x"], source.range, clipped=source.measured)
    if "y" in batch:
        labels.check(source.name, batch["y"], source.classes, indices)


def targets(
    y: np.ndarray, classes: int | None, mean: np.ndarray | None, std: np.ndarray | None
) -> np.ndarray:
    """Labels int32 [B], or targets float32 [B, K] in units of `mean` and `std`."""
    if classes is not None:
        return np.asarray(y, np.int32)
    y = np.asarray(y, np.float32).reshape(len(y), -1)
    return y if mean is None else (y - mean) / std


def carried_entries(label: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a set in memory, with all but x and y converted to the types of batches.

    Raises:
      ValueError: an entry that cannot be converted, or of another length than x.
    """
    size = len(arrays["x"])
    for key, array in arrays.items():
        if np.ndim(array) == 0 or len(array) != size:
            titles = {"x": "inputs", "y": "labels"}
            count = len(array) if np.ndim(array) else "no"
            raise ValueError(f"{label}: {size} inputs but {count} {titles.get(key, key)}")
    return {
        key: array if key in ("x", "y") else carried(label, key, array)
        for key, array in arrays.items()
    }


def batch_shapes(source: Source, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """x [B, ...] and y of a batch: classes [B], or targets [B, K]."""
    x = jax.ShapeDtypeStruct((size, *source.shape), jnp.float32)
    if source.task == "classification":
        return {"x": x, "y": jax.ShapeDtypeStruct((size,), jnp.int32)}
    return {"x": x, "y": jax.ShapeDtypeStruct((size, source.outputs), jnp.float32)}
