"""Linear probes against scikit-learn's ridge regression with the same columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from uncertainty.metrics.few_shot import L2, best_l2, draw_shots, probe

K = 4


def problem(n, d, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(K, d))
    y = np.arange(n) % K
    x = centres[y] + rng.normal(size=(n, d)) * rng.uniform(0.1, 3, d)
    return x, y, centres[np.arange(60) % K] + rng.normal(size=(60, d))


@pytest.mark.parametrize(("n", "d"), [(K, 9), (8, 30), (40, 39), (40, 40), (100, 7)])
def test_a_probe_is_ridge_regression(n, d):
    x, y, more = problem(n, d)
    x[:, 0] = 2.5  # a feature that does not vary
    told, own = probe(x, y, K, [more, x])
    assert told.shape == (len(L2), len(more)) and own.shape == (len(L2), n)

    def columns(a):
        return np.c_[(a - x.mean(0)) / (x.std(0) + 1e-5), np.full(len(a), 100.0)]

    for i, l2 in enumerate(L2):
        ridge = Ridge(alpha=l2, fit_intercept=False).fit(columns(x), 2.0 * np.eye(K)[y] - 1)
        for found, a in ((told[i], more), (own[i], x)):
            scores = ridge.predict(columns(a))
            # The best class, or one that rounding cannot tell from it.
            lost = scores.max(1) - scores[np.arange(len(a)), found]
            assert lost.max() < 1e-6


@given(st.integers(0, 1000), st.integers(1, 5))
def test_shots_are_of_their_class_and_nested(seed, most):
    y = np.random.default_rng(seed).permutation(np.arange(40) % K)
    drawn = draw_shots(y, most, np.random.default_rng(seed))
    assert drawn.shape == (K, most) and len(np.unique(drawn)) == K * most
    assert (y[drawn] == np.arange(K)[:, None]).all()
    fewer = draw_shots(y, 1, np.random.default_rng(seed))
    np.testing.assert_array_equal(fewer, drawn[:, :1])


def test_the_strength_of_the_best_mean_rank_is_chosen():
    # Ranks 1 3 2 and 1.5 1.5 3: means 1.25, 2.25, 2.5.
    assert best_l2({"a": [0.1, 0.9, 0.2], "b": [0.5, 0.5, 0.6]}) == 2
    assert best_l2({"a": [0.1, 0.9, 0.2]}) == 1
    assert best_l2({"a": [0.3, 0.3, 0.3]}) == 2  # of equal ones the strongest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(y=[0, 1, 4]), "from 0 to 3"),
        (dict(x=np.full((3, 2), np.nan)), "not finite"),
        (dict(y=[0, 1]), "shapes"),
        (dict(l2=(1.0, 0.0)), "positive"),
        (dict(inputs=[np.zeros((5, 3))]), r"\[B, 2\]"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    given = dict(x=np.eye(3)[:, :2], y=[0, 1, 2], num_classes=K, inputs=[], l2=(1.0,))
    with pytest.raises(ValueError, match=message):
        probe(**(given | changes))
    with pytest.raises(ValueError, match="class 1 has 1"):
        draw_shots([0, 0, 1], 2, np.random.default_rng(0))
