"""The figures of regions of several targets carry the right numbers."""

import numpy as np
import pytest
from scipy import stats

from experiments.reports import region_figures
from experiments.reports.figures import figures
from experiments.reports.runs import Run

RNG = np.random.default_rng(0)
SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])


def arrays(K=2, D=8, examples=3, **more):
    angles = 2 * np.pi * np.arange(D) / D
    v = np.stack([np.cos(angles), np.sin(angles)], -1) if K == 2 else RNG.normal(size=(D, K))
    made = {
        "y": RNG.normal(size=(examples, 2)),
        "mean": RNG.normal(size=(examples, 2)),
        "directions": v,
        "levels": np.array([0.5, 0.75, 0.95]),
        "covered": RNG.uniform(size=(D, 3)),
        "examples": np.array(200),
        "box/outline": SQUARE + np.arange(examples)[:, None, None],
        "directional/outline": np.full((examples, 5, 2), np.nan),
        "directional/covered": RNG.uniform(size=D),
    }
    return {f"regions/{key}": value for key, value in (made | more).items()}


def test_reading_takes_arrays_of_one_seed_and_means_of_all():
    made = arrays()
    seeds = [{"regions/box/coverage": 0.8}, {"regions/box/coverage": 0.9, "regions/box/volume": 3}]
    r = region_figures.read(made, seeds)
    assert list(r.outlines) == ["box", "directional"]
    assert r.inside == {"box": pytest.approx(0.85)}
    assert r.nominal == pytest.approx(0.9) and r.examples == 200
    assert region_figures.read({"test/y": np.zeros(3)}, seeds) is None


def test_outlines_and_points_stand_where_they_are():
    made = arrays()
    r = region_figures.read(made, [{}])
    figure = region_figures.outlines({"a": r, "b": r._replace(y=r.y[:2])})
    assert len(figure.axes) == 5  # of the second label two examples
    for e, ax in enumerate(figure.axes[:3]):
        box, mean, observed = ax.lines  # a region without end is not drawn
        np.testing.assert_allclose(box.get_xydata(), np.append(SQUARE, SQUARE[:1], 0) + e)
        np.testing.assert_allclose(mean.get_xydata(), made["regions/mean"][[e]])
        np.testing.assert_allclose(observed.get_xydata(), made["regions/y"][[e]])
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["box", "predictive mean", "observed"]


def test_coverage_by_direction():
    made = arrays()
    r = region_figures.read(made, [{"regions/box/coverage": 0.876}])
    (ax,) = region_figures.coverage_by_direction({"a": r}).axes
    assert ax.get_title() == "a\ninside: box 87.6 %"
    *_, calibrated = curves = [line for line in ax.lines if len(line.get_xdata()) == 9]
    around = [*range(8), 0]
    for i, line in enumerate(curves[:3]):
        np.testing.assert_allclose(line.get_xdata(), 45 * np.arange(9), atol=1e-9)
        np.testing.assert_allclose(line.get_ydata(), 100 * made["regions/covered"][around, i])
    shares = made["regions/directional/covered"][around]
    np.testing.assert_allclose(calibrated.get_ydata(), 100 * shares)
    low, high = (np.array([f(p.get_corners()[:, 1]) for p in ax.patches]) for f in (np.min, np.max))
    levels = np.array([0.5, 0.75, 0.95])
    np.testing.assert_allclose((low + high) / 2, 100 * levels)
    std = stats.binom(200, levels).std() / 200
    np.testing.assert_allclose((high - low) / 2, 100 * stats.norm.ppf(0.975) * std)


@pytest.mark.parametrize(("K", "said"), [(2, False), (3, True)])
def test_the_report_says_what_is_a_projection(K, said):
    made = arrays(K)
    runs = {"a": [Run("a", {}, {"regions/box/coverage": 0.9}, made)]}
    entries = {entry.name: entry for entry in figures(runs)}
    assert set(entries) == {"regions", "region_coverage"}
    assert ("projections on the first two" in entries["regions"].caption) == said
    label = entries["region_coverage"].figure.axes[0].get_xlabel()
    assert ("degrees" in label) != said
