"""UCI regression: what is read from R's files, random splits by seed, and the units of metrics."""

import lzma

import numpy as np
import pytest
import scipy.stats

from experiments import evaluate, train
from experiments.data.source import load
from experiments.experiment import config as config_lib
from experiments.tables.cells import Cells
from tools import prepare_uci as uci

CONFIG = "configs/tabular/uci.py"


@pytest.fixture
def table(tmp_path):
    """120 examples whose columns have scales of their own; y[i] tells example i."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3)) * [1, 50, 0.01] + [0, 7, 3]
    y = 1000 + 5.0 * np.arange(120)
    np.savez(tmp_path / "table.npz", x=x, y=y)
    return dict(name="npz", path=str(tmp_path / "table.npz"), standardise=True)


def test_a_split_is_a_function_of_the_seed(table):
    raw = dict(table, standardise=False)

    def examples(split, seed):
        return load(dict(raw, split=split, seed=seed)).y[:, 0].tolist()

    tests = []
    for seed in range(20):
        train_y, test_y = examples("train[:90%]", seed), examples("train[90%:]", seed)
        assert (len(train_y), len(test_y)) == (108, 12)
        assert sorted(train_y + test_y) == (1000 + 5.0 * np.arange(120)).tolist()
        assert test_y == examples("train[90%:]", seed)
        tests.append(test_y)
    assert len({tuple(sorted(y)) for y in tests}) == 20
    counts = np.bincount([int(y - 1000) // 5 for test in tests for y in test], minlength=120)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3  # no example is preferred
    assert load(raw).y[:, 0].tolist() == (1000 + 5.0 * np.arange(120)).tolist()


def test_rows_stay_together(table):
    with np.load(table["path"]) as stored:
        x, y = stored["x"], stored["y"]
    source = load(dict(table, standardise=False, seed=3))
    index = ((source.y[:, 0] - 1000) / 5).astype(int)
    np.testing.assert_array_equal(source.x, x[index].astype(np.float32))
    np.testing.assert_array_equal(source.y[:, 0], y[index].astype(np.float32))


def test_the_training_part_alone_standardises(table):
    fitted = load(dict(table, standardise=False, seed=1, split="train[:90%]"))
    test = load(dict(table, seed=1, split="train[90%:]", statistics="train[:90%]"))
    raw = load(dict(table, standardise=False, seed=1, split="train[90%:]"))
    mean, std = fitted.x.astype(float).mean(0), fitted.x.astype(float).std(0)
    got = test.gather(np.arange(len(test)))["x"]
    np.testing.assert_allclose(got, (raw.x - mean) / std, rtol=1e-4, atol=1e-4)
    mean, std = fitted.y.astype(float).mean(0), fitted.y.astype(float).std(0)
    np.testing.assert_allclose(test.y, (raw.y - mean) / std, rtol=1e-4, atol=1e-5)


def test_inputs_without_outcomes_are_refused_in_any_order(tmp_path):
    np.savez(tmp_path / "table.npz", x=np.zeros((30, 2)), y=np.zeros(29))
    for fields in ({}, dict(seed=0), dict(split="train[:90%]", seed=0)):
        with pytest.raises(ValueError, match="30 inputs but 29 labels"):
            load(dict(name="npz", path=str(tmp_path / "table.npz"), **fields))


@pytest.mark.slow
def test_metrics_are_in_the_stored_units(table, tmp_path):
    """The same predictions as those of the normalised data, taken back by hand."""
    config = config_lib.load(f"{CONFIG}:runlocal")
    data = dict(table, seed=4, statistics="train[:90%]")
    config.data.train = dict(data, split="train[:90%]")
    config.evaluators.test.data = dict(data, split="train[90%:]")
    config.mesh = dict(data=1)
    experiment = train.train(config_lib.plain(config), tmp_path / "run")
    found, failures = evaluate.evaluate(experiment, tmp_path / "run", show=False)
    assert not failures
    with np.load(tmp_path / "run" / "evaluation" / "test" / "scores.npz") as scores:
        mean, variance, y = (scores[f"test/{k}"] for k in ("mean", "variance", "y"))
    stored = set((1000 + 5.0 * np.arange(120)).tolist())
    assert set(y[:, 0].round(3)) <= stored
    fitted = list(stored - set(y[:, 0].round(3)))  # the training part
    center, std = np.mean(fitted), np.std(fitted)
    normalised = load(dict(data, split="train[90%:]"))
    u, s = (mean - center) / std, np.sqrt(variance) / std
    np.testing.assert_allclose((y - center) / std, normalised.y, rtol=1e-4, atol=1e-5)
    log_p = scipy.stats.norm.logpdf(normalised.y, u, s)  # of the normalised outcome
    nll = -np.mean(np.log(np.mean(np.exp(log_p), axis=0))) + np.log(std)
    assert found["regression/nll"] == pytest.approx(nll, rel=1e-4)
    rmse = std * np.sqrt(np.mean((u.mean(0) - normalised.y) ** 2))
    assert found["regression/rmse"] == pytest.approx(rmse, rel=1e-4)
    inside = np.abs(scipy.stats.norm.cdf(normalised.y, u, s).mean(0) - 0.5) <= 0.45
    assert found["regression/coverage_0.9"] == pytest.approx(inside.mean())
    assert found["regression/width_0.9"] > 0.1 * std


def test_the_split_follows_the_seed():
    """Of the config, of the command line and of a table's cell, in all data at once."""
    for dataset in ("diabetes", "boston", "concrete"):
        config = config_lib.load(f"{CONFIG}:dataset={dataset}", {"seed": 7})
        plain = config_lib.plain(config)
        assert plain["data"]["train"]["seed"] == plain["evaluators"]["test"]["data"]["seed"] == 7
        assert plain["data"]["train"]["statistics"] == plain["data"]["train"]["split"]
    cells = Cells("uci", "results", "runs", {"steps": 3})
    for row in cells.table["rows"]:
        config = cells.config(row, 5)
        assert config["seed"] == config["data"]["train"]["seed"] == 5
        assert config["evaluators"]["test"]["data"]["seed"] == 5
    config = config_lib.load(f"{CONFIG}:dataset=boston", {"data.train.path": "elsewhere.npz"})
    plain = config_lib.plain(config)
    assert plain["evaluators"]["test"]["data"]["path"] == "elsewhere.npz"


