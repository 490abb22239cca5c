"""Batches that particles share, and batches of each particle's own examples."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from uncertainty.types import Batch


def split(batch: Batch, own: bool) -> tuple[Batch, Batch]:
    """The part of a batch that leads with P, and the part that all particles share.

    If particles have their own examples, the first is the batch's arrays, the second its streams
    (nested dicts).
    """
    if not own:
        return {}, batch
    streams = {name: value for name, value in batch.items() if isinstance(value, Mapping)}
    return {name: value for name, value in batch.items() if name not in streams}, streams


def points(batch: Batch, stream: str | None, field: str = "objective.stream") -> jax.Array:
    """The inputs of a stream of the batch, or the batch's own.

    Raises:
      ValueError: there is no such stream, or each particle has its own examples.
    """
    if stream is None:
        if "x" not in batch:
            raise ValueError(
                f"{field}: None, but each particle has its own examples; name a stream, whose "
                "inputs all particles share"
            )
        return batch["x"]
    streams = sorted(name for name, value in batch.items() if isinstance(value, Mapping))
    if stream not in streams:
        raise ValueError(
            f"{field}: {stream!r} is no stream of the batch, which has "
            + (", ".join(map(repr, streams)) or "none")
        )
    return batch[stream]["x"]


def each(fn: Callable[[jax.Array], Any], batch: Batch, own: bool) -> Batch:
    """The batch, with `fn` applied to all arrays that lead with P."""
    mine, shared = split(batch, own)
    return {**shared, **jax.tree.map(fn, mine)}
