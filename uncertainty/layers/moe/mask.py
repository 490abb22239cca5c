"""The mask of padding in a batch, for layers in which examples interact.

The last batch of a set is padded to the shape of the others. Most layers treat examples
independently, but in a mixture of experts they share the experts' slots. Like the mesh of a traced
program, the mask belongs to a whole forward pass: it is set around the pass (`Model.forward`), and
layers that need it read it here, without passing it through modules.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_MASK: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("mask", default=None)


@contextlib.contextmanager
def only(mask: jax.Array | None) -> Iterator[None]:
    """A context in which examples with mask [B] False are padding; None for no padding."""
    token = _MASK.set(mask)
    try:
        yield
    finally:
        _MASK.reset(token)


def current(examples: int) -> jax.Array | None:
    """The mask [B] of the forward pass that is being traced; None without padding.

    Raises:
      ValueError: a layer sees another number of examples than the batch has.
    """
    mask = _MASK.get()
    if mask is not None and mask.shape != (examples,):
        raise ValueError(f"mask: shape {mask.shape} for {examples} examples; [B] is needed")
    return mask
