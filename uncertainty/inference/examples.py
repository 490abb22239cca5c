"""Whose examples are whose: a batch that particles share, or one of each particle's own."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from uncertainty.types import Batch


def split(batch: Batch, own: bool) -> tuple[Batch, Batch]:
    """What leads with P, and what all particles see.

    With examples of their own those are the batch's arrays; its streams, which are nested dicts,
    are shared as they are.
    """
    if not own:
        return {}, batch
    streams = {name: value for name, value in batch.items() if isinstance(value, Mapping)}
    return {name: value for name, value in batch.items() if name not in streams}, streams


def each(fn: Callable[[jax.Array], Any], batch: Batch, own: bool) -> Batch:
    """The batch with `fn` of all that leads with P."""
    mine, shared = split(batch, own)
    return {**shared, **jax.tree.map(fn, mine)}
