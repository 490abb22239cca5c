"""Exact draws are exact, distances are what they say, and the program writes what it finds."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats

from studies import densities, sampling
from tests.uncertainty.posteriors import p_values
from uncertainty.inference.directions.svgd import svgd
from uncertainty.optimisers.optimiser import adam, optimiser
from uncertainty.optimisers.samplers import sghmc

LEVEL = 1e-3  # of every test; the seeds are fixed
RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(7, 2)) * [2.0, 3.0]


def test_draws_of_the_gaussian_have_its_moments_and_its_density():
    density = densities.gaussian()
    mean, covariance = np.array([-0.68, 0.80]), np.array([[1.1, 0.8], [0.8, 3.35]])
    draws = density.draw(np.random.default_rng(1), 5000)
    assert min(p_values(draws, mean, covariance)) > LEVEL
    known = scipy.stats.multivariate_normal(mean, covariance).logpdf(POINTS)
    found = np.asarray(density.log_density(jnp.asarray(POINTS)))
    np.testing.assert_allclose(found - found[0], known - known[0], rtol=1e-4)
    summary = density.summary(draws)
    assert summary["mean_error"] < 0.1 and summary["covariance_error"] < 0.1
    twice = density.summary(mean + 2**0.5 * (draws - mean))
    assert twice["variance_ratio"] == pytest.approx(2 * summary["variance_ratio"])


def test_draws_of_the_funnel_have_its_conditionals_and_its_density():
    density = densities.funnel()
    draws = density.draw(np.random.default_rng(1), 5000)
    x, y = draws.T
    assert scipy.stats.kstest(y / 3, "norm").pvalue > LEVEL
    assert scipy.stats.kstest(x * np.exp(-y / 2), "norm").pvalue > LEVEL
    assert scipy.stats.spearmanr(x * np.exp(-y / 2), y).pvalue > LEVEL
    x, y = POINTS.T
    norm = scipy.stats.norm
    known = norm.logpdf(y, 0, 3) + norm.logpdf(x, 0, np.exp(y / 2))
    found = np.asarray(density.log_density(jnp.asarray(POINTS)))
    np.testing.assert_allclose(found - found[0], known - known[0], rtol=1e-4)
    summary = density.summary(draws)
    assert summary["neck"] == pytest.approx(norm.cdf(-1), abs=0.02)
    assert summary["y_std"] == pytest.approx(3, abs=0.1)


def test_the_mmd_is_the_double_sum():
    distances = densities.Distances(densities.gaussian(), n=40)
    x = distances.draws

    def k(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * 0.5**2))

    own = np.mean([k(a, b) for a in POINTS for b in POINTS])
    cross = np.mean([k(a, b) for a in POINTS for b in x])
    within = np.mean([k(x[i], x[j]) for i in range(40) for j in range(40) if i != j])
    assert distances.mmd(POINTS) == pytest.approx(np.sqrt(own - 2 * cross + within))


def test_the_mmd_of_exact_draws_is_that_of_their_number():
    density = densities.gaussian()
    distances = densities.Distances(density, n=4000)
    # E mmd^2 = (1 - E k(x, x')) / P, and E k of a Gaussian is |I + 2 C / s^2|^(-1/2)
    expected = 1 - np.linalg.det(np.eye(2) + 2 * densities.COVARIANCE / 0.5**2) ** -0.5
    draws = density.draw(np.random.default_rng(1), 50 * 40).reshape(50, 40, 2)
    squares = [distances.mmd(z) ** 2 for z in draws]
    error = np.std(squares) / np.sqrt(50) + 1e-3  # the latter of the 4000 draws
    assert np.mean(squares) == pytest.approx(expected / 40, abs=3 * error)


def test_the_sliced_distance_is_an_optimal_assignment():
    density = densities.gaussian()
    distances = densities.Distances(density, n=14)
    wanted, angles = [], np.pi * (np.arange(32) + 0.5) / 32
    for angle in angles:
        d = np.array([np.cos(angle), np.sin(angle)])
        cost = np.abs((np.repeat(POINTS, 2, axis=0) @ d)[:, None] - (distances.draws @ d)[None])
        wanted.append(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert distances.w1(POINTS) == pytest.approx(np.mean(wanted))
    # a shift by t costs |t . d|, on average 2 / pi |t|
    shifted = distances.w1(distances.draws + [3.0, 4.0])
    assert shifted == pytest.approx(5 * 2 / np.pi, rel=1e-3)


@pytest.mark.parametrize(
    ("target", "mode"), [("gaussian", [-0.68, 0.80]), ("funnel", [0.0, -4.5])], ids=str
)
def test_particles_by_themselves_go_to_the_mode_and_begin_where_they_should(target, mode):
    density = densities.DENSITIES[target]()._replace(size=100, steps=400)
    inference = sampling.particles(densities.as_model(density), optimiser(adam(), 0.1), size=100)
    start = np.asarray(inference.init(jax.random.key(0), sampling.BATCH["x"]).params["z"])
    mean, std = density.start
    assert min(p_values(start.astype(np.float64), np.array(mean), std**2 * np.eye(2))) > LEVEL
    with sampling.Progress(400, show=False) as progress:
        (z,), _, lost = sampling.sample(
            density, sampling.Method(optimiser(adam(), 0.1)), [0], progress
        )
    # The median, as the neck of the funnel is so steep that Adam throws a particle out at times.
    np.testing.assert_allclose(np.median(z, axis=0), mode, atol=0.05)
    assert np.mean(np.abs(z - mode) > 0.05) < 0.05
    assert lost == 0


@pytest.mark.slow
def test_the_reference_adapts_by_one_chain_and_draws_by_all():
    density = densities.gaussian()._replace(size=400)
    (z,), (seconds,) = sampling.by_nuts(density, [0], steps=10, warmup=200)
    assert z.shape == (400, 2) and seconds > 0
    assert min(p_values(z, densities.MEAN, densities.COVARIANCE)) > LEVEL


def test_a_method_that_fails_is_reported_and_the_others_are_not():
    chosen = {
        "diverges": sampling.Method(optimiser(optax.identity(), 10.0)),
        "cannot be": sampling.Method(optimiser(sghmc(), 0.1), svgd),
        "works": sampling.Method(optimiser(adam(), 0.1)),
    }
    study, _, _, shown = sampling.compare("gaussian", chosen, [0], False, True)
    rows = {row.label: row for row in study.rows}
    assert "not finite" in rows["diverges"].failed and "direction" in rows["cannot be"].failed
    assert not rows["works"].failed and rows["works"].results[0]["seconds"] > 0
    assert shown.keys() == {"Exact draws", "works"}


@pytest.mark.slow
def test_the_program_writes_a_table_and_a_figure(tmp_path):
    command = ["--runlocal", "--target", "funnel", "--methods", "linear|^SGLD", "--seeds", "0,1"]
    assert sampling.main([*command, "--results", str(tmp_path)]) == 0
    folder = tmp_path / "sampling_funnel"
    content = json.loads((folder / "table.json").read_text())
    assert [row["label"] for row in content["rows"]] == ["Exact draws", "SVGD, linear", "SGLD"]
    for row in content["rows"]:
        assert len(row["results"]) == 2 and row["cells"]["mmd"]["mean"] > 0
    assert "Exact draws" in (folder / "table.md").read_text()
    assert (folder / "table.tex").is_file()
    assert 5_000 < (folder / "particles.png").stat().st_size < 200_000


@pytest.mark.parametrize("methods", ["nothing", "("])
def test_an_unknown_method_is_refused_with_the_names(methods, capsys):
    with pytest.raises(SystemExit, match="2"):
        sampling.main(["--target", "gaussian", "--methods", methods])
    error = capsys.readouterr().err
    assert "--methods: " in error and (
        "SVGD, linear" in error or "not a regular expression" in error
    )


def test_the_picture_has_a_panel_for_each_method_and_counts_what_lies_outside():
    density = densities.gaussian()
    draws = density.draw(np.random.default_rng(0), 300)
    far = np.concatenate([draws[:3], [[100.0, 0.0], [0.0, -99.0]]])
    figure = densities.picture(density, draws, {"near": np.zeros((4, 2)), "far": far})
    assert [ax.get_title() for ax in figure.axes] == ["near", "far"]
    assert [[t.get_text() for t in ax.texts] for ax in figure.axes] == [[], ["2 outside"]]
