"""IDX and npz files written here byte by byte; splits against tfds' own parser."""

import gzip
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import files, splits
from experiments.data.source import load
from uncertainty.build import ConfigError

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (30, 5, 4), dtype=np.uint8)
Y = rng.integers(0, 3, 30, dtype=np.uint8)


@pytest.fixture
def idx_folder(tmp_path, idx_bytes):
    for prefix, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        packed = gzip.compress(idx_bytes(X[rows]))
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(packed)
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(Y[rows]))
    return tmp_path


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_arrays_come_back(tmp_path, idx_bytes, dtype, packed):
    array = (rng.standard_normal((3, 2, 4)) * 50).astype(dtype)
    data = idx_bytes(array)
    (tmp_path / "a").write_bytes(gzip.compress(data) if packed else data)
    read = files.read_idx(tmp_path / "a")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_damaged_idx_is_refused(tmp_path, idx_bytes):
    good = idx_bytes(Y)
    for data, message in [
        (b"", "not an IDX file"),
        (b"\x89PNG....", "not an IDX file"),
        (good[:-1], "do not hold an array"),
        (good + b"x", "do not hold an array"),
        (gzip.compress(good)[:-9], "damaged gzip"),
    ]:
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            files.read_idx(tmp_path / "a")


def test_an_idx_folder_is_a_source(idx_folder):
    train = load(dict(name="idx", path=str(idx_folder), split="train[5:]"))
    test = load(dict(name="idx", path=str(idx_folder), split="test", num_classes=10))
    assert (len(train), train.shape, train.classes) == (15, (5, 4, 1), 3)
    assert (len(test), test.shape, test.classes) == (10, (5, 4, 1), 10)
    batch = train.gather(np.array([3, 0]))
    np.testing.assert_array_equal(batch["x"][..., 0], X[[8, 5]].astype(np.float32) / 255)
    np.testing.assert_array_equal(batch["y"], Y[[8, 5]])
    assert batch["x"].dtype == np.float32
    assert batch["y"].dtype == np.int32


def test_npz_pairs_and_single_files(tmp_path):
    np.savez_compressed(tmp_path / "kmnist-test-imgs.npz", X)
    np.savez_compressed(tmp_path / "kmnist-test-labels.npz", Y)
    pairs = load(dict(name="npz", path=str(tmp_path), split="test"))
    np.savez(tmp_path / "all.npz", x_train=X[:20], y_train=Y[:20], x_test=X[20:], y_test=Y[20:])
    single = load(dict(name="npz", path=str(tmp_path / "all.npz"), split="train+test"))
    np.savez(tmp_path / "table.npz", x=rng.standard_normal((9, 4)), y=rng.standard_normal((9, 2)))
    table = load(dict(name="npz", path=str(tmp_path / "table.npz")))
    everything = np.arange(30)
    np.testing.assert_array_equal(pairs.gather(everything)["x"], single.gather(everything)["x"])
    np.testing.assert_array_equal(pairs.gather(everything)["y"], Y)
    assert (table.task, table.outputs, table.shape) == ("regression", 2, (4,))


