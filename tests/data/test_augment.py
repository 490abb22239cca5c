"""Invariances and independent formulas of each augmentation; statelessness of all of them."""

import itertools

import numpy as np
import pytest
import scipy.stats

from experiments.data import augment, rand_augment_ops
from experiments.data.augment import Draw
from experiments.data.order import philox
from experiments.data.pipeline import pipeline
from uncertainty.build import ConfigError

rng = np.random.default_rng(0)
X = (rng.integers(0, 256, (24, 9, 7, 3)) / 255).astype(np.float32)
Y = rng.integers(0, 4, 24).astype(np.int32)
SPECS = [
    dict(name="flip"),
    dict(name="crop", pad=2),
    dict(name="cutout", size=3),
    dict(name="label_noise", transition=(np.full((4, 4), 0.1) + 0.6 * np.eye(4)).tolist()),
    dict(name="rand_augment", num_ops=2, magnitude=15),
    dict(name="mixup", alpha=0.5),
]


def batch():
    return {"x": X.copy(), "y": Y.copy()}


def draw(size=24, step=0):
    return Draw(philox(0, 1, step=step), size=size)


@pytest.mark.parametrize("specs", [*([s] for s in SPECS), SPECS], ids=lambda s: s[-1]["name"])
def test_neither_processes_nor_history_change_an_example(specs):
    f = pipeline(specs, classes=4).run
    whole = f(batch(), 5, 11, 24)
    f(batch(), 5, 12, 24)
    for processes in (2, 3, 4):
        share = 24 // processes
        parts = []
        for process in range(processes):
            rows = slice(process * share, (process + 1) * share)
            own = {key: value[rows] for key, value in batch().items()}
            parts.append(f(own, 5, 11, 24, rows))
        for key in whole:
            np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), whole[key])
    changed = [
        not np.array_equal(f(batch(), *other, 24)[k], whole[k])
        for other in ((5, 12), (6, 11))
        for k in whole
    ]
    assert any(changed)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s["name"])
def test_inputs_are_left_as_they_are_and_types_kept(spec):
    given = batch()
    out = pipeline([spec], classes=4).run(given, 0, 0, 24)
    np.testing.assert_array_equal(given["x"], X)
    np.testing.assert_array_equal(given["y"], Y)
    assert out["x"].dtype == np.float32
    assert out["x"].shape == X.shape
    assert 0 <= out["x"].min() <= out["x"].max() <= 1


def test_flip():
    once = augment.flip(batch(), draw(), p=1)
    np.testing.assert_array_equal(once["x"], np.flip(X, axis=2))
    np.testing.assert_array_equal(augment.flip(once, draw(), p=1)["x"], X)
    np.testing.assert_array_equal(augment.flip(batch(), draw(), p=0)["x"], X)
    some = augment.flip(batch(), draw())["x"]
    same = (some == X).all((1, 2, 3))
    assert ((some == X[:, :, ::-1]).all((1, 2, 3)) ^ same).all()
    assert 0 < same.sum() < 24


def test_crop_takes_a_window_of_the_padded_image_each_equally_often():
    size, pad = 3000, 2
    x = np.broadcast_to(X[:1], (size, *X.shape[1:]))
    out = augment.crop({"x": x}, draw(size), pad=pad)["x"]
    padded = np.pad(X[0], ((pad, pad), (pad, pad), (0, 0)))
    windows = [padded[t : t + 9, l : l + 7] for t, l in itertools.product(range(5), range(5))]
    matches = np.stack([(out == window).all((1, 2, 3)) for window in windows])
    np.testing.assert_array_equal(matches.sum(0), 1)
    assert scipy.stats.chisquare(matches.sum(1)).pvalue > 1e-3


def test_crop_of_a_constant_and_to_another_size():
    ones = np.ones((24, 8, 8, 1), np.float32)
    assert (augment.crop({"x": ones}, draw(), pad=0)["x"] == 1).all()
    assert (augment.crop({"x": ones}, draw(), pad=0, size=5)["x"] == np.ones((24, 5, 5, 1))).all()
    inner = augment.crop({"x": ones}, draw(), pad=3)["x"][:, 3:5, 3:5]
    assert (inner == 1).all()
    assert augment.crop({"x": ones}, draw(), pad=2, size=12)["x"].sum() == 24 * 64
    with pytest.raises(ValueError, match="pad: 0"):
        augment.crop({"x": ones}, draw(), pad=0, size=9)


def test_cutout_zeros_one_square():
    ones = np.ones((500, 8, 6, 2), np.float32)
    out = augment.cutout({"x": ones}, draw(500), size=3)["x"]
    assert (ones == 1).all()
    assert set(np.unique(out)) == {0, 1}
    for image in out[:50]:
        rows, columns, _ = np.nonzero(image == 0)
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box == 0).all()
        assert max(box.shape[:2]) <= 3
    assert (out[:, 3, 3] == 0).mean() == pytest.approx(9 / 48, abs=0.06)


def test_mixup_mixes_pairs_with_beta_weights():
    size = 2000
    x, y = rng.random((size, 3), np.float32), np.arange(size) % 7
    out = augment.mixup({"x": x, "y": y}, draw(size), alpha=0.4, classes=7)
    partner = np.arange(size) ^ 1  # so classes of a pair always differ: w is the own class's mass
    weight = out["y"][np.arange(size), y]
    np.testing.assert_allclose(weight + out["y"][np.arange(size), y[partner]], 1, atol=1e-6)
    np.testing.assert_allclose(out["y"].sum(1), 1, atol=1e-6)
    expected = weight[:, None] * x + (1 - weight[:, None]) * x[partner]
    np.testing.assert_allclose(out["x"], expected, atol=1e-6)
    assert scipy.stats.kstest(weight, "beta", (0.4, 0.4)).pvalue > 1e-3
    with pytest.raises(ValueError, match="pairs neighbours"):
        augment.mixup({"x": x[:3], "y": y[:3]}, draw(3), classes=7)


