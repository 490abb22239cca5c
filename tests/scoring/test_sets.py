"""Post-hoc methods of targets, and conformal sets of files where they are corrupted too."""

import math

import numpy as np
import pytest
from scipy import special, stats

from experiments import score as program
from experiments.reports.figures import figures
from experiments.scoring import output
from experiments.scoring.calibrate import halves, methods
from experiments.scoring.compare import Resampling, compare
from experiments.scoring.files import read
from experiments.scoring.measure import score
from experiments.scoring.parts import Options, Part
from experiments.scoring.sets import rules
from tests.scoring.made import labels, probs, saved
from uncertainty.metrics import regression

SETS = ("", "validation/", "corruption/fog/1/", "corruption/rain/1/", "corruption/fog/3/")


def targets(seed, B, K=1, M=2, wrong=1.0):
    """Members' moments, and y whose errors are `wrong` times as large as they say."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(1, B, K)) + 0.3 * rng.normal(size=(M, B, K))
    variance = np.exp(rng.normal(size=(1, B, K))) * np.ones((M, 1, 1))
    std = np.sqrt(variance.mean(0) + mean.var(0))
    y = mean.mean(0) + wrong * std * rng.normal(size=(B, K))
    return dict(mean=mean, variance=variance, y=y)


def file(path, K=1, **more):
    """Test, validation and corrupted sets; y of the corrupted ones is that of the test set."""
    arrays = {}
    test = targets(0, 60, K)
    for i, name in enumerate(SETS):
        part = targets(i, 90 if name == "validation/" else 60, K, wrong=2.0)
        if name.startswith("corruption"):
            part["mean"], part["y"] = part["mean"] + int(name[-2]), test["y"]
        part = test if not name else part
        arrays |= {name + key: value for key, value in part.items()}
    np.savez(path, **arrays, **more)
    return str(path), {name: {k: arrays[name + k] for k in test} for name in SETS}


def scored(path, **options):
    return score(read(str(path)), "a", Options(), **options)


def mixture(part):
    mean, variance = part["mean"], part["variance"]
    return mean.mean(0), np.sqrt(variance.mean(0) + mean.var(0))


def quantile_by_hand(scores, alpha):
    rank = math.ceil((len(scores) + 1) * (1 - alpha))
    return np.sort(scores, 0)[rank - 1] if rank <= len(scores) else np.inf


def test_intervals_and_a_scale_by_hand(tmp_path):
    path, parts = file(tmp_path / "a.npz")
    chosen = ("predicted", "split", "scaled", "cqr")
    plain, after = scored(path, methods=methods("variance_scale"), conformal=chosen, alpha=0.2)

    # The scale: of the mixture's likelihood on the validation set, by a grid.
    def stretched(part, s):
        centre = part["mean"].mean(0)
        return centre + s * (part["mean"] - centre), s**2 * part["variance"]

    held_out = parts["validation/"]
    grid = np.geomspace(0.5, 5, 2000)
    best = grid[np.argmin([regression.nll(*stretched(held_out, s), held_out["y"]) for s in grid])]
    assert after.label == "a + variance_scale" and best > 1.5
    for one, s in ((plain, 1.0), (after, best)):
        found = regression.nll(*stretched(parts[""], s), parts[""]["y"])
        assert one.metrics["regression/nll"] == pytest.approx(found, rel=1e-4)
        nlls = [regression.nll(*stretched(parts[n], s), parts[n]["y"]) for n in SETS[2:]]
        assert one.metrics["corruption/nll"] == pytest.approx(np.mean(nlls), rel=1e-4)
        assert one.metrics["corruption/fog/3/nll"] == pytest.approx(nlls[2], rel=1e-4)
    assert "conformal" not in " ".join(after.metrics)

    # Intervals: scores and thresholds written out, on the test set and corrupted ones.
    mean, std = mixture(held_out)
    errors = np.abs(held_out["y"] - mean)
    q = {"split": quantile_by_hand(errors, 0.2), "scaled": quantile_by_hand(errors / std, 0.2)}

    def covered(name, part):
        mean, std = mixture(part)
        width = q[name] * (std if name == "scaled" else 1)
        return (np.abs(part["y"] - mean) <= width).mean(), 2 * np.mean(width * np.ones_like(mean))

    for name in q:
        for at, values in (
            ("", [covered(name, parts[""])]),
            ("severity_1/", [covered(name, parts[n]) for n in SETS[2:4]]),
            ("severity_3/", [covered(name, parts[SETS[4]])]),
        ):
            key = f"intervals/{name}/{at}"
            coverage, width = np.mean(values, axis=0)
            assert plain.metrics[f"{key}coverage"] == pytest.approx(coverage)
            assert plain.metrics[f"{key}width"] == pytest.approx(width)
    assert plain.metrics["intervals/scaled/severity_3/coverage"] < 0.6

    # CQR: quantiles of the mixture, by a root of its distribution function.
    def cdf(part, at):
        return stats.norm.cdf((at - part["mean"]) / np.sqrt(part["variance"])).mean(0)

    low, high = (regression.quantile(*moments(held_out), level) for level in (0.1, 0.9))
    np.testing.assert_allclose(cdf(held_out, low), 0.1, atol=1e-9)
    moved = quantile_by_hand(np.maximum(low - held_out["y"], held_out["y"] - high), 0.2)
    low, high = (regression.quantile(*moments(parts[""]), level) for level in (0.1, 0.9))
    hits = (low - moved <= parts[""]["y"]) & (parts[""]["y"] <= high + moved)
    assert plain.metrics["intervals/cqr/coverage"] == pytest.approx(hits.mean())
    own = (low <= parts[""]["y"]) & (parts[""]["y"] <= high)
    assert plain.metrics["intervals/predicted/coverage"] == pytest.approx(own.mean())
    # What resamples see is what is shown.
    for statistic in plain.statistics:
        ones = [np.ones((1, plain.frames[name].examples)) for name in statistic.frames]
        for key, value in statistic.values(*ones).items():
            assert value[0] == pytest.approx(plain.metrics[key], rel=1e-9), key
    shown = {i.key for i in compare([plain, after], Resampling(100)).intervals}
    assert {"intervals/split/severity_3/coverage", "corruption/rmse"} <= shown


def moments(part):
    return part["mean"], part["variance"]


def test_groups_calibrate_alone(tmp_path):
    """Thresholds of the validation set's groups, named by text; unknown ones have everything."""
    of_test = np.array(["a", "b", "new"])[np.arange(60) % 3]
    of_fit = np.array(["a", "b"])[np.arange(90) % 2]
    more = {"group": of_test, "validation/group": of_fit}
    path, parts = file(tmp_path / "a.npz", **more)
    (one,) = scored(path, conformal=["split", "group:split"], alpha=0.2)
    mean, _ = mixture(parts["validation/"])
    errors = np.abs(parts["validation/"]["y"] - mean)[:, 0]
    q = {g: quantile_by_hand(errors[of_fit == g], 0.2) for g in "ab"} | {"new": np.inf}
    mean, _ = mixture(parts[""])
    hits = np.abs(parts[""]["y"] - mean)[:, 0] <= np.array([q[g] for g in of_test])
    assert one.metrics["intervals/split_by_group/coverage"] == pytest.approx(hits.mean())
    worst = min(hits[of_test == g].mean() for g in ("a", "b", "new"))
    assert one.metrics["intervals/split_by_group/worst_group_coverage"] == pytest.approx(worst)
    assert one.metrics["intervals/split_by_group/width"] == np.inf
    assert "worst_group_coverage" in " ".join(k for k in one.metrics if "/split/" in k)
    assert any("have everything in 1 of 3 groups" in note for note in one.notes)
    with pytest.raises(ValueError, match="validation` that has the groups of the test set"):
        scored(path_without(path, tmp_path), conformal=["group:split"], cross_fit=True)
    other, _ = file(tmp_path / "b.npz", **{"group": of_test, "validation/group": np.full(90, "z")})
    with pytest.raises(ValueError, match="3 groups of the test set, such as 'a', are not those"):
        scored(other, conformal=["group:split"])


