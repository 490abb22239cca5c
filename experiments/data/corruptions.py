"""Test-time corruptions at severities 1 to 5, each a pure function of (kind, severity, example).

For images [B, H, W, C] in [0, 1] of any size; s is the shorter side in pixels.

| kind | what is done | severity 1 .. 5 |
| --- | --- | --- |
| gaussian_noise | x + N(0, c^2) | c = .08 .12 .18 .26 .38 |
| shot_noise | Poisson(c x) / c | c = 60 25 12 5 3 |
| impulse_noise | a fraction c of the values becomes 0 or 1 | c = .03 .06 .09 .17 .27 |
| gaussian_blur | Gaussian filter, std c sqrt(s) pixels | c = .14 .20 .25 .30 .36 |
| contrast | (x - m) c + m, m the mean of image and channel | c = .75 .5 .4 .3 .15 |
| brightness | x + c | c = .05 .1 .15 .2 .3 |
| rotation | about the centre by c degrees, either way | c = 5 10 15 20 30 |
| translation | by c s in a random direction, zeros move in | c = .03 .06 .09 .12 .15 |

Results are clipped to [0, 1]. The noises have the constants of ImageNet-C, contrast and brightness
those of CIFAR-10-C (Hendrycks & Dietterich 2019), where brightness is added to the value of HSV
rather than to each channel. Blur is 1 to 6 pixels there at 224 and .4 to 1 at 32; here it grows
with the root of the side: .4 to 1 pixels at 8, .7 to 1.9 at 28, 2.1 to 5.4 at 224.

`cifar_c` has the 19 corruptions of CIFAR-10-C itself, for images of its size: another family of
other constants, which evaluators take by `family="cifar_c"`.

For tables [B, D] there is gaussian_noise alone, with std c times that of each feature in training;
c = .1 .2 .4 .7 1.
"""

import dataclasses

import numpy as np
import scipy.ndimage

from experiments.data import cifar_c, images
from experiments.data.order import CORRUPT, philox
from experiments.data.source import Source
from uncertainty.build import ConfigError, nearest

FAMILIES = OWN, CIFAR_C = "own", "cifar_c"
TABULAR_NOISE = (0.1, 0.2, 0.4, 0.7, 1.0)


