"""Members of several runs and files: the program, the evaluators, and what both refuse."""

import json
import zipfile

import numpy as np
import pytest

from experiments import combine, score
from experiments.combining.measure import measure
from experiments.combining.pool import pool, predicted
from experiments.evaluate import evaluate
from experiments.evaluators import build
from experiments.evaluators.kinds import class_accuracy, of_members, share_of_classes
from experiments.experiment import config as config_lib
from experiments.prediction import fitted
from experiments.runtime import storage
from experiments.train import train
from tests.scoring.made import labels, probs, saved
from uncertainty.build import ConfigError
from uncertainty.combining.greedy import greedy
from uncertainty.metrics import classification, pairs

Y, V = labels(), labels(1, 40)
KINDS = ("a", "b")


def file(path, seed, members=2, **more):
    arrays = dict(
        probs=probs(seed, members, y=Y),
        y=Y,
        validation__probs=probs(seed + 10, members, 40, y=V),
        validation__y=V,
    )
    return saved(path, **{k: v for k, v in (arrays | more).items() if v is not None})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of two particles on the digits."""
    made = {}
    for seed in (0, 1):
        config = config_lib.load("configs/digits/mlp.py:runlocal,size=2")
        config.seed, config.steps, config.mesh = seed, 12, dict(data=1)
        config.batch_size, config.backbone.widths = 64, (8,)
        config.evaluation.every, config.optimiser = 0, dict(name="adam", learning_rate=0.01)
        config.data.validation = fit = dict(split="validation")
        test = dict(split="test")
        config.evaluators = dict(
            test=dict(name="classification", data=test),
            kinds=dict(name="kinds", data=test, kinds=KINDS, counts=(2, 3), classes=True),
            combination=dict(
                name="combination", data=test, fit=fit, kinds=KINDS,
                methods=(dict(name="greedy", size=2, label="two"), "winners", "gate"),
            ),
        )  # fmt: skip
        workdir = tmp_path_factory.mktemp("runs") / f"seed{seed}"
        made[workdir] = train(config_lib.plain(config), workdir)
    return made


@pytest.mark.slow
def test_evaluators_and_the_program_say_what_the_predictions_say(runs, tmp_path, capsys):
    (first, one), (second, other) = runs.items()
    metrics, failures = evaluate(one, first, others={second: other}, show=False, name="both")
    assert not failures
    arrays = [np.load(predicted(storage.path(workdir))) for workdir in runs]
    log_p, held_out = (
        np.concatenate([a[f"{name}log_p"] for a in arrays]) for name in ("", "validation/")
    )
    y, v = arrays[0]["y"], arrays[0]["validation/y"]
    kinds = ["a", "b", "a", "b"]

    found = pairs.between(pairs.disagreement(log_p), kinds)
    for (a, b), value in found.items():
        assert metrics[f"kinds/{a}+{b}/disagreement"] == pytest.approx(value)
    assert len(found) == 3
    inconsistent = pairs.between(pairs.error_inconsistency(log_p, y), kinds)["a", "b"]
    assert metrics["kinds/a+b/error_inconsistency"] == pytest.approx(inconsistent)
    accuracy, nll = pairs.at_count(log_p, y, kinds, 3)["a", "b"]
    assert metrics["kinds/a+b/accuracy_3"] == pytest.approx(accuracy)
    assert metrics["kinds/a+b/nll_3"] == pytest.approx(nll)
    assert "kinds/a+a/accuracy_3" not in metrics
    mean = np.mean([classification.accuracy(log_p[[m]], y) for m in (1, 3)])
    assert metrics["kinds/b/member_accuracy"] == pytest.approx(mean)
    of_7 = np.mean([np.mean(log_p[m, y == 7].argmax(1) == 7) for m in (0, 2)])
    assert metrics["kinds/a/class/7/accuracy"] == pytest.approx(of_7)

    chosen = greedy(held_out, v, 2)
    assert metrics["combination/two/nll"] == pytest.approx(
        classification.nll(log_p[chosen.members], y), rel=1e-6
    )
    share = np.mean([kinds[m] == "a" for m in chosen.members])
    assert metrics["combination/two/share/a"] == share
    assert metrics["combination/all/nll"] == pytest.approx(classification.nll(log_p, y), rel=1e-6)
    read = fitted.read(first / "evaluation" / "both", "combining", "two")
    np.testing.assert_array_equal(read.members, chosen.members)

    out = tmp_path / "out"
    inputs = [f"one={first}", f"two={second}"]
    flags = ["--methods", "greedy,gate", "--size", "2", "--counts", "2,4", "--out", str(out)]
    before = [predicted(storage.path(w)).stat().st_mtime_ns for w in runs]
    assert combine.main([*inputs, *flags]) == 0
    assert before == [predicted(storage.path(w)).stat().st_mtime_ns for w in runs]  # made once
    shown = capsys.readouterr().out
    assert "one 1" in shown and "one+two" in shown and "greedy, with the mixture's score" in shown
    content = json.loads((out / "combination.json").read_text())
    names = [member["name"] for member in content["members"]]
    assert names == ["one 0", "one 1", "two 0", "two 1"]
    assert content["methods"]["greedy"]["fitted"]["members"] == chosen.members.tolist()
    for name in ("nll", "accuracy", "smooth_ece"):
        for mine, theirs in (("greedy", "two"), ("gate", "gate"), ("all", "all")):
            value = content["methods"][mine]["metrics"][name]
            assert value == pytest.approx(metrics[f"combination/{theirs}/{name}"], rel=1e-6)
    files = [f"{name}={out / name}.npz" for name in ("all", "greedy", "gate")]
    assert score.main([*files, "--resamples", "0", "--out", str(tmp_path / "scores")]) == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    nll = {one["label"]: one["metrics"]["classification/nll"] for one in scores["files"]}
    for label in ("all", "greedy", "gate"):
        assert nll[label] == pytest.approx(content["methods"][label]["metrics"]["nll"], rel=1e-5)


@pytest.mark.slow
def test_predictions_of_another_step_are_made_again(runs, tmp_path):
    workdir = storage.path(next(iter(runs)))
    path = predicted(workdir)
    with zipfile.ZipFile(path) as packed:
        content = {name: packed.read(name) for name in packed.namelist()}
    about = json.loads(content["metadata.json"])
    about["runs"][0]["step"] = 7
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in content.items():
            packed.writestr(name, json.dumps(about) if name == "metadata.json" else data[:200])
    with np.load(predicted(workdir)) as arrays, zipfile.ZipFile(path) as packed:
        assert packed.read("log_p.npy") == content["log_p.npy"]
        assert json.loads(arrays["metadata.json"])["runs"][0]["step"] == 12


def test_members_that_are_not_finite_are_left_out_by_name(tmp_path):
    bad = probs(0, 3, y=Y)
    bad[1, 4, 2] = np.nan
    paths = [
        file(tmp_path / "a.npz", 0, 3, probs=bad),
        file(tmp_path / "b.npz", 1, 2),
        file(tmp_path / "c.npz", 2, 1, probs=np.full((1, 60, 4), np.nan)),
    ]
    found = pool([("a", paths[0]), ("b", paths[1]), ("b", paths[2])])
    assert [m.name for m in found.members] == ["a 0", "a 1", "b 0", "b 1"]
    assert [m.index for m in found.members] == [0, 2, 0, 1]
    assert f"a: member 1 of {paths[0]} is not finite and is left out" in found.notes
    assert f"b: member 0 of {paths[2]} is not finite and is left out" in found.notes
    kept = [probs(10, 3, 40, y=V)[[0, 2]], probs(11, 2, 40, y=V)]
    np.testing.assert_allclose(
        np.exp(found.sets["validation"].log_p), np.concatenate(kept), rtol=1e-12
    )
    with pytest.raises(ValueError, match="no member of any file is finite: c: member 0"):
        pool([("c", paths[2])])


def test_sets_that_all_files_have_are_combined(tmp_path):
    outside = dict(ood__far__probs=probs(20, 2, 50), ood__near__probs=probs(21, 2, 50))
    a = file(tmp_path / "a.npz", 0, **outside)
    b = file(tmp_path / "b.npz", 1, ood__far__probs=probs(30, 2, 50))
    found = pool([("a", a), ("b", b)])
    assert set(found.sets) == {"test", "validation", "ood/far"}
    assert "ood/near: not in every file, and left out" in found.notes
    expected = np.log(np.concatenate([outside["ood__far__probs"], probs(30, 2, 50)]))
    np.testing.assert_allclose(found.sets["ood/far"].log_p, expected, atol=1e-12)
    measured = measure(found, dict(g=dict(name="greedy", size=1)), [2])
    members = [classification.nll(np.log(probs(s, 2, y=Y))[[m]], Y) for s in (0, 1) for m in (0, 1)]
    assert [m["test_nll"] for m in measured.members] == pytest.approx(members)
    assert combine.main([a, b, "--methods", "winners", "--out", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out" / "all.npz") as arrays:
        assert set(arrays.files) == {"log_p", "y", "ood/far/log_p"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(y=np.roll(Y, 1)), r"b\.npz: test: its labels are not those of .*a\.npz"),
        (dict(validation__y=np.roll(V, 1)), r"b\.npz: validation: its labels are not those of"),
        (dict(validation__probs=None, validation__y=None), "no set `validation` to choose members"),
        (
            dict(validation__probs=probs(0, 2, 30), validation__y=V[:30]),
            r"validation: \[30, 4\] examples and classes; .* has \[40, 4\]",
        ),
        (dict(probs=np.ones((2, 60, 4))), "probabilities sum to 4"),
        (dict(validation__probs=probs(0, 3, 40)), r"validation: 3 members, not 2"),
        (
            dict(probs=None, mean=np.zeros(60), variance=np.ones(60), y=np.zeros(60)),
            "predictions of targets; classes alone can be combined",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, capsys, change, message):
    a, b = file(tmp_path / "a.npz", 0), file(tmp_path / "b.npz", 1, **change)
    assert combine.main([a, b]) == 2
    with pytest.raises(ValueError, match=message):
        pool([("a", a), ("b", b)])
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "greedi"], "--methods: no file 'greedi'.*did you mean 'greedy'"),
        (["--methods", ""], "--methods: .*a list of names"),
        (["--methods", "winners", "--size", "2"], "--size: none of the methods 'winners' has it"),
        (["--size", "9"], "--methods: size: 9 members of 4 usable ones"),
        (["--size", "0"], r"--methods\[0\]: size: 0 members"),
        (["--counts", "two"], "--counts: 'two'; whole numbers from 1"),
        (["--bins", "0"], "--bins: 0"),
    ],
)
def test_flags_that_are_refused(tmp_path, capsys, flags, message):
    a, b = file(tmp_path / "a.npz", 0), file(tmp_path / "b.npz", 1)
    assert combine.main([a, b, *flags]) == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)


def test_kinds_of_members_and_classes_that_they_win():
    assert of_members(("a", "b"), np.array([0, 0, 0]), [3]) == ["a", "b", "a"]
    run = np.array([0, 0, 1, 1, 1, 1])
    assert of_members(("a", "b", "c"), run, [1, 2]) == ["a", "a", "b", "b", "c", "c"]
    with pytest.raises(ValueError, match="3 members of 2 particles have no kinds; members were"):
        of_members(("a", "b"), np.zeros(3), [2])
    log_p = np.log(probs(0, 3, y=Y))
    accuracy = class_accuracy(log_p, Y, ["a", "b", "a"])
    for k in range(4):
        each = [np.mean(log_p[m, k == Y].argmax(1) == k) for m in range(3)]
        np.testing.assert_allclose(accuracy[:, k], [(each[0] + each[2]) / 2, each[1]])
    none = np.full((2, 1), np.nan)
    table = np.array([[0.9, 0.5, 0.2], [0.8, 0.5, 0.3]])
    np.testing.assert_allclose(share_of_classes(np.hstack([table, none])), [0.5, 0.5])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(name="kinds", kinds=()), r"kinds: \(\); a list of names"),
        (dict(name="kinds", kinds=("a+b",)), "kinds: .*names without '\\+'"),
        (dict(name="kinds", kinds=("a",), counts=(0,)), r"counts: \[0\]; whole numbers from 1"),
        (
            dict(name="combination", methods="greedy"),
            "methods: 'greedy' is a str; a list is needed",
        ),
        (dict(name="combination", methods=("gredy",)), "did you mean 'greedy'"),
        (dict(name="combination", methods=("gate", "gate")), r"methods\[1\].label: 'gate'"),
        (dict(name="combination", methods=(dict(name="greedy", by="f1"),)), "by: 'f1'; one of"),
    ],
)
def test_fields_of_evaluators_that_are_refused(fields, message):
    test = dict(name="digits", split="test")
    data = dict(data=test) | ({} if fields["name"] == "kinds" else dict(fit=dict(test)))
    with pytest.raises(ConfigError, match=message):
        build("e", data | fields, "classification")
