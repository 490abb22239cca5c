"""The embedded sets against scikit-learn and their formulas; normalisation; what is refused."""

import numpy as np
import pytest
import scipy.stats
import sklearn.datasets

from experiments.data import source as source_lib
from experiments.data.source import Source, check, load


def everything(spec):
    source = load(spec)
    return source.gather(np.arange(len(source)))


def test_digits_are_scikit_learns_each_once():
    raw = sklearn.datasets.load_digits()
    splits = [everything(dict(name="digits", split=s)) for s in ("train", "validation", "test")]
    assert [len(s["y"]) for s in splits] == [1200, 197, 400]
    x = np.concatenate([s["x"] for s in splits])
    y = np.concatenate([s["y"] for s in splits])
    assert x.shape == (1797, 8, 8, 1)
    assert x.dtype == np.float32
    ours = np.column_stack([x.reshape(1797, 64) * 16, y])
    theirs = np.column_stack([raw.data, raw.target])
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    again = everything(dict(name="digits", split="test"))
    np.testing.assert_array_equal(again["x"], splits[2]["x"])
    other = everything(dict(name="digits", split="test", seed=1))
    assert not np.array_equal(other["y"], splits[2]["y"])


def test_held_out_classes_are_the_complement():
    known = everything(dict(name="digits", split="test", classes=[7, 2, 0]))
    unknown = everything(dict(name="digits", split="test", classes=[1, 3, 4, 5, 6, 8, 9]))
    full = everything(dict(name="digits", split="test"))
    assert set(known["y"]) == {0, 1, 2}
    for new, old in enumerate([7, 2, 0]):
        np.testing.assert_array_equal(known["x"][known["y"] == new], full["x"][full["y"] == old])
    assert len(known["y"]) + len(unknown["y"]) == 400
    assert load(dict(name="digits", classes=[7, 2, 0])).outputs == 3