def path_without(path, folder):
    """The file without its validation set."""
    with np.load(path) as opened:
        arrays = {k: opened[k] for k in opened.files if not k.startswith("validation")}
    np.savez(folder / "without.npz", **arrays)
    return folder / "without.npz"


def test_halves_of_targets_are_swapped(tmp_path):
    path, parts = file(tmp_path / "a.npz")
    path = path_without(path, tmp_path)
    (plain, after) = scored(
        path, methods=methods("members:variance_scale"), conformal=["split"], alpha=0.2,
        cross_fit=True,
    )  # fmt: skip
    part = parts[""]
    test = Part("test", mean=part["mean"], variance=part["variance"], y=part["y"])
    half = halves(test, test, 0)
    assert half.sum() == 30
    mean, _ = mixture(part)
    errors = np.abs(part["y"] - mean)[:, 0]
    first, second = (quantile_by_hand(errors[of], 0.2) for of in (~half, half))
    width = np.where(half, first, second)
    assert plain.metrics["intervals/split/coverage"] == pytest.approx((errors <= width).mean())
    # Each member's own scale, which has a closed form.
    variance = part["variance"].copy()
    for m in range(2):
        square = (part["y"] - part["mean"][m]) ** 2 / part["variance"][m]
        for of in (half, ~half):
            variance[m, of] *= square[~of].mean()
    assert after.metrics["regression/nll"] == pytest.approx(
        regression.nll(part["mean"], variance, part["y"])
    )


