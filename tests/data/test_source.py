"""The embedded sets against scikit-learn and their formulas; normalisation; what is refused."""

import numpy as np
import pytest
import scipy.stats
import sklearn.datasets

from experiments.data import source as source_lib
from experiments.data.corruptions import corrupted
from experiments.data.examples import Source, check
from experiments.data.images import in_units
from experiments.data.loader import batches, epoch
from experiments.data.source import load


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
        source_lib.Dataset(lambda _: dict(x=x, y=np.zeros(7, int)), 2),
        mean=[0.1, 0.2, 0.3],
        std=[0.5, 0.6, 0.7],
    )
    expected = (x[[5, 2]] / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    batch = source.gather(np.array([5, 2]))
    np.testing.assert_allclose(batch["x"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(source.x, x)
    standardised = source_lib._source(
        "x", source_lib.Dataset(lambda _: dict(x=x, y=np.zeros(7, int)), 2), standardise=True
    ).gather(np.arange(7))["x"]
    np.testing.assert_allclose(standardised.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standardised.std((0, 1, 2)), 1, rtol=1e-5)


def stored(tmp_path, name="set.npz", **arrays):
    np.savez(tmp_path / name, **arrays)
    return dict(name="npz", path=str(tmp_path / name))


def images(low, high, n=24, shape=(6, 6, 3), seed=0):
    """Images whose least and largest values are `low` and `high`."""
    x = np.random.default_rng(seed).uniform(low, high, (n, *shape)).astype(np.float32)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = low, high
    return x


Y24 = np.arange(24) % 3


def test_a_declared_range_reads_images_as_bytes_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)
    pixels[0, 0, 0, :2] = 0, 255
    expected = load(stored(tmp_path, "bytes.npz", x=pixels, y=Y24) | dict(mean=0.5, std=0.2))
    expected = expected.gather(np.arange(24))["x"]
    for name, x, limits in [
        ("floats", pixels.astype(np.float32), (0, 255)),
        ("whole", pixels.astype(np.int64), (0, 255)),
        ("measured", pixels.astype(np.float64), "measured"),
        ("deep", pixels.astype(np.uint16) * 257, (0, 65535)),
        ("signed", pixels / np.float32(127.5) - 1, (-1, 1)),
        ("unit", pixels / np.float32(255), None),
    ]:
        spec = stored(tmp_path, f"{name}.npz", x=x, y=Y24) | dict(mean=0.5, std=0.2, range=limits)
        found = load(spec).gather(np.arange(24))["x"]
        np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=name)
        if name in ("floats", "whole"):
            np.testing.assert_array_equal(found, expected)
    spec = stored(tmp_path, "own.npz", x=images(-3, 9), y=Y24) | dict(range="unbounded")
    np.testing.assert_array_equal(load(spec).gather(np.arange(24))["x"], images(-3, 9))


def test_images_outside_of_their_range_are_refused(tmp_path):
    for low, high, likely in [(0, 16, "0, 16"), (0, 255, "0, 255"), (-1, 1, "-1, 1")]:
        spec = stored(tmp_path, x=images(low, high), y=Y24)
        with pytest.raises(ValueError, match=rf"data: .* from {low} to {high}; .*\({likely}\)"):
            load(spec)
        with pytest.raises(ValueError, match=r"outside of their range \(0.1, 0.9\)"):
            load(spec | dict(range=(0.1, 0.9)))
    for limits in ("(0, 1)", (1, 0), (0, np.inf), 3, (1, 2, 3)):
        with pytest.raises(ValueError, match=r"data\.range: .*; \(low, high\), the stored"):
            load(stored(tmp_path, x=images(0, 1), y=Y24) | dict(range=limits))
    with pytest.raises(ValueError, match=r"range: \(0, 1\), but .* only images"):
        load(dict(name="iris", range=(0, 1)))
    unbounded = load(stored(tmp_path, x=images(-3, 9), y=Y24) | dict(range="unbounded"))
    with pytest.raises(ValueError, match="corruptions need their range"):
        corrupted(unbounded, "contrast", 1)
    for name in ("crop", "cutout", "rand_augment"):
        with pytest.raises(ValueError, match="needs images that have a range"):
            batches(unbounded, seed=0, batch_size=4, augment=[dict(name=name)])
    batches(unbounded, seed=0, batch_size=4, augment=[dict(name="flip")])


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 7)])
def test_images_whose_channels_stand_first(tmp_path, shape):
    x = (
        images(0, 1, shape=(*shape[1:], shape[0]))
        if shape[0] > 1
        else np.random.default_rng(0).random((24, *shape[1:], 1), np.float32)
    )
    spec = stored(tmp_path, x=np.moveaxis(x, -1, 1), y=Y24)
    with pytest.raises(ValueError, match="channels='first' to transpose them"):
        load(spec)
    first, last = (load(spec | dict(channels=side)) for side in ("first", "last"))
    np.testing.assert_array_equal(first.gather(np.arange(24))["x"], x)
    assert last.shape == shape
    other = load(stored(tmp_path, x=np.moveaxis(x[:9], -1, 1), y=Y24[:9]), like=first)
    np.testing.assert_array_equal(other.gather(np.arange(9))["x"], x[:9])
    with pytest.raises(ValueError, match=r"channels: 'frist'; 'first' or 'last'"):
        load(spec | dict(channels="frist"))