def test_diabetes_is_divided_as_the_others():
    config = config_lib.plain(config_lib.load(CONFIG, {"seed": 2}))
    train_part, test_part = (
        load(config["data"]["train"]),
        load(config["evaluators"]["test"]["data"]),
    )
    assert (len(train_part), len(test_part)) == (397, 45)  # 90 and 10 % of 442
    np.testing.assert_array_equal(train_part.mean, test_part.mean)
    rows = np.concatenate([train_part.x, test_part.x])
    assert len(np.unique(rows, axis=0)) == 442
    assert abs(train_part.y.mean()) < 1e-5 and train_part.y.std() == pytest.approx(1, abs=1e-5)


def packed(data):
    """An object of R's lazy-load database."""
    filters = [dict(id=lzma.FILTER_LZMA2, preset=9 | lzma.PRESET_EXTREME, dict_size=1 << 22)]
    body = lzma.compress(data, lzma.FORMAT_RAW, filters=filters)
    return len(data).to_bytes(4, "big") + b"Z" + body


def test_objects_of_a_database_are_unpacked():
    data = np.random.default_rng(0).bytes(5000) * 3
    assert uci.unpack(packed(data)) == data
    for damaged in (packed(data)[:-30], packed(data)[:5] + b"\xff" + packed(data)[6:]):
        with pytest.raises(ValueError, match="damaged"):
            uci.unpack(damaged)
    with pytest.raises(ValueError, match="size does not match"):
        uci.unpack(b"\0\0\0\1" + packed(data)[4:])
    with pytest.raises(ValueError, match="compression b'2', not b'Z'"):
        uci.unpack(packed(data)[:4] + b"2")


def test_columns_become_arrays_and_their_digest_tells_them_apart():
    columns = dict(a=[1, 2, 3], factor=["0", "1", "0"], y=[0.5, 1.5, 2.5], b=[7.0, 8.0, 9.0])
    x, y = uci.arrays(columns, "y")
    assert x.tolist() == [[1, 0, 7], [2, 1, 8], [3, 0, 9]]
    assert y.tolist() == [0.5, 1.5, 2.5]
    assert x.dtype == y.dtype == np.float64
    assert uci.digest(x, y) == uci.digest(np.asfortranarray(x), y)
    changed = x.copy()
    changed[2, 0] = np.nextafter(3, 4)
    assert uci.digest(changed, y) != uci.digest(x, y)


@pytest.mark.parametrize("name", uci.ORIGINS)
def test_other_numbers_are_refused(name):
    columns = dict(a=[1.0, 2.0]) | {uci.ORIGINS[name].outcome: [3.0, 4.0]}
    with pytest.raises(ValueError, match=f"unexpected values for {name} .*[0-9a-f]{{64}}, exp"):
        uci.checked(name, columns)


@pytest.mark.parametrize(("name", "package"), [("boston", "mlbench"), ("concrete", "modeldata")])
def test_a_missing_package_is_named(tmp_path, name, package):
    with pytest.raises(ValueError, match=rf"--from: there is no .*r-cran-{package} has it"):
        uci.read(tmp_path, uci.ORIGINS[name])
