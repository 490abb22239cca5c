"""Files side by side: what is compared, with which intervals, and what the program writes."""

import csv
import json
import pathlib
import re

import numpy as np
import pytest
from scipy import special

from experiments import score as program
from experiments.reports.study import Column
from experiments.runtime import keys
from experiments.scoring.calibrate import Method, fitted, halves, methods
from experiments.scoring.compare import Interval, Resampling, compare, difference, partition
from experiments.scoring.files import read
from experiments.scoring.measure import score
from experiments.scoring.output import texts
from experiments.scoring.parts import Options, Part
from tests.scoring.made import labels, logits, probs, saved
from uncertainty import metrics
from uncertainty.metrics import classification

Y = labels()


def whole(path, seed, members=3, y=Y, **more):
    """A file with all kinds of sets."""
    v = labels(1, 40)
    return saved(
        path,
        probs=probs(seed, members, y=y),
        y=y,
        validation__probs=probs(seed + 10, members, 40, y=v),
        validation__y=v,
        ood__far__probs=probs(seed + 20, members, 50),
        corruption__fog__1__probs=probs(seed + 30, members, y=y),
        corruption__fog__1__y=y,
        corruption__fog__3__probs=probs(seed + 40, members, y=y),
        corruption__fog__3__y=y,
        **more,
    )


def scored(path, label="a", **options):
    return score(read(str(path)), label, Options(), **options)


def test_metrics_are_the_librarys(tmp_path):
    (found,) = scored(whole(tmp_path / "a.npz", 0))
    log_p = np.log(probs(0, y=Y))
    expected = metrics.evaluate_classification(log_p, Y)
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    outside = metrics.ood_scores(np.log(probs(20, 3, 50)))
    for name, scores in metrics.ood_scores(log_p).items():
        for rank, value in metrics.ranking(scores, outside[name]).items():
            key = keys.join("ood", "far", f"{rank}_{name}")
            assert found.metrics[key] == pytest.approx(value, rel=1e-12)
    nll = [classification.nll(np.log(probs(seed, y=Y)), Y) for seed in (30, 40)]
    assert found.metrics["corruption/fog/3/nll"] == pytest.approx(nll[1])
    assert found.metrics["corruption/nll"] == pytest.approx(np.mean(nll))


def test_statistics_of_every_example_once_are_the_metrics(tmp_path):
    """So what is resampled is what is shown; for targets too."""
    rng = np.random.default_rng(0)
    targets = dict(mean=rng.normal(size=(3, 60)), variance=rng.gamma(2, size=(3, 60)))
    paths = (
        whole(tmp_path / "a.npz", 0),
        saved(tmp_path / "b.npz", y=rng.normal(size=60), **targets),
    )
    for path, count in zip(paths, (13, 8), strict=True):
        (one,) = scored(path)
        keys_seen = set()
        for statistic in one.statistics:
            ones = [np.ones((1, one.frames[name].examples)) for name in statistic.frames]
            for key, value in statistic.values(*ones).items():
                assert value[0] == pytest.approx(one.metrics[key], rel=1e-6), key
                keys_seen.add(key)
        assert len(keys_seen) == count


def test_independent_classes_are_scored_as_bernoulli_variables(tmp_path):
    p = special.expit(logits(0, y=Y))
    path = saved(tmp_path / "a.npz", probs=p, y=Y)
    (one,) = score(read(path), "a", Options(independent=True))
    q, on = p.mean(0), np.eye(4)[Y]
    log_p = np.sum(on * np.log(q) + (1 - on) * np.log1p(-q), axis=1)
    assert one.metrics["classification/nll"] == pytest.approx(-log_p.mean())
    of_mean = -np.log(np.exp(log_p).mean())
    assert one.metrics["classification/nll_of_mean"] == pytest.approx(of_mean, rel=1e-5)
    entropy = -np.sum(special.xlogy(q, q) + special.xlogy(1 - q, 1 - q), axis=1)
    assert one.metrics["uncertainty/entropy"] == pytest.approx(entropy.mean())
    resampled = {}
    for statistic in one.statistics:
        resampled |= statistic.values(np.ones((1, 60)))
    assert resampled["classification/nll"][0] == pytest.approx(-log_p.mean(), rel=1e-6)


