"""Symmetries of images: laws of groups, loops over images, and what is refused."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from uncertainty import symmetries
from uncertainty.build import make
from uncertainty.symmetries import Symmetry

SIDE = 6
IMAGES = np.random.default_rng(0).uniform(size=(5, SIDE, SIDE, 3)).astype(np.float32)
GROUPS = {  # element of i after j
    "rotations": lambda i, j: (i + j) % 4,
    "flip": lambda i, j: (i + j) % 2,
    "vertical_flip": lambda i, j: (i + j) % 2,
    "half_swap": lambda i, j: (i + j) % 2,
    "inversion": lambda i, j: (i + j) % 2,
    "colour": lambda i, j: (i + j) % 4,  # turns of the hue
    "jigsaw": lambda i, j: PERMUTATIONS.index(tuple(PERMUTATIONS[j][k] for k in PERMUTATIONS[i])),
}
PERMUTATIONS = list(itertools.permutations(range(4)))
MADE = {name: getattr(symmetries, name)() for name in symmetries.__all__ if name != "own"}
MOVE = {name: jax.jit(made.all) for name, made in MADE.items()}  # one program for all elements


@pytest.mark.parametrize("name", GROUPS)
@settings(max_examples=10)
@given(data=st.data())
def test_the_law_of_the_group(name, data):
    made = MADE[name]
    index = st.integers(0, made.size - 1)
    i, j = data.draw(index), data.draw(index)
    once = np.asarray(MOVE[name](IMAGES))
    np.testing.assert_array_equal(once[:, 0], IMAGES)
    twice = np.asarray(MOVE[name](once[:, j]))[:, i]
    np.testing.assert_allclose(twice, once[:, GROUPS[name](i, j)], atol=1e-5)
    if name == "rotations":
        fourth = IMAGES
        for _ in range(4):
            fourth = np.asarray(MOVE[name](fourth))[:, 1]
        np.testing.assert_array_equal(fourth, IMAGES)


def test_elements_are_those_of_loops_over_images():
    of = {name: np.asarray(MOVE[name](IMAGES)) for name in MADE}
    h = SIDE // 2
    for i, x in enumerate(IMAGES):
        np.testing.assert_array_equal(of["rotations"][i, 1], x[:, ::-1].transpose(1, 0, 2))
        np.testing.assert_array_equal(of["flip"][i, 1], x[:, ::-1])
        np.testing.assert_array_equal(of["vertical_flip"][i, 1], x[::-1])
        np.testing.assert_array_equal(of["half_swap"][i, 1], np.concatenate([x[h:], x[:h]]))
        luma = x @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(of["grey"][i, 1], np.stack([luma] * 3, -1), atol=1e-6)
        quarters = [x[:h, :h], x[:h, h:], x[h:, :h], x[h:, h:]]
        for k, order in enumerate(PERMUTATIONS):
            a, b, c, d = (quarters[q] for q in order)
            rows = np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)
            np.testing.assert_array_equal(of["jigsaw"][i, k], np.concatenate(rows))
        for row, column in ((0, 0), (2, 5)):
            hue, *rest = colorsys.rgb_to_hsv(*x[row, column].tolist())
            for k in range(4):
                turned = colorsys.hsv_to_rgb((hue + k / 4) % 1, *rest)
                np.testing.assert_allclose(of["colour"][i, k, row, column], turned, atol=1e-5)


def test_enlarging_keeps_the_centre():
    ramp = np.broadcast_to(np.arange(8.0)[:, None, None], (8, 8, 1))[None].astype(np.float32)
    moved = np.asarray(symmetries.scale((1.0, 0.5)).all(ramp))[0]
    np.testing.assert_array_equal(moved[0], ramp[0])
    inside = moved[1, 1:-1, 4, 0]  # the border has no neighbours outside of the part
    np.testing.assert_allclose(inside, 3.5 + (np.arange(8) - 3.5)[1:-1] / 2, atol=1e-5)
    x = scipy.ndimage.gaussian_filter(IMAGES[:, :, :, :1], (0, 1, 1, 0))
    np.testing.assert_allclose(
        np.asarray(symmetries.scale((1.0, 0.75)).all(x))[:, 1].mean(), x.mean(), atol=0.1
    )


def test_each_image_has_its_own_elements():
    made = MADE["rotations"]
    k = np.array([0, 3, 1, 2, 1])
    several = np.stack([k, (k + 1) % 4], axis=1)
    one, two = jax.jit(lambda x: (made.each(x, k), made.each(x, several)))(IMAGES)
    for i, x in enumerate(IMAGES):
        np.testing.assert_array_equal(one[i], np.rot90(x, k[i]))
        for n in range(2):
            np.testing.assert_array_equal(two[i, n], np.rot90(x, several[i, n]))


def darker(x):
    return 0.5 * x


def dark():
    return Symmetry("dark", (lambda x: x, darker))


def test_functions_of_ones_own_by_their_path():
    name = f"{__name__}:darker"
    made = make("symmetries", dict(name="own", functions=[name]), "symmetry")
    np.testing.assert_allclose(made.elements[1](IMAGES), 0.5 * IMAGES)
    assert made.in_units and made.size == 2
    whole = make("symmetries", f"{__name__}:dark", "symmetry")
    np.testing.assert_allclose(whole.elements[1](IMAGES), 0.5 * IMAGES)


@pytest.mark.parametrize(
    ("make_it", "why"),
    [
        (lambda: MADE["rotations"].all(jnp.zeros((2, 4, 6, 1))), "'rotations' of images .*square"),
        (lambda: MADE["half_swap"].all(jnp.zeros((2, 5, 4, 1))), "'half_swap' .*an even height"),
        (lambda: MADE["jigsaw"].all(jnp.zeros((2, 4, 5, 1))), "'jigsaw' .*even sides"),
        (lambda: MADE["grey"].all(jnp.zeros((2, 4, 4, 1))), "'grey' .*three channels"),
        (lambda: MADE["colour"].all(jnp.zeros((2, 4, 4, 1))), "'colour' .*three channels"),
        (lambda: MADE["flip"].all(jnp.zeros((2, 4))), r"images \[B, H, W, C\] are needed"),
        (lambda: symmetries.scale((0.5, 1.0)), "factors: .*1 and others"),
        (lambda: symmetries.scale((1.0,)), "factors"),
        (lambda: symmetries.colour(hue=(0.5,)), "hue: .* begins with 0"),
        (lambda: symmetries.colour(hue=(0.0,)), "one class"),
        (lambda: symmetries.colour(brightness=(1.0, -1.0)), "brightness: .*at least 0"),
        (lambda: symmetries.own(()), "functions"),
        (lambda: symmetries.own(["nowhere:f"]), "there is no module 'nowhere'"),
        (lambda: symmetries.own([lambda x: x[:, 1:]]).all(IMAGES), "element 1 of 'own' makes"),
    ],
)  # fmt: skip
def test_what_cannot_be_says_why(make_it, why):
    with pytest.raises(ValueError, match=why):
        make_it()
