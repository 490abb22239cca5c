"""The figure of uncertainties over a plane carries the right numbers."""

import numpy as np
import pytest

from experiments.reports import maps

RNG = np.random.default_rng(0)
G = 6


def scores(**uncertainties):
    axes = np.stack([np.linspace(-2, 2, G), np.linspace(0, 4, G)])
    x, blob = RNG.normal(size=(50, 2)), RNG.normal(size=(9, 2))
    found = {"map/axes": axes, "map/x": x, "map/y": np.arange(50) % 3, "map/far/x": blob}
    found["map/p"] = RNG.dirichlet(np.ones(3), (G, G))
    return found | {f"map/{name}": value for name, value in uncertainties.items()}


def test_reading_takes_arrays_of_one_seed_and_means_of_all():
    made = scores(entropy=RNG.uniform(size=(G, G)))
    seeds = [
        {"map/far/entropy": 1.0, "map/in/entropy": 0.25, "map/in/auroc_entropy": 0.9, "ood/x": 1},
        {"map/far/entropy": 0.5, "map/in/entropy": 0.75},
    ]
    m = maps.read(made, seeds)
    assert m.groups == {"in": {"entropy": 0.5}, "far": {"entropy": 0.75}}
    assert list(m.groups) == ["in", "far"]  # OOD sets last
    assert m.ood.keys() == {"far"} and m.uncertainties.keys() == {"entropy"}
    np.testing.assert_array_equal(m.ood["far"], made["map/far/x"])
    np.testing.assert_array_equal(m.p, made["map/p"])
    assert maps.read({"test/entropy": np.zeros(3)}, seeds) is None


@pytest.fixture(scope="module")
def figure():
    entropy, noise, distance = RNG.uniform(0, 1, (3, G, G))
    metrics = [{"map/in/entropy": 0.256, "map/far/entropy": 1.0, "map/in/epistemic_std": 3.0}]
    return maps.maps(
        {
            "plain": maps.read(scores(entropy=entropy), metrics),
            "small": maps.read(scores(entropy=entropy / 2, noise_std=noise / 9), metrics),
            "both": maps.read(
                scores(entropy=entropy, noise_std=noise, epistemic_std=5 * distance), metrics
            ),
        }
    )


def test_a_row_for_each_uncertainty_and_a_column_for_each_method(figure):
    panels = np.array(figure.axes[:12]).reshape(4, 3)
    assert [ax.get_title() for ax in panels[0]] == ["plain", "small", "both"]
    for ax in panels.flat:
        assert ax.get_xlim() == (-2, 2) and ax.get_ylim() == (0, 4)
    assert panels[1, 0].get_xlabel() == "in 0.26  far 1.00"
    assert panels[2, 0].get_xlabel() == panels[3, 1].get_xlabel() == "none"
    assert panels[3, 2].get_xlabel() == "in 3.00"


def test_methods_share_a_scale_from_zero(figure):
    panels = np.array(figure.axes[:12]).reshape(4, 3)
    for line in panels[1:]:
        (levels,) = {tuple(ax.collections[0].levels) for ax in line}
        assert levels[0] == 0
    assert panels[1, 0].collections[0].levels[-1] == pytest.approx(np.log(3), abs=1e-5)
    assert panels[3, 2].collections[0].levels[-1] >= 4  # of 5 U(0, 1), 36 times


def test_noise_is_shown_against_its_largest(figure):
    panels = np.array(figure.axes[:12]).reshape(4, 3)
    small, both = (ax.collections[0] for ax in panels[2, 1:])
    for a, b in zip(small.get_paths(), both.get_paths(), strict=True):
        np.testing.assert_allclose(a.vertices, b.vertices, rtol=1e-6)  # one is 9 times the other


def test_colours_are_those_of_the_classes():
    made = scores(entropy=np.zeros((G, G)))
    made["map/p"] = np.eye(3)[RNG.integers(0, 3, (G, G))]
    ax = maps.maps({"a": maps.read(made, [{}])}).axes[0]
    image, points, black = ax.images[0], *ax.collections
    assert image.get_extent() == [-2.4, 2.4, -0.4, 4.4]  # pixels lie around the grid's points
    colors = (image.get_array() - 0.45) / 0.55
    for (i, j), k in np.ndenumerate(made["map/p"].argmax(-1)):
        same = np.flatnonzero(made["map/y"] == k)[0]
        np.testing.assert_allclose(colors[i, j], points.get_facecolors()[same][:3], atol=1e-6)
    np.testing.assert_array_equal(points.get_offsets(), made["map/x"])
    np.testing.assert_array_equal(black.get_offsets(), made["map/far/x"])


def test_thinning_keeps_both_ends():
    assert maps.thinned(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4]
    found = maps.thinned(np.arange(1001), 11)
    assert found.tolist() == list(range(0, 1001, 100))


def test_nothing_to_plot():
    with pytest.raises(ValueError, match="nothing to plot"):
        maps.maps({})
