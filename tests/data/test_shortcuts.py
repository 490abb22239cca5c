"""Data of which several features tell the class: each alone, exchanged, and apart."""

import gzip

import numpy as np
import pytest
import scipy.stats

from experiments.data.derived import same_set
from experiments.data.source import check_spec, load

LMS = dict(name="linear_and_slabs", linear=1, slabs=(3, 5, 7), size=4000, test_size=3000)


def slab_of(x, k, m):
    """The slab of each x by its edges, and its class: slabs from -1 up, alternating."""
    w = (2 - 2 * m * (k - 1)) / k
    low = -1 + np.arange(k) * (w + 2 * m)
    inside = (x[:, None] >= low - 1e-6) & (x[:, None] <= low + w + 1e-6)
    assert (inside.sum(1) == 1).all()  # nothing is in the gaps
    j = inside.argmax(1)
    return j, (j - (k - 1) // 2) % 2


@pytest.mark.parametrize("margin", [0.1, 0.05])
def test_each_coordinate_alone_tells_the_class(margin):
    source = load(dict(LMS, margin=margin))
    x, y = source.x, source.y
    assert source.shape == (4,) and source.classes == 2
    assert ((x[:, 0] > 0) == y).all() and np.abs(x[:, 0]).min() >= margin - 1e-6
    for i, k in enumerate((3, 5, 7), 1):
        assert (slab_of(x[:, i], k, margin)[1] == y).all(), k
        assert abs(np.corrcoef(x[:, i], y)[0, 1]) < 0.06  # no threshold tells anything


def test_five_slabs_are_where_the_published_code_has_them():
    m, B = 0.1, 1.0
    source = load(dict(LMS, slabs=(5,), linear=0, margin=m))
    x, y = np.abs(source.x[:, 0]), source.y
    w = (2 * B - 8 * m) / 5
    of = {  # facts: ends of |x| and the share of the class
        (1, 1.0): ((B + 6 * m) / 5, (B + 6 * m) / 5 + w),
        (0, 0.75): (0.0, w / 2),
        (0, 0.25): ((8 * m + 3 * B) / 5, (8 * m + 3 * B) / 5 + w),
    }
    for (label, share), (low, high) in of.items():
        inside = (x >= low - 1e-6) & (x <= high + 1e-6)
        assert abs(inside[y == label].mean() - share) < 0.03
        assert scipy.stats.kstest((x[inside] - low) / (high - low), "uniform").pvalue > 1e-3
    assert abs(source.y.mean() - 0.5) < 0.03


@pytest.mark.parametrize("rotate", [False, True])
def test_randomised_coordinates_are_those_of_other_test_points(rotate):
    test, simple, hard = (
        load(dict(LMS, split=split, rotate=rotate)).x.astype(np.float64)
        for split in ("test", "simple_randomised", "complex_randomised")
    )
    y = load(dict(LMS, split="simple_randomised")).y
    if rotate:  # the rotation is that of all splits, and one of the unrotated points
        plain = load(dict(LMS, split="test")).x.astype(np.float64)
        turn = np.linalg.lstsq(plain, test, rcond=None)[0]
        np.testing.assert_allclose(turn @ turn.T, np.eye(4), atol=1e-5)
        assert np.abs(turn - np.eye(4)).max() > 0.1
        test, simple, hard = (a @ turn.T for a in (test, simple, hard))
    np.testing.assert_allclose(simple[:, 1:], test[:, 1:], atol=1e-5)
    np.testing.assert_allclose(hard[:, 0], test[:, 0], atol=1e-5)
    np.testing.assert_allclose(np.sort(simple[:, 0]), np.sort(test[:, 0]), atol=1e-5)
    order = np.lexsort(hard[:, 1:].round(3).T), np.lexsort(test[:, 1:].round(3).T)
    np.testing.assert_allclose(hard[order[0], 1:], test[order[1], 1:], atol=2e-3)  # as a whole
    assert abs(np.mean((simple[:, 0] > 0) == y) - 0.5) < 0.04
    assert abs(np.mean(slab_of(hard[:, 2], 5, 0.1)[1] == y) - 0.5) < 0.04
    assert (load(dict(LMS, split="complex_randomised")).y == y).all()


@pytest.mark.parametrize(("noise", "agreement"), [(0.3, 0.8), (0.0, 0.0), (0.0, 0.25)])
def test_noise_and_agreement_say_how_often_the_linear_coordinate_is_right(noise, agreement):
    fields = dict(LMS, noise=noise, agreement=agreement)
    for split, agree in (("train", 1.0), ("test", 1.0), ("unlabelled", agreement)):
        source = load(dict(fields, split=split))
        right = np.mean((source.x[:, 0] > 0) == source.y)
        assert abs(right - ((1 - noise) * agree + noise / 2)) < 0.03, split
        assert (slab_of(source.x[:, 1], 3, 0.1)[1] == source.y).all()


def test_splits_do_not_depend_on_each_other():
    one, other = load(LMS), load(dict(LMS, test_size=10, agreement=0.1))
    assert (one.x == other.x).all() and (load(dict(LMS, seed=1)).x != one.x).any()
    assert not (load(dict(LMS, split="unlabelled")).x[:10] == one.x[:10]).any()


PA = dict(name="predictive_and_available", dimensions=6, size=4000, test_size=4000)


def test_latents_have_their_predictivity_and_availability():
    plain, large = (load(dict(PA, amplification=a)).x for a in (1.0, 16.0))
    y = load(PA).y
    w = (large - plain)[0] / np.linalg.norm((large - plain)[0])
    z = plain @ w / np.sqrt(6)  # the shortcut, up to its sign
    np.testing.assert_allclose(large @ w, 16 * plain @ w, rtol=1e-4, atol=1e-4)
    rest = plain - np.outer(plain @ w, w)
    _, s, v = np.linalg.svd(rest, full_matrices=False)
    assert s[1] < 1e-3 * s[0]  # one direction is left, that of the core
    core = rest @ v[0] / np.sqrt(6)
    for latent, predictivity in ((z, 0.9), (core, 0.98)):
        right = np.mean((latent > 0) == y)
        assert abs(max(right, 1 - right) - predictivity) < 0.015
        np.testing.assert_allclose(
            [np.abs(latent).min(), np.abs(latent).max()], [0.25, 1], atol=0.01
        )


def test_off_the_diagonal_the_label_is_that_of_one_latent():
    sets = {s: load(dict(PA, split=s)) for s in ("off_shortcut", "off_core", "unlabelled")}
    base, up = (load(dict(PA, split="off_core", amplification=a)).x for a in (1.0, 2.0))
    w = (up - base)[0] / np.linalg.norm((up - base)[0])
    train = load(PA)
    w *= np.sign(np.corrcoef(train.x @ w, train.y)[0, 1])
    right = {name: np.mean((s.x @ w > 0) == s.y) for name, s in sets.items()}
    assert right["off_shortcut"] == 1
    assert abs(right["off_core"] - 0.5) < 0.03 and abs(right["unlabelled"] - 0.5) < 0.03


def test_nesting_keeps_the_size_of_the_core_and_bends_it():
    deep = load(dict(PA, depth=3, amplification=1e-9)).x
    flat = load(dict(PA, amplification=1e-9)).x
    first, second = (np.linalg.svd(x, compute_uv=False)[:2] for x in (flat, deep))
    assert first[1] < 1e-5 * first[0] and second[1] > 0.02 * second[0]  # a line, and no line
    assert abs(np.mean(deep**2) / np.mean(flat**2) - 1) < 0.2


SPRITES = dict(name="sprites", size=600, test_size=400)


def seen(x):
    """Colour [N, 3], area and angle in degrees [N] of sprites [N, H, W, 3], by their moments."""
    weight = x.max(-1)
    total = weight.sum((1, 2))
    side = x.shape[1]
    ticks = (2 * np.arange(side) + 1) / side - 1
    mx, my = (np.einsum(e, weight, ticks) / total for e in ("nhw,w->n", "nhw,h->n"))
    dx, dy = ticks[None, None] - mx[:, None, None], ticks[None, :, None] - my[:, None, None]
    xx, yy, xy = (np.sum(weight * a, (1, 2)) / total for a in (dx * dx, dy * dy, dx * dy))
    angle = np.degrees(np.arctan2(2 * xy, xx - yy) / 2) % 180
    area = total * 4 / side**2 / x.max((1, 2, 3))
    return x.sum((1, 2)) / x.sum((1, 2, 3))[:, None], area, angle


def test_sprites_on_the_diagonal_show_their_class_in_every_cue():
    source = load(SPRITES)
    x, y = source.gather(np.arange(600))["x"], source.y
    _, area, angle = seen(x)
    assert (told(source)["colour"] == y).all()
    apart = np.abs((angle - 45 * y + 90) % 180 - 90)
    assert np.percentile(apart, 99) < 10  # 4 degrees, and the pixels of the smallest
    means = [area[y == k].mean() for k in range(4)]
    # ellipse pi / 2 a^2, rectangle 4 x 0.9 x 0.36 a^2, triangle a^2, cross by its two bars
    a = 0.35 + 0.45 * np.arange(4) / 3
    bars = 4 * (0.16 + 0.16 * 0.5 - 0.16 * 0.16)
    np.testing.assert_allclose(means, np.array([np.pi / 2, 1.296, 1.0, bars]) * a**2, rtol=0.06)


HUES = np.array([[1, 0, 0], [0.5, 1, 0], [0, 1, 1], [0.5, 0, 1]])
HUES /= HUES.sum(1, keepdims=True)


def told(source):
    """The values of colour and orientation that images show."""
    colour, _, angle = seen(source.gather(np.arange(len(source)))["x"])
    nearest = np.linalg.norm(colour[:, None] - HUES, axis=2).argmin(1)
    return {"colour": nearest, "orientation": np.rint(angle / 45).astype(int) % 4}


@pytest.mark.parametrize("cue", ["colour", "orientation", "scale", "shape"])
def test_off_the_diagonal_the_label_is_the_value_of_one_cue(cue):
    source = load(dict(SPRITES, split=f"off_{cue}", test_size=800))
    for name, values in told(source).items():
        right = np.mean(values == source.y)
        assert right > 0.97 if name == cue else abs(right - 0.25) < 0.06, name


@pytest.mark.parametrize("agreement", [0.0, 0.5, 1.0])
def test_sprites_off_the_diagonal_by_agreement(agreement):
    source = load(dict(SPRITES, split="unlabelled", agreement=agreement))
    values = told(source)
    assert np.mean(values["orientation"] == source.y) > 0.97  # the label: of the last cue
    right = np.mean(values["colour"] == source.y)
    assert abs(right - (agreement + (1 - agreement) / 4)) < 0.06


def idx(path, images, labels):
    """Files like MNIST's, written by hand."""
    path.mkdir()
    for split, part in (("train", slice(0, 60)), ("t10k", slice(60, 90))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(
                n.to_bytes(4, "big") for n in array.shape
            )
            with gzip.open(path / f"{split}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def pair(tmp_path):
    """Simple images [6, 6] whose pixels are 10 class + 1, hard ones [8, 8, 3] of 100 + class."""
    y = np.arange(90) % 3
    idx(tmp_path / "simple", np.tile((10 * y + 1)[:, None, None], (1, 6, 6)), y)
    hard = np.tile((100 + y)[:, None, None, None], (1, 8, 8, 3)).astype(np.uint8)
    hard[:, 0, 0, 0] = np.arange(90)  # which image it is
    parts = {"train": slice(0, 60), "test": slice(60, 90)}
    arrays = {f"x_{k}": hard[s] for k, s in parts.items()} | {
        f"y_{k}": y[s] for k, s in parts.items()
    }
    np.savez(tmp_path / "hard.npz", **arrays)
    return dict(
        name="dominoes",
        simple=dict(name="idx", path=str(tmp_path / "simple")),
        hard=dict(name="npz", path=str(tmp_path / "hard.npz")),
    )


def test_dominoes_pair_images_of_one_class(pair):
    source = load(pair)
    assert source.shape == (16, 8, 3) and source.x.dtype == np.uint8 and source.classes == 3
    upper, lower = source.x[:, :8], source.x[:, 8:]
    assert (upper[:, 1:7, 1:7] == (10 * source.y + 1)[:, None, None, None]).all()
    assert upper[:, [0, 7]].max() == upper[:, :, [0, 7]].max() == 0  # centred on black
    assert (lower[:, 4, 4] == (100 + source.y)[:, None]).all()
    assert sorted(lower[:, 0, 0, 0]) == list(range(60))  # each hard image once
    two = load(dict(pair, simple_classes=(2, 0), hard_classes=(0, 1)))
    assert len(two) == 40 and two.classes == 2
    assert (two.x[:, 4, 4, 0] == np.array([21, 1])[two.y]).all()
    assert (two.x[:, 12, 4, 0] == 100 + two.y).all()


def test_pooled_dominoes_are_means_of_squares(pair):
    full, half = load(pair), load(dict(pair, pool=2))
    assert half.shape == (8, 4, 3) and half.x.dtype == np.uint8 and (half.y == full.y).all()
    a = full.x.astype(float)
    mean = sum(a[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    assert np.abs(half.x - mean).max() <= 0.5


def test_blocks_of_dominoes_apart(pair):
    test, simple, hard = (
        load(dict(pair, split=s)) for s in ("test", "simple_randomised", "complex_randomised")
    )
    assert (simple.x[:, 8:] == test.x[:, 8:]).all() and (hard.x[:, :8] == test.x[:, :8]).all()
    assert (simple.y == test.y).all() and (hard.y == test.y).all()
    for randomised, rows in ((simple, slice(0, 8)), (hard, slice(8, 16))):
        shown, before = randomised.x[:, rows, 4, 0], test.x[:, rows, 4, 0]
        assert sorted(shown.sum(1)) == sorted(before.sum(1)) and (shown != before).any()


def test_dominoes_of_other_sets_are_another_set(pair):
    assert same_set(pair, dict(pair, split="test", agreement=0.1))
    for hard in (dict(pair["hard"], path="other.npz"), None):
        assert not same_set(pair, dict(pair, hard=hard)) and not same_set(
            dict(pair, hard=hard), pair
        )


@pytest.mark.parametrize("agreement", [0.0, 1.0])
def test_unlabelled_dominoes_are_not_training_images(pair, agreement):
    fields = dict(pair, unlabelled=0.25, agreement=agreement)
    train, other = (load(dict(fields, split=s)) for s in ("train", "unlabelled"))
    assert (len(train), len(other)) == (45, 15)
    numbers = [set(s.x[:, 8, 0, 0]) for s in (train, other)]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 60
    right = other.x[:, 4, 4, 0] == 10 * other.y + 1
    assert right.all() if agreement else not right.any()
    assert len(load(dict(fields, split="train[:20]"))) == 20
    weak = load(dict(pair, correlation=0.0))
    assert (weak.x[:, 4, 4, 0] != 10 * weak.y + 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(split="train", simple_classes=(0,)), "simple_classes: 1 classes above 3"),
        (dict(split="validation"), "split: 'validation' does not exist"),
        (dict(simple=dict(name="idx", path="/no/such")), r"path: there is no folder /no/such"),
        (dict(simple=dict(name="idx")), r"data\.simple\.path: missing"),
        (
            dict(simple=dict(name="digits", split="test")),
            r"data\.simple\.split: belongs to the who",
        ),
        (dict(simple=dict(name="iris")), "simple: images with labels, in memory, are needed"),
        (dict(hard_classes=(0, 1, 7)), "hard: class 7 has no images in 'train'"),
        (dict(unlabelled=1.0), "unlabelled: 1.0; a share"),
        (dict(pool=3), "pool: 3; it has to divide the sides of blocks, 8 and 8"),
        (dict(pool=0), "pool: 0 pixels; at least 1"),
        (dict(simple="mnist"), r"data\.simple: 'mnist' is not a dict of fields"),
    ],
)
def test_dominoes_refuse(pair, change, message):
    with pytest.raises(ValueError, match=message):
        load(dict(pair, **change))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(LMS, slabs=(4,)), "slabs: 4; odd numbers from 3"),
        (dict(LMS, slabs=(13,)), "slabs: 13; odd numbers from 3 that leave room for gaps of 0.2"),
        (dict(LMS, linear=0, slabs=()), "linear: 0 coordinates and 0 slabs"),
        (
            dict(LMS, linear=0, split="simple_randomised"),
            "split: 'simple_randomised' does not exist",
        ),
        (dict(LMS, noise=1.5), "noise: 1.5; a probability"),
        (dict(LMS, margin=1.0), "margin: 1.0; between 0 and 1"),
        (dict(LMS, test_size=0), "test_size: 0 examples"),
        (dict(PA, predictivity=(0.9,)), r"predictivity: \[0.9\]; two numbers"),
        (dict(PA, amplification=0), "amplification: 0; a positive number"),
        (dict(PA, dimensions=1), "depth: 0, dimensions: 1"),
        (dict(SPRITES, num_classes=5), "num_classes: 5; from 2 to 4"),
        (dict(SPRITES, cues=("color",)), r"cues: \['color'\]; some of colour, shape"),
        (dict(SPRITES, side=8), "side: 8 pixels; at least 12"),
        (dict(SPRITES, cues=("colour",), split="off_shape"), "split: 'off_shape' does not exist"),
    ],
)
def test_what_is_refused(fields, message):
    check_spec(fields)  # needs no file
    with pytest.raises(ValueError, match=message):
        load(fields)
