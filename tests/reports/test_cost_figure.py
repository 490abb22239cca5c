"""The figure of a table's metrics against a cost: a line for each label, through its groups."""

import numpy as np
import pytest

from experiments.reports.study import Column, Row, Study
from tools import cost_figure

COST, NLL = "cost/parameters", "joint/nll"


def study():
    def row(group, label, cost, values):
        return Row(f"{group}: {label}", [{COST: cost, NLL: v} for v in values], group=group)

    rows = [
        row("large", "a", 4e6, (0.1, 0.3)),
        row("small", "a", 1e6, (0.5,)),
        row("large", "b", 5e6, (0.2, 0.2)),
        Row("large: empty", [{COST: 1.0}], group="large"),
    ]
    return Study("title", [Column(COST, "Parameters", "M"), Column(NLL, "NLL")], rows)


def test_a_label_is_a_line_through_its_groups_by_cost():
    found = cost_figure.points(study(), COST, NLL)
    assert {label: [point.cost for point in line] for label, line in found.items()} == {
        "a": [1.0, 4.0], "b": [5.0],
    }  # fmt: skip
    assert [point.metric.mean for point in found["a"]] == [0.5, pytest.approx(0.2)]
    figure = cost_figure.figure(study(), COST, [NLL, COST])
    ax, _ = figure.axes
    x, y = ax.containers[0].lines[0].get_data()
    np.testing.assert_allclose(np.array([x, y], float), [[1, 4], [0.5, 0.2]])
    (_, segment) = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(np.ptp(segment[:, 1]), 2 * 0.1)  # sd / sqrt(2) on both sides
    with pytest.raises(ValueError, match="'joint/none' is no column"):
        cost_figure.points(study(), COST, "joint/none")
