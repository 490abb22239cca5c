"""Temperature scaling against closed cases and scipy's minimisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from uncertainty import specs
from uncertainty.posthoc.temperature import temperature


def drawn(seed=0, examples=400, classes=4, scale=2.0):
    """Log-probabilities, and labels that are drawn from them: calibrated but for sampling."""
    rng = np.random.default_rng(seed)
    log_p = special.log_softmax(scale * rng.normal(size=(examples, classes)), -1)
    labels = (rng.random((examples, 1)) > np.exp(log_p).cumsum(-1)[:, :-1]).sum(-1)
    return log_p, labels


def nll(log_p, labels):
    return -log_p[np.arange(len(labels)), labels].mean()


def test_minimises_the_nll_as_scipy_does():
    log_p, labels = drawn(1)
    log_p = special.log_softmax(3.1 * log_p, -1)
    fitted = temperature(log_p, labels)
    reference = optimize.minimize_scalar(
        lambda t: nll(special.log_softmax(log_p / np.exp(t), -1), labels),
        bracket=(-1, 2),
        tol=1e-12,
    )
    np.testing.assert_allclose(np.log(fitted.temperature), reference.x, atol=1e-6)
    assert not fitted.at_bound
    # The derivative by 1 / T is 0: expected and observed log-probabilities agree.
    p = np.exp(fitted(log_p))
    np.testing.assert_allclose((p * log_p).sum(-1).mean(), -nll(log_p, labels), rtol=1e-11)


def test_calibrated_frequencies_have_temperature_one():
    # Of 10 examples with p = .7, .2, .1, labels in just these numbers.
    log_p = np.log([[0.7, 0.2, 0.1]] * 10)
    labels = np.repeat([0, 1, 2], [7, 2, 1])
    np.testing.assert_allclose(temperature(log_p, labels).temperature, 1.0, rtol=1e-12)


@pytest.mark.parametrize("factor", [0.07, 0.5, 3.0, 30.0])
def test_a_factor_of_the_logits_is_a_factor_of_the_temperature(factor):
    log_p, labels = drawn(2)
    own = temperature(log_p, labels).temperature
    scaled = special.log_softmax(factor * log_p, -1)
    np.testing.assert_allclose(temperature(scaled, labels).temperature, factor * own, rtol=1e-10)
    np.testing.assert_allclose(
        temperature(scaled, labels)(scaled), temperature(log_p, labels)(log_p), atol=1e-10
    )


def test_cases_at_the_bounds():
    log_p, _ = drawn(3, examples=30)
    separable = temperature(log_p, log_p.argmax(-1))
    assert (separable.temperature, separable.at_bound) == (0.01, True)
    wrong = temperature(log_p, log_p.argmin(-1))
    assert (wrong.temperature, wrong.at_bound) == (100.0, True)
    one = temperature(log_p[:1], log_p[:1].argmax(-1), minimum=0.5)
    assert (one.temperature, one.at_bound) == (0.5, True)
    uniform = temperature(np.full((5, 3), -np.log(3)), np.array([0, 1, 1, 2, 2]))
    assert (uniform.temperature, uniform.at_bound) == (1.0, False)


def test_probabilities_of_zero():
    with np.errstate(divide="ignore"):
        log_p = np.log([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0]])
    labels = np.array([0, 1, 1])
    fitted = temperature(log_p, labels)
    np.testing.assert_allclose(
        fitted.temperature, temperature(log_p[:, :2], labels).temperature, rtol=1e-12
    )
    assert np.isneginf(fitted(log_p)[:, 2]).all()
    with pytest.raises(ValueError, match="probability 0 in 1 of 3 examples, first at example 2"):
        temperature(log_p, np.array([0, 1, 2]))
    assert temperature(log_p, np.array([0, 1, 2]), floor=1e-6).temperature > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(log_p=np.zeros((3, 2))), "probabilities sum to 2 at example 0"),
        (dict(log_p=np.full((3, 2), np.nan)), "sum to nan"),
        (dict(labels=np.array([0, 1, 2])), "labels: 2 at example 2, but log_p has 2 classes"),
        (dict(labels=np.array([0.0, 1.0, 1.0])), "labels: 3 integers"),
        (dict(labels=np.array([0, 1])), "labels: 3 integers"),
        (dict(minimum=0.0), "minimum, maximum"),
        (dict(floor=0.7), "floor: 0.7"),
    ],
)
def test_refuses(change, message):
    arguments = dict(log_p=np.log(np.full((3, 2), 0.5)), labels=np.array([0, 1, 1])) | change
    with pytest.raises(ValueError, match=message):
        temperature(**arguments)


def test_a_calibrator_is_a_pytree_that_jax_compiles_with_leading_axes():
    log_p, labels = drawn()
    fitted = temperature(log_p, labels)
    members = jnp.asarray(np.stack([log_p, log_p[::-1]]), jnp.float32)
    compiled = jax.jit(lambda calibrator, x: calibrator(x))(fitted, members)
    assert compiled.dtype == jnp.float32
    np.testing.assert_allclose(compiled, fitted(np.asarray(members)), atol=1e-5)


def test_is_found_by_name():
    log_p, labels = drawn()
    fitted = specs.make("posthoc", "temperature", "posthoc", log_p=log_p, labels=labels)
    assert fitted == temperature(log_p, labels)
    with pytest.raises(specs.ConfigError, match=r"posthoc\.name: .*did you mean 'temperature'"):
        specs.make("posthoc", "temprature2", "posthoc", log_p=log_p, labels=labels)