def test_missing_files_are_named(tmp_path, idx_folder):
    (tmp_path / "empty").mkdir()
    for spec, message in [
        (dict(name="idx", path=str(tmp_path / "no")), "data.path: there is no folder .*no"),
        (dict(name="idx", path=str(tmp_path / "empty")), "data.path: .*train-images-idx3-ubyte.gz"),
        (dict(name="npz", path=str(tmp_path / "no.npz")), "data.path: there is no file"),
        (dict(name="idx", path=str(idx_folder), split="validation"), "data.split: 'validation'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load(spec)
    (tmp_path / "bad.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad.npz: not a readable npz file"):
        load(dict(name="npz", path=str(tmp_path / "bad.npz")))
    np.savez(tmp_path / "odd.npz", a=X)
    with pytest.raises(ConfigError, match="has the arrays \\['a'\\]"):
        load(dict(name="npz", path=str(tmp_path / "odd.npz")))
    for names in (("x", "x_train"), ("x_train", "x")):  # in the order of the file
        arrays = {name: X for name in names} | {name.replace("x", "y"): Y for name in names}
        np.savez(tmp_path / "twice.npz", **arrays, x_test=X, y_test=Y)
        with pytest.raises(ConfigError, match=rf"data\.path: .* has {names[0]!r} and {names[1]!r}"):
            load(dict(name="npz", path=str(tmp_path / "twice.npz")))
    np.savez(tmp_path / "uneven.npz", x=X, y=Y[:-1])
    with pytest.raises(ValueError, match="30 inputs but 29 labels"):
        load(dict(name="npz", path=str(tmp_path / "uneven.npz")))


decimals = st.decimals(-101, 101, places=1).map("{}%".format)
bound = st.one_of(
    st.none(), st.integers(-120, 120).map(str), st.integers(-100, 100).map("{}%".format), decimals
)


@settings(deadline=None)
@given(n=st.integers(1, 110), start=bound, stop=bound)
def test_slices_are_those_of_tfds_or_refused(n, start, stop):
    import tensorflow_datasets as tfds

    if start is None and stop is None:
        spec = "train"
    else:
        if start and stop and ("%" in start) != ("%" in stop):
            return  # tfds refuses to mix the two
        spec = f"train[{start or ''}:{stop or ''}]"
    info = tfds.core.SplitInfo(name="train", shard_lengths=[n], num_bytes=0)
    data = np.arange(n)

    def ours():
        return splits.take(["train"], lambda _: dict(x=data, y=-data), spec)

    def nothing_from_the_end(end):  # which tfds takes for 0: all of the set, or nothing of it
        return end and end.startswith("-") and not round(Fraction(end.rstrip("%")) * n / 100)

    try:
        (absolute,) = tfds.core.ReadInstruction.from_spec(spec).to_absolute({"train": info})
    except (AssertionError, ValueError):
        with pytest.raises(ConfigError, match="goes beyond"):
            ours()
        return
    first = n if nothing_from_the_end(start) else absolute.from_ or 0
    last = n if nothing_from_the_end(stop) or absolute.to is None else absolute.to
    if first >= last:
        with pytest.raises(ConfigError, match="the split is empty"):
            ours()
        return
    x, y = map(ours().get, "xy")
    np.testing.assert_array_equal(x, data[first:last])
    np.testing.assert_array_equal(y, -x)


def test_sums_of_splits():
    data = {"train": np.arange(10), "test": np.arange(100, 105)}
    x = splits.take(data, lambda name: dict(x=data[name]), "train[:20%] + test[-2:]")["x"]
    assert x.tolist() == [0, 1, 103, 104]


@pytest.mark.parametrize("split", ["train[", "train[1]", "[2:3]", "", "train[a:b]", "train+"])
def test_other_syntax_is_refused(split):
    with pytest.raises(ConfigError, match="split"):
        splits.take(["train"], lambda _: dict(x=X, y=Y), split)


def test_parts_of_a_split():
    sizes = {"train": 40, "test": 10}

    def found(split):
        return splits.positions(split, list(sizes), sizes.__getitem__)

    assert found("train[:12.5%] + test[-3:]") == [("train", 0, 5), ("test", 7, 10)]
    assert found("all") == [("train", 0, 40), ("test", 0, 10)]
    assert found("train[1_0:2_0]") == [("train", 10, 20)]
    assert found("train[:-1%]") == [("train", 0, 40)]  # and the rest has nothing of it
    for split in ("train[-1%:]", "train[99%:]", "train[-0.4%:]", "train[:0]+test"):
        with pytest.raises(
            ConfigError, match=r"split is empty: .* selects none of the 40 examples"
        ):
            found(split)
    for split in ("train[:1e3]", "train[50]", "train[a:]", "train[:3shard]", "train[::2]", ""):
        with pytest.raises(ConfigError, match="; write"):
            found(split)
