"""Predictions of a known distribution, and files of them."""

import csv
import io

import numpy as np
from scipy import special

K = 4


def logits(seed, members=3, examples=60, classes=K, y=None):
    rng = np.random.default_rng(seed)
    u = rng.normal(0, 1.5, (members, examples, classes))
    if y is not None:
        u[:, np.arange(examples), y] += 1.5
    return u


def labels(seed=0, examples=60, classes=K):
    return np.random.default_rng((seed, 1)).integers(0, classes, examples)


def probs(*args, **kwargs):
    return special.softmax(logits(*args, **kwargs), -1)


def saved(path, **arrays):
    """An archive; `ood__far__probs` is ood/far/probs."""
    np.savez(path, **{key.replace("__", "/"): value for key, value in arrays.items()})
    return str(path)


def table(head, rows):
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    return text.getvalue()
