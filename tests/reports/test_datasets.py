"""What was evaluated on different data is not compared, and every table says on what it stands."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments.reports import datasets, formats
from experiments.reports.html import study_table, write_report
from experiments.reports.layout import layout
from experiments.reports.runs import by_task, load_run, study_of
from experiments.reports.study import Column, Row, Study
from experiments.reports.tables import print_study
from tests.reports.made import write_run

NLL = [Column("classification/nll", "NLL", "", "lower", 2)]


def spec(split="test", **fields):
    return {"test": dict(name="classification", data=dict(name="digits", split=split, **fields))}


def run(digest=None, seed=0, examples=400, kind="classification", **fields):
    sets = {"test": dict(name="digits[test]", examples=examples, digest=digest)} if digest else {}
    return datasets.evaluated({"seed": seed, "evaluators": spec(**fields)}, [f"{kind}/nll"], sets)


def study(*rows, groups=None):
    """A row for each list of runs, each better than the one before it."""
    made = [
        Row(
            f"row {i}",
            [{"classification/nll": 1.0 - 0.1 * i} for _ in row],
            data=list(row),
            group=(groups or [""] * len(rows))[i],
        )
        for i, row in enumerate(rows)
    ]
    return Study("T", NLL, made)


def best(made):
    return [cells[0].best for _, cells in layout(made).lines]


def test_the_best_is_sought_among_rows_of_the_same_data():
    made = study([run("a")], [run("a")], [run("b")])
    shown = layout(made)
    assert best(made) == [False, True, False]
    (warning,) = shown.warnings
    assert "row 0, row 1; row 2: different examples of digits[test], 400 examples (test)" in warning
    assert shown.data == ("Evaluated on digits[test], 400 examples (test).",)
    same = study([run("a")], [run("a")], [run("a")])
    assert best(same) == [False, False, True] and layout(same).warnings == ()


def test_without_digests_specs_are_compared_but_for_how_they_are_read():
    for other, equal in (
        (dict(mean=0.5, std=2.0, standardise=False), True),
        (dict(split="validation"), False),
        (dict(classes=[0, 1]), False),
        (dict(path="elsewhere"), False),
    ):
        made = study([run()], [run(**other)])
        assert (layout(made).warnings == ()) == equal, other
        made = study(
            [run("a")], [run(**other)]
        )  # one of them has digests, and these decide nothing
        assert (layout(made).warnings == ()) == equal, other
    assert not layout(study([run("a")], [run("a", split="validation")])).warnings


def test_seeds_with_splits_of_their_own_are_compared_seed_by_seed():
    first, second = ([run(f"{i}", i, resample=i) for i in range(3)] for _ in range(2))
    assert not layout(study(first, second)).warnings
    assert not layout(study(first, second[:1])).warnings
    assert layout(study(first[:1], second[1:])).warnings  # no seed in common, so other examples
    changed = [run("a", seed=0), run("b", seed=1)]
    (warning,) = layout(study(changed)).warnings
    assert "row 0: the seeds were evaluated on different examples of test" in warning


def test_a_warning_of_several_rows_or_groups_stands_once():
    rows = [[run("a")], [run("b")], [run("c")], [run("d")]]
    made = study(*rows, groups=["A, a", "A, a", "B", "B"])
    for i, row in enumerate(made.rows):
        row.label = f"{row.group}: {i % 2}"
    (warning,) = layout(made).warnings
    assert '"A, a", "B": 0; 1: different examples of digits[test], 400 examples' in warning
    rows = [[run("a")] for _ in range(4)]
    several = layout(study(*rows, [run("b")], groups=["A"] * 5)).warnings
    assert '"A": row 4; the other rows: different examples of digits[test]' in several[0]
    far = datasets.Data("far[test]", 5, "x")
    of = run("a")._replace(sets=run("a").sets | {"far": far}, trained=far, others=("far",))
    text = "far: far[test], 5 examples is another set than the training data, far[test], 5 examples"
    for rows, groups, named in (
        ([[of], [of]], ["", ""], "All rows"),
        ([[of], [of], [run("a")]], ["A", "A", "B"], "A, all rows"),
        ([[of], [run("a")], [of]], ["A", "A", "B"], "A: row 0; B: row 2"),
        ([[of]], ["A"], "A: row 0"),
    ):
        assert layout(study(*rows, groups=groups)).warnings == (f"{named}: {text}.",)


def test_of_rows_on_different_data_the_sets_that_differ_are_named():
    far = {"far": datasets.Data("far[test]", 5, "x")}
    rows = [[one._replace(sets=one.sets | far)] for one in (run("a"), run("b", examples=9))]
    (warning,) = layout(study(*rows)).warnings
    assert warning.endswith("row 0: digits[test], 400 examples (test); row 1: digits[test], 9 "
                            "examples (test).")  # fmt: skip


def test_groups_of_a_table_have_data_of_their_own():
    made = study([run("a")], [run("b", split="x[1%:]", examples=1)], groups=["A", "B"])
    shown = layout(made)
    assert shown.warnings == ()
    assert shown.data == (
        "A: evaluated on digits[test], 400 examples (test).",
        "B: evaluated on digits[test], 1 example (test).",
    )


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=2), min_size=1, max_size=6))
def test_no_group_holds_rows_that_differ(digests):
    rows = [[run(d, seed=i) for i, d in enumerate(row)] for row in digests]
    numbers = datasets.partition(rows)
    for row, number in zip(rows, numbers, strict=True):
        for other, its in zip(rows, numbers, strict=True):
            assert number != its or not datasets.differing(row, other)
    assert sorted(set(numbers)) == list(range(max(numbers) + 1))


def test_every_renderer_shows_data_and_warning():
    made = study([run("a")], [run("b")])
    console = Console(file=open("/dev/null", "w"), width=200, record=True)  # noqa: SIM115
    print_study(made, console)
    for text in (
        console.export_text(),
        formats.to_markdown(made),
        formats.to_latex(made),
        study_table(made),
        formats.to_json(made),
    ):
        plain = text.replace("{[}", "[").replace("{]}", "]").replace("\\", "")
        assert "Evaluated on digits[test], 400 examples (test)." in plain
        assert "Different data: no best is marked across these rows." in plain


def test_specs_within_the_fields_of_evaluators():
    config = {
        "evaluators": {
            "ood": dict(
                name="ood",
                data=dict(name="digits", split="test"),
                sets=dict(far=dict(name="npz", path="/a/far.npz"), near=dict(name="mnist")),
            ),
            "test": dict(
                name="classification", data=dict(name="digits", split="test[:10%]"), bins=3
            ),
        }
    }
    found = datasets.evaluated(config, []).specs
    assert {path: data.name for path, data in found.items()} == {
        "ood": "digits[test]",
        "ood.far": "npz far.npz[train]",
        "ood.near": "mnist[train]",
        "test": "digits/test[:10%]",
    }
    for odd in ({}, {"evaluators": 3}, {"evaluators": {"a": 3, "b": {"c": [1], "d": {"name": 4}}}}):
        assert datasets.evaluated(odd, []).specs == {}


def test_reports_read_sets_and_part_tasks(tmp_path):
    runs = []
    for i, digest in enumerate("ab"):
        runs.append(write_run(tmp_path / f"run {i}", 0, 1))
        sets = {"test": dict(name="digits[test]", examples=60, digest=digest)}
        (runs[-1] / "evaluation" / "test" / "sets.json").write_text(json.dumps(sets))
    runs.append(write_run(tmp_path / "other", 0, 1, regression=True))
    loaded = [load_run(run) for run in runs]
    tasks = by_task(loaded)
    assert {task: [run.label for run in of] for task, of in tasks.items()} == {
        "classification": ["run 0", "run 1"],
        "regression": ["other"],
    }
    made = study_of(tasks["classification"], "")
    assert not any(cell.best for _, cells in layout(made).lines for cell in cells)
    assert layout(study_of(loaded, "")).warnings  # one table of both tasks compares neither


@pytest.mark.slow
def test_a_page_has_a_table_for_each_task(tmp_path):
    runs = [write_run(tmp_path / f"{i}", 0, 1, regression=i > 1) for i in range(4)]
    for run in runs:  # whose figures take long and are not looked at here
        (run / "evaluation" / "test" / "scores.npz").unlink()
        (run / "metrics.jsonl").unlink()
    page = write_report(
        tmp_path / "page.html", [{"workdir": run, "label": run.name} for run in runs]
    )
    text = page.read_text()
    summary = text[text.index('id="summary"') : text.index("</section>")]
    assert summary.count("<table") == 2 and summary.count("<th>Accuracy") == 1
    names = {p.stem for p in (tmp_path / "page_figures").iterdir()}
    assert {"comparison", "comparison_2"} <= names


def test_a_row_of_another_set_than_it_was_trained_on_says_so_with_both_sizes():
    trained = dict(name="digits[train]", examples=955, digest="t")
    config = dict(seed=0, data=dict(train=dict(name="digits", split="train")))
    sets = {
        "test": dict(name="mnist[test]", examples=10_000, digest="m"),
        "ood.far": dict(name="noise[test]", examples=1_000, digest="n"),
        "map": dict(name="grid", examples=9, digest="g"),
    }
    fields = dict(
        test=dict(name="classification", data=dict(name="mnist", split="test")),
        ood=dict(name="ood", data=dict(name="digits"), sets=dict(far=dict(name="noise"))),
        map=dict(name="uncertainty_map", data=dict(name="other")),
    )
    other = datasets.evaluated(
        config | dict(evaluators=fields), ["classification/nll"], sets, trained
    )
    assert other.others == (
        "test",
    )  # neither what is meant to be another set nor points to look at
    (warning,) = layout(study([other])).warnings
    expected = (
        "mnist[test], 10,000 examples is another set than the training data, digits[train], 955"
    )
    assert f"row 0: test: {expected} examples." in warning
    (above,) = layout(study([other])).data
    assert above.startswith(
        "Trained on digits[train], 955 examples; evaluated on mnist[test], 10,000"
    )
    alike = fields | dict(test=dict(name="classification", data=dict(name="digits", split="test")))
    same = datasets.evaluated(
        config | dict(evaluators=alike), ["classification/nll"], sets, trained
    )
    assert same.others == () and layout(study([same])).warnings == ()
    of_another = datasets.Data("mnist[test]", 5, "x")  # of `evaluate --data`
    assert datasets.others(config, {"data": of_another}, same.trained) == ("data",)
    part = datasets.Data("digits[validation]", 5, "x")
    assert datasets.others(config, {"data": part}, same.trained) == ()


def test_figures_do_not_compare_rows_of_different_data():
    from experiments.reports.figures import by_data, heading

    made = study([run("a")], [run("b")], [run("a")])
    assert [[row.label for row in part.rows] for part in by_data(made)] == [
        ["row 0", "row 2"],
        ["row 1"],
    ]
    assert by_data(study([run("a")], [run("a")]))[0].rows == study([run("a")], [run("a")]).rows
    groups = study([run("a")], [run("b")], groups=["x", "y"])  # they are apart anyway
    assert by_data(groups) == [groups]
    assert heading("Calibration", {}) == "Calibration"
