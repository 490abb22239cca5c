"""Predictions that the tests of metrics share."""

import numpy as np
import pytest


@pytest.fixture
def predict():
    """predict(members, examples, classes) -> log_p [M, B, K] in float64, labels [B]."""

    def draw(members, examples, classes, seed=0):
        rng = np.random.default_rng(seed)
        logits = 1.5 * rng.normal(size=(members, examples, classes))
        labels = rng.integers(classes, size=examples)
        logits[:, np.arange(examples), labels] += 1.0
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), labels

    return draw
