"""Vector, Dirichlet, isotonic and histogram calibration against scipy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special
from sklearn.isotonic import IsotonicRegression

from uncertainty.posthoc import _linear
from uncertainty.posthoc.dirichlet import dirichlet
from uncertainty.posthoc.histogram import histogram
from uncertainty.posthoc.isotonic import isotonic
from uncertainty.posthoc.temperature import temperature
from uncertainty.posthoc.vector import vector

METHODS = {
    "temperature": temperature,
    "vector": vector,
    "dirichlet": dirichlet,
    "isotonic": isotonic,
    "histogram": histogram,
}


def drawn(seed=0, B=300, K=3, sharper=2.0):
    """Log-probabilities that are too sharp for their labels."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(B, K))
    p = special.softmax(logits, -1)
    labels = (rng.random((B, 1)) > p.cumsum(-1)[:, :-1]).sum(-1)
    return special.log_softmax(sharper * logits, -1), labels


def nll(log_p, labels):
    return -log_p[np.arange(len(labels)), labels].mean()


def objective(theta, log_p, labels, weights_of, penalty):
    """Of `_linear`, written out."""
    W, c = weights_of(theta)
    return nll(special.log_softmax(log_p @ W.T + c, -1), labels) + penalty(W, c)


def test_vector_scaling_is_scipys_optimum():
    log_p, labels = drawn()
    fitted = vector(log_p, labels, 0.03, 0.05)
    reference = optimize.minimize(
        objective,
        np.zeros(6),
        (
            log_p,
            labels,
            lambda t: (np.diag(1 + t[:3]), t[3:]),
            lambda W, c: 0.03 / 3 * ((np.diag(W) - 1) ** 2).sum() + 0.05 / 3 * (c**2).sum(),
        ),
        tol=1e-9,
    )
    assert fitted.converged
    np.testing.assert_allclose(fitted.weights - 1, reference.x[:3], atol=1e-5)
    np.testing.assert_allclose(fitted.intercepts, reference.x[3:], atol=1e-5)


def test_dirichlet_calibration_is_scipys_optimum():
    log_p, labels = drawn(1)
    fitted = dirichlet(log_p, labels, 0.2, 0.1, 0.01)
    off = ~np.eye(3, dtype=bool)
    reference = optimize.minimize(
        objective,
        np.zeros(12),
        (
            log_p,
            labels,
            lambda t: (np.eye(3) + t[:9].reshape(3, 3), t[9:]),
            lambda W, c: (
                0.2 / 6 * (W[off] ** 2).sum()
                + 0.1 / 3 * (c**2).sum()
                + 0.01 / 3 * ((np.diag(W) - 1) ** 2).sum()
            ),
        ),
        tol=1e-9,
    )
    assert fitted.converged
    np.testing.assert_allclose(fitted.weights - np.eye(3), reference.x[:9].reshape(3, 3), atol=1e-4)
    np.testing.assert_allclose(fitted.intercepts, reference.x[9:], atol=1e-4)


@pytest.mark.parametrize("method", [vector, dirichlet])
def test_the_gradient_is_zero_at_the_optimum(method):
    log_p, labels = drawn(2, B=500, K=6)
    fitted = method(log_p, labels)
    # Of the intercepts: mean calibrated probability - frequency + 2 penalty c.
    penalty = (1e-3 if method is vector else 1e-2) / 6
    q = np.exp(fitted(log_p))
    gradient = q.mean(0) - np.bincount(labels, minlength=6) / 500 + 2 * penalty * fitted.intercepts
    assert fitted.converged and np.abs(gradient).max() < 1e-9


def test_strong_penalties_leave_a_temperature_or_nothing():
    log_p, labels = drawn(3)
    np.testing.assert_allclose(vector(log_p, labels, 1e9, 1e9)(log_p), log_p, atol=1e-6)
    scaled = temperature(log_p, labels)(log_p)
    # Near to optimal is the temperature's family: one factor, no intercept.
    assert nll(dirichlet(log_p, labels)(log_p), labels) <= nll(scaled, labels) + 1e-3
    assert nll(vector(log_p, labels)(log_p), labels) <= nll(scaled, labels) + 1e-3


def test_newton_reaches_the_minimum_of_a_quadratic_function():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(8, 8))
    H, b = A @ A.T + 0.1 * np.eye(8), rng.normal(size=8)
    value = lambda t: 0.5 * t @ H @ t - b @ t  # noqa: E731
    theta, converged = _linear.newton(value, lambda t: (H @ t - b, H.__matmul__), np.zeros(8))
    assert converged
    np.testing.assert_allclose(theta, np.linalg.solve(H, b), rtol=1e-8)