def test_label_noise_draws_from_the_row():
    transition = rng.dirichlet(np.ones(4), size=4)
    size = 8000
    y = (np.arange(size) % 4).astype(np.int32)
    new = augment.label_noise({"y": y}, draw(size), transition=transition)["y"]
    for label in range(4):
        counts = np.bincount(new[y == label], minlength=4)
        assert scipy.stats.chisquare(counts, transition[label] * 2000).pvalue > 1e-3
    same = augment.label_noise({"y": y}, draw(size), transition=np.eye(4))["y"]
    np.testing.assert_array_equal(same, y)
    assert same.dtype == np.int32


PIXELS = rng.integers(0, 256, (31, 33, 3), dtype=np.uint8)


def op(name, m, sign=1, pixels=PIXELS):
    index = [f.__name__ for f in rand_augment_ops.OPS].index(name)
    return rand_augment_ops.apply(pixels, [index], [sign], m)


def test_operations_do_nothing_at_magnitude_zero():
    neutral = {f.__name__ for f in rand_augment_ops.OPS} - {"auto_contrast", "equalize", "solarize"}
    for name in neutral:
        np.testing.assert_array_equal(op(name, 0.0), PIXELS, err_msg=name)


def test_operations_follow_their_formulas():
    p = PIXELS.astype(float)
    m = 0.5
    np.testing.assert_array_equal(op("solarize", m), np.where(p < 127.5, p, 255 - p))
    np.testing.assert_array_equal(op("posterize", m), PIXELS & 0b11111100)
    for sign in (-1, 1):
        np.testing.assert_allclose(
            op("brightness", m, sign), np.clip(p * (1 + sign * 0.45), 0, 255), atol=1
        )
        shift = sign * int(150 / 331 * 33 * m)
        moved = np.zeros_like(PIXELS)
        to, source = (slice(shift, None), slice(None, -shift))
        if sign < 0:
            to, source = slice(None, shift), slice(-shift, None)
        moved[:, to] = PIXELS[:, source]
        np.testing.assert_array_equal(op("translate_x", m, sign), moved)
        down = op("translate_y", m, sign, PIXELS.transpose(1, 0, 2))
        np.testing.assert_array_equal(down.transpose(1, 0, 2), moved)
        sheared = op("shear_x", m, sign)
        for row in (0, 10, 30):
            x = np.floor(np.arange(33) + 0.5 + sign * 0.15 * (row + 0.5)).astype(int)
            inside = (x >= 0) & (x < 33)
            expected = np.where(inside[:, None], PIXELS[row, np.clip(x, 0, 32)], 0)
            np.testing.assert_array_equal(sheared[row], expected)
    np.testing.assert_array_equal(op("rotate", 0.0), PIXELS)
    grey = p @ [0.299, 0.587, 0.114]
    contrast = np.rint(grey.mean()) + (p - np.rint(grey.mean())) * 1.45
    np.testing.assert_allclose(op("contrast", m), np.clip(contrast, 0, 255), atol=1.5)
    color = grey[..., None] + (p - grey[..., None]) * 1.45
    np.testing.assert_allclose(op("color", m), np.clip(color, 0, 255), atol=1.5)
    low = (PIXELS // 4 + 50).astype(np.uint8)
    stretched = op("auto_contrast", m, pixels=low)
    assert (stretched.min((0, 1)) == 0).all()
    assert (stretched.max((0, 1)) >= 254).all()  # Pillow rounds down


def test_rand_augment_chooses_all_operations_equally_often(monkeypatch):
    seen = []
    monkeypatch.setattr(
        rand_augment_ops, "apply", lambda image, ops, signs, m: seen.append((ops, signs)) or image
    )
    size = 1400
    x = np.zeros((size, 2, 2, 1), np.float32)
    augment.rand_augment({"x": x}, draw(size), num_ops=3)
    chosen = np.array([ops for ops, _ in seen])
    signs = np.array([signs for _, signs in seen])
    assert chosen.shape == (size, 3)
    assert scipy.stats.chisquare(np.bincount(chosen.ravel(), minlength=14)).pvalue > 1e-3
    assert scipy.stats.binomtest(int((signs == 1).sum()), signs.size).pvalue > 1e-3


def test_greyscale_digits_pass_through_rand_augment():
    x = rng.random((40, 8, 8, 1), np.float32)
    out = augment.rand_augment({"x": x}, draw(40), num_ops=2, magnitude=9)["x"]
    assert out.shape == x.shape
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(name="flipp"), r"augment\[0\].name: 'flipp'; did you mean 'flip'"),
        (
            dict(name="crop", padd=3),
            r"augment\[0\].padd: no such field of crop; did you mean 'pad'",
        ),
        (dict(name="cutout"), r"augment\[0\].size: missing"),
        (dict(name="mixup", classes=3), r"augment\[0\].classes: no such field"),
        (dict(pad=3), r"augment\[0\].name: None"),
    ],
)
def test_bad_specs_name_the_field(spec, message):
    with pytest.raises(ConfigError, match=message):
        pipeline([spec], classes=4)
    with pytest.raises(ConfigError, match="needs classes"):
        pipeline([dict(name="mixup")], classes=None)
