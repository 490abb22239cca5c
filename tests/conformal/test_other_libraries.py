"""Numbers that MAPIE 1.6.0, crepes 0.9.1 and TorchCP 1.2.1 gave for the same examples.

TorchCP's u is 1 - u here, but for the most probable class in its calibration of SAPS, which has u:
its SAPS is compared by the scores of all classes.
"""

import numpy as np

from uncertainty.conformal import aps, lac, raps, saps, split


def classes(seed, B):
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(B, 5))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return np.log(p), (rng.random((B, 1)) > p.cumsum(1)[:, :-1]).sum(1)


def test_classes_of_mapie():
    log_p, labels = classes(0, 200)
    test, _ = classes(1, 100)
    # SplitConformalClassifier(conformity_score='lac', confidence_level=.9): quantiles_, and sets
    fitted = lac(log_p, labels)
    np.testing.assert_allclose(fitted.quantile, 0.90658748, atol=5e-9)
    sets = fitted(test)
    assert sets.sum() == 292
    expected = [[1, 1, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 1], [0, 0, 1, 1, 0]]
    np.testing.assert_array_equal(sets[:5], expected)
    # conformity_score='aps', random_state=0: quantiles_; its draws are subtracted.
    u = 1 - np.random.RandomState(0).uniform(size=200)
    np.testing.assert_allclose(aps(log_p, labels, u=u).quantile, 0.895162, atol=5e-7)


def test_classes_of_torchcp():
    log_p, labels = classes(0, 200)
    test, _ = classes(1, 100)
    # RAPS(randomized=False, penalty=.1, kreg=1) and SAPS(randomized=False, weight=.2): the 181st
    # score of the labels, and the classes of the test examples with scores up to it. Their penalty
    # is in float32.
    fitted = raps(log_p, labels, randomised=False, penalty=0.1, free=1)
    np.testing.assert_allclose(fitted.quantile, 1.1124208960169348, rtol=1e-7)
    sets = fitted(test)
    assert sets.sum() == 255
    np.testing.assert_array_equal(sets[:3], [[1, 1, 0, 0, 1], [1, 0, 1, 1, 0], [1, 1, 0, 1, 0]])
    fitted = saps(log_p, labels, randomised=False, penalty=0.2)
    np.testing.assert_allclose(fitted.quantile, 1.0030791397065282, rtol=1e-7)
    sets = fitted(test)
    assert sets.sum() == 283
    np.testing.assert_array_equal(sets[:3], [[1, 1, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 0, 1, 0]])


def test_targets_of_crepes():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=200), np.exp(0.3 * rng.normal(size=200))
    y, groups = mean + std * rng.normal(size=200), rng.integers(3, size=200)
    mean, std, y = mean[:, None], std[:, None], y[:, None]
    # ConformalRegressor().fit(y - mean, ...), predict_int(mean[:2], confidence=.9, ...)
    intervals = {
        "standard": split(mean, y)(mean[:2]),
        "sigmas": split(mean, y, std)(mean[:2], std[:2]),
        "bins": split(mean, y, by="group", groups=groups)(mean[:2], groups=groups[:2]),
    }
    theirs = {
        "standard": [[-1.59703108, 1.84849152], [-1.85486617, 1.59065644]],
        "sigmas": [[-1.15727068, 1.40873112], [-1.43454169, 1.17033197]],
        "bins": [[-1.56734524, 1.81880569], [-1.82518033, 1.5609706]],
    }
    for name, ends in intervals.items():
        np.testing.assert_allclose(np.concatenate(ends, -1), theirs[name], atol=1e-8)