def corrupted(
    source: Source, kind: str, severity: int, family: str = OWN, textures: str | None = None
) -> Source:
    """The same examples, corrupted before they are normalised.

    Args:
      source: the clean examples.
      kind, severity: of the corruption.
      family: 'own', those above, or 'cifar_c'.
      textures: see `cifar_c.corrupt`.

    Raises:
      ConfigError: an unknown family, kind or severity, or one that does not apply to these data.
    """
    std = 1 if source.std is None else source.std
    kinds_for(source, family)
    if family == OWN:
        _constant(kind, severity, len(source.shape))
    else:
        cifar_c.check(kind, severity, source.shape)
    if len(source.shape) == 3 and not source.in_unit_range:
        raise ConfigError(
            f"corruption: {source.name} has images of any value; corruptions need "
            "their range, range=(low, high) in the data"
        )

    def transform(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        if family != OWN:
            return cifar_c.corrupt(x, kind, severity, indices=indices, textures=textures)
        return corrupt(x, kind, severity, indices=indices, std=std)

    name = f"{source.name}, {kind} {severity}"
    return dataclasses.replace(source, name=name, transform=transform)


def corrupt(
    x: np.ndarray,
    kind: str,
    severity: int,
    *,
    first_index: int = 0,
    indices: np.ndarray | None = None,
    std: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Corrupts images [B, H, W, C] in [0, 1], or table rows [B, D].

    Args:
      x: before normalisation.
      kind: a name in `IMAGE` or `TABULAR`.
      severity: 1 to 5.
      first_index: the number of the first row in its set, if the rows are consecutive ...
      indices: ... or the numbers of all rows [B].
      std: of the features of a table, a number or [D].

    Raises:
      ConfigError: an unknown kind or severity, or one that does not apply to these data.
      ValueError: images that are not in [0, 1].
    """
    constant = _constant(kind, severity, x.ndim - 1)
    if indices is None:
        indices = np.arange(first_index, first_index + len(x))
    stage = 5 * KINDS.index(kind) + severity
    rngs = [np.random.Generator(philox(0, CORRUPT, step=int(i), stage=stage)) for i in indices]
    if x.ndim == 2:
        noise = np.stack([rng.standard_normal(x.shape[1], np.float32) for rng in rngs])
        return x + np.float32(constant) * np.asarray(std, np.float32) * noise
    images.check(kind, x, None)
    out = _IMAGE[kind][0](x, rngs, constant)
    return np.clip(out, 0, 1).astype(np.float32, copy=False)


def kinds_for(source: Source, family: str = OWN) -> tuple[str, ...]:
    """The kinds of corruption of a family that apply to its examples.

    Raises:
      ConfigError: an unknown family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"family: {family!r}; {nearest(family, FAMILIES)}")
    if family != OWN:
        return cifar_c.KINDS
    return IMAGE if len(source.shape) == 3 else TABULAR


def _constant(kind: str, severity: int, rank: int) -> float:
    kinds = {1: TABULAR, 3: IMAGE}.get(rank)
    if kinds is None:
        raise ConfigError(f"corruption: examples with {rank} axes are neither images nor rows")
    if kind not in kinds:
        raise ConfigError(f"corruption: {kind!r} is unknown for such data; {nearest(kind, kinds)}")
    if severity not in range(1, 6):
        raise ConfigError(f"severity: {severity!r}; a whole number from 1 to 5")
    return (TABULAR_NOISE if rank == 1 else _IMAGE[kind][1])[severity - 1]


def gaussian_noise(x, rngs, c):
    noise = np.stack([rng.standard_normal(x.shape[1:], np.float32) for rng in rngs])
    return x + np.float32(c) * noise


def shot_noise(x, rngs, c):
    return np.stack([rng.poisson(c * image) for rng, image in zip(rngs, x, strict=True)]) / c


def impulse_noise(x, rngs, c):
    u = np.stack([rng.random(x.shape[1:], np.float32) for rng in rngs])
    return np.where(u < c / 2, 0, np.where(u < c, 1, x))


def gaussian_blur(x, rngs, c):
    sigma = c * np.sqrt(min(x.shape[1:3]))
    return scipy.ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def contrast(x, rngs, c):
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * np.float32(c) + mean


def brightness(x, rngs, c):
    return x + np.float32(c)


def rotation(x, rngs, c):
    sign = np.asarray([rng.choice([-1, 1]) for rng in rngs])
    cos, sin = np.cos(np.deg2rad(c)), np.sin(np.deg2rad(c))
    out = np.empty_like(x)
    centre = (np.asarray(x.shape[1:3]) - 1) / 2
    for s in (-1, 1):
        matrix = np.array([[cos, -s * sin], [s * sin, cos]])
        out[sign == s] = _resample(x[sign == s], matrix, centre - matrix @ centre)
    return out


def translation(x, rngs, c):
    angle = np.asarray([rng.uniform(0, 2 * np.pi) for rng in rngs])
    shift = c * min(x.shape[1:3]) * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return np.stack(
        [_resample(image[None], np.eye(2), -by)[0] for image, by in zip(x, shift, strict=True)]
    )


def _resample(x: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Linear interpolation of images at matrix @ position + offset, zero outside."""
    out = np.empty_like(x)
    for image, target in zip(x, out, strict=True):
        for channel in range(x.shape[-1]):
            scipy.ndimage.affine_transform(
                image[..., channel],
                matrix,
                offset,
                output=target[..., channel],
                order=1,
                mode="grid-constant",  # 'constant' would drop the outermost pixels at once
            )
    return out


_IMAGE = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (gaussian_blur, (0.14, 0.20, 0.25, 0.30, 0.36)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "rotation": (rotation, (5, 10, 15, 20, 30)),
    "translation": (translation, (0.03, 0.06, 0.09, 0.12, 0.15)),
}
IMAGE = KINDS = tuple(_IMAGE)
TABULAR = ("gaussian_noise",)
