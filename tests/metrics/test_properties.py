"""Properties on hard predictions: ties, empty bins, one class, one example, float extremes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from uncertainty import metrics
from uncertainty.metrics import (
    calibration,
    classification,
    information,
    selective,
    streaming,
)

FEW = [-np.inf, -1e30, -800.0, -30.0, -1.0, 0.0, 0.0, 1.0, 30.0, 800.0]  # so that many tie


@st.composite
def predictions(draw, least=1, most=14):
    """log_p [M, B, K] of float32 or float64, labels [B]."""
    M, B, K = draw(st.tuples(st.integers(1, 4), st.integers(least, most), st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    few = draw(st.booleans())
    logits = rng.choice(FEW, (M, B, K)) if few else 2 * rng.normal(size=(M, B, K))
    top = logits.max(-1, keepdims=True)
    logits = np.where(top < -1e29, 0.0, logits - np.where(top < -1e29, 0.0, top))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p.astype(draw(st.sampled_from([np.float32, np.float64]))), rng.integers(K, size=B)


def by_loops(log_p, labels):
    """Metrics in plain Python, one example, class and pair of members after another."""
    M, B, K = log_p.shape
    log_p = log_p.astype(np.float64)
    out = dict.fromkeys(("accuracy", "nll", "member_nll", "brier", "entropy", "expected"), 0.0)
    out |= {"disagreement": 0.0, "kl": 0.0}
    for b in range(B):
        each = [[float(np.exp(log_p[m, b, k])) for k in range(K)] for m in range(M)]
        p = [sum(each[m][k] for m in range(M)) / M for k in range(K)]
        y = labels[b]
        guesses = log_p[0, b] if M == 1 else p
        out["accuracy"] += max(range(K), key=lambda k: guesses[k]) == y
        at = [log_p[m, b, y] for m in range(M)]
        out["member_nll"] -= sum(at) / M
        high = max(at)
        if high == -np.inf:
            out["nll"] = np.inf
        else:
            out["nll"] -= high + math.log(math.fsum(math.exp(a - high) for a in at) / M)
        out["brier"] += math.fsum((p[k] - (k == y)) ** 2 for k in range(K))
        out["entropy"] -= math.fsum(q * math.log(q) for q in p if q > 0)
        for q, log_q in zip(each, log_p[:, b], strict=True):
            out["expected"] -= (
                math.fsum(v * lv for v, lv in zip(q, log_q, strict=True) if v > 0) / M
            )
        for m in range(M):
            for n in range(M):
                if m != n:
                    pairs = M * (M - 1)
                    out["disagreement"] += (log_p[m, b].argmax() != log_p[n, b].argmax()) / pairs
                    for k in range(K):
                        if each[m][k] > 0:
                            difference = log_p[m, b, k] - log_p[n, b, k]
                            out["kl"] += each[m][k] * difference / pairs
    return {name: value / B for name, value in out.items()}


@settings(max_examples=100, deadline=None)
@given(predictions(), st.integers(1, 20))
def test_everything_at_once_is_the_single_functions_and_the_loops(drawn, bins):
    log_p, labels = drawn
    M = len(log_p)
    found = metrics.evaluate_classification(log_p, labels, bins)
    confidence, correct = calibration.top_label(log_p, labels)
    parts = classification.brier_decomposition(log_p, labels, bins)
    expected = {
        "classification/accuracy": classification.accuracy(log_p, labels),
        "classification/nll": classification.nll(log_p, labels),
        "classification/member_nll": classification.member_nll(log_p, labels),
        "classification/brier": classification.brier(log_p, labels),
        "calibration/ece": calibration.ece(log_p, labels, bins),
        "calibration/ece_mass": calibration.ece(log_p, labels, bins, "mass"),
        "calibration/ece_classwise": calibration.classwise_ece(log_p, labels, bins),
        "calibration/brier_reliability": parts["reliability"],
        "calibration/brier_resolution": parts["resolution"],
        "calibration/brier_uncertainty": parts["uncertainty"],
        "selective/aurc": selective.aurc(confidence, correct),
        "selective/excess_aurc": selective.excess_aurc(confidence, correct),
        "uncertainty/entropy": information.entropy(log_p).mean(),
    }
    loops = by_loops(log_p, labels)
    compared = {
        "classification/accuracy": loops["accuracy"],
        "classification/nll": loops["nll"],
        "classification/member_nll": loops["member_nll"],
        "classification/brier": loops["brier"],
        "uncertainty/entropy": loops["entropy"],
    }
    if M > 1:
        expected |= {
            "uncertainty/mutual_information": information.mutual_information(log_p).mean(),
            "uncertainty/disagreement": information.disagreement(log_p),
            "uncertainty/pairwise_kl": information.pairwise_kl(log_p),
        }
        compared |= {
            "uncertainty/mutual_information": loops["entropy"] - loops["expected"],
            "uncertainty/disagreement": loops["disagreement"],
            "uncertainty/pairwise_kl": loops["kl"],
        }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)
    for name, value in compared.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)
    finite = {k: v for k, v in found.items() if not k.endswith(("nll", "pairwise_kl"))}
    assert all(math.isfinite(v) for v in finite.values())
    assert not any(math.isnan(v) for v in found.values())


@settings(max_examples=60, deadline=None)
@given(predictions(), st.integers(1, 20))
def test_identities_and_bounds(drawn, bins):
    log_p, labels = drawn
    M, _, K = log_p.shape
    parts = classification.brier_decomposition(log_p, labels, bins)
    brier = classification.brier(log_p, labels)
    total = parts["uncertainty"] - parts["resolution"] + parts["reliability"]
    total += parts["within_bin_variance"] - parts["within_bin_covariance"]
    np.testing.assert_allclose(total, brier, rtol=1e-12, atol=1e-12)
    # From here 1e-6 is left for rows of float32, which sum to 1 only up to 1e-7.
    assert 0 <= brier <= 2 + 1e-6
    assert classification.nll(log_p, labels) <= classification.member_nll(log_p, labels) + 1e-12
    for kind in calibration.KINDS:
        assert 0 <= calibration.ece(log_p, labels, bins, kind) <= 1 + 1e-6
    entropy = information.entropy(log_p)
    assert (entropy >= 0).all() and (entropy <= np.log(K) + 1e-6).all()
    information_ = information.mutual_information(log_p)
    assert (information_ >= 0).all()
    assert (information_ <= np.minimum(entropy, np.log(M)) + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(predictions(least=2, most=25), st.integers(1, 20), st.data())
def test_streaming_any_partition_in_any_order_is_one_pass(drawn, bins, data):
    log_p, labels = drawn
    M, B, K = log_p.shape
    order = np.array(data.draw(st.permutations(range(B))))
    cuts = sorted(data.draw(st.sets(st.integers(1, B - 1), max_size=4)))
    accs = []
    for part in np.split(order, cuts):
        acc = streaming.init(M, K, bins)
        half = len(part) // 2
        for rows in (part[:half], part[half:]):  # two updates, then merges
            if len(rows):
                acc = streaming.update(acc, log_p[:, rows], labels[rows])
        accs.append(acc)
    while len(accs) > 1:
        i = data.draw(st.integers(0, len(accs) - 2))
        accs[i : i + 2] = [streaming.merge(accs[i + 1], accs[i])]
    found = streaming.result(accs[0])
    everything = metrics.evaluate_classification(log_p, labels, bins)
    assert found.keys() == {k for k in everything if "mass" not in k and "aurc" not in k}
    for name, value in found.items():
        np.testing.assert_allclose(value, everything[name], rtol=1e-11, atol=1e-13, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(predictions(), st.randoms())
def test_the_order_of_examples_and_members_does_not_matter(drawn, random):
    log_p, labels = drawn
    M, B, _ = log_p.shape
    b, m = random.sample(range(B), B), random.sample(range(M), M)
    found = metrics.evaluate_classification(log_p[m][:, b], labels[b])
    for name, value in metrics.evaluate_classification(log_p, labels).items():
        if M < 3:  # the sum of three members' probabilities is rounded differently, ties break
            np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)


scores = st.lists(
    st.one_of(st.integers(-2, 2).map(float), st.floats(allow_nan=False, width=32)), min_size=1
).map(np.array)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(scores, scores)
def test_ranking_is_scikit_learns(inside, outside):
    labels = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    # scikit-learn refuses infinite scores; only their order matters.
    ranks = np.unique(np.r_[inside, outside], return_inverse=True)[1].astype(float)
    found = metrics.ranking(inside, outside)
    np.testing.assert_allclose(found["auroc"], sk.roc_auc_score(labels, ranks), atol=1e-14)
    for name, positive, sign in (("aupr_out", labels, 1), ("aupr_in", 1 - labels, -1)):
        expected = sk.average_precision_score(positive, sign * ranks)
        np.testing.assert_allclose(found[name], expected, atol=1e-14)
    mirrored = metrics.ranking(-outside, -inside)
    for name, other in (("auroc", "auroc"), ("aupr_out", "aupr_in"), ("fpr95", "fpr95_in")):
        np.testing.assert_allclose(found[name], mirrored[other], atol=1e-14)


def test_streaming_refuses_what_does_not_fit(predict):
    log_p, labels = predict(2, 6, 3)
    acc = streaming.init(2, 3)
    with pytest.raises(ValueError, match="no examples have been seen"):
        streaming.result(acc)
    with pytest.raises(ValueError, match="2 members and 3 classes are expected; got 1 and 3"):
        streaming.update(acc, log_p[:1], labels)
    with pytest.raises(ValueError, match=r"\(2, 3, 15\) and \(2, 3, 10\) do not match"):
        streaming.merge(acc, streaming.init(2, 3, bins=10))
    with pytest.raises(ValueError, match="members: at least 1"):
        streaming.init(0, 3)
    before = streaming.update(acc, log_p, labels)
    bins = before.bins.copy()
    streaming.update(before, log_p, labels)
    np.testing.assert_array_equal(before.bins, bins)  # an accumulator never changes


@pytest.mark.parametrize("members", [1, 3])
def test_per_example(predict, members):
    log_p, labels = predict(members, 40, 4)
    p = np.exp(log_p).mean(0)
    found = metrics.per_example(log_p.astype(np.float32), labels)
    np.testing.assert_array_equal(found["prediction"], p.argmax(-1))
    np.testing.assert_array_equal(found["label"], labels)
    np.testing.assert_allclose(found["confidence"], p.max(-1), rtol=1e-5)
    np.testing.assert_allclose(found["log_p_label"], np.log(p[np.arange(40), labels]), rtol=1e-5)
    np.testing.assert_allclose(found["entropy"], information.entropy(log_p), rtol=1e-5)
    assert ("mutual_information" in found) == (members > 1)
    assert {v.dtype for v in found.values()} == {np.dtype(np.float32), np.dtype(np.int32)}
    assert metrics.per_example(log_p).keys() == found.keys() - {"label", "log_p_label"}
