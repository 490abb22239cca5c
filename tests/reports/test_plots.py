"""Figures carry the right numbers; nothing here looks at pixels."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from experiments.reports import curves, plots, regression_figures, style
from experiments.reports.study import Column, Row, Study
from experiments.scoring import forest
from experiments.scoring.compare import Interval
from tools import ood_figure

RNG = np.random.default_rng(0)
B = 400
CONFIDENCE = RNG.uniform(0.1, 1, B)
CORRECT = RNG.uniform(size=B) < CONFIDENCE**2
HALVES = [(CONFIDENCE[:150], CORRECT[:150]), (CONFIDENCE[150:], CORRECT[150:])]
METHODS = {"a": HALVES, "b": [(CONFIDENCE[::-1], CORRECT)]}  # two seeds and one


def legend(figure):
    (outside,) = figure.legends
    return [text.get_text() for text in outside.get_texts()]


def loop_ece(confidence, correct, bins):
    total = 0.0
    for j in range(bins):
        inside = [k for k in range(len(correct)) if j / bins <= confidence[k] < (j + 1) / bins]
        total += abs(sum(confidence[k] - correct[k] for k in inside))
    return total / len(correct)


def test_reliability_diagram():
    figure = plots.reliability_diagram(METHODS, bins=5)
    curve, counts = figure.axes
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    for i, (label, seeds) in enumerate(METHODS.items()):
        confidence, correct = (np.concatenate(arrays) for arrays in zip(*seeds, strict=True))
        means, accuracies, numbers = [], [], []
        for j in range(5):
            inside = [k for k in range(B) if j / 5 <= confidence[k] < (j + 1) / 5]
            numbers.append(len(inside))
            means.append(sum(confidence[k] for k in inside) / len(inside))
            accuracies.append(sum(bool(correct[k]) for k in inside) / len(inside))
        faint, solid = curve.containers[2 * i : 2 * i + 2]
        np.testing.assert_allclose(np.asarray(faint.lines[0].get_xdata(), float) / 100, means)
        np.testing.assert_allclose(np.asarray(faint.lines[0].get_ydata(), float) / 100, accuracies)
        enough = np.array(numbers) / len(seeds) >= plots.FEW
        shown = np.isfinite(np.asarray(solid.lines[0].get_ydata(), float))
        np.testing.assert_array_equal(shown, enough)
        bars = faint.lines[2][0].get_segments()
        for bar, accuracy, n in zip(bars, accuracies, numbers, strict=True):
            one = n / len(seeds)  # the examples of a seed are those of the others
            if one.is_integer() and (accuracy * one).is_integer():
                test = stats.binomtest(round(accuracy * one), round(one))
                interval = test.proportion_ci(0.95, method="wilson")
                np.testing.assert_allclose(bar[:, 1] / 100, interval, rtol=1e-6)
            low, high = bar[:, 1] / 100  # its ends p are at |accuracy - p| = z sqrt(p (1 - p) / n)
            for end in (low, high):
                z = abs(accuracy - end) / np.sqrt(end * (1 - end) / one)
                np.testing.assert_allclose(z, stats.norm.ppf(0.975), rtol=1e-6)
        np.testing.assert_allclose(counts.patches[i].get_data().values, numbers)
        ece = np.mean([loop_ece(*seed, 5) for seed in seeds])
        assert f"{label}, ECE {100 * ece:.2f} %" in names


def test_reliability_diagram_of_one_example():
    figure = plots.reliability_diagram({"one": [(np.array([1.0]), np.array([True]))]})
    assert figure.legends[0].get_texts()[1].get_text() == "one, ECE 0.00 %"
    (bar,) = figure.axes[0].containers[0].lines[2][0].get_segments()
    z = stats.norm.ppf(0.975)  # one success: Wilson's is [1 / (1 + z^2), 1]
    np.testing.assert_allclose(bar, [[100, 100 / (1 + z**2)], [100, 100]])


def test_confidence_histogram_counts_right_and_wrong():
    (ax, other) = plots.confidence_histogram(METHODS, bins=10).axes
    assert (ax.get_title(), other.get_title()) == ("a", "b")
    heights = [patch.get_height() for patch in ax.containers[0]]
    expected = np.histogram(CONFIDENCE[CORRECT], np.linspace(0, 1, 11))[0]
    np.testing.assert_array_equal(heights, expected)


@pytest.mark.slow
def test_ood_histograms():
    inside, outside = RNG.normal(size=200), RNG.normal(1, 1, 300)
    methods = {
        "a": [(inside, {"mnist": outside, "kmnist": outside + 1})],
        "b": [(inside, {"mnist": inside}), (inside, {"mnist": inside + 100})],
    }
    figure = plots.ood_histograms(methods)
    titles = [ax.get_title() for ax in figure.axes]
    labels = np.r_[np.zeros(200), np.ones(300)]
    for title, out in zip(titles, (outside, outside + 1), strict=False):
        area = roc_auc_score(labels, np.r_[inside, out])
        precision = 100 * average_precision_score(labels, np.r_[inside, out])
        false, true, _ = roc_curve(labels, np.r_[inside, out])
        fpr = 100 * false[(true >= 0.95).argmax()]
        assert f"AUROC {100 * area:.1f} %\nAUPR {precision:.1f} %, FPR95 {fpr:.1f} %" in title
    assert titles[2].startswith("b\nmnist: AUROC 75.0 %\n") and len(titles) == 3  # b has no kmnist
    for container in figure.axes[0].containers:
        assert np.isclose(sum(p.get_height() * p.get_width() for p in container), 1)


def test_risk_coverage_curves():
    figure = plots.risk_coverage_curves({"a": [(CONFIDENCE, CORRECT)]})
    ax = figure.axes[0]
    order = sorted(range(B), key=lambda i: -CONFIDENCE[i])
    risks, wrong = [], 0
    for kept, i in enumerate(order, 1):
        wrong += not CORRECT[i]
        risks.append(100 * wrong / kept)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), 100 * np.arange(1, B + 1) / B)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), risks)
    assert legend(figure) == [f"a, AURC {np.mean(risks):.2g} %"]


def test_a_seldom_wrong_method_is_shown_where_it_errs():
    correct = np.arange(1000) < 968  # in order of confidence
    ax = plots.risk_coverage_curves({"a": [(np.linspace(1, 0, 1000), correct)]}).axes[0]
    assert ax.get_xlim() == (90, 100)
    ax = plots.risk_coverage_curves({"a": [(np.linspace(1, 0, 1000), correct[::-1])]}).axes[0]
    assert ax.get_xlim() == (0, 100)
    ax = plots.risk_coverage_curves({"a": [(np.ones(5), np.ones(5))]}).axes[0]
    assert ax.get_xlim() == (90, 100)


def test_long_risk_coverage_curves_keep_both_ends():
    confidence, correct = RNG.uniform(size=5001), RNG.uniform(size=5001) < 0.7
    x, y = plots.risk_coverage_curves({"a": [(confidence, correct)]}).axes[0].lines[0].get_data()
    assert len(x) == 2000 and x[0] == 100 / 5001 and x[-1] == 100
    assert np.isclose(y[-1], 100 * (1 - correct.mean()))


def test_smoothing_is_the_mean_of_windows():
    steps, values = np.arange(10, 80, 10), np.array([1, 3, 5, 7, 9, 11, 20.0])
    x, y = curves.smooth(steps, values, 3)
    np.testing.assert_array_equal(x, [30, 60, 70])
    np.testing.assert_allclose(y, [3, 9, 20])
    x, y = curves.smooth(steps, values, 1)
    np.testing.assert_array_equal(x, steps)
    np.testing.assert_array_equal(y, values)


def test_training_curves():
    steps = range(10, 10 * 601, 10)
    members = {f"loss/{m}": [1 + m / 10 + 9 / (1 + i) for i in range(600)] for m in range(2)}
    history = [{"step": s, **{k: v[i] for k, v in members.items()}} for i, s in enumerate(steps)]
    for line in history:
        line["loss"] = (line["loss/0"] + line["loss/1"]) / 2
        line["ensemble_loss"] = line["loss"] - 0.1
    history[99]["validation/classification/nll"] = 0.5
    single = [{"step": s, "loss": 2.0} for s in (1, 2, 3)]
    first, second = curves.training_curves({"two": history, "one": single}).axes
    drawn = {line.get_label(): line for line in first.lines}
    assert {"2 members", "their mean", "ensemble", "validation NLL"} <= drawn.keys()
    loss = np.array([line["loss"] for line in history]).reshape(-1, 2).mean(1)
    np.testing.assert_allclose(drawn["their mean"].get_ydata(), loss)
    np.testing.assert_allclose(drawn["ensemble"].get_ydata(), loss - 0.1)
    np.testing.assert_array_equal(drawn["their mean"].get_xdata(), list(steps)[1::2])
    np.testing.assert_array_equal(drawn["validation NLL"].get_data(), [[1000], [0.5]])
    assert first.get_xlabel() == "step (means of 2 logged steps)"
    assert second.get_xlabel() == "step"
    np.testing.assert_array_equal(second.lines[0].get_data(), [[1, 2, 3], [2, 2, 2]])
    assert first.get_yscale() == second.get_yscale() == "log"


def test_loss_of_both_signs_is_linear():
    history = [{"step": i, "loss": 5.0 - i} for i in range(10)]
    assert curves.training_curves({"a": history}).axes[0].get_yscale() == "linear"


def test_corruption_curves():
    def metrics(shift):
        values = {
            f"corruption/{k}/{s}/nll": s + i + shift for i, k in enumerate("ab") for s in (1, 3)
        }
        return {"classification/nll": 0.2 + shift, "corruption/nll": 9.0, **values}

    figure = curves.corruption_curves({"m": [metrics(0.0), metrics(0.4)]}, {"nll": ("NLL", 1.0)})
    container = figure.axes[0].containers[0]
    x, y = np.asarray(container.lines[0].get_data(), float)
    np.testing.assert_array_equal(x, [0, 1, 3])
    np.testing.assert_allclose(y, [0.4, 1.7, 3.7])
    half = [(s[1, 1] - s[0, 1]) / 2 for s in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(half, np.std([0, 0.4], ddof=1) / np.sqrt(2))


def test_comparison():
    columns = [Column("x", "X", "%", "higher"), Column("y", "Y"), Column("z", "Z", "", "lower")]
    rows = [
        Row("a", [{"x": 0.5, "y": 1}, {"x": 0.7, "y": 1}]),
        Row("b", [{"x": 0.9}], {"x": (91.0, "README")}),
        Row("c", failed="why"),
    ]
    (ax,) = curves.comparison(Study("", columns, rows)).axes  # y has no direction, z no values
    assert ax.get_title() == "X (%) ↑"
    a, b = ax.containers
    np.testing.assert_allclose(np.asarray(a.lines[0].get_data(), float), [[60], [0]])
    np.testing.assert_allclose(np.asarray(b.lines[0].get_data(), float), [[90], [1]])
    segment = a.lines[2][0].get_segments()[0]
    np.testing.assert_allclose(segment[:, 0], [50, 70])  # s / sqrt(2) of 50 and 70 is 10
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), [[91, 1]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]  # c has nothing


def prediction(members=3, n=50):
    x = RNG.permutation(np.linspace(-2, 2, n))
    mean = np.sin(x) + RNG.normal(0, 0.1, (members, 1))
    return regression_figures.Prediction(
        RNG.normal(np.sin(x), 0.2), mean, np.full_like(mean, 0.04), x
    )


def test_predictive_band():
    p = prediction()
    ax = regression_figures.predictive_band({"a": p}).axes[0]
    order = np.argsort(p.x)
    second_moment = (p.mean**2 + p.variance).mean(0)
    deviation = np.sqrt(second_moment - p.mean.mean(0) ** 2)
    mean = next(line for line in ax.lines if line.get_label() == "mean")
    np.testing.assert_allclose(mean.get_data(), [p.x[order], p.mean.mean(0)[order]])
    for width, band in zip((2, 1), ax.collections, strict=True):
        vertices = band.get_paths()[0].vertices
        middle = np.abs(vertices[:, 0] - p.x[order][20]) < 1e-12
        low, high = vertices[middle, 1].min(), vertices[middle, 1].max()
        np.testing.assert_allclose(high - low, 2 * width * deviation[order][20])


def test_predictive_band_on_a_grid_shows_the_test_points_too():
    p, grid = prediction(), prediction(n=70)
    ax = regression_figures.predictive_band({"a": p._replace(grid=grid)}).axes[0]
    lines = {line.get_label(): line for line in ax.lines}
    order = np.argsort(grid.x)
    np.testing.assert_allclose(lines["mean"].get_data(), [grid.x[order], grid.mean.mean(0)[order]])
    np.testing.assert_allclose(lines["test points"].get_data(), [p.x, p.y])


def test_interval_calibration_of_one_gaussian():
    p = prediction(members=1, n=200)
    line = regression_figures.interval_calibration({"a": p}).axes[0].lines[1]
    for level, observed in zip(line.get_xdata(), line.get_ydata(), strict=True):
        low, high = stats.norm.interval(level / 100, p.mean[0], np.sqrt(p.variance[0]))
        assert observed == pytest.approx(100 * np.mean((low <= p.y) & (p.y <= high)))


def test_predictions_against_targets_and_their_widths_in_units_of_y():
    p = prediction(members=3, n=100)
    p = p._replace(variance=RNG.uniform(0.1, 2, p.variance.shape))
    mean, variance = p.mean.mean(0), p.variance.mean(0) + p.mean.var(0)
    ax = regression_figures.predicted_against_true({"a": p}).axes[0]
    np.testing.assert_allclose(ax.containers[0].lines[0].get_data(), [p.y, mean])
    segments = np.array(ax.containers[0].lines[2][0].get_segments())
    np.testing.assert_allclose(np.ptp(segments[..., 1], axis=1), 2 * np.sqrt(variance))
    rmse = np.sqrt(np.mean((p.y - mean) ** 2))
    assert ax.get_title().endswith(f"RMSE {rmse:.3g}") and "units of y" in ax.get_xlabel()
    ax = regression_figures.sharpness({"a": p}, bins=10).axes[0]
    heights = np.histogram(np.sqrt(variance), 10)[0]
    np.testing.assert_array_equal(ax.patches[0].get_xy()[1:-1:2, 1], heights)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(rmse)


def apart(texts, figure):
    """Whether no two of these texts of a figure overlap."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


