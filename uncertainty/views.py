"""Random augmentation of images on the device, in the program of the training step.

An augmentation is f(x [B, H, W, C], key, **fields) -> x, for images in [0, 1] before they are
normalised; in a config it is a name here, such as `dict(name="crop", size=96)`, or
`dict(name="package.module:function")`. Everything but `jitter`'s order of its four changes is drawn
for each image. Those that are not in IN_UNITS are the same for normalised images.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# The names in configs.
__all__ = ("blur", "crop", "flip", "grey", "jitter", "solarise")

IN_UNITS = ("grey", "jitter", "solarise")  # which need to know 0 and 1
TRIES = 10  # draws of a crop
SIDE = 224  # of the images that published strengths of blur are for
LUMA = (0.299, 0.587, 0.114)

View = Sequence[Callable[[jax.Array, jax.Array], jax.Array]]


def byol(height: int, width: int) -> tuple[View, View]:
    """The two views of BYOL (Grill et al. 2020, appendix B), for images of any size.

    Both crop, flip, jitter and remove colours alike; the first is always blurred, the second with
    probability 0.1, and then solarised with probability 0.2. The blur of images of 224 pixels is
    scaled to the smaller side of these.
    """

    def view(blurred: float, solarised: float) -> View:
        scale = min(height, width) / SIDE
        several = (
            functools.partial(crop, size=(height, width)),
            flip,
            functools.partial(jitter, p=0.8),
            functools.partial(grey, p=0.2),
            functools.partial(blur, sigma=(0.1 * scale, 2.0 * scale), p=blurred),
        )
        return (*several, functools.partial(solarise, p=solarised)) if solarised else several

    return view(1.0, 0.0), view(0.1, 0.2)


def apply(view: View, x: jax.Array, key: jax.Array) -> jax.Array:
    """The augmentations of a view, one after the other, each with a key of its own."""
    for i, augmentation in enumerate(view):
        x = augmentation(x, jax.random.fold_in(key, i))
    return x


def needs_units(view: View) -> list[str]:
    """The names of augmentations of a view that need images in [0, 1]; those of your own do."""
    names = []
    for augmentation in view:
        function = getattr(augmentation, "func", augmentation)
        ours = function.__module__ == __name__
        if not ours or function.__name__ in IN_UNITS:
            names.append(getattr(function, "__name__", "augmentation"))
    return names


def crop(
    x: jax.Array,
    key: jax.Array,
    *,
    size: int | Sequence[int] | None = None,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    method: str = "bicubic",
) -> jax.Array:
    """A random part of each image, resized: the crop of Inception (Szegedy et al. 2015).

    The share of the area is uniform in `scale`, the logarithm of width / height in `ratio`; of ten
    draws the first that fits is taken, at a uniform place, or else the largest central part that
    `ratio` allows. Resizing is that of Pillow (a filter that widens where images are reduced, and
    sees only the part), but for its rounding to bytes; bicubic values are clipped to the range of
    the image.

    Args:
      size: of the result, a side or (height, width); by default that of x.
      scale: (low, high), shares of the area.
      ratio: (low, high), width over height.
      method: 'bicubic' or 'bilinear'.

    Raises:
      ValueError: a size below 1, ranges that are not in order or out of range, another method, or
        x that is not images.
    """
    B, H, W, _ = check_images(x)
    height, width = (H, W) if size is None else (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size: {size}; at least 1")
    return resample(x, boxes(key, B, H, W, scale, ratio), (height, width), method)


def boxes(
    key: jax.Array, B: int, H: int, W: int, scale: Sequence[float], ratio: Sequence[float]
) -> jax.Array:
    """Random parts of images, as `crop` draws them: top, left, height and width [B, 4]."""
    low, high = _ordered("scale", scale)
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale: {tuple(scale)}; shares of the area, above 0 and at most 1")
    narrow, wide = _ordered("ratio", ratio)
    if not narrow > 0:
        raise ValueError(f"ratio: {tuple(ratio)}; positive numbers")
    keys = jax.random.split(key, 3)
    area = H * W * jax.random.uniform(keys[0], (B, TRIES), minval=low, maxval=high)
    logs = math.log(narrow), math.log(wide)
    aspect = jnp.exp(jax.random.uniform(keys[1], (B, TRIES), minval=logs[0], maxval=logs[1]))
    w, h = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (w >= 1) & (w <= W) & (h >= 1) & (h <= H)
    first = jnp.argmax(fits, axis=1)[:, None]
    sides = jnp.stack([jnp.take_along_axis(a, first, axis=1)[:, 0] for a in (h, w)], axis=1)
    some = jnp.any(fits, axis=1, keepdims=True)
    whole = jnp.asarray([min(H, round(W / narrow)), min(W, round(H * wide))], jnp.float32)
    sides = jnp.where(some, sides, whole)
    room = jnp.asarray([H, W], jnp.float32) - sides
    at = jnp.floor(jax.random.uniform(keys[2], (B, 2)) * (room + 1))
    corner = jnp.where(some, jnp.minimum(at, room), jnp.floor(room / 2))
    return jnp.concatenate([corner, sides], axis=1)


def flip(x: jax.Array, key: jax.Array, *, p: float = 0.5) -> jax.Array:
    """Mirrors images left to right.

    Args:
      p: the probability for each image.
    """
    check_images(x)
    return _with_probability(p, key, x[:, :, ::-1], x)


def jitter(
    x: jax.Array,
    key: jax.Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    p: float = 0.8,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in an order that is drawn for the batch.

    Factors are uniform in 1 +- strength, the hue is turned by up to `hue` of a turn, either way, as
    by torchvision's ColorJitter; the strengths are BYOL's. Images of one channel have neither
    saturation nor hue.

    Args:
      brightness, contrast, saturation: strengths, at least 0.
      hue: from 0 to 0.5.
      p: the probability that an image is changed.

    Raises:
      ValueError: a strength out of range.
    """
    B, *_, C = check_images(x)
    strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation)
    for field, strength in strengths.items():
        if not strength >= 0:
            raise ValueError(f"{field}: {strength}; at least 0")
    if not 0 <= hue <= 0.5:
        raise ValueError(f"hue: {hue}; from 0 to 0.5")
    key_apply, key_order, *keys = jax.random.split(key, 6)
    limits = [(max(1 - s, 0.0), 1 + s) for s in strengths.values()] + [(-hue, hue)]
    b, c, s, h = (
        jax.random.uniform(key, (B, 1, 1, 1), minval=low, maxval=high)
        for key, (low, high) in zip(keys, limits, strict=True)
    )
    changes = [lambda x: brighten(x, b), lambda x: contrasted(x, c)]
    if C == 3:
        changes += [lambda x: saturated(x, s), lambda x: hued(x, h)]
    y = x
    for which in jax.random.permutation(key_order, len(changes)):
        y = jax.lax.switch(which, changes, y)
    return _with_probability(p, key_apply, y, x)