def test_regions_of_several_outputs(tmp_path):
    path, parts = file(tmp_path / "a.npz", K=2)
    (one,) = scored(path, conformal=["box", "directional"], alpha=0.2)

    # The box: half-spaces along the axes, all moved by one number, in units of the mixture.
    def standard(part):
        mean, std = mixture(part)
        z = (part["y"] - mean) / std
        ends = [(regression.quantile(*moments(part), level) - mean) / std for level in (0.1, 0.9)]
        return z, *ends, std

    z, low, high, _ = standard(parts["validation/"])
    moved = quantile_by_hand(np.maximum(low - z, z - high).max(1), 0.2)
    z, low, high, std = standard(parts[""])
    hits = ((low - moved <= z) & (z <= high + moved)).all(1)
    assert one.metrics["regions/box/coverage"] == pytest.approx(hits.mean())
    area = np.prod((high - low + 2 * moved) * std, axis=1).mean()
    assert one.metrics["regions/box/volume"] == pytest.approx(area, rel=1e-6)
    # Directional ones: the mixture of v . z, for 16 directions at equal angles.
    angles = 2 * np.pi * np.arange(16) / 16
    v = np.stack([np.cos(angles), np.sin(angles)], -1)

    def below(part):
        mean, std = mixture(part)
        means, variances = (part["mean"] - mean) / std, part["variance"] / std**2
        low = regression.quantile(means @ v.T, variances @ (v**2).T, 0.1)
        return low, (part["y"] - mean) / std @ v.T

    low, at = below(parts["validation/"])
    moved = quantile_by_hand((low - at).max(1), 0.2)
    low, at = below(parts[""])
    hits = (at >= low - moved).all(1)
    assert one.metrics["regions/directional/coverage"] == pytest.approx(hits.mean())
    assert 0.5 < one.metrics["regions/directional/volume"] / area < 1.2
    assert one.metrics["regions/box/severity_3/coverage"] < one.metrics["regions/box/coverage"]
    # The figures have the same regions.
    shares = one.arrays["regions/directional/covered"]
    np.testing.assert_allclose(shares, (at >= low - moved).mean(0))
    assert one.arrays["regions/box/outline"].shape[::2] == (3, 2)
    assert {"regions", "region_coverage"} <= {
        entry.name for entry in figures({"a": output.runs_of([one])})
    }
    single, _ = file(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="--conformal box: for several outputs, and y has one"):
        scored(single, conformal=["box"])


