"""Calibration errors against np.histogram, loops and permutations."""

import itertools
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from uncertainty.metrics import _arrays, calibration


def ece_by_loop(confidence, correct, bins):
    total = 0.0
    for j in range(bins):
        inside = [
            (c, r)
            for c, r in zip(confidence, correct, strict=True)
            if j / bins <= c and (c < (j + 1) / bins or j == bins - 1)
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@hypothesis.given(bins=st.integers(1, 3000), p=st.lists(st.floats(0, 1, width=32), max_size=20))
def test_every_number_is_between_the_edges_of_its_bin(dtype, bins, p):
    # Edges are exact fractions, rounded once; they and their neighbours are the hardest numbers.
    edges = np.array([float(Fraction(j, bins)) for j in range(bins + 1)]).astype(dtype)
    beside = [np.nextafter(edges, dtype(to)) for to in (-1, 2)]
    p = np.concatenate([edges, *beside, np.array(p, dtype)])
    p = p[(p >= 0) & (p <= 1)]
    index = _arrays.bin_index(p, bins)
    inside = (edges[index] <= p) & ((p < edges[index + 1]) | (index == bins - 1))
    assert inside.all(), p[~inside]
    np.testing.assert_array_equal(np.bincount(index, minlength=bins), np.histogram(p, edges)[0])
    np.testing.assert_array_equal(_arrays.bin_index(np.stack([p, p]).T, bins).T, [index] * 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_decimal_is_in_the_bin_that_begins_with_it(dtype):
    for digits in (1, 2, 3):
        bins = 10**digits
        decimals = np.array([f"{j / bins:.{digits}f}" for j in range(bins)], dtype)
        np.testing.assert_array_equal(_arrays.bin_index(decimals, bins), np.arange(bins))
    confidence = np.repeat(np.array([0.29, 0.285], dtype), 10)
    b = calibration.reliability_bins(confidence, np.repeat([1, 0], 10), bins=100)
    assert b.count[29] == b.count[28] == 10
    error = np.nansum(b.count / 20 * np.abs(b.confidence - b.accuracy))
    np.testing.assert_allclose(error, (0.71 + 0.285) / 2, rtol=1e-6)


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
