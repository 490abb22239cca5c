"""Symmetries of images: finite sets of transformations, the first of which is the identity.

A symmetry is what a network may be told to be invariant to, or to keep: `rotations()` in Python,
`dict(name="rotations")` or `"rotations"` in a config, `dict(name="package.module:function")` for a
function of your own that returns a `Symmetry`. All are groups except `grey`, `colour` (but for its
hue alone) and `scale`, which lose a part of the image, and `own`, as far as its functions are none.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uncertainty import specs, views

# The names in configs.
__all__ = (
    "colour",
    "flip",
    "grey",
    "half_swap",
    "inversion",
    "jigsaw",
    "own",
    "rotations",
    "scale",
    "vertical_flip",
)

Transformation = Callable[[jax.Array], jax.Array]  # of images [B, H, W, C]; keeps their shape


class Symmetry(NamedTuple):
    """G transformations of images."""

    name: str
    elements: tuple[Transformation, ...]  # the first is the identity
    in_units: bool = False  # whether they need images in [0, 1], before these are normalised

    @property
    def size(self) -> int:
        """G."""
        return len(self.elements)

    def all(self, x: jax.Array) -> jax.Array:
        """The images x [B, H, W, C] moved by every element, [B, G, H, W, C].

        Raises:
          ValueError: no images, or an element that changes their shape.
        """
        views.check_images(x)
        moved = [element(x) for element in self.elements]
        for k, one in enumerate(moved):
            if one.shape != x.shape:
                raise ValueError(
                    f"symmetry: element {k} of {self.name!r} makes images {one.shape[1:]} of "
                    f"{x.shape[1:]}; the same shape is needed"
                )
        return jnp.stack(moved, axis=1)

    def each(self, x: jax.Array, k: jax.Array) -> jax.Array:
        """Each image of x [B, H, W, C] moved by its own elements k [B] or [B, N], of 0 to G - 1.

        Returns:
          [B, H, W, C] or [B, N, H, W, C].
        """
        if k.ndim == 1:
            return self.each(x, k[:, None])[:, 0]
        return jnp.take_along_axis(self.all(x), k[:, :, None, None, None], axis=1)


def rotations() -> Symmetry:
    """Element k turns an image by k quarter turns, counterclockwise; images are square."""

    def turned(k: int) -> Transformation:
        def turn(x: jax.Array) -> jax.Array:
            if x.shape[1] != x.shape[2]:
                raise ValueError(f"symmetry: 'rotations' of images {x.shape[1:]}; square ones only")
            return jnp.rot90(x, k, axes=(1, 2))

        return turn

    return Symmetry("rotations", (_identity, *(turned(k) for k in (1, 2, 3))))


def flip() -> Symmetry:
    """Left and right are exchanged by mirroring."""
    return Symmetry("flip", (_identity, lambda x: x[:, :, ::-1]))


def vertical_flip() -> Symmetry:
    """Top and bottom are exchanged by mirroring."""
    return Symmetry("vertical_flip", (_identity, lambda x: x[:, ::-1]))


def half_swap() -> Symmetry:
    """The upper and the lower half change places, each as it is; the height is even."""

    def swap(x: jax.Array) -> jax.Array:
        if x.shape[1] % 2:
            raise ValueError(f"symmetry: 'half_swap' of images {x.shape[1:]}; an even height only")
        return jnp.roll(x, x.shape[1] // 2, axis=1)

    return Symmetry("half_swap", (_identity, swap))


def jigsaw() -> Symmetry:
    """The 24 orders of an image's quarters, in the order of `itertools.permutations`."""

    def ordered(order: Sequence[int]) -> Transformation:
        def move(x: jax.Array) -> jax.Array:
            B, H, W, C = x.shape
            if H % 2 or W % 2:
                raise ValueError(f"symmetry: 'jigsaw' of images {x.shape[1:]}; even sides only")
            parts = x.reshape(B, 2, H // 2, 2, W // 2, C).transpose(0, 1, 3, 2, 4, 5)
            parts = parts.reshape(B, 4, H // 2, W // 2, C)[:, jnp.asarray(order)]
            parts = parts.reshape(B, 2, 2, H // 2, W // 2, C).transpose(0, 1, 3, 2, 4, 5)
            return parts.reshape(B, H, W, C)

        return move

    return Symmetry("jigsaw", tuple(map(ordered, itertools.permutations(range(4)))))


def inversion() -> Symmetry:
    """1 - x, for images in [0, 1]."""
    return Symmetry("inversion", (_identity, lambda x: 1 - x), in_units=True)


def grey() -> Symmetry:
    """Colours are replaced by their luma; images have three channels."""

    def luma(x: jax.Array) -> jax.Array:
        _check_colours(x, "grey")
        return jnp.broadcast_to(views.luma(x), x.shape)

    return Symmetry("grey", (_identity, luma), in_units=True)


def colour(
    hue: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
    brightness: Sequence[float] = (1.0,),
    contrast: Sequence[float] = (1.0,),
    saturation: Sequence[float] = (1.0,),
) -> Symmetry:
    """Classes of colour jitter: all combinations of these changes, the last field fastest.

    By default quarter turns of the hue, which are a group but for rounding. Images of one channel
    have no hue and no saturation: give `hue=(0.0,)`, and classes of brightness or contrast.

    Args:
      hue: added, in turns; the first is 0.
      brightness, contrast, saturation: factors, as in `views.jitter`; the first of each is 1.

    Raises:
      ValueError: another first value, no two classes, or a negative factor; when used, images of
        one channel with several hues or saturations.
    """
    factors = dict(brightness=brightness, contrast=contrast, saturation=saturation)
    for field, (values, first) in {
        "hue": (hue, 0),
        **{field: (values, 1) for field, values in factors.items()},
    }.items():
        if not len(values) or values[0] != first:
            raise ValueError(f"{field}: {tuple(values)}; a list that begins with {first}")
        if first and min(values) < 0:
            raise ValueError(f"{field}: {tuple(values)}; factors of at least 0")
    combinations = list(itertools.product(hue, brightness, contrast, saturation))
    if len(combinations) < 2:
        raise ValueError("colour: one class; give several hues, brightnesses, ...")
    of_colours = max(len(hue), len(saturation)) > 1

    def changed(h: float, b: float, c: float, s: float) -> Transformation:
        def change(x: jax.Array) -> jax.Array:
            if of_colours:
                _check_colours(x, "colour")
            x = views.brighten(x, b) if b != 1 else x
            x = views.contrasted(x, c) if c != 1 else x
            x = views.saturated(x, s) if s != 1 else x
            return views.hued(x, h) if h else x

        return change

    return Symmetry("colour", tuple(changed(*values) for values in combinations), in_units=True)


def scale(factors: Sequence[float] = (1.0, 0.75, 0.5)) -> Symmetry:
    """The central part of an image, of `factor` times its sides, enlarged to its size.

    Args:
      factors: in (0, 1], the first is 1.

    Raises:
      ValueError: other factors, or fewer than two.
    """
    if len(factors) < 2 or factors[0] != 1 or not all(0 < f <= 1 for f in factors):
        raise ValueError(f"factors: {tuple(factors)}; 1 and others above 0 and at most 1")

    def enlarged(factor: float) -> Transformation:
        def enlarge(x: jax.Array) -> jax.Array:
            B, H, W, _ = x.shape
            sides = jnp.asarray([factor * H, factor * W])
            corner = (jnp.asarray([H, W]) - sides) / 2
            box = jnp.broadcast_to(jnp.concatenate([corner, sides]), (B, 4))
            return views.resample(x, box, (H, W))

        return enlarge

    return Symmetry("scale", (_identity, *(enlarged(f) for f in factors[1:])))


def own(functions: Sequence[Any], in_units: bool = True) -> Symmetry:
    """The identity, and functions of images [B, H, W, C] of your own.

    Args:
      functions: each a function in JAX, or its name 'package.module:function'.
      in_units: False if they are the same for images of any range, as moving pixels is.

    Raises:
      ValueError: no functions, or one that is not found.
    """
    if isinstance(functions, str) or not len(functions):
        raise ValueError(f"functions: {functions!r}; a list such as ['package.module:function']")
    named = [
        specs.imported(function, f"functions[{i}]") if isinstance(function, str) else function
        for i, function in enumerate(functions)
    ]
    return Symmetry("own", (_identity, *named), in_units)


def _identity(x: jax.Array) -> jax.Array:
    return x


def _check_colours(x: jax.Array, name: str) -> None:
    if x.shape[-1] != 3:
        raise ValueError(f"symmetry: {name!r} of images {x.shape[1:]}; three channels are needed")
