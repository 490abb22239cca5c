"""Smooth, adaptive, debiased and maximum calibration errors; by class and group; rejection."""

import numpy as np
import pytest
from scipy import integrate, stats

from uncertainty.metrics import calibration, selective, smooth


def drawn(seed, examples, power):
    """Confidences, and whether they were right: calibrated for the power 1."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(examples)
    return confidence, rng.random(examples) < confidence**power


def test_smooth_error_is_the_integral_of_the_smoothed_residuals():
    confidence, correct = drawn(0, 20, 2.0)
    error = smooth.at_bandwidth(confidence, correct)
    t = np.linspace(0, 1, 4_001)
    for bandwidth in (0.02, 0.1, 0.4):
        images = [confidence + 2 * j for j in range(-1, 3)] + [
            2 * j - confidence for j in range(-1, 3)
        ]
        kernel = sum(stats.norm.pdf(t[:, None], image, bandwidth) for image in images)
        smoothed = np.abs(kernel @ (correct - confidence)) / 20
        np.testing.assert_allclose(error(bandwidth), integrate.trapezoid(smoothed, t), rtol=1e-5)


def test_smooth_error_is_its_own_bandwidth():
    for power in (0.5, 1.0, 3.0):
        confidence, correct = drawn(1, 800, power)
        value = smooth.smooth_ece(confidence, correct)
        np.testing.assert_allclose(
            smooth.at_bandwidth(confidence, correct)(value), value, atol=1e-7
        )
    assert smooth.smooth_ece(np.ones(5), np.ones(5)) == 0.0
    for examples in (5, 10, 64, 100, 999):
        value = smooth.smooth_ece(np.ones(examples), np.zeros(examples))
        np.testing.assert_allclose(value, 1.0, rtol=1e-6)
        zeros = smooth.smooth_ece(np.zeros(examples), np.ones(examples))
        np.testing.assert_allclose(zeros, 1.0, rtol=1e-6)
    np.testing.assert_allclose(smooth.smooth_ece(np.full(4, 0.5), [0, 0, 1, 1]), 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("seed", "examples", "power", "theirs"),
    # relplot 1.0.3, without logit scaling, on 20,001 mesh points: smECE. It normalises the density
    # on the mesh, with 1e-4 added, hence the tolerance.
    [(0, 500, 1.0, 0.0338188), (1, 2000, 2.0, 0.1593748), (2, 300, 0.5, 0.1521236)],
)
def test_smooth_error_of_relplot(seed, examples, power, theirs):
    ours = smooth.smooth_ece(*drawn(seed, examples, power))
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


def test_debiased_error_by_loop_and_without_bias_on_average():
    confidence, correct = drawn(3, 200, 2.0)
    order = np.argsort(confidence)
    total = 0.0
    for part in np.array_split(order, 15):
        a = correct[part].mean()
        total += len(part) * ((confidence[part].mean() - a) ** 2 - a * (1 - a) / (len(part) - 1))
    expected = np.sqrt(max(total / 200, 0))
    np.testing.assert_allclose(
        calibration.debiased_error(confidence, correct), expected, rtol=1e-12
    )
    # A calibrated forecast of one value: the plain square is its variance, the debiased one 0.
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(2000):
        a = (rng.random(20) < 0.7).mean()
        squares.append([(0.7 - a) ** 2, (0.7 - a) ** 2 - a * (1 - a) / 19])
    plain, debiased = np.mean(squares, 0)
    assert plain > 0.009 and abs(debiased) < 6e-4  # 0.7 * 0.3 / 20 = 0.0105
    with pytest.raises(ValueError, match="15 for 3 examples"):
        calibration.debiased_error(confidence[:3], correct[:3])


def test_maximum_error_by_numpy():
    confidence, correct = drawn(4, 300, 2.0)
    index = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs((confidence - correct)[index == j].mean()) for j in range(10)]
    np.testing.assert_allclose(calibration.mce(confidence, correct, 10), max(gaps), rtol=1e-12)


def test_adaptive_and_classwise_errors_by_loop(predict):
    log_p, labels = predict(2, 240, 4)
    p = np.exp(log_p).mean(0)
    adaptive, classes = [], []
    for k in range(4):
        residual = p[:, k] - (labels == k)
        parts = np.array_split(np.argsort(p[:, k], kind="stable"), 15)
        adaptive.append(sum(abs(residual[part].sum()) for part in parts) / 240)
        index = np.histogram_bin_edges([0, 1], 15, (0, 1))
        place = np.clip(np.searchsorted(index, p[:, k], side="right") - 1, 0, 14)
        classes.append(np.abs(np.bincount(place, residual, 15)).sum() / 240)
    np.testing.assert_allclose(calibration.adaptive_ece(log_p, labels), np.mean(adaptive))
    np.testing.assert_allclose(calibration.classwise(log_p, labels), classes)


def test_intervals_of_classes_hold_the_error_of_the_population():
    # Classes 0 and 1 have the probability .5 for all, and the frequency .8: an error of .3 each.
    # Resamples of one bin vary as the frequency does, so the interval is the binomial's.
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(60):
        labels = (rng.random(100) < 0.2).astype(int)
        log_p = np.log(np.full((1, 100, 2), 0.5))
        low, high = calibration.classwise_intervals(log_p, labels, level=0.9, seed=seed)
        np.testing.assert_allclose(low[0], low[1], atol=1e-12)
        inside += low[0] <= 0.3 <= high[0]
        width = 2 * 1.645 * np.sqrt(labels.mean() * (1 - labels.mean()) / 100)
        assert abs(high[0] - low[0] - width) < 0.4 * width
    assert 46 <= inside <= 60  # 54 expected


def test_groups_are_apart():
    confidence, correct = drawn(5, 90, 1.5)
    groups = np.repeat([2, 7, 7], 30)
    values = calibration.by_group(confidence, correct, groups)
    assert list(values) == [2, 7]
    own = confidence[30:], correct[30:]
    assert values[7]["examples"] == 60
    bins = calibration.reliability_bins(*own)
    ece = np.nansum(bins.count * np.abs(bins.confidence - bins.accuracy)) / 60
    np.testing.assert_allclose(values[7]["ece"], ece, rtol=1e-12)
    np.testing.assert_allclose(values[7]["overconfidence"], own[0].mean() - own[1].mean())


def test_rejection_by_loop():
    confidence, correct = drawn(6, 50, 1.0)
    order = np.argsort(-confidence)
    errors = np.cumsum(~correct[order])
    np.testing.assert_allclose(selective.augrc(confidence, correct), errors.mean() / 50)
    rejected, accuracy = selective.accuracy_rejection(confidence, correct)
    np.testing.assert_allclose(rejected, np.arange(50) / 50, atol=1e-12)
    for j in (0, 10, 49):
        np.testing.assert_allclose(accuracy[j], correct[order[: 50 - j]].mean())
    for risk in (0.0, 0.1, 0.3, 1.0):
        allowed = [k for k in range(1, 51) if errors[k - 1] / k <= risk]
        expected = max(allowed, default=0) / 50
        assert selective.coverage_at_risk(confidence, correct, risk) == expected
