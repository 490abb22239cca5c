"""Context points against SciPy."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from uncertainty.inference import context

IMAGES = np.random.default_rng(0).normal(size=(3, 12, 9, 2)).astype(np.float32)


def test_perturbed_adds_noise_of_that_size_and_follows_the_key():
    x = np.ones((50, 400), np.float32)
    first, second = (
        np.asarray(context.perturbed(0.2)(dict(x=x), jax.random.key(i))) - x for i in (0, 1)
    )
    # 20,000 draws: the standard error of a standard deviation is 0.2 / sqrt(40,000) = 0.001.
    assert abs(first.std() - 0.2) < 0.004 and abs(first.mean()) < 0.006
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(("size", "sigma"), [(7, 1.0), (3, 2.0), (1, 1.0)])
def test_blurred_is_a_gaussian_filter_whose_weights_add_up_to_one(size, sigma):
    blurred = context.blurred(size, sigma)(dict(x=IMAGES), jax.random.key(0))

    def filtered(a):
        for axis in (1, 2):
            a = scipy.ndimage.gaussian_filter1d(a, sigma, axis, mode="constant", radius=size // 2)
        return a

    expected = filtered(IMAGES.astype(np.float64)) / filtered(np.ones_like(IMAGES, np.float64))
    np.testing.assert_allclose(blurred, expected, rtol=1e-4, atol=1e-5)


def test_other_takes_the_batchs_stream():
    made = context.other()
    stream = dict(x=IMAGES[:2], y=0)
    np.testing.assert_array_equal(made(dict(x=IMAGES, context=stream), None), IMAGES[:2])
    with pytest.raises(ValueError, match="a stream 'context' in the batch, which has 'x', 'y'"):
        made(dict(x=IMAGES, y=0), None)


@pytest.mark.parametrize("name", ["perturbed", "blurred"])
def test_points_of_the_batch_need_one_that_all_see(name):
    with pytest.raises(ValueError, match=f"context: '{name}' takes points from the batch"):
        getattr(context, name)()(dict(context=dict(x=IMAGES)), None)


@pytest.mark.parametrize(
    ("make", "fields", "why"),
    [
        (context.perturbed, dict(std=0), "std: 0"),
        (context.blurred, dict(size=4), "size: 4"),
        (context.blurred, dict(sigma=0.0), "sigma: 0.0"),
    ],
)
def test_what_cannot_be_is_refused(make, fields, why):
    with pytest.raises(ValueError, match=why):
        make(**fields)


def test_only_images_are_blurred():
    with pytest.raises(ValueError, match=r"images \[B, H, W, C\], not \(3, 4\)"):
        context.blurred()(dict(x=np.ones((3, 4))), None)
