"""Points of the cost figure: means over seeds, on a logarithmic axis."""

import numpy as np

from experiments.reports import costs
from experiments.reports.figures import figures
from experiments.reports.study import Column, Row, Study

TRAIN, PREDICT = "cost/train_flops_per_example", "cost/predict_flops_per_example"


def study(n=9):
    rows = [
        Row(
            f"row {i}",
            [{costs.QUALITY: 0.3 + i / 100 + s / 1000, PREDICT: 1e6 * (i + 1)} for s in range(3)],
        )
        for i in range(n)
    ]
    rows[0].results = [r | {TRAIN: 3e6} for r in rows[0].results]
    return Study("title", [Column(costs.QUALITY, "NLL", better="lower")], [*rows, Row("empty")])


def test_every_row_is_a_point_of_its_own_look():
    found = study()
    assert set(costs.costed(found)) == {PREDICT}  # one row alone has the other
    (ax,) = costs.quality_against_cost(found, costs.costed(found)).axes
    assert ax.get_xscale() == "log" and len(ax.containers) == 9
    drawn = set()
    for i, bar in enumerate(ax.containers):
        (x,), (y,) = bar.lines[0].get_data()
        values = 0.3 + i / 100 + np.arange(3) / 1000
        assert (x, y) == (1e6 * (i + 1), values.mean())
        (segment,) = bar.lines[2][0].get_segments()
        error = values.std(ddof=1) / np.sqrt(3)
        np.testing.assert_allclose(segment[:, 1], [values.mean() - error, values.mean() + error])
        drawn.add((bar.lines[0].get_color(), bar.lines[0].get_marker()))
    assert len(drawn) == 9


def test_a_report_has_it_where_rows_have_costs():
    assert "cost" in [entry.name for entry in figures({}, study())]
    assert "cost" not in [entry.name for entry in figures({}, study(1))]
