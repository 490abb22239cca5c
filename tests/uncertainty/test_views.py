"""Augmentation of images on the device against Pillow, SciPy, colorsys and loops over draws."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance

from uncertainty import views

RNG = np.random.default_rng(0)
X = scipy.ndimage.gaussian_filter(RNG.uniform(size=(6, 12, 16, 3)), (0, 1, 1, 0))
X = np.rint(255 * (X - X.min()) / np.ptp(X)).astype(np.float32) / 255
KEY = jax.random.key(0)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_parts_are_resized_as_by_pillow(method):
    box = np.array([[0, 0, 12, 16], [1, 2, 9, 5], [3, 0, 2, 16], [0, 3, 12, 13], [5, 5, 1, 1],
                    [2, 4, 7, 7]], np.float32)  # fmt: skip
    got = np.asarray(jax.jit(lambda x: views.resample(x, box, (8, 5), method))(X))
    how = getattr(Image.Resampling, method.upper())
    for image, (top, left, h, w), one in zip(X, box.astype(int), got, strict=True):
        part = image[top : top + h, left : left + w]
        for channel in range(3):
            resized = Image.fromarray(part[..., channel]).resize((5, 8), how)
            expected = np.clip(np.asarray(resized), image.min(), image.max())
            np.testing.assert_allclose(one[..., channel], expected, atol=1e-5)


def torchvisions(rng, H, W, scale, ratio):
    """The draw of RandomResizedCrop, by its documentation: a loop of ten tries."""
    for _ in range(10):
        area = H * W * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= W and 0 < h <= H:
            return rng.integers(H - h + 1), rng.integers(W - w + 1), h, w
    return None


def test_parts_are_drawn_as_by_torchvision():
    H, W, scale, ratio = 20, 30, (0.2, 1.0), (3 / 4, 4 / 3)
    drawn = np.asarray(jax.jit(lambda: views.boxes(KEY, 2_000, H, W, scale, ratio))())
    top, left, h, w = drawn.T
    assert (drawn == np.rint(drawn)).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= H).all() and (left + w <= W).all()
    rng = np.random.default_rng(1)
    others = [torchvisions(rng, H, W, scale, ratio) for _ in range(2_000)]
    others = np.array([one for one in others if one is not None]).T
    for ours, theirs in ((h * w, others[2] * others[3]), (w / h, others[3] / others[2]),
                         (top, others[0]), (left, others[1])):  # fmt: skip
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3
    # Where nothing fits, the largest central part that the ratio allows.
    wide = jax.jit(lambda: views.boxes(KEY, 3, 2, 200, (0.9, 1.0), (3 / 4, 4 / 3)))()
    np.testing.assert_array_equal(wide, [[0, 98, 2, 3]] * 3)


def test_changes_of_colour_are_those_of_pillow_and_colorsys():
    factors = np.array([0.0, 0.4, 0.8, 1.0, 1.3, 2.0], np.float32)[:, None, None, None]
    of = {
        "Brightness": jax.jit(views.brighten),
        "Contrast": jax.jit(views.contrasted),
        "Color": jax.jit(views.saturated),
    }
    for name, change in of.items():
        got = np.asarray(change(X, factors))
        for image, factor, one in zip(X, factors.ravel(), got, strict=True):
            pixels = Image.fromarray(np.rint(255 * image).astype(np.uint8))
            expected = np.asarray(getattr(ImageEnhance, name)(pixels).enhance(float(factor)))
            np.testing.assert_allclose(one, expected / 255, atol=2.1 / 255, err_msg=name)  # bytes
    turns = np.linspace(-0.5, 0.5, 6)[:, None, None, None]
    got = np.asarray(jax.jit(views.hued)(X, turns))
    for image, turn, one in zip(X, turns.ravel(), got, strict=True):
        for row, column in ((0, 0), (3, 7), (11, 15)):
            hue, *rest = colorsys.rgb_to_hsv(*image[row, column].tolist())
            np.testing.assert_allclose(
                one[row, column], colorsys.hsv_to_rgb((hue + turn) % 1, *rest), atol=1e-5
            )
    grey = np.full((1, 2, 2, 3), 0.4, np.float32)  # which has no hue
    np.testing.assert_allclose(jax.jit(views.hued)(grey, 0.3), grey, atol=1e-6)


def test_a_blur_is_a_gaussian_filter():
    sigma = 1.2
    got = jax.jit(lambda x: views.blur(x, KEY, sigma=(sigma, sigma)))(X)
    filtered = functools.partial(
        scipy.ndimage.gaussian_filter, sigma=(0, sigma, sigma, 0), mode="constant", truncate=20
    )
    expected = filtered(X.astype(np.float64)) / filtered(np.ones(X.shape))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_probabilities_and_ranges_are_those_of_the_fields():
    """Of many images; each is changed, or not, by itself."""
    x = np.tile(X[:1], (400, 1, 1, 1))
    changed = {
        "flip": (views.flip, x[0, :, ::-1], 0.5),
        "grey": (views.grey, np.repeat(x[0] @ np.array([[0.299], [0.587], [0.114]]), 3, -1), 0.2),
        "solarise": (views.solarise, np.where(x[0] < 0.5, x[0], 1 - x[0]), 0.2),
    }
    made = jax.jit(lambda x: {name: f(x, KEY) for name, (f, *_) in changed.items()})(x)
    for name, (_, other, p) in changed.items():
        is_changed = np.array([np.allclose(one, other, atol=1e-6) for one in made[name]])
        same = np.array([np.allclose(one, x[0]) for one in made[name]])
        assert (is_changed ^ same).all()
        assert scipy.stats.binomtest(int(is_changed.sum()), 400, p).pvalue > 1e-4
    jittered = np.asarray(jax.jit(lambda x: views.jitter(x, KEY, p=0.7))(x))
    same = np.array([np.allclose(one, x[0], atol=1e-6) for one in jittered])
    assert scipy.stats.binomtest(int(same.sum()), 400, 0.3).pvalue > 1e-4
    assert jittered.min() >= 0 and jittered.max() <= 1
    assert len(np.unique(jittered.mean((1, 2, 3)).round(5))) > 200  # each by itself
    only = jax.jit(
        lambda x: views.jitter(x, KEY, brightness=0.4, contrast=0, saturation=0, hue=0, p=1)
    )(0.5 * x)
    factors = np.asarray(only)[:, 5, 5] / (0.5 * x[0, 5, 5])
    assert scipy.stats.kstest(factors[:, 0], scipy.stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    np.testing.assert_allclose(factors, factors[:, :1] * np.ones(3), rtol=1e-4)


def test_the_views_of_byol():
    one, two = views.byol(28, 28)
    names = [[getattr(f, "func", f).__name__ for f in view] for view in (one, two)]
    assert names == [
        ["crop", "flip", "jitter", "grey", "blur"],
        ["crop", "flip", "jitter", "grey", "blur", "solarise"],
    ]
    assert [view[4].keywords["p"] for view in (one, two)] == [1.0, 0.1]
    assert one[4].keywords["sigma"] == pytest.approx((0.1 / 8, 2 / 8))
    assert two[5].keywords["p"] == 0.2
    assert views.needs_units(two) == ["jitter", "grey", "solarise"]
    made = jax.jit(lambda x: views.apply(one, x, KEY))(X[..., :1])  # images of one channel too
    assert made.shape == (6, 28, 28, 1) and made.min() >= 0 and made.max() <= 1
    assert not np.allclose(made[0], made[1], atol=1e-3)
    again = jax.jit(lambda x: views.apply(one, x, KEY))(X[..., :1])
    np.testing.assert_array_equal(made, again)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: views.crop(X, KEY, size=0), "size: 0"),
        (lambda: views.crop(X, KEY, scale=(0.0, 1.0)), "scale: .*above 0"),
        (lambda: views.crop(X, KEY, scale=(0.9, 0.5)), r"scale: .*\(low, high\)"),
        (lambda: views.crop(X, KEY, ratio=(-1.0, 1.0)), "ratio: .*positive"),
        (lambda: views.crop(X, KEY, method="nearest"), "method: 'nearest'"),
        (lambda: views.crop(X[0], KEY), r"images \[B, H, W, C\] are needed"),
        (lambda: views.flip(X, KEY, p=1.5), "p: 1.5; a probability"),
        (lambda: views.jitter(X, KEY, contrast=-0.1), "contrast: -0.1"),
        (lambda: views.jitter(X, KEY, hue=0.6), "hue: 0.6"),
        (lambda: views.blur(X, KEY, sigma=(0.0, 1.0)), "sigma: .*positive"),
    ],
)
def test_what_cannot_be_says_why(make, why):
    with pytest.raises(ValueError, match=why):
        jax.eval_shape(make)


def test_resizing_uses_the_part_alone():
    """Pixels outside of it do not change the result."""
    box = jnp.asarray([[2.0, 3.0, 6.0, 8.0]])
    run = jax.jit(lambda x: views.resample(x, box, (12, 12), "bilinear"))
    other = X[:1].copy()
    other[:, :2] = other[:, 8:] = other[:, :, :3] = other[:, :, 11:] = 1
    np.testing.assert_array_equal(run(X[:1]), run(other))