def test_other_data_are_read_as_the_training_data(tmp_path):
    """Inputs and targets in units of the training data, whatever file they come in."""
    for name in ("iris", "diabetes"):
        train = load(dict(name=name))
        raw = load(dict(name=name, split="test", standardise=False))
        expected = load(dict(name=name, split="test")).gather(np.arange(20))
        spec = stored(tmp_path, x_test=raw.x, y_test=raw.y) | dict(split="test")
        for more in ({}, dict(standardise=True)):
            found = load(spec | more, like=train, labels="alike")
            for key, value in found.gather(np.arange(20)).items():
                np.testing.assert_array_equal(value, expected[key], err_msg=f"{name} {key}")
            assert found.task == train.task and not found.notes
        own = load(spec | dict(statistics="test", standardise=True), like=train, labels="alike")
        np.testing.assert_allclose(own.mean, raw.x.mean(0, dtype=float), rtol=1e-5)
        assert [note.split()[0] for note in own.notes] == ["mean", "std"]
        if name == "diabetes":  # the model predicts in units of its own targets all the same
            np.testing.assert_array_equal(own.y[:20], expected["y"])
        stored_mean = load(spec | dict(mean=0.5), like=train, labels="alike")
        np.testing.assert_array_equal(stored_mean.mean, np.full(raw.shape, 0.5, np.float32))
        assert len(stored_mean.notes) == 2
    with pytest.raises(ValueError, match=r"'train' .*\(statistics is 'train' unless"):
        load(spec | dict(standardise=True))


def test_other_images_have_the_range_of_the_training_data(tmp_path, caplog):
    train = load(stored(tmp_path, "a.npz", x=images(0, 16), y=Y24) | dict(range=(0, 16)))
    test = load(stored(tmp_path, "b.npz", x=images(0, 16, seed=1), y=Y24), like=train)
    np.testing.assert_allclose(test.gather(np.arange(24))["x"], images(0, 16, seed=1) / 16)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)
    of_bytes = load(stored(tmp_path, "c.npz", x=pixels, y=Y24), like=train)
    np.testing.assert_allclose(of_bytes.gather(np.arange(24))["x"], pixels / 255, rtol=1e-6)
    noise = load(dict(name="noise", shape=(6, 6, 3), split="test"), like=train, labels="unused")
    assert 0.9 < noise.gather(np.arange(24))["x"].max() <= 1
    assert not caplog.records
    load(stored(tmp_path, "d.npz", x=images(0, 1), y=Y24), like=train)
    assert "from 0 to 1 are read with the range (0, 16)" in caplog.text
    load(stored(tmp_path, "f.npz", x=images(0, 17).astype(np.uint8), y=Y24), like=train)
    assert "are read with the range (0, 255)" in caplog.text
    unbounded = load(stored(tmp_path, "g.npz", x=images(0, 255), y=Y24) | dict(range="unbounded"))
    with pytest.raises(ValueError, match="training images are float32, read as they are stored"):
        load(stored(tmp_path, "h.npz", x=pixels, y=Y24), like=unbounded)
    given = load(
        stored(tmp_path, "h.npz", x=pixels, y=Y24) | dict(range="unbounded"), like=unbounded
    )
    np.testing.assert_array_equal(given.gather(np.arange(24))["x"], pixels)
    with pytest.raises(ValueError, match=r"outside of their range \(0, 16\)"):
        load(stored(tmp_path, "e.npz", x=images(0, 255), y=Y24), like=train)