def test_upsampled_digits_interpolate_linearly():
    small = everything(dict(name="digits", split="test[:20]"))["x"]
    for side in (16, 28):
        large = everything(dict(name="digits", split="test[:20]", upsample=side))["x"]
        assert large.shape == (20, side, side, 1)
        position = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)  # of pixel centres
        rows = np.stack(
            [np.interp(position, np.arange(8), column) for column in small[0, :, :, 0].T]
        )
        expected = np.stack([np.interp(position, np.arange(8), row) for row in rows.T])
        np.testing.assert_allclose(large[0, :, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris", "diabetes"])
def test_tables_are_scikit_learns_standardised_by_train_alone(name):
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    splits = ("train", "validation", "test")
    raw = [load(dict(name=name, split=s, standardise=False)) for s in splits]
    scaled = [load(dict(name=name, split=s)) for s in splits]
    joined = np.concatenate([s.x for s in raw])
    rows = np.lexsort(joined.T), np.lexsort(x.astype(np.float32).T)
    np.testing.assert_array_equal(joined[rows[0]], x[rows[1]].astype(np.float32))
    targets = np.concatenate([s.y for s in raw]).reshape(len(y))
    np.testing.assert_array_equal(targets[rows[0]], y[rows[1]].astype(np.float32))
    mean, std = raw[0].x.astype(float).mean(0), raw[0].x.astype(float).std(0)
    for before, after in zip(raw, scaled, strict=True):
        batch = after.gather(np.arange(len(after)))
        np.testing.assert_allclose(batch["x"], (before.x - mean) / std, rtol=1e-4, atol=1e-4)
        if name == "diabetes":
            np.testing.assert_allclose(
                batch["y"] * after.y_std + after.y_mean, before.y, rtol=1e-4, atol=1e-3
            )
    assert load(dict(name=name)).task == ("regression" if name == "diabetes" else "classification")


def test_statistics_can_leave_out_what_validates():
    spec = dict(name="wine", split="train[80%:]", statistics="train[:80%]")
    fitted = load(dict(name="wine", split="train[:80%]", standardise=False))
    source = load(spec)
    np.testing.assert_allclose(source.mean, fitted.x.astype(float).mean(0), rtol=1e-5)


def test_curves_and_clouds_have_their_distributions():
    for name, function, std, low, high in [
        ("x_sin_x", lambda x: x * np.sin(x), 0.25, 1.5, 6.0),
        ("cubic", lambda x: x**3, 3.0, -4, 4),
    ]:
        batches = [everything(dict(name=name, seed=seed)) for seed in range(30)]
        x = np.concatenate([b["x"] for b in batches]).astype(float)
        residual = np.concatenate([b["y"] for b in batches]) - function(x)
        assert low <= x.min() < x.max() <= high
        assert scipy.stats.kstest(residual.ravel() / std, "norm").pvalue > 1e-3
        grid = everything(dict(name=name, split="grid"))
        np.testing.assert_allclose(grid["y"], function(grid["x"]), rtol=1e-4, atol=1e-4)
    x = everything(dict(name="x_sin_x"))["x"][:, 0]
    assert np.histogram(x, [1.5, 2.5, 4.5, 6.0])[0].tolist() == [45, 0, 45]

    batches = [everything(dict(name="gaussians_2d", seed=seed)) for seed in range(20)]
    x, y = (np.concatenate([b[key] for b in batches]) for key in "xy")
    angles = np.pi / 2 + 2 * np.pi * y / 5
    centred = x - 5 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    assert scipy.stats.kstest(centred.ravel(), "norm").pvalue > 1e-3
    assert np.bincount(batches[0]["y"]).tolist() == [40] * 5
    radius = np.linalg.norm(everything(dict(name="gaussians_2d", split="ood"))["x"], axis=1)
    assert ((radius[:200] >= 11) & (radius[:200] <= 30)).all()
    assert (radius[200:] < 3).all()
    moons = everything(dict(name="two_moons", split="test", noise=0.2, seed=3))
    x, y = sklearn.datasets.make_moons(500, noise=0.2, random_state=7)
    np.testing.assert_array_equal(moons["x"], x.astype(np.float32))
    np.testing.assert_array_equal(moons["y"], y)
    uniform = everything(dict(name="noise", shape=[6, 6, 1], size=200, split="test"))["x"]
    assert scipy.stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    normal = dict(name="noise", shape=[6], split="test", distribution="normal")
    assert scipy.stats.kstest(everything(normal)["x"].ravel(), "norm").pvalue > 1e-3


def test_images_are_bytes_over_255_then_normalised():
    x = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    source = source_lib._source(
        "x",
        source_lib.Dataset(lambda _: (x, np.zeros(7, int)), 2),
        mean=[0.1, 0.2, 0.3],
        std=[0.5, 0.6, 0.7],
    )
    expected = (x[[5, 2]] / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    batch = source.gather(np.array([5, 2]))
    np.testing.assert_allclose(batch["x"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(source.x, x)
    standardised = source_lib._source(
        "x", source_lib.Dataset(lambda _: (x, np.zeros(7, int)), 2), standardise=True
    ).gather(np.arange(7))["x"]
    np.testing.assert_allclose(standardised.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standardised.std((0, 1, 2)), 1, rtol=1e-5)


def test_gathering_never_changes_what_is_stored():
    source = load(dict(name="iris"))
    before = source.x.copy()
    for _ in range(2):
        source.gather(np.arange(len(source)))
    np.testing.assert_array_equal(source.x, before)


def test_a_constant_feature_becomes_zero():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    dataset = source_lib.Dataset(lambda _: (x, np.zeros(2, int)), 1, standardise=True)
    batch = source_lib._source("x", dataset).gather(np.arange(2))
    np.testing.assert_allclose(batch["x"], [[-1, 0], [1, 0]], atol=1e-6)


def test_label_noise_is_fixed_and_follows_its_rows():
    transition = np.full((10, 10), 0.03) + 0.7 * np.eye(10)
    clean = load(dict(name="digits"))
    spec = dict(name="digits", label_noise=dict(transition=transition.tolist(), seed=4))
    noisy, again = load(spec), load(spec)
    np.testing.assert_array_equal(noisy.y, again.y)
    np.testing.assert_array_equal(noisy.x, clean.x)
    kept = np.sum(noisy.y == clean.y)
    assert scipy.stats.binomtest(int(kept), len(clean), 0.73).pvalue > 1e-3


def arrays(x, y, classes):
    return Source("set", np.asarray(x, np.float32), np.asarray(y), classes, classes or 1)


def test_bad_data_is_named_before_training():
    x = np.zeros((5, 3, 3, 1))
    y = np.arange(5) % 2
    check(arrays(x, y, 2))
    bad = x.copy()
    bad[3, 1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"x of example 3 is nan \(position \(1, 2, 0\)\)"):
        check(arrays(bad, y, 2))
    with pytest.raises(ValueError, match="y of example 1 is inf"):
        check(arrays(x, np.array([[0.0], [np.inf], [1], [1], [1]]), None))
    with pytest.raises(ValueError, match=r"label 2 of example 4 is not in \[0, 2\)"):
        check(arrays(x, [0, 1, 0, 1, 2], 2))
    with pytest.raises(ValueError, match=r"label -1 of example 0 is not in \[0, 2\)"):
        check(arrays(x, [-1, 1, 0, 1, 1], 2))
    with pytest.raises(ValueError, match="the split is empty"):
        check(arrays(x[:0], y[:0], 2))
    with pytest.raises(ValueError, match="the split is empty"):
        load(dict(name="digits", split="train[3:3]"))


def test_nan_is_named_before_it_enters_the_statistics(tmp_path):
    x = np.ones((6, 2))
    x[4, 1] = np.nan
    np.savez(tmp_path / "table.npz", x=x, y=np.zeros(6, int))
    with pytest.raises(ValueError, match=r"data: npz.*: x of example 4 is nan"):
        load(dict(name="npz", path=str(tmp_path / "table.npz"), standardise=True))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(name="digit"), r"data\.name: no data set 'digit'; did you mean 'digits'"),
        (dict(name="fashion_mnst"), r"data\.name: .*did you mean 'fashion_mnist'"),
        (dict(name="noize", shape=(8, 8, 1)), r"data\.name: .*did you mean 'noise'"),
        (dict(name="mnits", data_dir=3), r"data\.name: no data set 'mnits'; did you mean 'mnist'"),
        (dict(split="test"), r"data\.name: None"),
        (dict(name="digits", upsamle=28), "data.upsamle: no such field .* 'upsample'"),
        (dict(name="digits", splt="test"), "data.splt: no such field .* 'split'"),
        (dict(name="digits", split="tset"), "data.split: 'tset' .* 'test'"),
        (dict(name="idx"), "data.path: missing"),
        (dict(name="digits", classes=[1, 12]), r"data.classes: \[1, 12\]"),
        (dict(name="digits", classes=[1, 1]), "distinct"),
        (dict(name="diabetes", classes=[1]), "data.classes"),
        (dict(name="digits", mean=[1.0, 2.0]), "data.mean"),
        (dict(name="digits", std=0.0), "data.std"),
        (dict(name="wine", mean=0.0, standardise=True), "data.standardise"),
        (dict(name="digits", upsample=4), "upsample: 4"),
        (dict(name="digits", label_noise=dict(transition=[[1.0]])), "transition: 1 classes"),
        (dict(name="digits", label_noise=dict(transition=[[1, 1], [0, 1]])), "transition: rows"),
    ],
)
def test_bad_specs_name_the_field(spec, message):
    with pytest.raises(ValueError, match=message):
        load(spec)
    with pytest.raises(ValueError, match=r"evaluation\.data"):
        load(spec, "evaluation.data")
