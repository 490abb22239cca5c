"""Which examples of a batch count, for the layers in which examples meet.

The last batch of a set is filled up to the shape of the others. Most layers keep examples apart,
but in a mixture of experts they share the experts' slots. Like the mesh that a program is traced
under, the mask belongs to a whole forward pass: it is set around the pass (`Model.forward`), and a
layer that needs it reads it here, whatever modules stand between.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_MASK: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("mask", default=None)


@contextlib.contextmanager
def only(mask: jax.Array | None) -> Iterator[None]:
    """Within it, the examples that count are those where mask [B] is True; None for all."""
    token = _MASK.set(mask)
    try:
        yield
    finally:
        _MASK.reset(token)


def current(examples: int) -> jax.Array | None:
    """The mask [B] of the forward pass that is being traced, or None where all examples count.

    Raises:
      ValueError: a layer that sees another number of examples than there are in the batch.
    """
    mask = _MASK.get()
    if mask is not None and mask.shape != (examples,):
        raise ValueError(f"mask: shape {mask.shape} for {examples} examples; [B] is needed")
    return mask
