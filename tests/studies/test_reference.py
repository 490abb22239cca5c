"""NUTS as the reference: the density that it draws from, and draws from a known posterior."""

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


def experiment(arg="task=regression", **fields):
    config = particles.get_config(arg)
    config.mesh = dict(data=1)
    for name, value in fields.items():
        config_lib.override(config, name.replace("__", "."), value)
    return setup(config)


def by_hand(e, flat):
    """log p(D | theta) + log p(theta) of the MLP, by NumPy."""
    params = reference.posterior(e).unravel(jnp.asarray(flat))
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
    e = experiment(f"task={task}")
    target = reference.posterior(e)
    a, b = (np.asarray(target.sample_prior(jax.random.key(i))) for i in range(2))
    wanted = sum(by_hand(e, a)) - sum(by_hand(e, b))
    found = target.log_density(a) - target.log_density(b)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.slow
def test_temperatures_are_those_of_the_inference():
    plain = experiment()
    target = reference.posterior(plain)
    a, b = (np.asarray(target.sample_prior(jax.random.key(i))) for i in range(2))
    (la, pa), (lb, pb) = by_hand(plain, a), by_hand(plain, b)
    cold = reference.posterior(
        experiment(inference__temperature=0.5, inference__likelihood_temperature=4.0)
    )
    wanted = ((la - lb) / 4 + pa - pb) / 0.5
    found = cold.log_density(a) - cold.log_density(b)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.slow
def test_prior_draws_have_the_prior():
    target = reference.posterior(experiment())
    draws = jax.vmap(target.sample_prior)(jax.random.split(jax.random.key(0), 40))
    assert scipy.stats.kstest(np.ravel(draws), "norm").pvalue > 1e-3


def linear(**fields):
    return experiment(backbone__widths=(), likelihood__noise_std=0.5, **fields)


@pytest.mark.slow
def test_draws_are_those_of_bayesian_linear_regression():
    """y = a x + b: mean and covariance, by the effective sample size of each."""
    e = linear()
    target = reference.posterior(e)
    starts = jax.vmap(target.sample_prior)(jax.random.split(jax.random.key(1), 8))
    made = nuts.nuts(target.log_density, starts, jax.random.key(0), warmup=200, samples=150)
    assert made.draws.shape == (8, 150, 2) and made.divergent.max() == 0
    template = dict(kernel=jnp.arange(1.0)[:, None], bias=jnp.arange(1.0) + 1)
    order, _ = jax.flatten_util.ravel_pytree(template)  # which of the two is the slope
    x = np.stack([np.ones(90) if i else e.source.x[:, 0] for i in np.asarray(order)], axis=1)
    precision = x.T @ x / 0.25 + np.eye(2)
    mean = np.linalg.solve(precision, x.T @ e.source.y.ravel() / 0.25)
    covariance = np.linalg.inv(precision)
    white = (made.draws - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    found = nuts.diagnose(white[:, :, None])
    assert found["rhat"].max() < 1.05 and found["ess"].min() > 200
    ess = found["ess"][0]
    assert (np.abs(white.mean((0, 1))) * np.sqrt(ess) < 4).all()  # standard errors
    scatter = np.cov(white.reshape(-1, 2).T)
    np.testing.assert_allclose(scatter, np.eye(2), atol=4 * np.sqrt(2 / ess.min()))


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
def test_the_file_has_functions_of_separate_chains():
    arrays, facts = reference.reference(
        linear(), jax.random.key(0), keep=40, second=20, chains=4, warmup=200, samples=50
    )
    assert arrays["draws"].shape == (40, 100, 1) and arrays["second"].shape == (20, 100, 1)
    x = arrays["x"][:, 0]
    curved = np.diff(arrays["draws"][:, :, 0], n=2)  # they are straight lines
    assert np.abs(curved).max() < 1e-4 and len(x) == 100
    assert not set(arrays["draws"][:, 0, 0]) & set(arrays["second"][:, 0, 0])
    assert facts["rhat_max"] < 1.2 and "map" not in arrays


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
    e = experiment()
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
