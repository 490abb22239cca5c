"""The corruptions of CIFAR-10-C against their formulas on single images, and by properties."""

import colorsys
import io

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from experiments.data import cifar_c, corruptions
from experiments.data.cifar_c import KINDS, corrupt
from experiments.data.source import load
from experiments.evaluators import build
from uncertainty.build import ConfigError

RNG = np.random.default_rng(0)
SMOOTH = scipy.ndimage.gaussian_filter(RNG.random((6, 32, 32, 3)), (0, 3, 3, 0))
X = ((SMOOTH - SMOOTH.min()) / np.ptp(SMOOTH)).astype(np.float32)
X = (np.rint(255 * X) / 255).astype(np.float32)
GREY = np.full((40, 32, 32, 3), 0.5, np.float32)
FROST = {f"frost{i}": RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8) for i in range(1, 6)}
STEP = 1 / 255  # results are rounded down to multiples of it


def made(kind, severity, x=X, **fields):
    return corrupt(x, kind, severity, textures=FROST, **fields).astype(np.float64)


def stored(x):
    return np.rint(255 * x).astype(np.uint8)


def close(actual, expected, steps=1.001):
    """Up to the rounding of results."""
    np.testing.assert_allclose(actual, np.clip(expected, 0, 1) - STEP / 2, atol=steps * STEP / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_does_not_depend_on_its_batch(kind):
    whole = made(kind, 2)
    parts = [made(kind, 2, X[:2]), made(kind, 2, X[2:], first_index=2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    chosen = np.array([4, 0])
    np.testing.assert_array_equal(made(kind, 2, X[chosen], indices=chosen), whole[chosen])
    assert whole.shape == X.shape
    np.testing.assert_allclose(255 * whole, np.rint(255 * whole), atol=1e-4)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert 0 < np.abs(whole - X).mean() < 0.5


@pytest.mark.parametrize("kind", ("gaussian_noise", "motion_blur", "fog", "jpeg_compression"))
def test_severity_grows(kind):
    change = [np.abs(made(kind, s) - X).mean() for s in range(1, 6)]
    assert (np.diff(change) > 0).all(), change


def test_noises_have_their_moments():
    for kind, std in (("gaussian_noise", 0.08), ("speckle_noise", 0.12 * 0.5)):
        noise = made(kind, 3, GREY) - 0.5 + STEP / 2
        assert noise.std() == pytest.approx(std, rel=0.02)
        assert noise.mean() == pytest.approx(0, abs=5 * std / np.sqrt(noise.size))
    shot = made("shot_noise", 5, GREY) + STEP / 2
    assert shot.var() == pytest.approx(0.5 / 50, rel=0.03)
    salted = np.rint(255 * made("impulse_noise", 5, GREY)).astype(int)
    for value in (0, 255):
        assert (salted == value).mean() == pytest.approx(0.035, abs=0.003)
    assert set(np.unique(salted)) == {0, 127, 255}


def test_blurs_are_their_kernels():
    close(made("gaussian_blur", 5), scipy.ndimage.gaussian_filter(X, (0, 1, 1, 0), mode="nearest"))
    # Radius 1 has five pixels; sigma .2 leaves next to nothing to their neighbours.
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    expected = scipy.ndimage.correlate(X[0, ..., 1], cross, mode="mirror")
    close(made("defocus_blur", 4)[0, ..., 1], expected, 2)


def test_motion_is_a_walk_in_one_direction():
    image = X[0].astype(np.float64)
    for angle, row, column in ((0, 0, 1), (-90, -1, 0), (-45, -1, 1)):
        moved = cifar_c._moved(image, 6, 2.0, angle)
        k = [np.exp(-(i**2) / 8) for i in range(13)]
        far = 1 if 0 in (row, column) else np.sqrt(0.5)
        want, at = np.zeros(3), (20, 10)
        for i in range(13):
            r, c = (int(np.ceil(i * far * d - 0.5)) for d in (row, column))
            want += k[i] / sum(k) * image[at[0] + r, min(at[1] + c, 31)]
        np.testing.assert_allclose(moved[at], want, rtol=1e-9)


def test_zoom_blur_is_the_mean_of_enlarged_copies():
    image = X[1].astype(np.float64)
    total = image.copy()
    for hundredths in range(6):
        factor = 1 + hundredths / 100
        side = int(np.ceil(32 / factor))
        top = (32 - side) // 2
        part = image[top : top + side, top : top + side]
        large = scipy.ndimage.zoom(part, (factor, factor, 1), order=1)
        cut = (len(large) - 32) // 2
        total += large[cut : cut + 32, cut : cut + 32]
    close(made("zoom_blur", 1)[1], total / 7)


def test_glass_copies_pixels_of_the_neighbourhood():
    """Without blur (sigma .05) each pixel is one of the image, and two rows of the border stay."""
    out, image = stored(made("glass_blur", 1)[2]), stored(X[2])
    np.testing.assert_array_equal(out[:2], image[:2])
    assert (out != image).any()
    colours = {tuple(p) for p in image.reshape(-1, 3)}
    assert {tuple(p) for p in out.reshape(-1, 3)} <= colours


def test_colours_are_those_of_colorsys():
    for kind, change in (
        ("brightness", lambda h, s, v: (h, s, min(v + 0.15, 1))),
        ("saturate", lambda h, s, v: (h, min(s * 1.5, 1), v)),
    ):
        out = made(kind, 3)[3]
        for at in ((0, 0), (7, 30), (20, 11)):
            hsv = colorsys.rgb_to_hsv(*map(float, X[3][at]))
            close(out[at], colorsys.hsv_to_rgb(*change(*hsv)))


def test_contrast_jpeg_and_pixels():
    image = X[4].astype(np.float64)
    mean = image.mean((0, 1))
    close(made("contrast", 4)[4], (image - mean) * 0.3 + mean)
    file = io.BytesIO()
    Image.fromarray(stored(X[4])).save(file, "JPEG", quality=58)
    np.testing.assert_array_equal(
        stored(made("jpeg_compression", 3)[4]), np.asarray(Image.open(file))
    )
    small = Image.fromarray(stored(X[4])).resize((20, 20), Image.BOX).resize((32, 32), Image.BOX)
    np.testing.assert_array_equal(stored(made("pixelate", 5)[4]), np.asarray(small))


def test_fog_is_rescaled_and_its_fractal_is_in_range():
    fractal = cifar_c.plasma([np.random.default_rng(i) for i in range(8)], 2.0)
    np.testing.assert_array_equal(fractal.min((1, 2)), 0)
    np.testing.assert_array_equal(fractal.max((1, 2)), 1)
    rough, smooth = (
        np.abs(np.diff(cifar_c.plasma([np.random.default_rng(i) for i in range(8)], decay))).mean()
        for decay in (1.5, 3.0)
    )
    assert rough > 1.5 * smooth  # a slower decay leaves more of the finest noise
    black = made("fog", 1, np.zeros((1, 32, 32, 3), np.float32) + np.eye(32)[:, :, None] * 0.8)
    assert black.max() <= 0.8  # x max / (max + c) never exceeds the brightest value


def test_frost_is_a_part_of_a_texture():
    out = made("frost", 2, np.zeros((4, 32, 32, 3), np.float32))  # x + .3 texture
    windows = [
        np.floor(0.3 * t[r : r + 32, c : c + 32] + 1e-6)
        for t in FROST.values()
        for r in range(8)
        for c in range(18)
    ]
    for image in stored(out):
        assert any(np.array_equal(image, w) for w in windows)
    with pytest.raises(ConfigError, match="textures: None; 'frost' needs an npz file"):
        corrupt(X, "frost", 1)
    with pytest.raises(ConfigError, match="textures: 'frost4' has to be uint8"):
        corrupt(X, "frost", 1, textures={k: v for k, v in FROST.items() if k != "frost4"})


def test_elastic_at_the_first_severity_is_affine():
    """Without displacement it maps straight lines to straight lines: a ramp stays a ramp inside."""
    ramp = np.broadcast_to(np.arange(32)[:, None, None] / 40 + 0.1, (32, 32, 3))
    out = made("elastic_transform", 1, ramp[None].astype(np.float32))[0, 8:24, 8:24, 0]
    second = np.abs(np.diff(out, 2, axis=0)).max(), np.abs(np.diff(out, 2, axis=1)).max()
    assert max(second) <= 2.01 * STEP
    assert np.abs(np.diff(out, axis=0).mean() - 1 / 40) > 1e-4


def test_drops_edges_and_histograms():
    square = np.zeros((32, 32))
    square[8:20, 8:20] = 200
    edges = cifar_c.canny(square, 50, 150)
    ring = np.zeros((32, 32), bool)
    ring[7:21, 7:21] = True
    ring[9:19, 9:19] = False
    assert edges.any() and not (edges & ~ring).any()  # edges lie on the border of the square
    assert edges[[7, 8], 14].sum() == edges[[19, 20], 14].sum() == 1  # and are one pixel thin
    assert not cifar_c.canny(square / 20, 50, 150).any()  # too weak
    values = RNG.integers(0, 40, (32, 32)).astype(float)
    even = cifar_c.equalised(values)
    assert (even.min(), even.max()) == (0, 255)
    order = np.argsort(values.ravel(), kind="stable")
    assert (np.diff(even.ravel()[order]) >= 0).all()
    np.testing.assert_array_equal(cifar_c.equalised(np.full((4, 4), 7.0)), np.full((4, 4), 7.0))
    for seed in range(40):  # sums that cancel must not become negative distances
        layer = np.random.default_rng(seed).random((32, 32)) > 0.7
        assert (cifar_c._drops(255.0 * layer) > -1e-9).all()  # but for rounding
    mud = made("spatter", 5, GREY)
    brown = np.floor(np.array([63, 42, 20]) + 1e-6) / 255
    hit = np.abs(mud - 0.5).max(-1) > 0.02
    assert 0.001 < hit.mean() < 0.2
    assert np.linalg.norm(mud[hit] - brown, axis=-1).min() < 0.05


def test_the_family_is_taken_by_name():
    source = load(dict(name="stand_in", shape=(32, 32, 3), num_classes=10, split="test"), "data")
    ours = corruptions.corrupted(source, "gaussian_noise", 2).gather(np.arange(3))["x"]
    theirs = corruptions.corrupted(source, "gaussian_noise", 2, "cifar_c").gather(np.arange(3))["x"]
    clean = source.gather(np.arange(3))["x"]
    assert np.abs(ours - clean).std() > 1.5 * np.abs(theirs - clean).std()  # .12 and .06
    with pytest.raises(ConfigError, match="family: 'cifar'; did you mean 'cifar_c'"):
        corruptions.corrupted(source, "gaussian_noise", 2, "cifar")
    with pytest.raises(ConfigError, match="textures: None; 'frost' needs a file"):
        build("c", dict(name="corruption", data=dict(split="test"), family="cifar_c"))
    small = load(dict(name="stand_in", shape=(28, 28, 1), num_classes=10, split="test"))
    with pytest.raises(ConfigError, match=r"images \(28, 28, 1\); the constants of CIFAR-10-C"):
        corruptions.corrupted(small, "fog", 2, "cifar_c")
