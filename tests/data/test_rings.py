"""Rings and their blob: distributions, and the label noise that a spec gives them."""

import numpy as np
import pytest
import scipy.stats

from configs.toys import rings
from experiments.data.source import load
from experiments.experiment import config as config_lib


@pytest.fixture(scope="module")
def points():
    """x and y of all seeds together."""

    def read(split, **fields):
        parts = [load(dict(name="rings", split=split, seed=s, **fields)) for s in range(10)]
        return np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts])

    return read


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_ring_is_a_class(points, split):
    x, y = points(split)
    assert np.bincount(y).tolist() == [3000] * 3
    radius, angle = np.hypot(*x.T), np.arctan2(x[:, 1], x[:, 0])
    assert scipy.stats.kstest((radius - np.array([1, 2, 3])[y]) / 0.15, "norm").pvalue > 1e-3
    for k in range(3):
        assert scipy.stats.kstest(angle[y == k] / np.pi, "uniform", (-1, 2)).pvalue > 1e-3


def test_rings_of_other_radii(points):
    x, y = points("train", radii=(0.5, 5.0), width=0.01, size=20)
    assert np.bincount(y).tolist() == [200, 200]
    np.testing.assert_allclose(np.hypot(*x.T), np.array([0.5, 5.0])[y], atol=0.06)


def test_the_blob_lies_elsewhere(points):
    x, y = points("blob")
    assert len(x) == 3000 and not y.any()
    assert scipy.stats.kstest(((x - 4.2) / 0.3).ravel(), "norm").pvalue > 1e-3
    inside, _ = points("train")
    assert np.hypot(*x.T).min() > np.hypot(*inside.T).max()
    moved, _ = points("blob", blob=(-9.0, 0.0))
    np.testing.assert_allclose(moved - x, np.full_like(x, (-13.2, -4.2)), atol=1e-5)


def test_train_and_test_are_different_points():
    train, test = (load(dict(name="rings", split=s)).x for s in ("train", "test"))
    assert not np.isin(train, test).any()


def test_the_config_gives_each_ring_its_noise():
    config = config_lib.plain(rings.get_config())
    for spec in (config["data"]["train"], config["evaluators"]["test"]["data"]):
        noisy, clean = load(spec), load(dict(name="rings", split=spec["split"]))
        np.testing.assert_array_equal(noisy.x, clean.x)
        for k, row in enumerate(rings.NOISE):
            found = np.bincount(noisy.y[clean.y == k], minlength=3)
            if max(row) == 1:
                assert found.tolist() == [0, 0, 300]
            else:
                assert scipy.stats.chisquare(found, 300 * np.array(row)).pvalue > 1e-3
    groups = config["evaluators"]["map"]["groups"]
    for k, name in enumerate(("inner", "middle", "outer")):  # they pick the rings they are called
        radius = np.hypot(*load(groups[name]).x.T)
        assert len(radius) == 300
        assert abs(radius.mean() - (k + 1)) < 0.05


def test_what_the_config_says_of_its_labels():
    """Entropies, and the best accuracy and NLL on the test labels."""
    noise = np.array(rings.NOISE)
    np.testing.assert_allclose(scipy.stats.entropy(noise, axis=1), [0.950, 0.639, 0], atol=5e-4)
    spec = config_lib.plain(rings.get_config())["evaluators"]["test"]["data"]
    p = noise[load(dict(name="rings", split="test")).y]
    y = load(spec).y
    assert round(100 * np.mean(p.argmax(1) == y), 2) == 79.67
    assert round(-np.mean(np.log(p[np.arange(900), y])), 3) == 0.555