def grey(x: jax.Array, key: jax.Array, *, p: float = 0.2) -> jax.Array:
    """Replaces colours by their luma; images of one channel stay.

    Args:
      p: the probability for each image.
    """
    *_, C = check_images(x)
    if C != 3:
        return x
    return _with_probability(p, key, jnp.broadcast_to(luma(x), x.shape), x)


def blur(
    x: jax.Array, key: jax.Array, *, sigma: Sequence[float] = (0.1, 2.0), p: float = 1.0
) -> jax.Array:
    """A Gaussian filter; at the border its weights are normalised.

    Args:
      sigma: (low, high) of its standard deviation, in pixels of x; the published range is for
        images of 224 pixels.
      p: the probability for each image.

    Raises:
      ValueError: a range that is not in order, or not positive.
    """
    B, H, W, _ = check_images(x)
    low, high = _ordered("sigma", sigma)
    if not low > 0:
        raise ValueError(f"sigma: {tuple(sigma)}; positive numbers")
    key_apply, key_sigma = jax.random.split(key)
    s = jax.random.uniform(key_sigma, (B, 1, 1), minval=low, maxval=high)

    def weights(n: int) -> jax.Array:
        apart = jnp.arange(n)[:, None] - jnp.arange(n)
        w = jnp.exp(-0.5 * (apart / s) ** 2)
        return w / jnp.sum(w, axis=-1, keepdims=True)

    return _with_probability(p, key_apply, _separable(x, weights(H), weights(W)), x)


def solarise(x: jax.Array, key: jax.Array, *, threshold: float = 0.5, p: float = 0.2) -> jax.Array:
    """Inverts large values.

    Args:
      threshold: the least that is inverted.
      p: the probability for each image.
    """
    check_images(x)
    return _with_probability(p, key, jnp.where(x >= threshold, 1 - x, x), x)


