"""Accuracy, likelihood and Brier score against scikit-learn and loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sk

from uncertainty import metrics
from uncertainty.metrics import _arrays, classification, streaming


@pytest.mark.parametrize("members", [1, 4])
def test_against_scikit_learn(predict, members):
    log_p, labels = predict(members, 300, 6)
    p, classes = np.exp(log_p).mean(0), np.arange(6)
    np.testing.assert_allclose(
        classification.accuracy(log_p, labels), sk.accuracy_score(labels, p.argmax(1))
    )
    np.testing.assert_allclose(
        classification.nll(log_p, labels), sk.log_loss(labels, p, labels=classes), rtol=1e-12
    )
    for k in (1, 2, 6, 9):
        expected = sk.top_k_accuracy_score(labels, p, k=k, labels=classes) if k < 6 else 1.0
        np.testing.assert_allclose(classification.top_k_accuracy(log_p, labels, k), expected)
    one_against_rest = sum(sk.brier_score_loss(labels == k, p[:, k]) for k in range(6))
    np.testing.assert_allclose(classification.brier(log_p, labels), one_against_rest, rtol=1e-12)


def test_member_nll_is_the_mean_over_members_and_at_least_the_mixtures(predict):
    log_p, labels = predict(5, 80, 3)
    each = [classification.nll(log_p[m : m + 1], labels) for m in range(5)]
    np.testing.assert_allclose(classification.member_nll(log_p, labels), np.mean(each), rtol=1e-12)
    assert classification.nll(log_p, labels) < np.mean(each)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_in_memory_changes_no_metric(predict, members, dtype):
    log_p, labels = predict(members, 70, 5)
    log_p = log_p.astype(dtype)
    expected = metrics.evaluate_classification(log_p, labels)
    p = np.exp(log_p.astype(np.float64)).mean(0)
    each = ((p - np.eye(5)[labels]) ** 2).sum(1)
    np.testing.assert_allclose(expected["classification/brier"], each.mean(), rtol=1e-6)
    permuted = log_p[..., [4, 0, 3, 1, 2]][..., [1, 3, 4, 2, 0]]
    transposed = np.swapaxes(np.swapaxes(log_p, 1, 2).copy(), 1, 2)
    for other in (np.asfortranarray(log_p), permuted, transposed):
        assert not other.flags.c_contiguous and np.array_equal(other, log_p)
        assert metrics.evaluate_classification(other, labels) == expected
        assert classification.brier(other, labels) == classification.brier(log_p, labels)
        np.testing.assert_allclose(classification.briers(other, labels), each, rtol=1e-6)


def test_first_of_equal_classes_is_predicted():
    log_p = np.log(np.full((1, 4, 4), 0.25))
    labels = np.arange(4)
    assert classification.accuracy(log_p, labels) == 0.25
    assert [classification.top_k_accuracy(log_p, labels, k) for k in (1, 2, 3, 4)] == [
        0.25,
        0.5,
        0.75,
        1.0,
    ]


def test_argmax_is_numpys_on_few_and_many_classes():
    rng = np.random.default_rng(0)
    for classes in (1, 2, 10, 64, 65, 300):
        x = rng.integers(0, 4, size=(50, classes)).astype(np.float32)  # many ties
        np.testing.assert_array_equal(_arrays.argmax(x), x.argmax(1))


def brier_parts(p, labels, bins):
    """The five parts of the Brier score by loops over classes, bins and examples."""
    parts = dict.fromkeys(
        (
            "uncertainty",
            "resolution",
            "reliability",
            "within_bin_variance",
            "within_bin_covariance",
        ),
        0.0,
    )
    B, K = p.shape
    for k in range(K):
        event = [float(y == k) for y in labels]
        overall = math.fsum(event) / B
        parts["uncertainty"] += overall * (1 - overall)
        groups = {}
        for forecast, happened in zip(p[:, k], event, strict=True):
            groups.setdefault(min(int(forecast * bins), bins - 1), []).append((forecast, happened))
        for group in groups.values():
            n = len(group)
            f, o = (math.fsum(column) / n for column in zip(*group, strict=True))
            parts["resolution"] += n * (o - overall) ** 2 / B
            parts["reliability"] += n * (f - o) ** 2 / B
            parts["within_bin_variance"] += sum((g[0] - f) ** 2 for g in group) / B
            parts["within_bin_covariance"] += 2 * sum((g[0] - f) * (g[1] - o) for g in group) / B
    return parts


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_brier_decomposition_by_loops_and_its_identity(predict, bins):
    log_p, labels = predict(3, 120, 4)
    parts = classification.brier_decomposition(log_p, labels, bins)
    expected = brier_parts(np.exp(log_p).mean(0), labels, bins)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-10, atol=1e-14, err_msg=name)
    total = (
        parts["uncertainty"]
        - parts["resolution"]
        + parts["reliability"]
        + parts["within_bin_variance"]
        - parts["within_bin_covariance"]
    )
    np.testing.assert_allclose(total, classification.brier(log_p, labels), rtol=1e-12)


def test_brier_decomposition_has_murphys_three_parts_when_forecasts_repeat():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])[np.arange(40) % 2]
    labels = np.random.default_rng(0).integers(3, size=40)
    parts = classification.brier_decomposition(np.log(p)[None], labels, bins=10)
    np.testing.assert_allclose(
        parts["uncertainty"] - parts["resolution"] + parts["reliability"],
        classification.brier(np.log(p)[None], labels),
        rtol=1e-12,
    )


def test_brier_score_of_nearly_certain_predictions_keeps_its_digits():
    wrong = 1e-12
    log_p = np.array([[[np.log1p(-wrong), np.log(wrong)]]])
    np.testing.assert_allclose(classification.brier(log_p, [0]), 2 * wrong**2, rtol=1e-9)


def test_label_of_probability_zero():
    log_p = np.array([[[0.0, -np.inf]], [[np.log(0.5), np.log(0.5)]]])
    np.testing.assert_allclose(classification.nll(log_p, [1]), -np.log(0.25))
    assert classification.member_nll(log_p, [1]) == np.inf
    assert classification.nll(log_p[:1], [1]) == np.inf
    assert classification.brier(log_p[:1], [1]) == 2.0
    tiny = np.full((2, 1, 2), -2000.0)
    tiny[:, :, 0] = 0.0
    assert classification.nll(tiny, [1]) == 2000.0  # exp(-2000) is 0 in float64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, "bfloat16", np.float64, np.int32])
def test_types_of_arrays(predict, dtype):
    log_p, labels = predict(2, 20, 3)
    x = jnp.asarray(log_p).astype(dtype) if dtype == "bfloat16" else log_p.astype(dtype)
    x = np.minimum(x, 0) if dtype != "bfloat16" else x
    exact = np.asarray(x).astype(np.float64)
    for y in (labels, jnp.asarray(labels), labels.tolist(), labels.astype(np.uint64)):
        np.testing.assert_allclose(
            classification.brier(x, y), classification.brier(exact, labels), rtol=1e-12
        )
        value = classification.nll(x, y)
        assert isinstance(value, np.float64)
        np.testing.assert_allclose(value, classification.nll(exact, labels), rtol=1e-12)


def test_threads_and_chunks_change_nothing_but_rounding(predict, monkeypatch):
    log_p, labels = predict(3, 700, 4)
    once = classification.brier_decomposition(log_p, labels)
    accuracy = classification.accuracy(log_p, labels)
    monkeypatch.setattr(_arrays, "CHUNK", 16 * 3 * 4)
    assert classification.accuracy(log_p, labels) == accuracy
    many = classification.brier_decomposition(log_p, labels)
    for name, value in once.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-11)


@pytest.mark.parametrize("chunk", [1 << 16, 1])
def test_what_is_wrong_and_where(predict, monkeypatch, chunk):
    monkeypatch.setattr(_arrays, "CHUNK", chunk)
    log_p, labels = predict(3, 200, 5)

    def message(log_p, labels):
        with pytest.raises(ValueError) as error:
            classification.nll(log_p, labels)
        return str(error.value)

    bad = log_p.copy()
    bad[2, 171, 3] = np.nan
    assert message(bad, labels) == "log_p: NaN at member 2, example 171, class 3"
    bad[2, 171, 3] = 4.5
    assert "4.5, not a log-probability" in message(bad, labels)
    assert "member 2, example 171, class 3" in message(bad, labels)
    for wrong in (5, -1):
        bad = labels.copy()
        bad[97] = wrong
        assert f"{wrong} at example 97, but log_p has 5 classes: 0 to 4" in message(log_p, bad)
    assert "(200,) is expected, as log_p has 200 examples; got (199,)" in message(log_p, labels[1:])
    assert "integers are expected; got float64" in message(log_p, labels * 1.0)
    assert "[members, examples, classes]" in message(log_p[0], labels)
    assert "(3, 0, 5)" in message(log_p[:, :0], labels[:0])


def test_logits_are_refused_and_independent_classes_are_not_if_asked(predict, monkeypatch):
    monkeypatch.setattr(_arrays, "CHUNK", 1)
    log_p, labels = predict(2, 200, 5)
    logits = log_p.copy()
    logits[1, 171] -= 0.1  # all negative, as log-probabilities are
    why = "sum to 0.904837 at member 1, example 171, but 1 is expected .*normalised=False"
    for refuse in (
        lambda: metrics.evaluate_classification(logits, labels),
        lambda: streaming.update(streaming.init(2, 5), logits, labels),
    ):
        with pytest.raises(ValueError, match=why):
            refuse()
    each = np.log(1 / (1 + np.exp(-3 * np.random.default_rng(0).normal(size=(2, 200, 5)))))
    found = metrics.evaluate_classification(each, labels, normalised=False)
    acc = streaming.update(streaming.init(2, 5), each, labels, normalised=False)
    assert streaming.result(acc)["classification/nll"] == found["classification/nll"]
    # Sums of float32 and of half precision are near enough to 1.
    for dtype in (np.float32, np.float16):
        metrics.evaluate_classification(log_p.astype(dtype), labels)


@pytest.mark.parametrize("members", [1, 3])
def test_independent_classes_are_bernoulli_variables(members):
    rng = np.random.default_rng(0)
    log_p = special.log_expit(2 * rng.normal(size=(members, 40, 5)))
    labels = rng.integers(5, size=40)
    p = np.exp(log_p)
    p[..., 0], log_p[..., 0] = 0.0, -np.inf  # 0 log 0 = 0
    labels[labels == 0] = 1
    q = p.mean(0)

    def nll(p):
        return sum(sk.log_loss(labels == k, p[:, k], labels=[False, True]) for k in range(1, 5))

    def entropies(p):
        return stats.entropy(np.stack([p, 1 - p])).sum(-1)

    found = metrics.evaluate_classification(log_p, labels, normalised=False)
    expected = dict(classification__nll=nll(q), uncertainty__entropy=entropies(q).mean())
    expected["classification__member_nll"] = np.mean([nll(one) for one in p])
    expected["classification__brier"] = np.sum((q - np.eye(5)[labels]) ** 2) / 40
    information = np.zeros(40)
    if members > 1:
        pairs = [(a, b) for i, a in enumerate(p) for j, b in enumerate(p) if i != j]
        kl = [special.rel_entr(a, b) + special.rel_entr(1 - a, 1 - b) for a, b in pairs]
        information = entropies(q) - np.mean([entropies(one) for one in p], axis=0)
        expected["uncertainty__pairwise_kl"] = np.mean([each.sum(-1) for each in kl])
        expected["uncertainty__mutual_information"] = information.mean()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name.replace("__", "/")], value, rtol=1e-9, err_msg=name)
    example = metrics.per_example(log_p, labels, normalised=False)
    np.testing.assert_allclose(-example["log_p_label"].mean(), nll(q), rtol=1e-5)
    np.testing.assert_allclose(example["entropy"], entropies(q), rtol=1e-5)
    scores = metrics.ood_scores(log_p, normalised=False)
    np.testing.assert_allclose(scores["entropy"], entropies(q), rtol=1e-9)
    if members > 1:
        np.testing.assert_allclose(scores["mutual_information"], information, rtol=1e-7)


def test_every_class_at_once_is_no_good_prediction():
    """As log p(label) alone would say."""
    labels = np.arange(10)
    all_classes, good = np.full((1, 10, 10), 0.999), np.full((1, 10, 10), 0.05)
    good[0, labels, labels] = 0.95
    for p, nll in ((all_classes, -np.log(0.999) - 9 * np.log(0.001)), (good, -10 * np.log(0.95))):
        found = metrics.evaluate_classification(np.log(p), labels, normalised=False)
        np.testing.assert_allclose(found["classification/nll"], nll, rtol=1e-9)
    certain = np.log([[[1.0, 1e-30, 0.5], [1.0, 0.5, 0.5]]])
    found = metrics.per_example(certain, [0, 1], normalised=False)["log_p_label"]
    np.testing.assert_allclose(found, [np.log(0.5), -np.inf], rtol=1e-6)


def test_wrong_options(predict):
    log_p, labels = predict(1, 4, 3)
    with pytest.raises(ValueError, match="k: at least 1 is expected; got 0"):
        classification.top_k_accuracy(log_p, labels, 0)
    for bins in (0, 2.5):
        with pytest.raises(ValueError, match="bins: an integer of at least 1"):
            classification.brier_decomposition(log_p, labels, bins)
