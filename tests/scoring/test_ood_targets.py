"""Out-of-distribution sets of real-valued targets."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from experiments import score as program
from experiments.reports.figures import figures
from experiments.scoring import output
from experiments.scoring.calibrate import methods
from experiments.scoring.compare import Resampling, compare
from experiments.scoring.files import read
from experiments.scoring.measure import score
from experiments.scoring.parts import Options
from tests.scoring.made import saved, table

ALL = ("predictive_variance", "epistemic_variance", "aleatoric_variance")
RANKS = ("auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_in")


def moments(seed, B, K=2, M=3, wide=1.0):
    """Members' moments; those of another `wide` disagree more, and are less sure."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(1, B, K)) + 0.3 * wide * rng.normal(size=(M, B, K))
    return dict(mean=mean, variance=wide * np.exp(rng.normal(size=(M, B, K))))


def made(K=2, M=3, B=60):
    """The arrays of a file: a test set, and an OOD set without targets."""
    y = np.random.default_rng(9).normal(size=(B, K)) * np.array([1.0, 20.0])[:K]
    outside = moments(1, 50, K, M, wide=1.5)
    return moments(0, B, K, M) | dict(y=y) | {f"ood__far__{k}": v for k, v in outside.items()}


def scored(folder, arrays, **options):
    found = score(read(saved(folder / "a.npz", **arrays)), "a", Options(), **options)
    return found if options else found[0]


def of_ood(metrics):
    return {key: value for key, value in metrics.items() if key.startswith("ood/")}


def by_hand(mean, variance, y):
    """Each score, by second moments and a loop over outputs, in the order of ALL."""
    total, between, within = 0, 0, 0
    for k in range(y.shape[1]):
        unit = np.mean(y[:, k] ** 2) - np.mean(y[:, k]) ** 2
        second = (variance[:, :, k] + mean[:, :, k] ** 2).mean(0)
        total = total + (second - mean[:, :, k].mean(0) ** 2) / unit
        between = between + ((mean[:, :, k] - mean[:, :, k].mean(0)) ** 2).mean(0) / unit
        within = within + sum(variance[m, :, k] for m in range(len(mean))) / len(mean) / unit
    return total, between, within


def ranks(inside, outside):
    """By scikit-learn."""
    out, values = np.r_[0 * inside, 0 * outside + 1], np.r_[inside, outside]
    fpr, tpr, _ = roc_curve(out, values, drop_intermediate=False)
    fpr_in, tpr_in, _ = roc_curve(1 - out, -values, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(out, values),
        "aupr_out": average_precision_score(out, values),
        "aupr_in": average_precision_score(1 - out, -values),
        "fpr95": fpr[(tpr >= 0.95).argmax()],
        "fpr95_in": fpr_in[(tpr_in >= 0.95).argmax()],
    }


@pytest.mark.parametrize("K", [1, 2])
def test_scores_and_ranks_by_hand(tmp_path, K):
    arrays = made(K)
    found = scored(tmp_path, arrays).metrics
    y = arrays["y"]
    both = [by_hand(arrays[f"{of}mean"], arrays[f"{of}variance"], y) for of in ("", "ood__far__")]
    expected = {
        f"ood/far/{rank}_{name}": value
        for name, *pair in zip(ALL, *both, strict=True)
        for rank, value in ranks(*pair).items()
    }
    assert of_ood(found) == pytest.approx(expected, rel=1e-9)
    assert 0.55 < found["ood/far/auroc_predictive_variance"] < 0.95


def test_neither_members_order_nor_units_matter(tmp_path):
    arrays = made()
    first = of_ood(scored(tmp_path, arrays).metrics)
    order = np.array([2, 0, 1])
    permuted = {k: v if k == "y" else v[order] for k, v in arrays.items()}
    assert of_ood(scored(tmp_path, permuted).metrics) == pytest.approx(first, rel=1e-9)
    unit = np.array([1000.0, 0.01])
    other = {k: v * unit ** (1 + k.endswith("variance")) for k, v in arrays.items()}
    assert of_ood(scored(tmp_path, other).metrics) == pytest.approx(first, rel=1e-9)
    normalised = dict(y_mean=np.array([5.0, 1.0]), y_std=np.array([2.0, 3.0]))
    assert of_ood(scored(tmp_path, arrays | normalised).metrics) == pytest.approx(first, rel=1e-9)


