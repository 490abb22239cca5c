"""The figure of pairs of kinds of members."""

import numpy as np

from experiments.reports.kinds_figures import kinds, of_kinds


def test_pairs_are_drawn_where_they_are():
    def seed(shift):
        return {
            "kinds/a+b/disagreement": 0.2 + shift, "kinds/a+b/accuracy_4": 0.5,
            "kinds/a+b/accuracy_2": 0.8 + shift, "kinds/a+a/disagreement": 0.1,
            "kinds/a+a/accuracy_2": 0.7, "kinds/a/member_accuracy": 0.6, "kinds/b+b/nll_2": 1.0,
        }  # fmt: skip

    tested = of_kinds({"x": [seed(0.0), seed(0.02)], "y": [{"classification/nll": 1.0}], "z": []})
    assert list(tested) == ["x"] and list(tested["x"]) == ["a+b", "a+a"]
    np.testing.assert_allclose(tested["x"]["a+b"], [[20, 80], [22, 82]])
    figure = kinds(tested)
    (ax,) = figure.axes
    points = [line.get_xydata() for line in ax.lines]
    np.testing.assert_allclose(points[0], [[20, 80], [22, 82]])
    np.testing.assert_allclose(points[1], [[21, 81]])
    np.testing.assert_allclose(points[3], [[10, 70]])
    assert ax.lines[3].get_markerfacecolor() == "white" != ax.lines[1].get_markerfacecolor()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a+b", "a+a"]
