"""Each corruption against its formula or SciPy on one image; determinism; growing severity."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from experiments.data import corruptions
from experiments.data.corruptions import IMAGE, corrupt, corrupted
from experiments.data.source import load
from uncertainty.build import ConfigError

X = load(dict(name="digits", split="test[:60]", upsample=28)).x
GREY = np.full((40, 20, 20, 1), 0.5, np.float32)


@pytest.mark.parametrize("kind", IMAGE)
def test_an_example_does_not_depend_on_its_batch(kind):
    whole = corrupt(X, kind, 3)
    parts = [corrupt(X[:25], kind, 3), corrupt(X[25:], kind, 3, first_index=25)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    chosen = np.array([50, 3, 20])
    np.testing.assert_array_equal(corrupt(X[chosen], kind, 3, indices=chosen), whole[chosen])


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMAGE)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 48, 3), (224, 224, 3)])
def test_any_size_stays_an_image_and_severity_grows(kind, shape):
    rng = np.random.default_rng(1)
    n = 24 if shape[0] < 100 else 2
    x = scipy.ndimage.gaussian_filter(rng.random((n, *shape)), (0, shape[0] / 8, shape[1] / 8, 0))
    x = ((x - x.min()) / (x.max() - x.min())).astype(np.float32)
    given = x.copy()
    change = []
    for severity in range(1, 6):
        out = corrupt(x, kind, severity)
        assert out.shape == x.shape
        assert out.dtype == np.float32
        assert 0 <= out.min() <= out.max() <= 1
        change.append(np.abs(out - x).mean())
    np.testing.assert_array_equal(x, given)
    assert change[0] > 0
    assert (np.diff(change) > 0).all(), change


def test_noises_have_their_distributions():
    for severity, std in zip((1, 2), (0.08, 0.12), strict=True):  # clipped beyond 4 std or more
        noise = (corrupt(GREY, "gaussian_noise", severity) - 0.5).ravel() / std
        assert scipy.stats.kstest(noise, "norm").pvalue > 1e-3
        assert not np.array_equal(noise[:400], noise[400:800])
    counts = corrupt(GREY, "shot_noise", 2).ravel() * 25
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-4)
    expected = scipy.stats.poisson(12.5)
    assert counts.mean() == pytest.approx(12.5, abs=5 * np.sqrt(12.5 / counts.size))
    assert np.mean(counts < 9.5) == pytest.approx(expected.cdf(9), abs=0.015)
    salted = corrupt(GREY, "impulse_noise", 4)
    for value in (0, 1):
        hit = int((salted == value).sum())
        assert scipy.stats.binomtest(hit, salted.size, 0.17 / 2).pvalue > 1e-3
    assert ((salted == 0) | (salted == 1) | (salted == 0.5)).all()


def test_contrast_and_brightness():
    np.testing.assert_allclose(corrupt(X, "brightness", 2), np.minimum(X + 0.1, 1), atol=1e-6)
    image = X[7, ..., 0].astype(float)
    expected = (image - image.mean()) * 0.4 + image.mean()
    np.testing.assert_allclose(corrupt(X, "contrast", 3)[7, ..., 0], expected, atol=1e-6)


def test_blur_is_scipys():
    sigma = 0.25 * np.sqrt(28)
    expected = scipy.ndimage.gaussian_filter(X[3, ..., 0], sigma, mode="nearest")
    np.testing.assert_allclose(corrupt(X, "gaussian_blur", 3)[3, ..., 0], expected, atol=1e-6)


def test_rotation_is_scipys_either_way():
    out = corrupt(X, "rotation", 4)[..., 0]
    ways = [
        np.stack(
            [
                scipy.ndimage.rotate(image, angle, reshape=False, order=1, mode="grid-constant")
                for image in X[..., 0]
            ]
        )
        for angle in (20, -20)
    ]
    errors = np.stack([np.abs(out - way).max((1, 2)) for way in ways])
    assert errors.min(0).max() < 1e-5
    left = int((errors[0] < errors[1]).sum())
    assert scipy.stats.binomtest(left, len(X)).pvalue > 1e-3


def test_translation_moves_by_its_length_in_all_directions():
    x = np.zeros((200, 41, 31, 2), np.float32)
    x[:, 20, 15] = 1
    moved = np.array(
        [scipy.ndimage.center_of_mass(image[..., 1]) for image in corrupt(x, "translation", 5)]
    ) - (20, 15)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.15 * 31, rtol=1e-4)
    angle = np.arctan2(*moved.T) / (2 * np.pi) + 0.5
    assert scipy.stats.kstest(angle, "uniform").pvalue > 1e-3


def test_a_corrupted_source_is_corrupted_before_it_is_normalised():
    plain = load(dict(name="digits", split="test"))
    scaled = load(dict(name="digits", split="test", mean=0.2, std=0.4))
    rows = np.array([5, 399, 0])
    expected = corrupt(plain.x[rows], "shot_noise", 5, indices=rows)
    out = corrupted(scaled, "shot_noise", 5).gather(rows)
    np.testing.assert_allclose(out["x"], (expected - 0.2) / 0.4, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["y"], plain.y[rows])


def test_tables_get_noise_in_units_of_their_features():
    source = load(dict(name="breast_cancer"))
    rows = np.arange(len(source))
    clean, noisy = (
        source.gather(rows)["x"],
        corrupted(source, "gaussian_noise", 3).gather(rows)["x"],
    )
    assert scipy.stats.kstest(((noisy - clean) / 0.4).ravel(), "norm").pvalue > 1e-3


def test_what_cannot_be_is_refused_by_name():
    source = load(dict(name="digits"))
    with pytest.raises(ConfigError, match=r"'gaussan_noise' .* 'gaussian_noise'"):
        corrupted(source, "gaussan_noise", 1)
    with pytest.raises(ConfigError, match="severity: 6"):
        corrupted(source, "contrast", 6)
    with pytest.raises(ConfigError, match=r"'rotation' .* \(valid: gaussian_noise\)"):
        corrupted(load(dict(name="iris")), "rotation", 1)


def test_the_documented_parameters_are_the_ones_used():
    for kind, (_, values) in corruptions._IMAGE.items():
        row = next(r for r in corruptions.__doc__.splitlines() if r.startswith(f"| {kind} "))
        shown = row.rstrip("| ").rpartition("= ")[2].split()
        assert [float(v) for v in shown] == [float(v) for v in values], kind