def test_one_member_has_no_parts(tmp_path):
    arrays = made(K=1, M=1)
    found = scored(tmp_path, arrays).metrics
    assert set(of_ood(found)) == {f"ood/far/{rank}_predictive_variance" for rank in RANKS}
    pair = (arrays[f"{of}variance"][0, :, 0] for of in ("", "ood__far__"))
    expected = {f"ood/far/{k}_predictive_variance": v for k, v in ranks(*pair).items()}
    assert of_ood(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("M", [1, 3])
def test_the_same_arrays_in_every_shape(tmp_path, M):
    """Without y, whose shape says which axis is which, that of the test set does."""
    arrays = made(K=1, M=M)
    first = of_ood(scored(tmp_path, arrays).metrics)
    flat = {k: v[..., 0] for k, v in arrays.items()}
    forms = [arrays, flat]
    if M == 1:
        forms += [{k: v if k == "y" else v[0] for k, v in of.items()} for of in (arrays, flat)]
    for of in forms:
        for far in forms:
            mixed = {k: (far if k.startswith("ood") else of)[k] for k in arrays}
            assert of_ood(scored(tmp_path, mixed).metrics) == pytest.approx(first)
    known = {"ood__far__y": np.zeros(50)}
    assert of_ood(scored(tmp_path, flat | known).metrics) == pytest.approx(first)


def test_a_table_with_empty_targets(tmp_path):
    arrays = made()
    rows = []
    for m in range(3):
        for name, of, y in (("test", "", arrays["y"]), ("ood/far", "ood__far__", [["", ""]] * 50)):
            pairs = zip(arrays[f"{of}mean"][m], arrays[f"{of}variance"][m], y, strict=True)
            rows += [
                [name, f"m{m}", b, *map(repr, [*map(float, mean), *map(float, variance)]), *target]
                for b, (mean, variance, target) in enumerate(pairs)
            ]
    head = ["set", "member", "example", "mean_0", "mean_1", "variance_0", "variance_1"]
    (tmp_path / "b.csv").write_text(table([*head, "y_0", "y_1"], rows))
    (found,) = score(read(str(tmp_path / "b.csv")), "a", Options())
    first = of_ood(scored(tmp_path, arrays).metrics)
    assert of_ood(found.metrics) == pytest.approx(first, rel=1e-9)


def test_other_in_distribution_sets_and_scores_of_ones_own(tmp_path):
    arrays = made(K=1)
    inside = moments(5, 40, 1)
    own = dict(score_mine=np.arange(60.0), in_distribution__score_mine=np.arange(40.0))
    own["ood__far__score_mine"] = np.arange(50.0) + 20
    more = {f"in_distribution__{k}": v for k, v in inside.items()}
    more["in_distribution__y"] = np.zeros(40)
    one = scored(tmp_path, arrays | more | own)
    pair = (np.arange(40.0), np.arange(50.0) + 20)
    mine = {k: one.metrics[f"ood/far/{k}_mine"] for k in RANKS}
    assert mine == pytest.approx(ranks(*pair))
    pair = (
        by_hand(of["mean"], of["variance"], arrays["y"])[0]
        for of in (inside, {k: arrays[f"ood__far__{k}"] for k in inside})
    )
    total = {k: one.metrics[f"ood/far/{k}_predictive_variance"] for k in RANKS}
    assert total == pytest.approx(ranks(*pair))
    assert len(one.arrays["in_distribution/predictive_variance"]) == 40
    del own["ood__far__score_mine"]
    with pytest.raises(ValueError, match=r"a\.npz: ood/far: the score mine is in one of it and"):
        scored(tmp_path, arrays | more | own)


def test_intervals_and_a_calibrator(tmp_path):
    arrays = made()
    v = np.random.default_rng(4).normal(size=(40, 2))
    held_out = moments(3, 40) | dict(y=v)
    arrays |= {f"validation__{k}": value for k, value in held_out.items()}
    plain, after = scored(tmp_path, arrays, methods=methods("variance_scale"))
    for one in (plain, after):
        assert len(of_ood(one.metrics)) == 15
        for statistic in one.statistics:
            ones = [np.ones((1, one.frames[name].examples)) for name in statistic.frames]
            for key, value in statistic.values(*ones).items():
                assert value[0] == pytest.approx(one.metrics[key], rel=1e-9), key
    intervals = {
        (i.label, i.baseline, i.key): i for i in compare([plain, after], Resampling(200)).intervals
    }
    key = "ood/far/auroc_predictive_variance"
    own = intervals["a", None, key]
    assert own.low < own.estimate < own.high
    assert own.estimate == pytest.approx(plain.metrics[key])
    assert (after.label, "a", key) in intervals
    # One factor for each output: of one output no rank changes.
    single = {k: value[..., :1] for k, value in arrays.items()}
    plain, after = scored(tmp_path, single, methods=methods("variance_scale"))
    assert of_ood(plain.metrics) == pytest.approx(of_ood(after.metrics))


def changed(array, at, value):
    array = np.array(array)
    array[at] = value
    return array


FAR = made()["ood__far__mean"]
AT = (1, 2, 1)
REFUSED = {
    "shape": (dict(mean=FAR[0, 0]), r"mean: \[2\]; .* with 3 members and 2 outputs as the test"),
    "outputs": (dict(mean=FAR[..., :1]), r"mean: \[3, 50, 1\]; .* 2 outputs as the test set has$"),
    "members": (dict(mean=FAR[0]), r"mean: \[50, 2\]; .* with 3 members and"),
    "order": (dict(mean=np.moveaxis(FAR, 0, 1)), "the members' axis is the first: np.moveaxis"),
    "both": (dict(mean=FAR[:, :9]), r"variance: \[3, 50, 2\]; \[3, 9, 2\] as `mean` is needed"),
    "nothing": (dict(mean=FAR[:, :0]), r"mean: \[3, 0, 2\]"),
    "nan": (dict(mean=changed(FAR, AT, np.nan)), "mean: nan at member 1, example 2, output 1"),
    "inf": (dict(variance=changed(FAR**2, AT, np.inf)), "variance: inf at member 1, example 2, o"),
    "sign": (dict(variance=changed(FAR**2, AT, -1)), "variance: -1 at member 1.*; positive and f"),
    "zero": (dict(variance=changed(FAR**2, AT, 0)), "variance: 0 at member 1, example 2, output 1"),
    "std": (dict(variance=None, std=FAR**2), "needed; there is std; the variance is std"),
    "text": (dict(mean=FAR.astype(str)), "mean: numbers are expected"),
    "y": (dict(y=np.zeros((50, 3))), r"mean: \[3, 50, 2\]; with y \[50, 3\]"),
    "some y": (dict(y=changed(np.zeros((50, 2)), (3, 1), np.nan)), "y: nan at example 3, output 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_sets_are_refused(tmp_path, name):
    change, message = REFUSED[name]
    arrays = made() | {f"ood__far__{k}": v for k, v in change.items()}
    with pytest.raises(ValueError, match=message) as error:
        scored(tmp_path, {k: v for k, v in arrays.items() if v is not None})
    assert str(error.value).startswith(f"{tmp_path / 'a.npz'}: ood/far: ")


def test_an_output_without_a_unit_is_refused(tmp_path):
    arrays = made()
    arrays["y"][:, 1] = 7
    with pytest.raises(ValueError, match=r"a\.npz: y: output 1 is 7 in all test examples; OOD"):
        scored(tmp_path, arrays)
    del arrays["ood__far__mean"], arrays["ood__far__variance"]
    assert not of_ood(scored(tmp_path, arrays).metrics)  # nothing has to be added
    single = {k: v[..., 1:] for k, v in made().items()} | dict(y=np.full(60, 7.0))
    assert len(of_ood(scored(tmp_path, single).metrics)) == 15


def test_arrays_that_are_not_read_are_named(tmp_path):
    one = scored(tmp_path, made() | dict(epistemic=np.zeros(3), ood__far__weights=np.zeros(3)))
    assert "arrays that are not read: epistemic" in one.notes
    assert "ood/far: arrays that are not read: weights" in one.notes


@pytest.mark.slow
def test_the_report_has_columns_and_figures(tmp_path, capsys):
    first = saved(tmp_path / "a.npz", **made(K=1))
    second = saved(tmp_path / "b.npz", **made(K=1, M=1))
    out = tmp_path / "out"
    assert program.main([first, second, "--out", str(out), "--resamples", "100"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "far AUROC by predictive variance" in printed
    page = (out / "report.html").read_text()
    for text in ("FPR95 by predictive variance", "Out of distribution", "Differences from a"):
        assert text in page, text
    assert (out / "report_figures" / "ood_predictive_variance.png").is_file()
    # What is drawn are standard deviations, and ranks are those of the table.
    (one,) = score(read(first), "a", Options())
    entries = {e.name: e for e in figures({"a": output.runs_of([one])})}
    both, epistemic = (entries[f"ood_{name}"].figure.axes[0] for name in ALL[:2])
    area = 100 * one.metrics["ood/far/auroc_predictive_variance"]
    assert f"AUROC {area:.1f} %" in both.get_title()
    assert both.get_xlabel() == "predictive standard deviation\n(units of y)"
    assert epistemic.get_xlabel() == "epistemic standard deviation\n(units of y)"
    arrays = [one.arrays[f"{of}/predictive_variance"] for of in ("test", "ood/far")]
    assert both.patches[0].get_x() == pytest.approx(np.sqrt(min(map(np.min, arrays))))
