"""The figure of classes by experts carries the right numbers."""

import numpy as np
import pytest

from experiments.reports import routing_figures
from experiments.reports.figures import figures
from experiments.reports.runs import Run, study_of

RNG = np.random.default_rng(0)


def scores(members=2, classes=5, experts=4, layers=("block01", "block03")):
    made = {
        f"routing/{name}/share": RNG.uniform(size=(3, members, classes, experts)) for name in layers
    }
    return made | {f"routing/{name}/load": np.ones((3, members, experts)) for name in layers}


def test_reading_takes_a_particle_of_one_seed_and_means_of_all():
    made = scores()
    seeds = [
        {"routing/block01/mutual_information": 0.25, "routing/block01/dropped": 0.1},
        {"routing/block01/mutual_information": 0.75},
    ]
    layers = routing_figures.read(made, seeds)
    assert list(layers) == ["block01", "block03"]
    np.testing.assert_array_equal(layers["block03"].share, made["routing/block03/share"][0])
    assert layers["block01"].numbers == {"mutual_information": 0.5, "dropped": 0.1}
    assert layers["block03"].numbers == {}
    assert routing_figures.read({"test/entropy": np.zeros(3)}, seeds) == {}


def test_members_stand_side_by_side_in_percent():
    layers = routing_figures.read(
        scores(),
        [
            {
                "routing/block01/mutual_information": 0.256,
                "routing/block01/dropped": 0.031,
                "routing/block01/load_min": 0.5,
                "routing/block01/load_max": 2.0,
            }
        ],
    )
    wide = routing_figures.read(scores(30, 5, 8, ("block01",)), [{}])
    figure = routing_figures.classes_by_experts({"E3": layers, "many": wide})
    panels = [ax for ax in figure.axes if ax.images and ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["block01", "block03", "block01"]
    drawn = np.asarray(panels[0].images[0].get_array())
    assert drawn.shape == (5, 8)
    for m in range(2):
        for k in range(5):
            row = layers["block01"].share[m, k]
            np.testing.assert_allclose(drawn[k, 4 * m : 4 * m + 4], 100 * row / row.sum())
    assert [line.get_xdata()[0] for line in panels[0].lines] == [3.5]
    assert panels[0].get_xlabel() == "expert\n$I$ 0.26 nats · dropped 3.1 %\nload 0.50 to 2.00"
    assert panels[0].images[0].get_clim() == panels[1].images[0].get_clim()
    assert panels[0].images[0].get_clim()[0] == 0
    assert [label.get_text() for label in panels[0].get_xticklabels()] == list("01230123")
    assert np.asarray(panels[2].images[0].get_array()).shape == (5, 96)  # 12 members have room


def test_the_report_has_it_where_runs_have_experts():
    metrics = {"classification/accuracy": 0.5, "routing/block01/mutual_information": 0.5}
    runs = {
        label: [Run(label, {"seed": 0}, metrics, made)]
        for label, made in (("E3", scores()), ("ViT", {}))
    }
    study = study_of([run for of in runs.values() for run in of], "Summary")
    entries = {entry.name: entry for entry in figures(runs, study)}
    panels = [ax for ax in entries["routing"].figure.axes if ax.get_title()]
    assert len(panels) == 2 and panels[0].get_ylabel() == "E3\nclass"
    assert "routing" not in {entry.name for entry in figures({"ViT": runs["ViT"]}, study)}


def test_nothing_to_plot_says_so():
    with pytest.raises(ValueError, match="no data"):
        routing_figures.classes_by_experts({})