def resample(
    x: jax.Array, box: jax.Array, size: tuple[int, int], method: str = "bilinear"
) -> jax.Array:
    """The parts `box` of images x [B, H, W, C], resized to `size`.

    Rows and columns are two matrix products with weights of each image: an output pixel is the mean
    of the pixels of its part, weighted by a filter around its position whose width is that of an
    output pixel, but at least of an input one.

    Args:
      box: [B, 4]: top, left, height and width in pixels, at least 1 and within the image.
      size: (height, width).
      method: 'bilinear' (a triangle) or 'bicubic' (Keys 1981, with a = -1/2, as in Pillow).

    Raises:
      ValueError: another method.
    """
    if method not in _FILTERS:
        raise ValueError(f"method: {method!r}; one of {', '.join(map(repr, sorted(_FILTERS)))}")
    weigh = _FILTERS[method]

    def weights(start: jax.Array, extent: jax.Array, n: int, outputs: int) -> jax.Array:
        start, extent = start[:, None, None], extent[:, None, None]
        step = extent / outputs
        centre = start + (jnp.arange(outputs)[:, None] + 0.5) * step  # [B, outputs, 1]
        at = jnp.arange(n) + 0.5
        w = weigh((at - centre) / jnp.maximum(step, 1.0))
        inside = (at > start) & (at < start + extent)
        w = jnp.where(inside, w, 0.0)
        return w / jnp.sum(w, axis=-1, keepdims=True)

    _, H, W, _ = x.shape
    rows = weights(box[:, 0], box[:, 2], H, size[0])
    columns = weights(box[:, 1], box[:, 3], W, size[1])
    y = _separable(x, rows, columns)
    if method == "bilinear":
        return y
    limits = jnp.min(x, (1, 2, 3), keepdims=True), jnp.max(x, (1, 2, 3), keepdims=True)
    return jnp.clip(y, *limits)


def brighten(x: jax.Array, factor: jax.Array | float) -> jax.Array:
    """factor x, clipped to [0, 1]."""
    return jnp.clip(factor * x, 0, 1)


def contrasted(x: jax.Array, factor: jax.Array | float) -> jax.Array:
    """factor x + (1 - factor) m, clipped to [0, 1], with m the mean luma of each image."""
    of = luma(x) if x.shape[-1] == 3 else x
    mean = jnp.mean(of, axis=(1, 2, 3), keepdims=True)
    return jnp.clip(factor * x + (1 - factor) * mean, 0, 1)


def saturated(x: jax.Array, factor: jax.Array | float) -> jax.Array:
    """factor x + (1 - factor) luma(x), clipped to [0, 1]."""
    return jnp.clip(factor * x + (1 - factor) * luma(x), 0, 1)


def hued(x: jax.Array, turns: jax.Array | float) -> jax.Array:
    """Turns the hue of HSV by `turns`, with saturation and value as they are."""
    high, low = jnp.max(x, -1, keepdims=True), jnp.min(x, -1, keepdims=True)
    chroma = high - low
    r, g, b = jnp.split(x, 3, axis=-1)
    d = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        high == r, (g - b) / d, jnp.where(high == g, 2 + (b - r) / d, 4 + (r - g) / d)
    )
    # Channel n is value - chroma max(0, min(k, 4 - k, 1)) with k = (n + 6 hue) mod 6.
    k = (jnp.asarray([5.0, 3.0, 1.0]) + sixths + 6 * turns) % 6
    return high - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def luma(x: jax.Array) -> jax.Array:
    """[..., 3] -> [..., 1] by the weights of ITU-R BT.601."""
    return jnp.sum(x * jnp.asarray(LUMA, x.dtype), axis=-1, keepdims=True)


def check_images(x: jax.Array) -> tuple[int, int, int, int]:
    """The shape of images; raises ValueError if x has another number of axes."""
    if x.ndim != 4:
        raise ValueError(f"views: images [B, H, W, C] are needed, x is {list(x.shape)}")
    B, H, W, C = x.shape
    return B, H, W, C


def _separable(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[B, H, W, C] by weights [B, H', H] and [B, W', W] -> [B, H', W', C]."""
    x = jnp.einsum("bph,bhwc->bpwc", rows, x)
    return jnp.einsum("bqw,bpwc->bpqc", columns, x)


def _triangle(t: jax.Array) -> jax.Array:
    return jnp.maximum(1 - jnp.abs(t), 0)


def _cubic(t: jax.Array, a: float = -0.5) -> jax.Array:
    t = jnp.abs(t)
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return jnp.where(t < 1, near, jnp.where(t < 2, far, 0))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}


def _with_probability(p: float, key: jax.Array, changed: jax.Array, x: jax.Array) -> jax.Array:
    if not 0 <= p <= 1:
        raise ValueError(f"p: {p}; a probability, from 0 to 1")
    if p in (0, 1):
        return changed if p else x
    chosen = jax.random.bernoulli(key, p, (len(x), 1, 1, 1))
    return jnp.where(chosen, changed, x)


def _ordered(field: str, limits: Sequence[float]) -> tuple[float, float]:
    if len(limits) != 2 or not limits[0] <= limits[1]:
        raise ValueError(f"{field}: {tuple(limits)}; (low, high)")
    return limits[0], limits[1]