def test_labels_of_other_data(tmp_path):
    """Checked where they are the model's, of any kind where nobody looks at them."""
    train = load(dict(name="iris"))
    x = load(dict(name="iris", split="test")).x
    n = len(x)
    for y, message in [
        (np.full(n, 3), r"label 3 of example 0 is not in \[0, 3\)"),
        (np.full(n, -1), r"label -1 of example 0"),
        (np.array(["a"] * n), "labels are <U1.*return_inverse"),
        (np.eye(3, dtype=int)[np.zeros(n, int)], r"y.argmax\(1\)"),
        (np.zeros((n, 1), int), r"y\[:, 0\]"),
        (np.zeros(n), "real-valued targets, but the model was trained on labels"),
        (None, "there are no labels"),
    ]:
        spec = stored(tmp_path, x=x) if y is None else stored(tmp_path, x=x, y=y)
        with pytest.raises(ValueError, match=message):
            load(spec, like=train, labels="alike")
        unused = load(spec, like=train, labels="unused")
        assert (unused.names, unused.classes, unused.labelled) == (("x",), 3, False)
        assert not next(epoch(unused, n))["y"].any()
    subset = load(stored(tmp_path, x=x, y=np.zeros(n, int)), like=train, labels="alike")
    assert subset.classes == 3  # not one, as the labels show
    with pytest.raises(ValueError, match=r"classes: digits\[train\] has 10 classes.*trained on 8"):
        load(dict(name="digits"), like=load(dict(name="digits", classes=range(8))), labels="alike")


def test_labels_that_cannot_be_counted(tmp_path):
    x = np.zeros((7, 4))
    with pytest.raises(ValueError, match="labels run from 1 to 7, but classes are counted from 0"):
        load(stored(tmp_path, x=x, y=np.arange(1, 8)))
    assert load(stored(tmp_path, x=x, y=np.arange(1, 8)) | dict(num_classes=8)).classes == 8
    as_floats = load(stored(tmp_path, x=x, y=np.arange(7.0)) | dict(num_classes=7))
    assert as_floats.task == "classification" and as_floats.y.dtype == np.int32
    with pytest.raises(ValueError, match="not all whole numbers"):
        load(stored(tmp_path, x=x, y=np.arange(7) / 2) | dict(num_classes=7))
    for key in ("x", "y"):
        arrays = dict(x=x, y=np.arange(7.0)) | {key: np.full((7, 4)[: 2 if key == "x" else 1], 1j)}
        with pytest.raises(ValueError, match="complex128"):
            load(stored(tmp_path, **arrays))
    with pytest.raises(ValueError, match="Python objects, which are not loaded"):
        load(stored(tmp_path, x=x, y=np.array([None] * 7)))