def test_paired_intervals_by_a_loop(tmp_path):
    """Resamples of single examples, drawn here by themselves, agree to their own noise."""
    a, b = (scored(whole(tmp_path / f"{s}.npz", s), f"{s}")[0] for s in range(2))
    options = Resampling(resamples=2000)
    found = {i.key: i for i in compare([a, b], options).intervals if i.baseline}
    rng = np.random.default_rng(0)
    logs = [np.log(probs(s, y=Y)) for s in range(2)]
    for key, metric in (
        ("classification/nll", classification.nll),
        ("classification/accuracy", classification.accuracy),
        ("classification/brier", classification.brier),
    ):
        estimate = metric(logs[1], Y) - metric(logs[0], Y)
        draws = []
        for _ in range(600):
            drawn = rng.integers(0, 60, 60)
            draws.append(metric(logs[1][:, drawn], Y[drawn]) - metric(logs[0][:, drawn], Y[drawn]))
        low, high = np.quantile(draws, [0.025, 0.975])
        interval = found[key]
        assert interval.estimate == pytest.approx(estimate, rel=1e-6, abs=1e-9)
        noise = 0.15 * (high - low)
        assert interval.low == pytest.approx(low, abs=noise)
        assert interval.high == pytest.approx(high, abs=noise)


def test_equal_files_differ_by_nothing_and_seeds_are_averaged(tmp_path):
    path = whole(tmp_path / "a.npz", 0)
    a, b, c = scored(path)[0], scored(path, "b")[0], scored(whole(tmp_path / "c.npz", 1), "b")[0]
    for i in compare([a, b], Resampling(100)).intervals:
        if i.baseline:
            assert (i.estimate, i.low, i.high) == (0, 0, 0), i
    found = {(i.label, i.baseline, i.key): i for i in compare([a, b, c], Resampling(100)).intervals}
    key = "classification/nll"
    mean = (b.metrics[key] + c.metrics[key]) / 2
    assert found["b", None, key].estimate == pytest.approx(mean)
    assert found["b", "a", key].estimate == pytest.approx(mean - a.metrics[key])


def test_groups_widen_intervals(tmp_path):
    """Ten copies of each example in a group say as much as one of each."""
    y, p = np.repeat(Y, 10), np.repeat(probs(0, y=Y), 10, axis=1)
    group = np.repeat(np.arange(60), 10)
    (one,) = scored(saved(tmp_path / "a.npz", probs=p, y=y, group=group))
    (single,) = scored(saved(tmp_path / "b.npz", probs=p[:, ::10], y=Y))

    def width(of, **options):
        intervals = compare([of], Resampling(2000, **options)).intervals
        return next(i.high - i.low for i in intervals if i.key == "classification/nll")

    assert width(one) == pytest.approx(width(single), rel=0.05)
    assert width(one, clustered=False) == pytest.approx(width(single) / np.sqrt(10), rel=0.1)


def test_files_on_other_labels_are_not_compared_and_it_is_said(tmp_path):
    a = scored(whole(tmp_path / "a.npz", 0))[0]
    order = np.roll(np.arange(60), 1)
    few, other = Y[:50], (Y + (np.arange(60) == 3)) % 4
    cases = {
        "60 and 50 test examples": scored(
            saved(tmp_path / "b.npz", probs=probs(0, y=few, examples=50), y=few), "b")[0],
        "the same labels in another order": scored(
            saved(tmp_path / "c.npz", probs=probs(0, y=Y[order]), y=Y[order]), "b")[0],
        "other labels for 1 of 60 examples": scored(
            saved(tmp_path / "d.npz", probs=probs(0, y=other), y=other), "b")[0],
        "one is of classification": scored(
            saved(tmp_path / "e.npz", mean=Y, variance=Y + 1, y=Y), "b")[0],
    }  # fmt: skip
    grouped = [
        scored(saved(tmp_path / f"{n}.npz", probs=probs(0), y=Y, group=Y + n), "b")[0]
        for n in (0, 1)
    ]
    assert difference(*grouped) == "the same labels, but other groups"
    for message, b in cases.items():
        assert message in difference(a, b)
        sets, notes = partition([a, b])
        assert sets == [["a"], ["b"]] and "b is not compared with a: " in notes[0]
        intervals = compare([a, b], Resampling(100)).intervals
        assert intervals and all(i.baseline is None for i in intervals)
        with pytest.raises(ValueError, match="are one row, but"):
            partition([a, b._replace(label="a")])


def test_sets_of_other_sizes_get_no_intervals(tmp_path):
    a = scored(whole(tmp_path / "a.npz", 0))[0]
    b = scored(saved(tmp_path / "b.npz", probs=probs(1), y=Y, ood__far__probs=probs(1)[:, :9]), "b")
    found = compare([a, *b], Resampling(100))
    assert "ood/far: a and b have other examples: no intervals for it" in found.notes
    assert not any(i.key.startswith("ood/") for i in found.intervals)


