"""The figures beside the true posterior carry the right numbers."""

import numpy as np
import pytest

from experiments.reports import posteriors

RNG = np.random.default_rng(0)


def curve(shift=0.0):
    x = np.linspace(0, 7, 11)[:, None]
    mean = np.sin(x)
    return {
        "posterior/x": x,
        "posterior/train_x": np.array([[2.0], [5.0]]),
        "posterior/train_y": np.array([[0.5], [-0.5]]),
        "posterior/mean": mean + shift,
        "posterior/band": np.stack([mean - 1, mean + 1]) + shift,
        "posterior/reference_mean": mean,
        "posterior/reference_band": np.stack([mean - 2, mean + 2]),
    }


def plane(entropy):
    x = RNG.normal(size=(9, 2))
    p = np.full((9, 3), 1 / 3)
    band = np.stack([p, p])
    return {
        "posterior/x": x,
        "posterior/train_x": RNG.normal(size=(20, 2)),
        "posterior/train_y": np.zeros(20, int),
        **{f"posterior/{a}mean": p for a in ("", "reference_")},
        **{f"posterior/{a}band": band for a in ("", "reference_")},
        "map/axes": np.tile(np.linspace(-4, 4, 6), (2, 1)),
        "map/entropy": np.full((6, 6), entropy),
        "posterior/reference_map": np.full((6, 6), 1.0),
    }


def test_a_panel_for_the_reference_and_each_method():
    metrics = [{"posterior/w1": 0.25}, {"posterior/w1": 0.5}, {}]
    read = {
        label: posteriors.read(curve(shift), metrics) for label, shift in (("a", 0.0), ("b", 0.3))
    }
    reference = read["a"][1]
    assert read["a"][0].w1 == 0.375
    figure = posteriors.posteriors({label: m for label, (m, _) in read.items()}, reference)
    panels = figure.axes
    assert [ax.get_title() for ax in panels] == ["NUTS", "a", "b"]
    assert [ax.texts[0].get_text() for ax in panels] == ["reference", *["$W_1$ 0.375"] * 2]
    for ax, shift in zip(panels[1:], (0.0, 0.3), strict=True):
        mean, low, high, true, data = (line.get_ydata() for line in ax.lines)
        np.testing.assert_allclose(mean, np.sin(reference.x[:, 0]) + shift)
        np.testing.assert_allclose(true, np.sin(reference.x[:, 0]))
        np.testing.assert_allclose(high - low, 4)
        np.testing.assert_allclose(data, [0.5, -0.5])
        filled = ax.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose(filled[:, 1].max(), 1 + mean.max(), atol=1e-6)
        assert ax.get_xlim() == (0, 7) and ax.get_ylim() == panels[0].get_ylim()


def test_planes_share_a_scale_of_entropy():
    read = [posteriors.read(plane(entropy), [{"posterior/w1": 0.1}]) for entropy in (0.0, 0.5)]
    figure = posteriors.posteriors({"a": read[0][0], "b": read[1][0]}, read[0][1])
    levels = {tuple(ax.collections[0].levels) for ax in figure.axes[:3]}
    assert len(levels) == 1
    assert np.isclose(max(levels.pop()), np.log(3), atol=1e-5)
    assert (read[0][1].entropy == 1).all() and (read[1][0].entropy == 0.5).all()


def test_what_has_no_figure():
    assert posteriors.read({"test/mean": np.zeros(3)}, []) is None
    without_map = plane(0.0)
    del without_map["posterior/reference_map"]
    assert posteriors.read(without_map, []) is None
    many = curve()
    many["posterior/mean"] = np.zeros((11, 2))
    assert posteriors.read(many, []) is None
    with pytest.raises(ValueError, match="nothing to plot"):
        posteriors.posteriors({}, posteriors.read(curve(), [{"posterior/w1": 0.1}])[1])
