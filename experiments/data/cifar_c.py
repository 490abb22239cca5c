"""The corruptions of CIFAR-10-C at severities 1 to 5, for images [B, 32, 32, 3] in [0, 1].

Hendrycks & Dietterich 2019, with the constants of their `make_cifar_c.py`: the 15 kinds of the
benchmark and the 4 of `EXTRA`. Each is a pure function of (kind, severity, example). Results are
clipped to [0, 1] and rounded down to multiples of 1 / 255, as the published arrays are. They are
made anew, not read: random numbers differ from the published ones, and so do these details:

- elastic_transform, defocus_blur and the blurs are SciPy's, which agree with OpenCV's up to its
  rounding of coordinates to 1 / 32 pixel and of images of bytes;
- motion_blur and the motion of snow follow ImageMagick's formula (offsets rounded to pixels,
  edges repeated);
- the distances of spatter's water are exact, where OpenCV approximates them by a 5 x 5 mask;
- frost needs the textures of the published code, which are not part of this project.

glass_blur's exchange of two pixels copies one onto the other, as the published code does (the two
sides of its assignment are views of the same image).
"""

import functools
import io
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.ndimage

from experiments.data import images
from experiments.data.files import load_npz
from experiments.data.order import CORRUPT, philox
from experiments.runtime import storage
from uncertainty.build import ConfigError, nearest

SIDE = 32
STAGE = 1_000  # of random numbers, after those of `corruptions`
Rngs = Sequence[np.random.Generator]