def test_a_label_of_probability_zero(tmp_path):
    p = np.array([[0.0, 1.0], [0.5, 0.5]])
    (one,) = scored(saved(tmp_path / "a.npz", probs=p, y=[0, 1]))
    assert one.metrics["classification/nll"] == np.inf
    assert one.notes[-1].startswith("the label has the probability 0 in 1 of 2 examples")
    assert f"over the others it is {-np.log(0.5):.4f}" in one.notes[-1]
    nll = [i for i in compare([one], Resampling(100)).intervals if i.key == "classification/nll"]
    assert np.isnan([nll[0].low, nll[0].high]).all()


# Post-hoc methods


def test_temperature_is_fitted_on_the_validation_set(tmp_path):
    path = whole(tmp_path / "a.npz", 0)
    plain, calibrated, members = scored(path, methods=methods("temperature,members:temperature"))
    assert calibrated.label == "a + temperature"
    assert members.label == "a + temperature of members"
    assert plain.metrics == scored(path)[0].metrics
    v = labels(1, 40)
    mixture, validation = (np.log(p.mean(0)) for p in (probs(0, y=Y), probs(10, 3, 40, y=v)))

    def nll(log_p, y, temperature):
        scaled = log_p / temperature
        return np.mean(np.logaddexp.reduce(scaled, -1) - scaled[np.arange(len(y)), y])

    grid = np.geomspace(0.1, 10, 4000)
    best = grid[np.argmin([nll(validation, v, t) for t in grid])]
    found = calibrated.metrics["classification/nll"]
    assert found == pytest.approx(nll(mixture, Y, best), rel=1e-4)
    assert calibrated.metrics["classification/accuracy"] == plain.metrics["classification/accuracy"]
    assert "uncertainty/mutual_information" not in calibrated.metrics
    assert "uncertainty/mutual_information" in members.metrics
    said = re.search(r"temperature: temperature ([\d.]+)", "; ".join(calibrated.notes))
    assert float(said[1]) == pytest.approx(best, rel=1e-2)
    assert any(re.match(r"temperature of members: temperature .* to ", n) for n in plain.notes)


@pytest.mark.parametrize("cross_fit", [False, True])
def test_an_optimum_at_a_bound_is_spoken_of(tmp_path, cross_fit):
    """Where every label is predicted, though by little."""
    p = np.full((1, 6, 2), 0.5) + np.where(np.eye(2)[[0, 1] * 3], 0.1, -0.1)
    y = [0, 1] * 3
    test = dict(y=[1, *y[1:]]) | ({} if cross_fit else dict(validation__probs=p, validation__y=y))
    path = saved(tmp_path / "a.npz", probs=p, **test)
    _, calibrated = scored(path, methods=methods("temperature"), cross_fit=cross_fit, seed=1)
    (said,) = [note for note in calibrated.notes if "at a bound of its range" in note]
    assert said.startswith("temperature: temperature 0.01")
    assert calibrated.metrics["classification/nll"] > 1
    assert ("in 1 of 2 fits" in said) == cross_fit


def test_without_a_validation_set_halves_are_swapped(tmp_path):
    path = saved(tmp_path / "a.npz", probs=probs(0, y=Y), y=Y)
    with pytest.raises(ValueError, match="no set `validation` to fit on; with --cross-fit"):
        scored(path, methods=methods("temperature"))
    log_p, group = np.log(probs(0, y=Y)), np.repeat(np.arange(20), 3)
    test = Part("test", log_p=log_p, y=Y, group=group)
    half = halves(test, test, 0)
    assert half.sum() == 30 and (half.reshape(20, 3).std(1) == 0).all()
    again = halves(test._replace(name="corruption/fog/1"), test, 0)
    np.testing.assert_array_equal(again, half)
    inside = test._replace(name="in_distribution")  # the same examples, by their labels
    np.testing.assert_array_equal(halves(inside, test, 0), half)
    calibrated = fitted(Method("temperature"), test, None, 0)(test).log_p
    for of in (half, ~half):
        only = Part("test", log_p=log_p[:, ~of], y=Y[~of])
        alone = fitted(Method("temperature"), test, only._replace(name="validation"), 0)(test)
        np.testing.assert_allclose(calibrated[:, of], alone.log_p[:, of])
    (_, found) = scored(path, methods=methods("temperature"), cross_fit=True)
    assert "temperature: cross-fitted, on each half of the test set for the other" in found.notes


