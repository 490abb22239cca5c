"""The 14 operations of RandAugment, by Pillow.

Magnitude m is in [0, 1]; s is the sign that was drawn. Ranges are those in common use with 31
magnitudes (torchvision's RandAugment has the same).

| operation | at magnitude m |
| --- | --- |
| identity, auto_contrast, equalize | no magnitude |
| shear_x, shear_y | shear by s 0.3 m about the top left pixel |
| translate_x, translate_y | by s (150/331) m of the side, towards zero to whole pixels |
| rotate | s 30 m degrees about the centre |
| brightness, color, contrast, sharpness | Pillow's enhancement factor 1 + s 0.9 m |
| posterize | keeps 8 - round(4 m) bits |
| solarize | inverts from 255 (1 - m) upwards |
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


def apply(
    pixels: np.ndarray, ops: Sequence[int], signs: Sequence[int], magnitude: float
) -> np.ndarray:
    """The operations `ops` (positions in `OPS`) on one image, uint8 [H, W, 1 or 3] -> the same."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    for op, sign in zip(ops, signs, strict=True):
        image = OPS[op](image, sign, magnitude)
    return np.asarray(image).reshape(pixels.shape)


def identity(image, s, m):
    return image


def shear_x(image, s, m):
    return _affine(image, (1, s * 0.3 * m, 0, 0, 1, 0))


def shear_y(image, s, m):
    return _affine(image, (1, 0, 0, s * 0.3 * m, 1, 0))


def translate_x(image, s, m):
    return _affine(image, (1, 0, -s * int(150 / 331 * image.width * m), 0, 1, 0))


def translate_y(image, s, m):
    return _affine(image, (1, 0, 0, 0, 1, -s * int(150 / 331 * image.height * m)))


def rotate(image, s, m):
    return image.rotate(s * 30 * m)


def brightness(image, s, m):
    return ImageEnhance.Brightness(image).enhance(1 + s * 0.9 * m)


def color(image, s, m):
    return ImageEnhance.Color(image).enhance(1 + s * 0.9 * m)


def contrast(image, s, m):
    return ImageEnhance.Contrast(image).enhance(1 + s * 0.9 * m)


def sharpness(image, s, m):
    return ImageEnhance.Sharpness(image).enhance(1 + s * 0.9 * m)


def posterize(image, s, m):
    return ImageOps.posterize(image, 8 - round(4 * m))


def solarize(image, s, m):
    return ImageOps.solarize(image, 255 * (1 - m))


def auto_contrast(image, s, m):
    return ImageOps.autocontrast(image)


def equalize(image, s, m):
    return ImageOps.equalize(image)


def _affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


OPS = (
    identity,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
    brightness,
    color,
    contrast,
    sharpness,
    posterize,
    solarize,
    auto_contrast,
    equalize,
)
