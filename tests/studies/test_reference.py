"""NUTS as the reference: the density that it draws from, and draws from a known posterior."""

import functools
import json
import sys

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs.toys import particles
from experiments.experiment import config as config_lib
from experiments.experiment.build import setup
from studies import nuts, reference
from uncertainty.build import ConfigError

NORMAL = scipy.stats.norm


@functools.cache
def experiment(arg="task=regression", **fields):
    config = particles.get_config(arg)
    config.mesh = dict(data=1)
    for name, value in fields.items():
        config_lib.override(config, name.replace("__", "."), value)
    return setup(config)


@functools.cache
def posterior(task):
    return reference.posterior(experiment(f"task={task}"))


def by_hand(task, flat):
    """log p(D | theta) + log p(theta) of the MLP, by NumPy."""
    e = experiment(f"task={task}")
    params = jax.tree.map(np.asarray, posterior(task).unravel(flat))
    h = e.source.x.astype(np.float64)
    for layer in ("dense0", "dense1"):
        weights = params["backbone"][layer]
        h = np.maximum(h @ weights["kernel"] + weights["bias"], 0)
    u = h @ params["head"]["logits"]["kernel"] + params["head"]["logits"]["bias"]
    if e.source.task == "regression":
        likelihood = NORMAL.logpdf(e.source.y.ravel(), u[:, 0]).sum()
    else:
        likelihood = (u[np.arange(len(u)), e.source.y] - np.logaddexp.reduce(u, axis=1)).sum()
    return likelihood, NORMAL.logpdf(flat).sum()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["regression", "gaussians"])
def test_density_is_that_of_all_data_and_the_prior(task):
    target = posterior(task)
    a, b = (np.asarray(target.sample_prior(jax.random.key(i))) for i in range(2))
    wanted = sum(by_hand(task, a)) - sum(by_hand(task, b))
    log_density = jax.jit(target.log_density)
    found = log_density(a) - log_density(b)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.slow
def test_temperatures_are_those_of_the_inference():
    target = posterior("regression")
    a, b = (np.asarray(target.sample_prior(jax.random.key(i))) for i in range(2))
    (la, pa), (lb, pb) = by_hand("regression", a), by_hand("regression", b)
    cold = reference.posterior(
        experiment(inference__temperature=0.5, inference__likelihood_temperature=4.0)
    )
    log_density = jax.jit(cold.log_density)
    wanted = ((la - lb) / 4 + pa - pb) / 0.5
    found = log_density(a) - log_density(b)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.slow
def test_prior_draws_have_the_prior():
    target = posterior("regression")
    draws = jax.vmap(target.sample_prior)(jax.random.split(jax.random.key(0), 40))
    assert scipy.stats.kstest(np.ravel(draws), "norm").pvalue > 1e-3


@pytest.mark.slow
def test_draws_are_the_functions_of_bayesian_linear_regression():
    """y = a x + b: mean and covariance, by the effective sample size of each."""
    e = experiment(backbone__widths=(), likelihood__noise_std=0.5)
    arrays, facts = reference.reference(
        e, jax.random.key(0), keep=400, second=400, chains=8, warmup=100, samples=100
    )
    x, draws, second = arrays["x"][:, 0], arrays["draws"][:, :, 0], arrays["second"][:, :, 0]
    assert draws.shape == second.shape == (400, len(x)) and "map" not in arrays
    ends_of = lambda lines: set(zip(lines[:, 0], lines[:, -1], strict=True))  # noqa: E731
    assert not ends_of(draws) & ends_of(second)  # of separate chains
    draws = np.concatenate([draws, second])
    assert np.abs(np.diff(draws, n=2)).max() < 1e-4  # straight lines, which two points fix
    assert max(facts["divergent"]) == 0 and facts["rhat_max"] < 1.05 and facts["ess_min"] > 200
    X = np.stack([e.source.x[:, 0], np.ones(90)], axis=1)
    precision = X.T @ X / 0.25 + np.eye(2)
    ends = np.stack([x[[0, -1]], np.ones(2)], axis=1)
    mean = ends @ np.linalg.solve(precision, X.T @ e.source.y.ravel() / 0.25)
    root = np.linalg.cholesky(ends @ np.linalg.inv(precision) @ ends.T)
    white = (draws[:, [0, -1]] - mean) @ np.linalg.inv(root).T
    error = facts["ess_min"] ** -0.5
    assert (np.abs(white.mean(0)) < 4 * error).all()
    np.testing.assert_allclose(np.cov(white.T), np.eye(2), atol=4 * 2**0.5 * error)


@pytest.mark.slow
def test_diagnosis_finds_a_chain_elsewhere():
    values = np.random.default_rng(0).normal(size=(4, 200, 3, 1))
    good = nuts.diagnose(values)
    assert good["rhat"].shape == good["ess"].shape == (3, 1)
    assert good["rhat"].max() < 1.03 and 400 < good["ess"].min() < 1600
    values[0, :, 1] += 4
    bad = nuts.diagnose(values)
    assert bad["rhat"][1] > 1.2 and bad["ess"][1] < 40
    np.testing.assert_allclose(bad["rhat"][[0, 2]], good["rhat"][[0, 2]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(inference__prior=None), "inference.prior: a posterior needs one"),
        (
            dict(ensemble__name="mc_dropout", ensemble__size=2, ensemble__rate=0.5),
            "a function of its parameters alone",
        ),
    ],
)
def test_posteriors_that_nuts_cannot_have(fields, message):
    with pytest.raises(ConfigError, match=message):
        reference.posterior(experiment(**fields))


def test_no_more_draws_are_kept_than_there_are():
    for fields, message in (
        (dict(keep=101), "keep: 101 draws; must be from 1 to 100"),
        (dict(second=51), "second: 51 draws; must be from 1 to 50"),
    ):
        numbers = dict(dict(keep=9, second=9, chains=3, samples=50), **fields)
        with pytest.raises(ConfigError, match=message):
            reference.reference(experiment(), jax.random.key(0), **numbers)


def test_without_the_evaluator_there_is_no_grid():
    e = experiment(seed=1)
    del e.config["evaluators"]["posterior"]
    with pytest.raises(ConfigError, match="none is a 'posterior'"):
        reference.reference(e, jax.random.key(0))


def test_blackjax_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(ImportError, match=r"pip install '.\[reference\]'"):
        nuts.nuts(lambda x: -(x @ x), jnp.zeros((2, 3)), jax.random.key(0))


@pytest.mark.slow
def test_the_program_writes_its_file(programs, tmp_path):
    out = tmp_path / "new" / "r.npz"
    command = ["--config", "configs/toys/particles.py:task=gaussians", "--out", str(out)]
    numbers = dict(chains=2, warmup=10, samples=20, doublings=2, keep=10, second=10)
    command += [f"--{name}={value}" for name, value in numbers.items()]
    command += ["--config.backbone.widths=(3,)"]
    done = programs("studies.reference", *command)
    assert done.code == 0, done.output
    assert "adapt" in done.output and "sample" in done.output
    with np.load(out) as file:
        kept = json.loads(str(file["settings"]))
        assert file["draws"].shape == (10, 169, 5) and file["map"].shape == (64, 64)
        np.testing.assert_allclose(file["draws"].sum(-1), 1, atol=2e-3)
    assert kept["config"]["backbone"]["widths"] == [3] and kept["samples"] == 20