def test_isotonic_is_scikit_learns():
    log_p, labels = drawn(4, B=200)
    log_p = np.round(log_p, 1)  # ties
    log_p = special.log_softmax(log_p, -1)
    test, _ = drawn(5, B=100)
    p = np.exp(test)
    expected = np.stack(
        [
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
            .fit(np.exp(log_p[:, k]), labels == k)
            .predict(p[:, k])
            for k in range(3)
        ],
        -1,
    )
    expected = expected / expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(isotonic(log_p, labels, floor=0.0)(test)), expected, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["mass", "width"])
def test_histogram_by_loop(kind):
    log_p, labels = drawn(6, B=150)
    test, _ = drawn(7, B=20)
    p, q = np.exp(log_p), np.exp(test)
    expected = np.empty_like(q)
    for k in range(3):
        inner = [j / 4 for j in (1, 2, 3)]
        if kind == "mass":
            inner = [np.sort(p[:, k])[int(np.ceil(150 * level)) - 1] for level in inner]
        bin_of = lambda v, inner=inner: sum(v >= e for e in inner)  # noqa: E731
        for b in range(20):
            same = [i for i in range(150) if bin_of(p[i, k]) == bin_of(q[b, k])]
            right = sum(labels[i] == k for i in same)
            mean = np.mean([p[i, k] for i in same])
            expected[b, k] = (right + 2 * mean) / (len(same) + 2)
    expected /= expected.sum(-1, keepdims=True)
    fitted = histogram(log_p, labels, 4, kind, prior=2.0)
    np.testing.assert_allclose(np.exp(fitted(test)), expected, rtol=1e-10)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    """The contract of all methods."""

    def test_improves_the_likelihood_and_normalises(self, name):
        log_p, labels = drawn(8, B=2000, sharper=3.0)
        fitted = METHODS[name](log_p[:1000], labels[:1000])
        after = fitted(log_p[1000:])
        assert after.dtype == np.float64
        np.testing.assert_allclose(np.exp(after).sum(-1), 1, rtol=1e-12)
        assert nll(after, labels[1000:]) < nll(log_p[1000:], labels[1000:]) - 0.1

    def test_is_a_pytree_that_jax_compiles_with_leading_axes(self, name):
        log_p, labels = drawn(9, B=60)
        fitted = METHODS[name](log_p, labels)
        assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(fitted))
        members = np.stack([log_p, log_p[::-1]]).astype(np.float32)
        compiled = jax.jit(lambda calibrator, x: calibrator(x))(fitted, jnp.asarray(members))
        assert compiled.dtype == jnp.float32
        if name == "histogram":  # a probability on an edge may round to the other side
            close = np.isclose(compiled, fitted(members), atol=1e-4)
            assert close.all(-1).mean() > 0.7
        else:
            np.testing.assert_allclose(compiled, fitted(members), atol=2e-4)

    def test_one_example_and_a_class_without_any(self, name):
        log_p, labels = drawn(10, B=100)
        few = METHODS[name](log_p[:1], labels[:1])
        assert np.isfinite(few(log_p)).all()
        missing = METHODS[name](log_p, np.minimum(labels, 1))
        assert np.isfinite(missing(log_p)).all()

    def test_separable_classes_and_probabilities_of_zero(self, name):
        log_p, _ = drawn(11, B=100)
        fitted = METHODS[name](log_p, log_p.argmax(-1))
        after = fitted(log_p)
        assert not np.isnan(after).any() and getattr(fitted, "converged", True)
        assert nll(after, log_p.argmax(-1)) < nll(log_p, log_p.argmax(-1))
        with np.errstate(divide="ignore"):
            zeros = np.log([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
        after = METHODS[name](*drawn(12))(zeros)
        np.testing.assert_allclose(np.exp(after).sum(-1), 1, rtol=1e-12)

    def test_refuses_logits_and_wrong_labels(self, name):
        with pytest.raises(ValueError, match="logits"):
            METHODS[name](np.ones((4, 3)), np.zeros(4, int))
        with pytest.raises(ValueError, match="labels: 3 at example 1"):
            METHODS[name](np.log(np.full((2, 3), 1 / 3)), np.array([0, 3]))


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (vector, dict(weight_penalty=0.0), "weight_penalty: 0.0; a positive"),
        (dirichlet, dict(off_diagonal=-1.0), "off_diagonal: -1.0; a positive"),
        (isotonic, dict(floor=0.5), "floor: 0.5"),
        (histogram, dict(bins=0), "bins: 0"),
        (histogram, dict(kind="size"), "kind: 'size'; one of 'mass', 'width'"),
        (histogram, dict(prior=-1.0), "prior: -1.0"),
    ],
)
def test_refuses_fields(method, fields, message):
    with pytest.raises(ValueError, match=message):
        method(*drawn(B=10), **fields)