def test_conformal_sets_by_hand(tmp_path):
    """LAC by its definition, on the validation set and on halves."""
    v = labels(1, 40)
    (one,) = scored(whole(tmp_path / "a.npz", 0), conformal=["lac"], alpha=0.2)
    p, fit = probs(0, y=Y).mean(0), probs(10, 3, 40, y=v).mean(0)
    chosen = by_hand(p, fit, v)
    assert one.metrics["conformal/lac/size"] == pytest.approx(chosen.sum(1).mean())
    coverage = chosen[np.arange(60), Y].mean()
    assert one.metrics["conformal/lac/coverage"] == pytest.approx(coverage)
    path = saved(tmp_path / "b.npz", probs=probs(0, y=Y), y=Y)
    with pytest.raises(ValueError, match="--conformal: there is no set `validation`"):
        scored(path, conformal=["lac"])
    (one,) = scored(path, conformal=["lac"], alpha=0.2, cross_fit=True)
    test = Part("test", log_p=np.log(probs(0, y=Y)), y=Y)
    half = halves(test, test, 0)
    chosen[half] = by_hand(p[half], p[~half], Y[~half])
    chosen[~half] = by_hand(p[~half], p[half], Y[half])
    assert one.metrics["conformal/lac/size"] == pytest.approx(chosen.sum(1).mean())


def by_hand(p, fit, y, alpha=0.2):
    score = np.sort(1 - fit[np.arange(len(y)), y])
    return 1 - p <= score[int(np.ceil((len(y) + 1) * (1 - alpha))) - 1]


def test_methods_have_to_exist():
    assert methods("") == []
    with pytest.raises(ValueError, match=r"--posthoc: no file 'temprature'.*did you mean 'temp"):
        methods("temprature")
    with pytest.raises(ValueError, match="--posthoc: 'a:temperature'; NAME, or members:NAME"):
        methods("a:temperature")
    with pytest.raises(ValueError, match="names a method twice"):
        methods("temperature,temperature")


# The program


