"""Prediction sets: exact coverage by leaving one out, loops, and values of other libraries."""

import math

import numpy as np
import pytest
from scipy import special

from uncertainty import specs
from uncertainty.conformal._quantile import quantile
from uncertainty.conformal.aps import aps
from uncertainty.conformal.lac import lac
from uncertainty.conformal.raps import raps
from uncertainty.conformal.saps import saps
from uncertainty.metrics import sets as metrics


def predictions(seed=0, B=23, K=4):
    rng = np.random.default_rng(seed)
    log_p = special.log_softmax(2 * rng.normal(size=(B, K)), -1)
    return log_p, rng.integers(K, size=B), rng.random(B)


# Methods as functions (log_p, labels, u, alpha, by, groups) -> predictor.
METHODS = {
    "lac": lambda log_p, y, u, **f: lac(log_p, y, **f),
    "aps": lambda log_p, y, u, **f: aps(log_p, y, u=u, **f),
    "raps": lambda log_p, y, u, **f: raps(log_p, y, u=u, penalty=0.1, free=1, **f),
    "saps": lambda log_p, y, u, **f: saps(log_p, y, u=u, **f),
}


def left_out(fit, log_p, labels, u, groups=None, **fields):
    """Whether each example is a hit if all others calibrate, [B]."""
    hits = []
    for i in range(len(labels)):
        rest = np.arange(len(labels)) != i
        of_rest = {} if groups is None else dict(groups=groups[rest])
        predictor = fit(log_p[rest], labels[rest], u[rest], **of_rest, **fields)
        own = {} if groups is None else dict(groups=groups[[i]])
        hits.append(predictor(log_p[[i]], u=u[[i]], **own)[0, labels[i]])
    return np.array(hits)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("alpha", [0.03, 0.1, 0.25, 0.6])
