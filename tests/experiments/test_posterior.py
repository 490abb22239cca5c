"""Distances to the true posterior, against SciPy and loops."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data.source import load
from experiments.evaluators import build
from experiments.evaluators.posterior import (
    closest,
    distances,
    floor,
    functions,
    posterior,
    read,
    wasserstein,
)
from experiments.prediction.predictions import Predictions
from uncertainty.build import ConfigError

GRID = dict(name="x_sin_x", split="grid")
TRAIN = dict(name="x_sin_x", split="train")
PLANE = dict(name="gaussians_2d", split="grid")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_wasserstein_is_scipys_with_unequal_numbers_and_ties(m, s, seed, ties):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(m, 3, 2)), 2 * rng.normal(size=(s, 3, 2)) + 1
    if ties:
        a, b = a.round(), b.round()
    found = wasserstein(a, b)
    for i in np.ndindex(3, 2):
        known = scipy.stats.wasserstein_distance(a[:, *i], b[:, *i])
        np.testing.assert_allclose(found[i], known, rtol=1e-9, atol=1e-12)


def test_each_draw_many_times_is_the_same_distribution():
    a = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_allclose(wasserstein(a, np.repeat(a, 3, axis=0)), 0, atol=1e-12)
    np.testing.assert_allclose(wasserstein(a + 0.7, a), 0.7)


def predictions(members, spec, seed=0):
    source = load(spec)
    rng = np.random.default_rng(seed)
    u = 3 * rng.normal(size=(members, len(source), source.outputs))
    discrete = source.task == "classification"
    return Predictions(
        y=source.y,
        mean=u,
        log_p=scipy.special.log_softmax(u, axis=-1) if discrete else None,
        variance=None if discrete else np.ones_like(u),
        latent_variance=None,
        epistemic=None,
        source=source,
        seconds=0.0,
    )


def file(path, spec, draws, second=None, **arrays):
    x = load(spec).x
    np.savez(
        path, x=x, draws=draws, second=draws if second is None else second, settings="{}", **arrays
    )
    return str(path)


@pytest.mark.parametrize("spec", [GRID, PLANE])
def test_distances_are_means_over_points_and_outputs(tmp_path, spec):
    p, q = predictions(4, spec), predictions(7, spec, seed=1)
    draws = q.mean if spec is GRID else np.exp(q.log_p)
    f = p.mean if spec is GRID else np.exp(p.log_p)
    path = file(tmp_path / "r.npz", spec, draws, map=np.ones((2, 2)))
    found = dict(posterior(path, spec).run(lambda given: p if given == spec else None))
    pairs = [(f[:, *i], draws[:, *i]) for i in np.ndindex(f.shape[1:])]
    w1 = np.mean([scipy.stats.wasserstein_distance(a, b) for a, b in pairs])
    np.testing.assert_allclose(found["posterior/w1"], w1, rtol=1e-6)
    mean = np.mean([abs(a.mean() - b.mean()) for a, b in pairs])
    np.testing.assert_allclose(found["posterior/mean_error"], mean, rtol=1e-6)
    std = np.mean([abs(a.std() - b.std()) for a, b in pairs])
    np.testing.assert_allclose(found["posterior/std_error"], std, rtol=1e-6)
    ratio = sum(a.std() for a, _ in pairs) / sum(b.std() for _, b in pairs)
    np.testing.assert_allclose(found["posterior/std_ratio"], ratio, rtol=1e-6)
    np.testing.assert_allclose(found["posterior/mean"], f.mean(0))
    np.testing.assert_allclose(
        found["posterior/reference_band"], np.percentile(draws, [2.5, 97.5], axis=0)
    )
    np.testing.assert_array_equal(found["posterior/reference_map"], np.ones((2, 2)))
    assert not [key for key in found if "side" in key]


def test_inside_and_outside_of_the_data(tmp_path):
    p, q = predictions(4, GRID), predictions(7, GRID, seed=1)
    path = file(tmp_path / "r.npz", GRID, q.mean)
    found = dict(posterior(path, GRID, train=TRAIN, near=0.1).run(lambda _: p))
    x, train = load(GRID).x[:, 0], load(TRAIN).x[:, 0]
    inside = np.array([np.abs(train - a).min() <= 0.1 for a in x])
    assert 30 < inside.sum() < 45  # of 100 points on [0, 7], where the data take 2.5
    for name, where in (("inside", inside), ("outside", ~inside)):
        for key, value in distances(p.mean[:, where], q.mean[:, where]).items():
            assert found[f"posterior/{name}/{key}"] == value
    parts = [
        found[f"posterior/{name}/w1"] * n.sum()
        for name, n in (("inside", inside), ("outside", ~inside))
    ]
    np.testing.assert_allclose(found["posterior/w1"], sum(parts) / len(x))
    np.testing.assert_array_equal(found["posterior/train_x"][:, 0], train)


def test_the_closest_point_by_a_loop():
    rng = np.random.default_rng(0)
    x, to = rng.normal(size=(5, 2)), rng.normal(size=(8, 2))
    wanted = [min(np.hypot(*(a - b)) for b in to) for a in x]
    np.testing.assert_allclose(closest(x, to), wanted)


def test_the_floor_is_that_of_other_draws(tmp_path):
    draws, second = predictions(9, GRID).mean, predictions(4, GRID, seed=1).mean
    path = file(tmp_path / "r.npz", GRID, draws, second)
    assert floor(path) == distances(second, draws)
    p = predictions(4, GRID, seed=1)
    found = dict(posterior(path, GRID, TRAIN, 0.1).run(lambda _: p))
    known = floor(path, TRAIN, 0.1)
    assert {f"posterior/{key}": value for key, value in known.items()}.items() <= found.items()


def test_functions_are_latents_or_probabilities():
    p = predictions(2, GRID)
    np.testing.assert_array_equal(functions(p), p.mean)
    np.testing.assert_allclose(functions(predictions(2, PLANE)).sum(-1), 1)


def test_what_does_not_fit_is_refused(tmp_path):
    p = predictions(2, GRID)
    with pytest.raises(
        ValueError, match=r"no file .*none.npz; make it with python -m studies.reference"
    ):
        next(posterior(str(tmp_path / "none.npz"), GRID).run(lambda _: p))
    other = file(tmp_path / "r.npz", TRAIN, p.mean)
    with pytest.raises(ValueError, match="have different inputs"):
        next(posterior(other, GRID).run(lambda _: p))
    wide = file(tmp_path / "w.npz", GRID, np.concatenate([p.mean, p.mean], axis=-1))
    with pytest.raises(ValueError, match=r"functions \(100, 2\), and the network \(100, 1\)"):
        next(posterior(wide, GRID).run(lambda _: p))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_it_is_for_any_task_and_checks_its_specs(task):
    build("posterior", dict(name="posterior", reference="r.npz", data=GRID), task)
    with pytest.raises(ConfigError, match=r"evaluators.posterior.train.name: .*x_sin_x"):
        spec = dict(name="posterior", reference="", data=GRID, train=dict(name="x_sinx"))
        build("posterior", spec, task)


def test_the_grid_of_the_gaussians():
    x, y = load(PLANE).x, load(PLANE).y
    train = load(dict(PLANE, split="train"))
    centres = np.stack([train.x[train.y == k].mean(0) for k in range(5)])
    assert len(x) == 169 and np.abs(x).max() == 12
    apart = np.linalg.norm(x[:, None] - centres, axis=-1)
    sure = np.diff(np.sort(apart, axis=1)[:, :2])[:, 0] > 1  # centres are estimated by 40 points
    assert sure.sum() > 120
    np.testing.assert_array_equal(apart.argmin(1)[sure], y[sure])


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_reference_is_named(tmp_path, content):
    file = tmp_path / "reference.npz"
    file.write_bytes(content) if content is not None else np.savez(file, x=np.ones(3))
    with pytest.raises(ValueError, match=r"reference\.npz is damaged: ") as error:
        read(file)
    assert "\n" not in str(error.value)
    if content is None:
        assert "it has no draws, second" in str(error.value)
