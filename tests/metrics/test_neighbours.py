"""Votes of the nearest neighbours against a loop."""

import numpy as np
import pytest

from uncertainty.metrics import neighbours as module
from uncertainty.metrics.neighbours import neighbours

RNG = np.random.default_rng(0)
X, Y, INPUTS = RNG.normal(size=(20, 3)), RNG.integers(0, 4, 20), RNG.normal(size=(9, 3))


@pytest.mark.parametrize("chunk", [1 << 24, 50])  # 50: blocks of two inputs
def test_votes_are_a_loop_over_neighbours(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    got = neighbours(X, Y, 5, INPUTS, k=6, temperature=0.3)
    for one, p in zip(INPUTS, got, strict=True):
        s = [a @ one / np.sqrt((a @ a) * (one @ one)) for a in X]
        votes = np.zeros(5)
        for i in sorted(range(20), key=lambda i: -s[i])[:6]:
            votes[Y[i]] += np.exp(s[i] / 0.3)
        np.testing.assert_allclose(p, votes / votes.sum())


def test_an_example_is_its_own_nearest_and_lengths_do_not_matter():
    got = neighbours(X, Y, 4, 7 * X, k=1)
    np.testing.assert_array_equal(got.argmax(1), Y)
    few = neighbours(X, Y, 4, INPUTS, k=20, temperature=1e-3)  # the nearest alone
    np.testing.assert_array_equal(few.argmax(1), neighbours(X, Y, 4, INPUTS, k=1).argmax(1))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(k=0), "k: 0; from 1 to the number of examples, 20"),
        (dict(k=21), "k: 21"),
        (dict(temperature=0.0), "temperature: 0.0"),
        (dict(num_classes=3), "y: labels from 0 to 3"),
        (dict(inputs=INPUTS[:, :2]), r"inputs: shape \(9, 2\)"),
        (dict(x=X * np.nan), "not finite"),
        (dict(y=Y[:-1]), "shapes"),
    ],
)
def test_what_cannot_be_says_why(change, why):
    with pytest.raises(ValueError, match=why):
        neighbours(**(dict(x=X, y=Y, num_classes=4, inputs=INPUTS, k=5) | change))