LONG = "A large ensemble of wide networks of many kinds, with a temperature and much more"


def test_long_labels_do_not_overlap():
    names = [f"{LONG} {i}" for i in range(4)]
    column = Column("x", f"{LONG} of", "%", "lower")
    rows = [Row(name, [{"x": float(i)}]) for i, name in enumerate(names)]
    pairs = [(name, names[0]) for name in names[1:]]
    intervals = {(a, "x"): Interval(a, b, "x", 0.1, 0.0, 0.2) for a, b in pairs}
    for figure in (
        curves.comparison(Study("", [column], rows)),
        forest.differences(pairs, [column], intervals),
    ):
        (ax,) = figure.axes
        assert apart(ax.get_yticklabels(), figure)
        assert ax.get_title().endswith(" (%) ↓")


def test_titles_of_panels_and_legends_do_not_overlap():
    figure = plots.confidence_histogram({f"{LONG} {i}": HALVES for i in range(4)})
    assert apart([ax.title for ax in figure.axes], figure)
    figure = plots.risk_coverage_curves({f"{LONG[:40]} {i}": HALVES for i in range(8)})
    figure.draw_without_rendering()
    (outside,), (ax,) = figure.legends, figure.axes
    assert not outside.get_window_extent().overlaps(ax.get_window_extent())
    assert ax.get_window_extent().height > 2 * figure.dpi  # the figure has grown by the legend


def test_looks_tell_many_methods_apart():
    found = style.looks(str(i) for i in range(25)).values()
    assert len({(look["color"], look["linestyle"]) for look in found}) == 25
    assert style.looks(["a", "b", "a"]).keys() == {"a", "b"}


def test_nothing_to_plot():
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.confidence_histogram({})


def test_the_figure_of_ood_scores_has_the_names_of_the_table():
    names = {"mahalanobis": "Mahalanobis", "layers_mahalanobis": "Mahalanobis, 3 layers"}
    columns = [
        Column(f"ood/dtd/auroc_{key}", f"AUROC DTD subset, {name}") for key, name in names.items()
    ]
    rows = [Row("a", [{c.key: 0.5 + i for i, c in enumerate(columns)}])]
    found = ood_figure.values(Study("", columns, rows), ["a"])
    assert found == {"DTD subset": {"a": {"Mahalanobis": 0.5, "Mahalanobis, 3 layers": 1.5}}}
    (ax,) = ood_figure.figure(found).axes
    assert ax.get_title() == "DTD subset"
    assert [label.get_text() for label in ax.get_yticklabels()] == list(names.values())