def test_coverage_over_all_choices_of_the_test_example_is_exact(name, alpha):
    # Exchangeability: which of the n + 1 examples is the test example is uniform. Without ties,
    # the hits are those whose score is among the k smallest of all n + 1.
    log_p, labels, u = predictions()
    hits = left_out(METHODS[name], log_p, labels, u, alpha=alpha)
    assert hits.sum() == math.ceil(len(labels) * (1 - alpha) - 1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_coverage_is_exact_within_classes_and_groups(name):
    log_p, labels, u = predictions(1, B=60)
    groups = np.random.default_rng(2).integers(3, size=60)
    by_class = left_out(METHODS[name], log_p, labels, u, alpha=0.2, by="class")
    by_group = left_out(METHODS[name], log_p, labels, u, groups, alpha=0.2, by="group")
    for hits, of in ((by_class, labels), (by_group, groups)):
        for g in np.unique(of):
            assert hits[of == g].sum() == math.ceil((of == g).sum() * 0.8 - 1e-9)


def scores_by_loop(name, p, u):
    """Scores of one example's classes, from the definitions."""
    order = sorted(range(len(p)), key=lambda k: -p[k])
    scores = [0.0] * len(p)
    before = 0.0
    for place, k in enumerate(order, 1):
        scores[k] = {
            "lac": 1 - p[k],
            "aps": before + u * p[k],
            "raps": before + u * p[k] + 0.1 * max(0, place - 1),
            "saps": u * p[k] if place == 1 else p[order[0]] + (place - 2 + u) * 0.2,
        }[name]
        before += p[k]
    return scores


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("randomised", [True, False])
def test_sets_by_loop(name, randomised):
    log_p, labels, u = predictions(3, B=40)
    test, _, u_test = predictions(4, B=30)
    fields = {} if name == "lac" else dict(randomised=randomised)
    chosen = METHODS[name](log_p, labels, u, alpha=0.3, **fields)(test, u=u_test)
    if not randomised:
        u, u_test = np.ones_like(u), np.ones_like(u_test)
    calibration = sorted(
        scores_by_loop(name, np.exp(row), v)[y] for row, y, v in zip(log_p, labels, u, strict=True)
    )
    limit = calibration[math.ceil(41 * 0.7) - 1]
    for row, v, mine in zip(test, u_test, chosen, strict=True):
        expected = [score <= limit for score in scores_by_loop(name, np.exp(row), v)]
        np.testing.assert_array_equal(mine, expected)


def test_the_quantile_has_a_rank_and_is_infinite_without_one():
    scores = np.arange(1.0, 100.0)
    assert quantile(scores, 0.1) == 90.0  # ceil(100 * .9)
    assert quantile(scores, 0.01) == 99.0
    assert quantile(scores, 0.0099) == math.inf
    # (n + 1) alpha is whole, and rounds down in floating point: 0.29 * 100 = 28.999999999999996.
    assert quantile(scores, 0.29) == 71.0


def test_too_few_examples_give_whole_sets():
    log_p, labels, u = predictions(B=8)
    for fit in METHODS.values():
        assert fit(log_p, labels, u, alpha=0.1)(log_p, u=u).all()
    by_class = lac(log_p, np.array([0] * 7 + [1]), alpha=0.2, by="class")
    assert np.isfinite(by_class.quantile[0]) and np.isinf(by_class.quantile[1:]).all()
    assert by_class(log_p)[:, 1:].all()  # a class of which too little is known is never left out
    by_group = lac(log_p, labels, alpha=0.2, by="group", groups=np.zeros(8, int))
    assert by_group(log_p, groups=np.full(8, 7)).all()  # a group that calibration lacks


@pytest.mark.parametrize("name", METHODS)
def test_groups_may_have_any_numbers(name):
    log_p, labels, u = predictions(3, B=60)
    groups = np.random.default_rng(2).integers(3, size=60)
    numbers = np.array([10, 7, 10**12])[groups]  # not in this order
    fit = METHODS[name]
    dense = fit(log_p, labels, u, alpha=0.2, by="group", groups=groups)
    sparse = fit(log_p, labels, u, alpha=0.2, by="group", groups=numbers)
    np.testing.assert_array_equal(sparse.quantile, dense.quantile[[1, 0, 2]])
    chosen = dense(log_p, u=u, groups=groups)
    np.testing.assert_array_equal(sparse(log_p, u=u, groups=numbers), chosen)
    for other in (0, 8, 2 * 10**12):  # before, between and after those of the fit
        assert sparse(log_p, u=u, groups=np.full(60, other)).all()
    # Files of before have a quantile for each of 0, 1, ..., and no ids.
    older = dense._replace(ids=type(dense)._field_defaults["ids"])
    np.testing.assert_array_equal(older(log_p, u=u, groups=groups), chosen)


def test_least_ambiguous_sets_of_overconfident_networks():
    """1 - p is 1 for most labels that are missed, and p itself is 0 for some."""
    rng = np.random.default_rng(0)
    u = 30 * rng.normal(size=(2, 1500, 10))
    truth = np.argmax(u / 30 + 0.7 * rng.normal(size=u.shape), -1)
    for scale in (1, 100):
        (cal, test), (labels, y) = special.log_softmax(scale * u, -1), truth
        found = lac(cal, labels, 0.01)
        rank = math.ceil(1501 * 0.99)
        least = np.sort(cal[np.arange(1500), labels])[::-1][rank - 1]
        assert found.quantile == 1 and np.exp(least) < 1e-16
        chosen = found(test)
        np.testing.assert_array_equal(chosen, test >= least)
        assert chosen.sum(1).mean() < 6
        assert abs(chosen[np.arange(1500), y].mean() - 0.99) < 0.015
        # Files of before have the quantile of 1 - p alone.
        older = found._replace(least=None)
        np.testing.assert_array_equal(older(test), 1 - np.exp(test) <= found.quantile)
    # Labels of probability 0 give whole sets, but of a finite quantile.
    with np.errstate(divide="ignore"):
        impossible = np.log(np.tile([1.0, 0.0], (50, 1)))
    whole = lac(impossible, np.ones(50, int))
    assert whole.quantile == 1 and whole(impossible).all()


def test_empty_sets_get_the_most_probable_class_if_they_may_not_be_empty():
    log_p = np.log([[0.9, 0.1]] * 19 + [[0.5, 0.5]])
    labels = np.zeros(20, int)
    fitted = lac(log_p, labels, alpha=0.5)
    assert not fitted(np.log([[0.3, 0.7]])).any()
    np.testing.assert_array_equal(
        lac(log_p, labels, alpha=0.5, allow_empty=False)(np.log([[0.3, 0.7]])), [[False, True]]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(alpha=1.0), "alpha: 1.0"),
        (dict(by="label"), "by: 'label'; one of 'none', 'class', 'group'"),
        (dict(by="group"), "groups: missing"),
        (dict(by="group", groups=np.arange(8) - 3), "groups: -3 at example 0; integers from 0"),
        (dict(log_p=np.zeros((8, 4))), "probabilities sum to 4 at example 0"),
        (dict(labels=np.full(8, 4)), "labels: 4 at example 0, but there are 4 classes"),
        (dict(u=None), "u: missing"),
        (dict(u=np.full(8, 2.0)), "u: 8 numbers from 0 to 1"),
    ],
)
def test_refuses(change, message):
    log_p, labels, u = predictions(B=8)
    for method in (aps, raps, saps):
        with pytest.raises(ValueError, match=message):
            method(**dict(log_p=log_p, labels=labels, u=u) | change)


def test_is_found_by_name():
    log_p, labels, _ = predictions(B=30)
    fitted = specs.make(
        "conformal", dict(name="lac", alpha=0.2), "conformal", log_p=log_p, labels=labels
    )
    assert fitted == lac(log_p, labels, 0.2)


def test_the_range_of_coverage_holds_what_it_says():
    # By simulation: the score of an example is its own uniform number.
    rng = np.random.default_rng(0)
    low, high = metrics.coverage_range(300, 1000, 0.1)
    covered = []
    for _ in range(4000):
        covered.append((rng.random(1000) <= quantile(rng.random(300), 0.1)).mean())
    inside = (np.array(covered) >= low) & (np.array(covered) <= high)
    assert abs(inside.mean() - 0.95) < 0.015  # 4 standard errors
    np.testing.assert_array_equal(metrics.coverage_range(8, 10, 0.1), 1.0)


def test_measures_of_sets_by_hand():
    chosen = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    labels = np.array([0, 2, 1, 2])
    values = metrics.evaluate_sets(chosen, labels, alpha=0.1, groups=np.array([5, 5, 9, 9]))
    expected = dict(
        coverage=0.5,
        size=1.5,
        empty=0.25,
        single=0.25,
        whole=0.25,
        class_coverage_gap=(0.1 + 0.9 + 0.4) / 3,  # coverage 1, 0, 1/2
        worst_class_coverage=0.0,
        size_coverage_violation=0.4,  # sizes 0 and 1: one of two; 2 and 3: one of two
        group_coverage_gap=0.4,
        worst_group_coverage=0.5,
    )
    assert values == pytest.approx(expected)
