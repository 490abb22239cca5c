"""Calibration errors against np.histogram, loops and permutations."""

import itertools

import numpy as np
import pytest

from uncertainty.metrics import calibration


def ece_by_loop(confidence, correct, bins):
    total = 0.0
    for j in range(bins):
        inside = [
            (c, r)
            for c, r in zip(confidence, correct, strict=True)
            if min(int(c * bins), bins - 1) == j
        ]
        if inside:
            total += abs(sum(c for c, _ in inside) - sum(r for _, r in inside))
    return total / len(confidence)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_by_loop(predict, members, bins):
    log_p, labels = predict(members, 250, 4)
    p = np.exp(log_p).mean(0)
    expected = ece_by_loop(p.max(1), p.argmax(1) == labels, bins)
    np.testing.assert_allclose(calibration.ece(log_p, labels, bins), expected, rtol=1e-12)


def test_classwise_ece_is_the_mean_over_classes_of_one_against_the_rest(predict):
    log_p, labels = predict(2, 250, 4)
    p = np.exp(log_p).mean(0)
    expected = np.mean([ece_by_loop(p[:, k], labels == k, 15) for k in range(4)])
    np.testing.assert_allclose(calibration.classwise_ece(log_p, labels), expected, rtol=1e-12)


def test_bins_of_equal_width_are_those_of_numpy():
    rng = np.random.default_rng(0)
    confidence = np.append(rng.random(500), [0.0, 1.0, 0.5])
    correct = rng.random(503) < confidence
    b = calibration.reliability_bins(confidence, correct, 15)
    np.testing.assert_array_equal(b.edges, np.arange(16) / 15)
    np.testing.assert_array_equal(b.count, np.histogram(confidence, b.edges)[0])
    total = np.histogram(confidence, b.edges, weights=confidence)[0]
    right = np.histogram(confidence, b.edges, weights=correct.astype(float))[0]
    np.testing.assert_allclose(b.confidence * b.count, total, rtol=1e-12)
    np.testing.assert_allclose(b.accuracy * b.count, right, rtol=1e-12)


def test_edges_go_up_and_one_goes_to_the_last_bin():
    b = calibration.reliability_bins([0.0, 0.25, 0.5, 0.75, 1.0], np.ones(5), bins=4)
    np.testing.assert_array_equal(b.count, [1, 1, 1, 2])
    np.testing.assert_array_equal(b.confidence, [0.0, 0.25, 0.5, 0.875])


def test_empty_bins_have_no_mean_and_no_part_in_the_error():
    b = calibration.reliability_bins([0.05, 0.95], [0, 1], bins=10)
    np.testing.assert_array_equal(b.count, [1] + [0] * 8 + [1])
    assert np.isnan(b.accuracy[1:-1]).all() and np.isnan(b.confidence[1:-1]).all()
    log_p = np.log([[[0.95, 0.05], [0.05, 0.95]]])
    for kind in calibration.KINDS:
        np.testing.assert_allclose(calibration.ece(log_p, [0, 1], 10, kind), 0.05)


@pytest.mark.parametrize("examples", [1, 3, 44, 45, 59])
def test_bins_of_equal_mass_are_those_of_array_split(examples):
    rng = np.random.default_rng(examples)
    confidence, correct = rng.random(examples), rng.random(examples) < 0.5
    order = np.argsort(confidence)
    parts = np.array_split(order, 15)
    b = calibration.reliability_bins(confidence, correct, 15, "mass")
    np.testing.assert_array_equal(b.count, [len(part) for part in parts])
    for j, part in enumerate(parts):
        if len(part):
            np.testing.assert_allclose(b.confidence[j], confidence[part].mean(), rtol=1e-12)
            np.testing.assert_allclose(b.accuracy[j], correct[part].mean(), atol=1e-12)
            assert b.edges[j] == confidence[part].min()
    assert b.edges[-1] == confidence.max()
    assert (np.diff(b.edges) >= 0).all()


def test_ties_across_cuts_of_equal_mass_are_the_mean_over_all_orders():
    confidence = np.array([0.3, 0.6, 0.6, 0.6, 0.6, 0.9])
    correct = np.array([1, 0, 1, 1, 0, 1])
    sums = np.zeros(4)
    orders = list(itertools.permutations(range(6)))
    for order in orders:
        order = np.array(order)
        order = order[np.argsort(confidence[order], kind="stable")]
        sums += [correct[part].sum() for part in np.array_split(order, 4)]
    b = calibration.reliability_bins(confidence, correct, 4, "mass")
    np.testing.assert_allclose(b.accuracy * b.count, sums / len(orders), rtol=1e-12)


def test_calibrated_predictions_have_a_small_error_and_shifted_ones_a_known_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1.0, size=200_000)
    labels = (rng.random(len(p)) > p).astype(int)
    log_p = np.log(np.stack([p, 1 - p], -1))[None]
    for kind in calibration.KINDS:
        assert calibration.ece(log_p, labels, kind=kind) < 0.005
    high = 0.5 + (p - 0.5) / 2  # as accurate as before, with half the distance from 1/2
    log_p = np.log(np.stack([high, 1 - high], -1))[None]
    for kind in calibration.KINDS:
        np.testing.assert_allclose(calibration.ece(log_p, labels, kind=kind), 0.125, atol=0.005)


def test_wrong_input(predict):
    log_p, labels = predict(1, 5, 3)
    with pytest.raises(ValueError, match=r"'mas', but .* did you mean 'mass'"):
        calibration.ece(log_p, labels, kind="mas")
    with pytest.raises(ValueError, match=r"confidence: between -0.5 and 2, but \[0, 1\]"):
        calibration.reliability_bins([-0.5, 2.0], [0, 1])
    with pytest.raises(ValueError, match="confidence: NaN at example 1"):
        calibration.reliability_bins([0.5, np.nan], [0, 1])
    with pytest.raises(ValueError, match=r"correct: 2 at example 1, but 0 or 1"):
        calibration.reliability_bins([0.5, 0.7], [0, 2])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        calibration.reliability_bins([0.5, 0.7], [0, 1, 1])