def test_class_names_in_another_order_are_not_taken_for_the_same(caplog):
    def named(*names):
        y = np.arange(6) % 3
        return source_lib.Dataset(lambda _: dict(x=np.zeros((6, 2)), y=y), 3, class_names=names)

    train = source_lib._source("a", named("cat", "dog", "fox"))
    with pytest.raises(ValueError, match=r"fox, cat, dog, .*the training data cat, dog, fox"):
        source_lib._source("b", named("fox", "cat", "dog"), train, "alike")
    read = source_lib._source("b", named("fox", "cat", "dog"), train, "alike", classes=(1, 2, 0))
    np.testing.assert_array_equal(read.y, [2, 0, 1, 2, 0, 1])
    assert not caplog.records
    source_lib._source("c", named("Cat", "Dog", "Fox"), train, "alike")
    assert "assumed to be the same" in caplog.text


def test_classes_that_are_numbered_otherwise_are_not_taken_for_the_same():
    train = load(dict(name="digits", classes=[3, 5]))
    with pytest.raises(ValueError, match=r"has 5, 3, .* but the training data 3, 5"):
        load(dict(name="digits", split="test", classes=[5, 3]), like=train, labels="alike")
    assert (
        load(dict(name="digits", split="test", classes=[3, 5]), like=train, labels="alike").notes
        == ()
    )


def test_a_measured_range_is_no_bound(tmp_path, caplog):
    """What is beyond the extremes of the training part becomes black or white, with a warning."""
    rng = np.random.default_rng(0)
    parts = {f"x_{s}": rng.normal(size=(20, 6, 6, 1)) for s in ("train", "test")}
    parts["x_test"][0, 0, 0, 0] = 9
    spec = stored(tmp_path, **parts, y_train=np.arange(20) % 3, y_test=np.arange(20) % 3)
    train = load(spec | dict(range="measured"))
    low, high = parts["x_train"].min(), parts["x_train"].max()
    test = load(spec | dict(split="test"), like=train)
    expected = np.clip((parts["x_test"] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(test.gather(np.arange(20))["x"], expected, atol=1e-6)
    assert "beyond the measured range" in caplog.text and "are clipped to it" in caplog.text
    corrupted(test, "contrast", 1).gather(np.arange(20))
    above = np.array([-0.5, 0.25, 1.5], np.float32)
    np.testing.assert_array_equal(in_units(above, (0.0, 1.0), clip=True), [0, 0.25, 1])
    np.testing.assert_array_equal(above, [-0.5, 0.25, 1.5])


def test_targets_of_another_number_are_refused(tmp_path):
    train = load(dict(name="diabetes"))
    x = np.zeros((9, 10))
    with pytest.raises(ValueError, match="2 targets, but the model was trained on 1"):
        load(stored(tmp_path, x=x, y=np.zeros((9, 2))), like=train, labels="alike")
    whole = load(stored(tmp_path, x=x, y=np.arange(9)), like=train, labels="alike")
    np.testing.assert_allclose(
        whole.y * whole.y_std + whole.y_mean, np.arange(9)[:, None], atol=1e-4
    )


def test_what_does_not_fit_in_memory_is_refused_before_it_is_made(tmp_path):
    for spec in (
        dict(name="stand_in", shape=(10_000, 10_000, 3), num_classes=2, size=10_000),
        dict(name="noise", shape=(10_000, 10_000, 3), size=10_000, split="test"),
    ):
        with pytest.raises(ValueError, match=r"GiB of memory are needed, but"):
            load(spec)


def test_label_noise_of_another_form():
    for noise, message in [
        (3, r"label_noise: 3; dict\(transition"),
        (dict(transitions=[[1]]), r"label_noise\.transitions: no such field"),
        (dict(seed=1), r"label_noise\.transition: missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(dict(name="iris", label_noise=noise))


def test_gathering_never_changes_what_is_stored():
    source = load(dict(name="iris"))
    before = source.x.copy()
    for _ in range(2):
        source.gather(np.arange(len(source)))
    np.testing.assert_array_equal(source.x, before)


def test_a_constant_feature_becomes_zero():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    dataset = source_lib.Dataset(lambda _: dict(x=x, y=np.zeros(2, int)), 1, standardise=True)
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
    entries = dict(x=np.asarray(x, np.float32), y=np.asarray(y))
    return Source("set", entries, classes, classes or 1)


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