@pytest.mark.slow
def test_the_program_writes_what_it_prints(tmp_path, capsys):
    a, b = whole(tmp_path / "a.npz", 0), whole(tmp_path / "b.npz", 1, group=np.arange(60) // 2)
    c = saved(tmp_path / "c.npz", probs=probs(2, examples=50, y=Y[:50]), y=Y[:50])
    out = tmp_path / "out"
    code = program.main([a, f"B & co={b}", c, "--resamples", "100", "--out", str(out)])
    printed = " ".join(capsys.readouterr().out.split())
    assert code == 0, printed
    assert "c is not compared with a: 60 and 50 test examples" in printed.replace(
        "50 and 60", "60 and 50"
    )
    assert "paired bootstrap over groups of the test set, 100 resamples, seed 0" in printed
    assert "B & co minus a" in printed
    content = json.loads((out / "scores.json").read_text())
    assert [file["label"] for file in content["files"]] == ["a", "B & co", "c"]
    assert content["compared"] == [["a", "B & co"], ["c"]]
    assert content["settings"]["resamples"] == 100
    with (out / "scores.csv").open() as file:
        cells = {(r["label"], r["metric"]): r["value"] for r in csv.DictReader(file)}
    nll = content["files"][1]["metrics"]["classification/nll"]
    assert float(cells["B & co", "classification/nll"]) == nll
    with (out / "intervals.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["minus"]]
    assert {(r["label"], r["minus"]) for r in rows} == {("B & co", "a")}
    page = (out / "report.html").read_text()
    for text in ("Different data: no best is marked", "Differences from a", "B &amp; co", "FPR95"):
        assert text in page, text
    assert "Bold: of metrics with an arrow, differences" in page
    assert "<dt>Accuracy <code>classification/accuracy</code></dt>" in page
    notes = page[page.index('id="predictions"') :].partition("</section>")[0]
    assert notes.count("<p>B &amp; co</p>") == notes.count("B &amp; co") == 1
    assert ": config" not in page and 'id="all-metrics"' in page  # files have no config


def test_intervals_of_no_width_have_the_digits_of_their_column():
    column = Column("intervals/split/width", "Width", digits=4)
    for width, shown in (
        (0.0, ("-1.7465", "[-1.7465, -1.7465]")),
        (1e-15, ("-1.7465", "[-1.7465, -1.7465]")),
        (0.08, ("-1.747", "[-1.787, -1.707]")),
    ):
        low, high = (-1.7465432 + sign * width / 2 for sign in (-1, 1))
        assert texts(Interval("a", "b", column.key, -1.7465432, low, high), column) == shown


def test_the_program_names_what_is_wrong(tmp_path, capsys):
    a, b = (whole(tmp_path / f"{name}.npz", 0) for name in "ab")
    bare = tmp_path / "p.npy"
    np.save(bare, probs(0, y=Y))
    np.save(tmp_path / "y.npy", Y)
    for arguments, message in (
        ([a, a], "given twice"),
        ([f"b={a}", b], "b.npz: without a label it is 'b', as another file is"),
        ([a, "--baseline", "b"], "--baseline: no row 'b'"),
        ([a, "--resamples", "5"], "--resamples: 5; at least 100"),
        ([a, "--level", "95"], "--level: 95.0; a number between 0 and 1"),
        ([a, "--tolerance", "2"], "--tolerance: 2.0"),
        ([a, "--conformal", "lack"], "--conformal: no method 'lack'"),
        ([a, "--conformal", "lac", "--alpha", "2"], "alpha"),
        ([a, "--rename", "y"], "--rename: 'y'; OLD=NEW"),
        ([a, "--labels", str(tmp_path / "y.npy")], "has `y`, so --labels does not apply"),
        ([str(bare), "--labels", str(tmp_path / "y.npy")], "a bare array does not say what it is"),
        ([str(bare), "--kind", "probs"], "`y` is missing"),
        ([a, "--out", a], "a.npz is a file; a folder is expected"),
    ):
        assert program.main(arguments) == 2
        assert message in capsys.readouterr().err, arguments
    options = ["--kind", "probs", "--labels", str(tmp_path / "y.npy"), "--resamples", "0"]
    assert program.main([str(bare), *options]) == 0
    assert "Accuracy" in capsys.readouterr().out


def test_labels_of_rows(tmp_path):
    runs = [tmp_path / name / "evaluation" / "test" / "predictions.npz" for name in "ab"]
    elsewhere = tmp_path / "elsewhere" / "predictions.npz"
    for path in (*runs, elsewhere):
        path.parent.mkdir(parents=True)
        path.touch()
    given = [*map(str, runs), f"X={elsewhere}", "other/single.npz", "more/single.npz"]
    labels = [label for label, _ in program.labelled(given)]
    assert labels == ["a", "b", "X", "other/single", "more/single"]
    # Equal labels are seeds of one method, which none of these are.
    for given, expected in (
        (["runs/lr.1", "runs/lr.2"], ["lr.1", "lr.2"]),
        (["model.npz", "model.csv"], ["model.npz", "model.csv"]),
        (
            [f"runs/a/evaluation/{name}/predictions.npz" for name in ("test", "far")],
            ["test/predictions.npz", "far/predictions.npz"],
        ),
    ):
        assert [label for label, _ in program.labelled(given)] == expected


def test_equal_labels_have_to_be_given():
    program.check_labels([("a", "1.npz"), ("a", "2.npz")], ["a=1.npz", "a=2.npz"])
    named = [("a", "1.npz"), ("a", "m/a.npz")]
    with pytest.raises(ValueError, match=r"m/a\.npz: .* LABEL=m/a\.npz is needed"):
        program.check_labels(named, ["a=1.npz", "m/a.npz"])


def test_the_example_of_the_docs(tmp_path, monkeypatch, capsys):
    text = pathlib.Path(__file__).parents[2].joinpath("docs", "predictions.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"<!-- write -->\n```python\n(.*?)```", text, re.DOTALL)[1], {})
    assert program.main(["model.npz", "--resamples", "100"]) == 0
    printed = capsys.readouterr().out
    assert "logits [5 members, 200 examples, 3 classes], float64" in printed
    assert "noise: entropy" in printed
    flags = set(re.findall(r"--[a-z][a-z-]+", text)) - {"--workdir"}
    options = {flag for action in program.parser()._actions for flag in action.option_strings}
    assert flags - {"--save"} <= options  # --save_predictions is a flag of evaluate


def test_numbers_that_cannot_be_meant_are_spoken_of(tmp_path):
    """Columns in another order than the labels; variances that are standard deviations."""
    y = labels(examples=200)
    p = np.full((1, 200, 4), 0.1)
    p[0, np.arange(200), y] = 0.7
    right, wrong = (
        scored(saved(tmp_path / "a.npz", probs=q, y=y))[0] for q in (p, p[..., [1, 2, 3, 0]])
    )
    assert not any("guessing" in note for note in right.notes)
    assert "the accuracy, 0.0%, is below that of guessing, 25.0%" in wrong.notes[-1]
    rng = np.random.default_rng(0)
    std = 0.01
    y = std * rng.normal(size=300)
    for variance, count in ((std**2, 0), (std, 1), (std**4, 1)):
        (one,) = scored(saved(tmp_path / "b.npz", mean=0 * y, variance=np.full(300, variance), y=y))
        said = [note for note in one.notes if "predicted standard deviations away" in note]
        assert len(said) == count, (variance, one.notes)
