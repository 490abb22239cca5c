"""Ranking metrics and scores against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from uncertainty import metrics
from uncertainty.metrics import scores
from uncertainty.metrics.ranking import auroc, fpr_at_tpr


def reference(inside, outside):
    """The same by scikit-learn, whose curves have a point per threshold."""
    labels = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    joined = np.r_[inside, outside].astype(np.float64)

    def fpr95(labels, joined):
        fpr, tpr, _ = sk.roc_curve(labels, joined, drop_intermediate=False)
        return fpr[tpr >= 0.95].min()

    return {
        "auroc": sk.roc_auc_score(labels, joined),
        "aupr_out": sk.average_precision_score(labels, joined),
        "aupr_in": sk.average_precision_score(1 - labels, -joined),
        "fpr95": fpr95(labels, joined),
        "fpr95_in": fpr95(1 - labels, -joined),
    }


def check(inside, outside):
    ours, theirs = metrics.ranking(inside, outside), reference(inside, outside)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-12, atol=1e-14, err_msg=name)
        assert isinstance(ours[name], np.float64)
    assert auroc(inside, outside) == ours["auroc"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.float16])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 40), (300, 20), (57, 400)])
def test_against_scikit_learn(dtype, sizes):
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=sizes[0]), rng.normal(1.0, size=sizes[1])
    check((4 * inside).astype(dtype), (4 * outside).astype(dtype))


@pytest.mark.parametrize("values", [1, 2, 3, 10])
def test_ties_against_scikit_learn(values):
    rng = np.random.default_rng(values)
    check(rng.integers(values, size=90) / 7, rng.integers(values, size=61) / 7)


def test_perfect_and_opposite_scores():
    low, high = np.arange(20.0), np.arange(20.0, 60.0)
    best = metrics.ranking(low, high)
    assert best == {"auroc": 1, "aupr_out": 1, "aupr_in": 1, "fpr95": 0, "fpr95_in": 0}
    worst = metrics.ranking(high, low)
    assert worst["auroc"] == 0 and worst["fpr95"] == worst["fpr95_in"] == 1


def test_infinite_scores_are_ordinary_thresholds():
    inside, outside = np.array([-np.inf, 0.0, np.inf]), np.array([-np.inf, 1.0, np.inf, np.inf])
    ranks_in, ranks_out = np.array([0, 1, 3]), np.array([0, 2, 3, 3])
    assert metrics.ranking(inside, outside) == metrics.ranking(ranks_in, ranks_out)


def test_fpr_at_tpr_takes_exactly_the_fraction():
    negatives, positives = np.arange(100.0), np.arange(100.0)
    for tpr in (0.01, 0.07, 0.29, 0.95, 1.0):  # 0.07 * 100 is more than 7, 0.29 * 100 less than 29
        assert fpr_at_tpr(negatives, positives, tpr) == pytest.approx(tpr)


def test_wrong_scores():
    with pytest.raises(ValueError, match="scores_out: NaN at example 2"):
        metrics.ranking([1.0, 2.0], [1.0, 2.0, np.nan])
    with pytest.raises(ValueError, match=r"scores_in: shape \[N\] with N > 0 is expected"):
        metrics.ranking([], [1.0])
    with pytest.raises(ValueError, match=r"scores_out: shape .* got \(1, 1\)"):
        auroc([1.0], [[1.0]])
    with pytest.raises(ValueError, match=r"tpr: a fraction in \(0, 1\] is expected; got 95"):
        fpr_at_tpr([1.0], [1.0], 95)


def test_scores_are_what_they_say(predict):
    log_p, _ = predict(3, 30, 4)
    logits = log_p + 2.0
    p = np.exp(log_p).mean(0)
    found = metrics.ood_scores(log_p, logits)
    np.testing.assert_allclose(found["max_probability"], 1 - p.max(-1), rtol=1e-12)
    np.testing.assert_allclose(found["max_logit"], -logits.mean(0).max(-1), rtol=1e-12)
    for name, values in found.items():
        function = getattr(scores, name)
        of_logits = name in ("max_logit", "dempster_shafer")
        np.testing.assert_array_equal(values, function(logits if of_logits else log_p))
    p = np.exp(log_p)
    spread = [[np.std([p[m, b, k] for m in range(3)]) for k in range(4)] for b in range(30)]
    np.testing.assert_allclose(found["probability_std"], np.mean(spread, -1), rtol=1e-10)
    assert metrics.ood_scores(log_p[:1]).keys() == {"max_probability", "entropy"}


def test_evidence_is_that_of_dempster_and_shafer():
    logits = np.random.default_rng(0).normal(0, 5, (3, 40, 7))
    expected = (7 / (7 + np.exp(logits).sum(-1))).mean(0)
    np.testing.assert_allclose(scores.dempster_shafer(logits), expected, rtol=1e-12)
    extremes = scores.dempster_shafer([[[1e4, 0.0], [-1e4, -1e4], [0.0, 0.0]]])
    np.testing.assert_allclose(extremes, [0.0, 1.0, 0.5])


def test_epistemic_variance_is_a_mean_over_members_and_classes():
    variance = np.random.default_rng(0).uniform(size=(3, 40, 7))
    found = metrics.ood_scores(np.log(np.full((3, 40, 7), 1 / 7)), None, variance)
    np.testing.assert_allclose(found["epistemic_variance"], variance.mean((0, 2)), rtol=1e-12)
    shared = scores.epistemic_variance(variance[..., :1])
    np.testing.assert_allclose(shared, variance[..., 0].mean(0), rtol=1e-12)
    with pytest.raises(ValueError, match=r"variance: .* is negative"):
        scores.epistemic_variance(-variance)
    with pytest.raises(ValueError, match=r"variance: \[members, examples, classes\]"):
        scores.epistemic_variance(variance[0])
    with pytest.raises(ValueError, match="logits: NaN at example 1"):
        scores.dempster_shafer([[[0.0, 1.0], [np.nan, 0.0]]])


def test_max_probability_tells_confident_examples_apart():
    miss = np.array([1e-20, 1e-25, 1e-30])
    log_p = np.stack([-miss, np.log(miss)], -1)[None].astype(np.float32)
    np.testing.assert_allclose(scores.max_probability(log_p), miss, rtol=1e-6)


def test_wrong_logits():
    logits = np.zeros((2, 3, 4))
    logits[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="logits: NaN at example 2"):
        scores.max_logit(logits)
    with pytest.raises(ValueError, match="logits:"):
        scores.max_logit(logits[0])