def test_classes_where_they_are_corrupted(tmp_path):
    """LAC with the threshold of the validation set, and temperature, on each corrupted set."""
    y, v = labels(), labels(1, 40)
    arrays = {f"corruption__{k}__{s}__probs": probs(30 + i, y=y) for i, (k, s) in enumerate(KINDS)}
    more = {f"corruption__{k}__{s}__y": y for k, s in KINDS}
    path = saved(
        tmp_path / "a.npz", probs=probs(0, y=y), y=y,
        validation__probs=probs(10, 3, 40, y=v), validation__y=v, **arrays, **more,
    )  # fmt: skip
    plain, after = scored(
        path, methods=methods("temperature"), conformal=["lac", "class:lac"], alpha=0.2
    )
    fit = probs(10, 3, 40, y=v).mean(0)
    scores = 1 - fit[np.arange(40), v]
    q = quantile_by_hand(scores, 0.2)
    for severity, kinds in ((1, (0, 2)), (3, (1,))):
        chosen = [1 - probs(30 + i, y=y).mean(0) <= q for i in kinds]
        coverage = np.mean([c[np.arange(60), y].mean() for c in chosen])
        size = np.mean([c.sum(1).mean() for c in chosen])
        key = f"conformal/lac/severity_{severity}"
        assert plain.metrics[f"{key}/coverage"] == pytest.approx(coverage)
        assert plain.metrics[f"{key}/size"] == pytest.approx(size)
    # With so few examples of a class a threshold is a maximum, or infinite.
    own = [quantile_by_hand(scores[v == k], 0.2) for k in range(4)]
    hits = 1 - probs(0, y=y).mean(0)[np.arange(60), y] <= np.array(own)[y]
    assert plain.metrics["conformal/lac_by_class/coverage"] == pytest.approx(hits.mean())
    grid = np.geomspace(0.2, 5, 3000)
    log_p = np.log(fit)
    nll = [-special.log_softmax(log_p / t, -1)[np.arange(40), v].mean() for t in grid]
    t = grid[np.argmin(nll)]
    corrupted = np.log(probs(31, y=y).mean(0)) / t
    expected = -special.log_softmax(corrupted, -1)[np.arange(60), y].mean()
    assert after.metrics["corruption/fog/3/nll"] == pytest.approx(expected, rel=1e-4)


KINDS = (("fog", 1), ("fog", 3), ("rain", 1))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lack"], "--conformal: no method 'lack'; did you mean 'lac'"),
        (["by:lac"], "--conformal: 'by:lac'; NAME, group:NAME or class:NAME"),
        (["class:cqr"], "'class:cqr'; 'cqr' is not calibrated by class"),
        (["lac", "lac"], "names a method twice"),
    ],
)
def test_rules_that_do_not_exist(names, message):
    with pytest.raises(ValueError, match=message):
        rules(names, 0.1)


def test_methods_of_the_other_task_are_refused(tmp_path, capsys):
    path, _ = file(tmp_path / "a.npz")
    for option, message in (
        (("--posthoc", "temperature"), "'temperature' is for classes, and these are"),
        (("--conformal", "split,lac"), "--conformal: 'lac' is for classes"),
    ):
        assert program.main([path, *option]) == 2
        assert message in capsys.readouterr().err
    classes = saved(tmp_path / "b.npz", probs=probs(0, y=labels()), y=labels())
    assert program.main([classes, "--conformal", "cqr", "--cross-fit"]) == 2
    assert "'cqr' is for targets" in capsys.readouterr().err


def test_sets_of_other_units_members_or_outputs_are_refused(tmp_path):
    path, _ = file(tmp_path / "a.npz")
    with np.load(path) as opened:
        arrays = dict(opened)
    for change, message in (
        ({"validation/mean": arrays["validation/mean"][:1],
          "validation/variance": arrays["validation/variance"][:1]},
         "validation: mean: 1 members, but the test set has 2"),
        ({f"validation/{k}": np.repeat(arrays[f"validation/{k}"], 2, -1)
          for k in ("mean", "variance", "y")},
         "validation: mean: 2 outputs, but the test set has 1"),
    ):  # fmt: skip
        np.savez(tmp_path / "b.npz", **arrays | change)
        with pytest.raises(ValueError, match=message):
            scored(tmp_path / "b.npz", conformal=["split"])
    # The units of the test set are those of all.
    np.savez(tmp_path / "c.npz", **arrays, y_mean=[5.0], y_std=[10.0])
    plain, scaled = (scored(p, conformal=["split"])[0] for p in (path, tmp_path / "c.npz"))
    key = "intervals/split/{}"
    assert scaled.metrics[key.format("coverage")] == plain.metrics[key.format("coverage")]
    assert scaled.metrics[key.format("width")] == pytest.approx(
        10 * plain.metrics[key.format("width")]
    )


@pytest.mark.slow
def test_the_report_shows_the_coverage_under_shift(tmp_path, capsys):
    path, _ = file(tmp_path / "a.npz")
    out = tmp_path / "out"
    options = ["--conformal", "split,cqr", "--posthoc", "variance_scale", "--out", str(out)]
    assert program.main([path, *options, "--resamples", "100"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a + variance_scale minus a" in printed
    page = (out / "report.html").read_text()
    assert "Coverage of CQR intervals at severity 3" in page
    assert "Coverage under shift" in page and "promises them this coverage" in page
    assert (out / "report_figures" / "coverage.png").is_file()
