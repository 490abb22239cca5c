"""Combinations of members against brute force, loops, and other optimisers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from uncertainty.combining.gate import gate
from uncertainty.combining.greedy import greedy
from uncertainty.combining.winners import winners
from uncertainty.stages.select import greedy as of_stage

METHODS = {"greedy": greedy, "winners": winners, "gate": gate}


def drawn(seed, M=5, B=40, K=3, skill=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, B)
    logits = rng.normal(size=(M, B, K)) + skill * rng.random((M, 1, 1)) * np.eye(K)[y]
    return special.log_softmax(logits, -1), y


def losses(log_p, y, members):
    """(NLL, error) of the mixture of a list of members, with repetitions."""
    q = np.mean([np.exp(log_p[m]) for m in members], axis=0)
    with np.errstate(divide="ignore"):
        return -np.mean(np.log(q[np.arange(len(y)), y])), np.mean(q.argmax(1) != y)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["nll", "accuracy"]))
def test_greedy_is_the_best_addition_at_every_step(seed, replacement, by):
    log_p, y = drawn(seed)
    found = greedy(log_p, y, 4, by, replacement)
    chosen = []
    for m, score in zip(found.members, found.scores, strict=True):
        pool = [i for i in range(5) if replacement or i not in chosen]
        each = {i: losses(log_p, y, [*chosen, i])[:: 1 if by == "nll" else -1] for i in pool}
        assert each[m] <= min((a + 1e-12, b + 1e-12) for a, b in each.values())
        best = min(each.values())[0]
        assert score == pytest.approx(best if by == "nll" else 1 - best)
        chosen.append(m)
    np.testing.assert_array_equal(found(log_p), log_p[chosen])
    np.testing.assert_allclose(found.shares, [chosen.count(i) / 4 for i in range(5)])


@pytest.mark.parametrize("by", ["nll", "accuracy"])
def test_greedy_beside_all_subsets(by):
    """It is the best subset of one and of all members, and at most as good as it otherwise."""
    ahead = 0
    for seed in range(30):
        log_p, y = drawn(seed, B=15, skill=2.0)
        path = greedy(log_p, y, 5, by).scores
        for size in range(1, 6):
            every = [losses(log_p, y, s) for s in itertools.combinations(range(5), size)]
            best = min(v[0] for v in every) if by == "nll" else 1 - min(v[1] for v in every)
            behind = path[size - 1] - best if by == "nll" else best - path[size - 1]
            assert behind >= -1e-12
            if size in (1, 5):
                assert behind == pytest.approx(0, abs=1e-12)
            ahead += behind > 1e-9
    assert ahead > 0  # so it is another thing


def test_greedy_is_that_of_the_stage():
    log_p, y = drawn(3)
    of_labels = log_p[:, np.arange(len(y)), y]
    expected = np.asarray(of_stage(np.float32(of_labels), 4))
    np.testing.assert_array_equal(greedy(log_p, y, 4, replacement=True).members, expected)


def test_ties_go_to_the_other_score_and_then_to_the_first():
    log_p, y = drawn(0, M=2)
    twice = np.concatenate([log_p, log_p])
    assert greedy(twice, y, 1).members[0] == greedy(log_p, y, 1).members[0] < 2
    sharp, flat = np.log([[0.9, 0.1]] * 4), np.log([[0.6, 0.4]] * 4)
    same = np.stack([flat, sharp])  # equal accuracy, and a better NLL where labels are right
    assert greedy(same, np.zeros(4, int), 1, "accuracy").members[0] == 1
    assert greedy(same, np.ones(4, int), 1, "accuracy").members[0] == 0
    with np.errstate(divide="ignore"):
        impossible = np.log([[[1.0, 0.0]] * 3, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    found = greedy(impossible, np.array([0, 1, 1]), 2)  # NLL infinite with each, and with both
    assert found.members.tolist() == [1, 0] and np.isinf(found.scores).all()


def test_winners_by_a_loop():
    log_p, y = drawn(1, M=4, B=60, K=4, skill=2.0)
    y[y == 3] = 0  # a class without examples
    test, _ = drawn(2, M=4, B=30, K=4)
    for by in ("accuracy", "nll"):
        found = winners(log_p, y, by)
        for k in range(4):
            of = y == k if k < 3 else np.ones(60, bool)
            nll = [losses(log_p[:, of], y[of], [m])[0] for m in range(4)]
            error = [losses(log_p[:, of], y[of], [m])[1] for m in range(4)]
            both = (error, nll) if by == "accuracy" else (nll, error)
            order = list(zip(*both, strict=True))
            assert found.members[k] == min(range(4), key=order.__getitem__)
            expected = np.full(4, np.nan) if k == 3 else 1 - np.array(error)
            if k == 3 or by == "accuracy":
                np.testing.assert_allclose(found.scores[:, k], expected)
        out = found(test)
        assert out.shape == (1, 30, 4)
        for b in range(30):
            k = np.exp(test[:, b]).mean(0).argmax()
            np.testing.assert_array_equal(out[0, b], test[found.members[k], b])
        assert found.examples.tolist() == [np.sum(y == k) for k in range(4)]
        assert found.shares.sum() == pytest.approx(1)


def test_constant_weights_are_those_of_expectation_maximisation():
    log_p, y = drawn(4, M=3, B=200)
    p = np.exp(log_p[:, np.arange(200), y])
    w = np.full(3, 1 / 3)
    for _ in range(20_000):
        posterior = w[:, None] * p
        w = (posterior / posterior.sum(0)).mean(1)
    found = gate(log_p, y, 0.0, constant=True)
    np.testing.assert_allclose(found.shares, w, atol=2e-4)
    mixture = np.tensordot(found.shares, np.exp(log_p), 1)
    np.testing.assert_allclose(np.exp(found(log_p)[0]), mixture)


def test_a_gate_is_a_minimum_of_its_loss():
    log_p, y = drawn(5, M=3, B=50)
    q, l2 = np.exp(log_p).mean(0), 0.01

    def loss(theta):
        scores = theta[:3] + q @ theta[3:].reshape(3, 3).T  # [B, M]
        g = special.softmax(scores, 1)
        p = np.einsum("bm,mbk->bk", g, np.exp(log_p))
        return -np.log(p[np.arange(50), y]).mean() + l2 * np.sum(theta**2)

    found = gate(log_p, y, l2)
    theta = np.append(found.intercepts, found.weights.ravel())
    slope = optimize.approx_fprime(theta, loss, 1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    assert found.converged and loss(theta) < loss(np.zeros(12))
    rng = np.random.default_rng(0)
    assert all(loss(theta) < loss(theta + 0.05 * rng.normal(size=12)) for _ in range(20))
    assert loss(theta) - l2 * np.sum(theta**2) == pytest.approx(
        -found(log_p)[0][np.arange(50), y].mean()
    )
    np.testing.assert_allclose(np.exp(found(log_p)).sum(-1), 1)


def test_a_gate_and_winners_use_members_where_they_are_right():
    """Each of two members knows its own two of four classes, and confuses the others evenly."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    p = np.full((2, 400, 4), 0.02)
    for b, k in enumerate(y):
        for m in (0, 1):
            if k // 2 == m:
                p[m, b, k] = 0.94
            else:  # the right pair of classes, and often the wrong one of it
                wrong = rng.random() < 0.6
                p[m, b, 2 * (k // 2) + (k % 2 != wrong)] = 0.9
                p[m, b, 2 * (k // 2) + (k % 2 == wrong)] = 0.06
    log_p = np.log(p / p.sum(-1, keepdims=True))
    found = winners(log_p, y)
    assert found.members.tolist() == [0, 0, 1, 1]
    of_all = np.mean(np.exp(log_p).mean(0).argmax(1) == y)
    for combine in (found, gate(log_p, y)):
        assert np.mean(combine(log_p)[0].argmax(1) == y) >= of_all
    assert -found(log_p)[0][np.arange(400), y].mean() < 0.1
    g = gate(log_p, y)
    by_class = g.intercepts[:, None] + g.weights
    assert (by_class.argmax(0) == [0, 0, 1, 1]).all()


@pytest.mark.parametrize("name", METHODS)
def test_members_that_are_not_finite_have_no_part(name):
    log_p, y = drawn(6, M=3)
    bad = np.insert(log_p, 1, log_p[0], axis=0)
    bad[1, 5, 1] = np.nan
    fields = dict(size=3) if name == "greedy" else {}
    found, without = METHODS[name](bad, y, **fields), METHODS[name](log_p, y, **fields)
    assert found.shares[1] == 0
    np.testing.assert_allclose(np.delete(found.shares, 1), without.shares, atol=1e-6)
    np.testing.assert_allclose(found(bad), without(log_p), atol=1e-6)
    bad[:] = np.nan
    with pytest.raises(ValueError, match="not finite for any of the 4 members"):
        METHODS[name](bad, y, **fields)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, y: (a[:, :0], y[:0]), "there are no held-out examples to choose members by"),
        (lambda a, y: (a[0], y), r"log_p: \[members, examples, classes\] is expected"),
        (lambda a, y: (a, y[1:]), "labels: 40 integers are expected, as log_p has 40"),
        (lambda a, y: (a, y + 1.0), "labels: 40 integers are expected.*got float64"),
        (lambda a, y: (a, np.where(y == 2, 3, y)), "labels: 3 at example"),
        (lambda a, y: (5 * a, y), "probabilities sum to .* at member .*logits passed"),
    ],
)
def test_wrong_arrays_are_named(name, change, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](*change(*drawn(0)))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("greedy", dict(size=0), "size: 0 members; at least 1"),
        ("greedy", dict(size=6), "size: 6 members of 5 usable ones; choose fewer, or set rep"),
        ("greedy", dict(by="brier"), "by: 'brier'; one of 'nll', 'accuracy'"),
        ("winners", dict(by="f1"), "by: 'f1'; one of"),
        ("gate", dict(l2=-1.0), "l2: -1.0; a number from 0"),
    ],
)
def test_wrong_fields_are_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](*drawn(0), **fields)


def test_another_pool_and_labels_of_probability_0_are_refused():
    log_p, y = drawn(0)
    for method in METHODS.values():
        with pytest.raises(ValueError, match="of the 5 members that the combination was chosen"):
            method(log_p, y)(log_p[:4])
    with np.errstate(divide="ignore"):
        impossible = np.log([[[1.0, 0.0]], [[1.0, 0.0]]])
    with pytest.raises(ValueError, match="the label of example 0 has the probability 0"):
        gate(impossible, np.array([1]))