def corrupt(
    x: np.ndarray,
    kind: str,
    severity: int,
    *,
    first_index: int = 0,
    indices: np.ndarray | None = None,
    textures: str | Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Corrupts images [B, 32, 32, 3] in [0, 1], before normalisation.

    Args:
      x: the images.
      kind: a name in KINDS.
      severity: 1 to 5.
      first_index: the number of the first image in its set, if they are consecutive ...
      indices: ... or the numbers of all images [B].
      textures: for 'frost', an npz file with frost1 ... frost5, uint8 [H, W, 3], RGB, the published
        textures at a fifth of their size; or the arrays.

    Raises:
      ConfigError: an unknown kind or severity, images of another shape, or no textures for 'frost'.
      ValueError: images that are not in [0, 1].
    """
    check(kind, severity, x.shape[1:])
    images.check(kind, x, None)
    if indices is None:
        indices = np.arange(first_index, first_index + len(x))
    stage = STAGE + 5 * KINDS.index(kind) + severity
    rngs = [np.random.Generator(philox(0, CORRUPT, step=int(i), stage=stage)) for i in indices]
    function, constants = _ALL[kind]
    more = dict(textures=_textures(textures)) if kind == "frost" else {}
    out = function(np.asarray(x, np.float64), rngs, constants[severity - 1], **more)
    return (np.floor(255 * np.clip(out, 0, 1) + 1e-6) / 255).astype(np.float32)


def check(kind: str, severity: int, shape: Sequence[int]) -> None:
    """Raises ConfigError for an unknown kind or severity, or images of another shape."""
    if kind not in KINDS:
        raise ConfigError(f"corruption: {kind!r} is unknown; {nearest(kind, KINDS)}")
    if severity not in range(1, 6):
        raise ConfigError(f"severity: {severity!r}; a whole number from 1 to 5")
    if tuple(shape) != (SIDE, SIDE, 3):
        raise ConfigError(
            f"corruption: images {tuple(shape)}; the constants of CIFAR-10-C are for (32, 32, 3)"
        )


def _textures(given: str | Mapping[str, np.ndarray] | None) -> list[np.ndarray]:
    if given is None:
        raise ConfigError("textures: None; 'frost' needs an npz file with frost1 ... frost5")
    arrays = load_npz(storage.path(given).expanduser()) if isinstance(given, str) else given
    names = [f"frost{i}" for i in range(1, 6)]  # the published code draws no sixth
    for name in names:
        array = arrays.get(name)
        if (
            array is None
            or array.dtype != np.uint8
            or array.ndim != 3
            or min(array.shape[:2]) <= SIDE
        ):
            raise ConfigError(f"textures: {name!r} has to be uint8 [H, W, 3], larger than 32 x 32")
    return [arrays[name] for name in names]


def _normal(rngs: Rngs, *shape: int) -> np.ndarray:
    return np.stack([rng.standard_normal(shape) for rng in rngs])


def _gaussian(x: np.ndarray, sigma: float, mode: str = "nearest", truncate: float = 4.0):
    """A Gaussian filter over the axes 1 and 2 of x."""
    sigmas = (0, sigma, sigma, *(0,) * (x.ndim - 3))
    return scipy.ndimage.gaussian_filter(x, sigmas, mode=mode, truncate=truncate)


def gaussian_noise(x, rngs, c):
    return x + c * _normal(rngs, *x.shape[1:])


def shot_noise(x, rngs, c):
    return np.stack([rng.poisson(c * image) for rng, image in zip(rngs, x, strict=True)]) / c


def impulse_noise(x, rngs, c):
    u = np.stack([rng.random(x.shape[1:]) for rng in rngs])
    return np.where(u < c / 2, 0, np.where(u < c, 1, x))


def speckle_noise(x, rngs, c):
    return x + c * x * _normal(rngs, *x.shape[1:])


def gaussian_blur(x, rngs, c):
    return _gaussian(x, c)


def defocus_blur(x, rngs, c):
    radius, alias = c
    place = np.arange(-8, 9)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(float)
    taps = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * alias**2))
    taps /= taps.sum()
    kernel = scipy.ndimage.convolve(disk / disk.sum(), taps[:, None] * taps, mode="mirror")
    return scipy.ndimage.convolve(x, kernel[None, :, :, None], mode="mirror")


def glass_blur(x, rngs, c):
    sigma, most, times = c
    x = np.floor(255 * _gaussian(x, sigma))
    places = range(SIDE - most, most, -1)
    n, each = len(places), np.arange(len(x))
    by = np.stack([rng.integers(-most, most, (times, n, n, 2)) for rng in rngs])
    for time in range(times):
        for i, row in enumerate(places):
            for j, column in enumerate(places):
                d = by[:, time, i, j]
                x[:, row, column] = x[each, row + d[:, 1], column + d[:, 0]]
    return _gaussian(x / 255, sigma)


def motion_blur(x, rngs, c):
    angles = [rng.uniform(-45, 45) for rng in rngs]
    return np.stack([_moved(image, *c, angle) for image, angle in zip(x, angles, strict=True)])


def _moved(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur: sum_i k_i image at i pixels in the direction of `angle` degrees,
    k_i proportional to exp(-i^2 / (2 sigma^2)), i = 0, ..., 2 radius."""
    i = np.arange(2 * radius + 1)
    k = np.exp(-(i**2) / (2 * sigma**2))
    rows = np.ceil(i * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    columns = np.ceil(i * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    place, out = np.arange(SIDE), np.zeros_like(image)
    for weight, row, column in zip(k / k.sum(), rows, columns, strict=True):
        r, s = (np.clip(place + by, 0, SIDE - 1) for by in (row, column))
        out += weight * image[r[:, None], s]
    return out


def zoom_blur(x, rngs, c):
    factors = 1 + 0.01 * np.arange(c + 1)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of [B, 32, 32, ...], enlarged linearly to at least 32 x 32 and cut."""
    side = int(np.ceil(SIDE / factor))
    top = (SIDE - side) // 2
    middle = x[:, top : top + side, top : top + side]
    weights = scipy.ndimage.zoom(np.eye(side), (factor, 1), order=1)  # SciPy's, of one axis
    cut = (len(weights) - SIDE) // 2
    weights = weights[cut : cut + SIDE]
    return np.einsum("ri,bij...,sj->brs...", weights, middle, weights, optimize=True)


def snow(x, rngs, c):
    mean, std, zoom, threshold, radius, sigma, mix = c
    layer = _zoomed(mean + std * _normal(rngs, SIDE, SIDE), zoom)
    layer = np.floor(255 * np.clip(np.where(layer < threshold, 0, layer), 0, 1)) / 255
    angles = [rng.uniform(-135, -45) for rng in rngs]
    layer = np.stack([_moved(a, radius, sigma, b) for a, b in zip(layer, angles, strict=True)])
    layer = np.rint(255 * layer)[..., None] / 255
    grey = x @ np.array([0.299, 0.587, 0.114])
    x = mix * x + (1 - mix) * np.maximum(x, 1.5 * grey[..., None] + 0.5)
    return x + layer + layer[:, ::-1, ::-1]


def frost(x, rngs, c, textures):
    out = []
    for rng, image in zip(rngs, x, strict=True):
        texture = textures[rng.integers(len(textures))]
        row, column = (rng.integers(n - SIDE) for n in texture.shape[:2])
        cut = texture[row : row + SIDE, column : column + SIDE] / 255
        out.append(c[0] * image + c[1] * cut)
    return np.stack(out)


def fog(x, rngs, c):
    amount, decay = c
    top = x.max((1, 2, 3), keepdims=True)
    return (x + amount * plasma(rngs, decay)[..., None]) * top / (top + amount)


def plasma(rngs: Rngs, decay: float) -> np.ndarray:
    """Plasma fractals [B, 32, 32] in [0, 1] by the diamond-square algorithm on a torus.

    A new point is the mean of its four neighbours plus w U(-w, w), w being 100 at first and divided
    by `decay` whenever the step is halved.
    """
    out, step, w = np.zeros((len(rngs), SIDE, SIDE)), SIDE, 100.0

    def noise() -> np.ndarray:
        n = SIDE // step
        return np.stack([w * rng.uniform(-w, w, (n, n)) for rng in rngs])

    while step >= 2:
        half = step // 2
        corners = out[:, ::step, ::step]
        below = corners + np.roll(corners, -1, 1)
        out[:, half::step, half::step] = (below + np.roll(below, -1, 2)) / 4 + noise()
        centres = out[:, half::step, half::step]
        around = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 2)
        out[:, ::step, half::step] = around / 4 + noise()
        around = centres + np.roll(centres, 1, 2) + corners + np.roll(corners, -1, 1)
        out[:, half::step, ::step] = around / 4 + noise()
        step, w = half, w / decay
    out -= out.min((1, 2), keepdims=True)
    return out / out.max((1, 2), keepdims=True)


def brightness(x, rngs, c):
    from matplotlib import colors

    hsv = colors.rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + c, 0, 1)
    return colors.hsv_to_rgb(hsv)


def saturate(x, rngs, c):
    from matplotlib import colors

    hsv = colors.rgb_to_hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * c[0] + c[1], 0, 1)
    return colors.hsv_to_rgb(hsv)


def contrast(x, rngs, c):
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * c + mean


def elastic(x, rngs, c):
    alpha, sigma, affine = (SIDE * value for value in c)
    corners = SIDE // 2 + SIDE // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    rows, columns = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    out = np.empty_like(x)
    for rng, image, target in zip(rngs, x, out, strict=True):
        moved = corners + rng.uniform(-affine, affine, corners.shape)
        # The affine map of the moved points to the corners: where a pixel of the result is from.
        matrix = np.linalg.solve(np.c_[moved, np.ones(3)], corners).T
        dx, dy = (
            alpha * scipy.ndimage.gaussian_filter(noise, sigma, mode="reflect", truncate=3)
            for noise in rng.uniform(-1, 1, (2, SIDE, SIDE))
        )
        for channel in range(3):
            plain = scipy.ndimage.affine_transform(
                image[..., channel], matrix[:, :2], matrix[:, 2], order=1, mode="mirror"
            )
            target[..., channel] = scipy.ndimage.map_coordinates(
                plain, (rows + dy, columns + dx), order=1, mode="reflect"
            )
    return out


def _through_pillow(function):
    """A corruption of one Pillow image -> one of x."""

    @functools.wraps(function)
    def corruption(x, rngs, c):
        from PIL import Image

        stored = np.rint(255 * x).astype(np.uint8)
        return np.stack([function(Image.fromarray(image), c) for image in stored]) / 255

    return corruption


@_through_pillow
def pixelate(image, c):
    from PIL import Image

    small = image.resize((int(SIDE * c),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))


@_through_pillow
def jpeg(image, c):
    from PIL import Image

    file = io.BytesIO()
    image.save(file, "JPEG", quality=c)
    return np.asarray(Image.open(file))


def spatter(x, rngs, c):
    mean, std, blur, threshold, mix, mud = c
    layer = _gaussian(mean + std * _normal(rngs, SIDE, SIDE), blur)
    layer[layer < threshold] = 0
    if mud:
        amount = _gaussian((layer > threshold).astype(float), mix)
        amount = np.where(amount < 0.8, 0, amount)[..., None]
        return x * (1 - amount) + amount * np.array([63, 42, 20]) / 255
    drops = np.stack([_drops(np.floor(255 * np.clip(one, 0, 1))) for one in layer])
    top = drops.max((1, 2), keepdims=True)
    amount = mix * drops / np.where(top == 0, 1, top)
    return x + amount[..., None] * np.array([175, 238, 238]) / 255


def _drops(liquid: np.ndarray) -> np.ndarray:
    """The brightness of water: the layer times a relief of the distance from the drops' edges."""
    edges = canny(liquid, 50, 150)
    distance = np.full_like(liquid, 20)
    if edges.any():
        distance = np.minimum(scipy.ndimage.distance_transform_edt(~edges), 20)
    mean = scipy.ndimage.uniform_filter(distance, 3, mode="mirror")
    distance = equalised(np.floor(mean + 1e-6))  # not -1 for a mean of -1e-17
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    distance = np.clip(scipy.ndimage.correlate(distance, relief, mode="mirror"), 0, 255)
    return liquid * scipy.ndimage.uniform_filter(distance, 3, mode="mirror")


def canny(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Canny's edges [H, W] of values in [0, 255], without smoothing.

    Sobel's derivatives and |dx| + |dy|, of which maxima across the edge (to the nearest 45 degrees)
    are kept if they exceed `high`, or `low` and are connected with one that does.
    """
    dy, dx = (scipy.ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1))
    size = np.pad(np.abs(dx) + np.abs(dy), 1)
    H, W = image.shape

    def beside(row: int, column: int) -> np.ndarray:
        return size[1 + row : 1 + row + H, 1 + column : 1 + column + W]

    middle, tangent = size[1:-1, 1:-1], np.tan(np.pi / 8)
    flat, steep = np.abs(dy) < tangent * np.abs(dx), np.abs(dx) < tangent * np.abs(dy)
    same = dx * dy >= 0
    largest = np.where(
        flat,
        (middle > beside(0, -1)) & (middle >= beside(0, 1)),
        np.where(
            steep,
            (middle > beside(-1, 0)) & (middle >= beside(1, 0)),
            np.where(
                same,
                (middle > beside(-1, -1)) & (middle > beside(1, 1)),
                (middle > beside(-1, 1)) & (middle > beside(1, -1)),
            ),
        ),
    )
    weak = largest & (middle > low)
    groups, count = scipy.ndimage.label(weak, np.ones((3, 3)))
    strong = np.zeros(count + 1, bool)
    strong[groups[weak & (middle > high)]] = True
    return strong[groups] & weak


def equalised(image: np.ndarray) -> np.ndarray:
    """Values in 0, ..., 255 with an even histogram: 255 (cdf - cdf_0) / (1 - cdf_0), rounded.

    cdf_0 is that of the least value; an image of one value stays as it is.
    """
    values = image.astype(int)
    cdf = np.cumsum(np.bincount(values.ravel(), minlength=256))
    first = cdf[values.min()]
    if first == values.size:
        return image
    return np.rint(255 * (cdf[values] - first) / (values.size - first))


_ALL = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (
        glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (zoom_blur, (5, 10, 15, 20, 25)),  # hundredths
    "snow": (
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (  # of the side
        elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg, (80, 65, 58, 50, 40)),
    "speckle_noise": (speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": (
        spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
KINDS = tuple(_ALL)
EXTRA = KINDS[15:]  # the validation kinds; the first 15 are the benchmark
