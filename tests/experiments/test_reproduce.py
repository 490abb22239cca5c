"""Tables are resumed, filtered and completed; a row that fails takes no other with it."""

import contextlib
import importlib
import io
import json
import logging
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import configs.tables
from experiments.experiment import config as config_lib
from experiments.reproduce import main
from experiments.runtime import project
from experiments.runtime.buckets import UnavailableError
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_config, read_json, write_json
from experiments.tables import launch
from experiments.tables.cells import Cells, table_of
from experiments.tables.records import FILE, slug
from experiments.tables.render import runs_here
from experiments.tables.run import reproduce, run_alone
from experiments.tables.summary import study
from uncertainty.build import ConfigError

TABLE = '''
def get_table():
    """Two rows that run, one that lacks its data, one that lacks its config."""
    return dict(
        title="A table",
        seeds=(0, 1),
        rows=[
            dict(label="One", config="{digits}:runlocal",
                 published={{"classification/accuracy": (99.0, "a paper, table 1")}}),
            dict(label="No data", config="{missing}"),
            dict(group="Two", label="of them", config="{digits}:runlocal,size=2"),
            dict(label="No config", config="nowhere.py"),
        ],
        columns=[
            dict(key="classification/accuracy", header="Accuracy", unit="%", better="higher"),
            dict(key="classification/nll", header="NLL", better="lower"),
            dict(key="ood/later/auroc_entropy", header="Later", better="higher"),
            dict(key="cost/parameters", header="Parameters"),
        ],
    )
'''
DIGITS = """
from configs.digits import mlp

def get_config(arg=None):
    config = mlp.get_config(arg)
    del config.evaluators["corruption"]
    del config.evaluators["ood"]
    config.backbone.widths = (8,)
    config.evaluation.every = 0
    config.checkpoint.every = 100
    config.mesh.data = 1
    return config
"""
MISSING = """
from experiments.experiment.base import base

def get_config():
    config = base()
    config.data.train = dict(name="npz", path="/no/file.npz")
    config.mesh.data = 1
    return config
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A folder of tables beside that of the project."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "digits_config.py").write_text(DIGITS)
    (folder / "missing_config.py").write_text(MISSING)
    text = TABLE.format(digits=folder / "digits_config.py", missing=folder / "missing_config.py")
    (folder / "a_table.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs.tables, "__path__", [*configs.tables.__path__, str(folder)])
        yield folder


def arguments(folder, *more):
    """Of the table without the report, whose figures take longer than the cells."""
    folders = ["--workdir", str(folder / "w"), "--results", str(folder / "r")]
    return ["a_table", *folders, "--no-report", *more]


def records(folder, table="a_table"):
    """(row, seed) -> record, in the order of the file."""
    lines = (folder / "r" / table / FILE).read_text().splitlines()
    return {(r["row"], r["seed"]): r for r in map(json.loads, lines)}


def rewrite(folder, change):
    """Puts what `change` makes of each record in its place; a text is a line as it is."""
    changed = [change(record) for record in records(folder).values()]
    lines = [line if isinstance(line, str) else json.dumps(line) for line in changed]
    (folder / "r" / "a_table" / FILE).write_text("".join(line + "\n" for line in lines))


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def made(tables, tmp_path_factory):
    """The table after one command, and that command's exit status and output."""
    folder = tmp_path_factory.mktemp("made")
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(arguments(folder))
    return folder, code, output.getvalue().splitlines() + errors.getvalue().splitlines()


@pytest.mark.slow
def test_a_failing_row_is_reported_and_the_others_are_done(made):
    folder, code, lines = made
    assert code == 1
    reason = (
        "data.train.path: there is no file /no/file.npz; an npz file or a folder of them is needed"
    )
    assert f"error: No data, seeds 0, 1: {reason}" in lines
    assert "error: No config, seeds 0, 1: config: no file 'nowhere.py'" in lines
    assert f"cells:  0 read from {folder}/r/a_table/runs.jsonl, 4 run, 4 failed" in lines
    assert list(records(folder)) == [
        ("One", 0),
        ("One", 1),
        ("Two: of them", 0),
        ("Two: of them", 1),
    ]
    text = (folder / "r" / "a_table" / "table.md").read_text()
    assert "No data" in text and "there is no file /no/file.npz" in text and "*failed*" in text


@pytest.mark.slow
def test_the_json_has_every_number_and_where_it_is_from(made):
    folder, _, _ = made
    table = read_json(folder / "r" / "a_table" / "table.json")
    assert table["command"] == "python -m experiments.reproduce a_table"
    assert table["seeds"] == [0, 1]
    assert {"devices", "processor", "cores", "jax", "date"} <= set(table["hardware"])
    row = table["rows"][0]
    values = []
    for seed in (0, 1):
        cell = records(folder)["One", seed]
        config = read_config(folder / "w" / "a_table" / "one" / f"seed{seed}")
        assert cell["config"] == config and config["seed"] == seed
        assert cell["hardware"]["date"].count("-") == 2 and cell["failures"] == {}
        metrics = folder / "w" / "a_table" / "one" / f"seed{seed}" / "evaluation" / "test"
        assert cell["metrics"] == read_json(metrics / "metrics.json")
        values.append(cell["metrics"]["classification/accuracy"])
    accuracy = row["cells"]["classification/accuracy"]
    assert accuracy["values"] == values
    np.testing.assert_allclose(accuracy["mean"], np.mean(values))
    np.testing.assert_allclose(accuracy["standard_error"], np.std(values, ddof=1) / np.sqrt(2))
    assert accuracy["published"] == dict(value=99.0, unit="%", source="a paper, table 1")
    assert row["cells"]["ood/later/auroc_entropy"]["values"] == []  # an empty cell stays empty
    assert table["rows"][2]["cells"]["cost/parameters"]["values"] == [2 * 592] * 2
    assert not (folder / "w" / "a_table" / "report.html").exists()
    json.loads((folder / "r" / "a_table" / "table.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_a_report_of_the_runs_that_are_here(made, tmp_path, capsys):
    """Without arrays and histories, whose figures take long and have tests of their own."""
    for name in ("r", "w"):
        shutil.copytree(made[0] / name, tmp_path / name)
    shutil.rmtree(tmp_path / "w" / "a_table" / "one" / "seed1")
    for name in ("scores.npz", "metrics.jsonl"):
        for path in (tmp_path / "w").rglob(name):
            path.unlink()
    words = arguments(tmp_path, "--rows", "One|Two")
    assert main([word for word in words if word != "--no-report"]) == 0
    report = tmp_path / "w" / "a_table" / "report.html"
    assert f"report: {report}" in capsys.readouterr().out
    text = report.read_text()
    assert text.count("two-of-them") >= 2 and "one/seed0" in text and "one/seed1" not in text
    assert (report.parent / "report_figures" / "comparison.png").is_file()


@pytest.mark.slow
def test_a_second_run_does_nothing(made, capsys):
    folder, _, _ = made
    before = contents(folder / "w"), contents(folder / "r" / "a_table")
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "w").rglob("metrics.json*")}
    assert main(arguments(folder, "--rows", "One|Two")) == 0
    assert "4 read from" in capsys.readouterr().out
    after = contents(folder / "w"), contents(folder / "r" / "a_table")
    unchanged = [p for p in before[0] if "report" not in str(p.relative_to(folder))]
    assert all(after[0][p] == before[0][p] for p in unchanged) and after[1] == before[1]
    assert {p: p.stat().st_mtime_ns for p in (folder / "w").rglob("metrics.json*")} == stamps


@pytest.mark.slow
def test_filters(tables, tmp_path):
    assert main(arguments(tmp_path, "--rows", "^Two: of", "--seeds", "4")) == 0
    assert list(records(tmp_path)) == [("Two: of them", 4)]
    table = read_json(tmp_path / "r" / "a_table" / "table.json")
    assert table["seeds"] == [4]
    assert [len(row["results"]) for row in table["rows"]] == [0, 0, 1, 0]


@pytest.mark.slow
def test_data_that_comes_later(tables, tmp_path, capsys):
    """A cell without its data is refused before it trains; one whose evaluator failed since then is
    evaluated again when its fields change, without training again."""
    more = ["--rows", "One", "--seeds", "0"]
    elsewhere = "evaluators.ood={'name':'ood','data':{'name':'digits','split':'test','classes':" + (
        "[0,1,2,3,4,5,6,7]},'sets':{'later':%r}}"
    )
    missing = ["--set", elsewhere % {"name": "npz", "path": "/no/file"}]
    assert main(arguments(tmp_path, *more, *missing)) == 1
    assert "evaluators.ood.sets.later.path: there is no file /no/file" in capsys.readouterr().err
    run = tmp_path / "w" / "a_table" / "one" / "seed0"
    assert not (tmp_path / "r" / "a_table" / FILE).exists() and not run.exists()

    found = ["--set", elsewhere % {"name": "noise", "shape": [8, 8, 1], "split": "test"}]
    assert main(arguments(tmp_path, *more, *found)) == 0
    first = records(tmp_path)["One", 0]
    assert first["failures"] == {}
    log = run / "metrics.jsonl"
    trained = log.read_bytes(), log.stat().st_mtime_ns
    metrics = {k: v for k, v in first["metrics"].items() if not k.startswith("ood")}
    rewrite(tmp_path, lambda r: r | {"failures": {"ood": "the disk was away"}, "metrics": metrics})
    assert main(arguments(tmp_path, *more, *found)) == 0
    assert records(tmp_path)["One", 0]["failures"]  # the same fields would fail again
    again = ["--set", elsewhere % {"name": "noise", "shape": [8, 8, 1], "split": "test", "seed": 1}]
    assert main(arguments(tmp_path, *more, *again)) == 0
    second = records(tmp_path)["One", 0]
    assert second["failures"] == {} and "ood/later/auroc_entropy" in second["metrics"]
    assert (log.read_bytes(), log.stat().st_mtime_ns) == trained


@pytest.mark.slow
def test_cells_of_another_config_are_not_shown(made, tmp_path, caplog):
    """As where the table's config has changed since."""
    folder, _, _ = made
    shutil.copytree(folder / "r", tmp_path / "r")
    cell = records(tmp_path)["One", 0]
    cell["config"]["optimiser"]["learning_rate"] = 0.5
    rewrite(tmp_path, lambda r: cell if (r["row"], r["seed"]) == ("One", 0) else r)
    run = tmp_path / "w" / "a_table" / "one" / "seed0"
    run.mkdir(parents=True)
    write_json(run / "config.json", cell["config"])
    cells = Cells("a_table", tmp_path / "r", tmp_path / "w", {})
    with caplog.at_level(logging.WARNING):
        made = reproduce(cells, rows="One", seeds=[0])
    assert "the record of One, seed 0" in caplog.text
    assert "has another config and is not used" in caplog.text
    assert "optimiser.learning_rate: 0.5 -> 0.001" in made.study.rows[0].failed
    assert len(made.study.rows[0].results) == 1  # the other seed
    assert records(tmp_path)["One", 0] == cell


@pytest.mark.slow
def test_the_table_says_what_its_cells_were_made_with(made, tmp_path, caplog):
    shutil.copytree(made[0] / "r", tmp_path / "r")
    cell = records(tmp_path)["One", 1]
    cores = cell["hardware"]["cores"]
    other = cell | {"hardware": cell["hardware"] | {"cores": cores + 1}}
    rewrite(tmp_path, lambda r: other if (r["row"], r["seed"]) == ("One", 1) else r)
    cells = Cells("a_table", tmp_path / "r", tmp_path / "w", {"evaluators.test.bins": "7"})
    found = study(cells, {})
    assert found.hardware["cores"] == f"{cores} or {cores + 1}"
    assert found.hardware["jax"] == cell["hardware"]["jax"]
    assert ["several machines" in row.note for row in found.rows] == [True, False, False, False]
    assert found.command.endswith("reproduce a_table")  # no cell was made with other bins
    assert cells.done(cells.table["rows"][0], 1)
    assert "was evaluated with other config.evaluators" in caplog.text
    other["config"]["evaluators"]["test"]["bins"] = 7
    other["config"]["pretrained"] = {"path": "/elsewhere"}
    rewrite(tmp_path, lambda r: other if (r["row"], r["seed"]) == ("One", 1) else r)
    cells = Cells("a_table", tmp_path / "r", tmp_path / "w", {"evaluators.test.bins": "7"})
    assert study(cells, {}).command.endswith("reproduce a_table --set=evaluators.test.bins=7")
    assert cells.done(cells.table["rows"][0], 1)
    assert "seed 1 (" in caplog.text
    assert "began from config.pretrained.path '/elsewhere', not None; unless" in caplog.text


def test_overrides_where_they_fit(tables, tmp_path):
    more = {"evaluators.test.bins": "7", "optimiser.learning_rate": "0.5"}
    cells = Cells("a_table", tmp_path, tmp_path, more)
    with_test, without = (cells.config(cells.table["rows"][i], 0) for i in (0, 1))
    assert with_test["evaluators"]["test"]["bins"] == 7 and without["evaluators"] == {}
    assert with_test["optimiser"]["learning_rate"] == without["optimiser"]["learning_rate"] == 0.5
    with pytest.raises(ConfigError, match=r"config\.evaluators\.tst: no such section; did you"):
        Cells("a_table", tmp_path, tmp_path, {"evaluators.tst.bins": "7"})
    with pytest.raises(ConfigError, match=r"config\.seed: use --seeds"):
        Cells("a_table", tmp_path, tmp_path, {"seed": "1"})


def test_settings_that_change_numbers_have_a_place_of_their_own(tables):
    def folder(**overrides):
        overrides = {name.replace("__", "."): value for name, value in overrides.items()}
        cells = Cells("a_table", "r", "w", overrides)
        assert cells.results.relative_to("r") == cells.workdir.relative_to("w")
        return cells.results.relative_to("r/a_table").as_posix()

    assert folder() == folder(evaluators__test__bins="7", logging__every="3") == "."
    assert folder(optimiser__learning_rate="0.001") == "."  # what it is already
    one = folder(optimiser__learning_rate="0.5", logging__every="3")
    assert one.startswith("optimiser.learning_rate=0.5-")
    assert folder(optimiser__learning_rate="5e-1") == one
    several = {one, *(folder(optimiser__learning_rate="0.5", steps=n) for n in ("3", "4"))}
    assert len(several) == 3 and "." not in several


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["digts"], "error: table: no 'digts'; did you mean 'digits'"),
        (["digits", "--rows", "Nothing"], "error: rows: 'Nothing' matches none of ['Single"),
        (["digits", "--rows", "("], "error: rows: '(' is not a regular expression"),
        (["digits", "--seeds", "a"], "argument --seeds: 'a' is not like 0,1,2"),
        (["digits", "--set", "steps"], "error: 'steps': field=value is needed"),
        (["digits", "--set", "stps.x=1"], "error: config.stps: no such section; did you mean"),
    ],
)
def test_one_line_for_a_wrong_command(programs, tmp_path, more, message):
    folders = ["--workdir", tmp_path / "w", "--results", tmp_path / "r"]
    result = programs("reproduce", *more, *folders)
    assert result.code == 2 and message in result.output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


SMALL = "checkpoint.every=50", "evaluators.corruption=none", "evaluators.ood=none"


def digits(folder, *more):
    folders = ["--workdir", folder / "w", "--results", folder / "r", "--no-report"]
    small = [word for setting in SMALL for word in ("--set", setting)]
    return ["digits", "--rows", "Single", "--seeds", "0", *folders, *small, *more]


def of(folder):
    """Where the table with changed settings is."""
    (found,) = (folder / "digits").iterdir()
    return found


def wait(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number, more", [(signal.SIGINT, []), (signal.SIGTERM, ["--isolate"])])
def test_interrupted_in_training(programs, tmp_path, number, more):
    running = programs.start("reproduce", *digits(tmp_path, "--set", "steps=20000", *more))
    wait(lambda: list(tmp_path.glob("w/digits/*/single-network/seed0")))
    run = of(tmp_path / "w") / "single-network" / "seed0"
    wait(lambda: Checkpoints(run).latest_step())
    running.send(number)
    code, output = running.result()
    assert code == 128 + number, output
    last = Checkpoints(run).latest_step()
    assert f"stopped by SIG{'TERM' if more else 'INT'} at step {last} of 20000; saved" in output
    assert "The same command resumes" in output and "Traceback" not in output
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_interrupted_in_evaluation_and_resumed_alone(programs, tmp_path):
    """Ctrl-C while a cell is evaluated; then the rest of it in a process of its own."""
    arguments = digits(tmp_path, "--set", "steps=60")
    # So many examples, one at a time, that the signal comes while it goes on.
    many = "{'name':'stand_in','shape':[8,8,1],'num_classes':8,'size':100000,'split':'test'}"
    slow = ["--set", "evaluation.batch_size=1", "--set", f"evaluators.test.data={many}"]
    running = programs.start("reproduce", *arguments, *slow)
    wait(lambda: "evaluate test" in running.output())
    running.send(signal.SIGINT)
    code, output = running.result()
    assert code == 130 and "interrupted." in output and "Traceback" not in output, output
    run = of(tmp_path / "w") / "single-network" / "seed0"
    trained = (run / "metrics.jsonl").read_bytes()
    result = programs("reproduce", *arguments, "--isolate")
    assert result.code == 0, result.output
    assert "Single network, seed 0 (1 of 1)" in result.output
    assert (run / "metrics.jsonl").read_bytes() == trained
    (line,) = (of(tmp_path / "r") / FILE).read_text().splitlines()
    assert json.loads(line)["metrics"]["cost/step"] == 60


def test_a_failing_cell_alone_leaves_its_reason(tmp_path):
    """Where its parent looks for it."""
    reason = tmp_path / "reason"
    words = map(str, digits(tmp_path, "--set", "steps=40", "--cell", reason))
    assert main(list(words)) == 1
    assert reason.read_text().startswith("optimiser.schedule: warmup_steps: 50;")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; open(sys.argv[-1], 'w').write('the reason'); sys.exit(1)", "the reason"),
        ("import sys; sys.exit(3)", "its process ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "its process ended with status -9"),
    ],
)
def test_a_process_that_fails_is_reported_with_its_reason(code, message):
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        run_alone([sys.executable, "-S", "-c", code])
    run_alone([sys.executable, "-S", "-c", "pass"])


def test_file_names():
    assert slug("A & B: of (10)") == "a-b-of-10"
    assert config_lib.assignments(["a.b=c=d"]) == {"a.b": "c=d"}


@pytest.mark.slow
def test_runs_of_another_config_are_not_in_the_report(made, tmp_path):
    """Their directories are there; the report would refuse to put them beside the others."""
    for name in ("r", "w"):
        shutil.copytree(made[0] / name, tmp_path / name)
    rewrite(tmp_path, lambda r: r | {"config": r["config"] | {"steps": 4 + (r["seed"] == 0)}})
    cells = Cells("a_table", tmp_path / "r", tmp_path / "w", {})
    made = reproduce(cells, rows="One", seeds=[1])
    assert [len(row.results) for row in made.study.rows] == [1, 0, 1, 0]
    problems = []
    shown = runs_here(cells, made, problems)
    assert [run.workdir.name for run in shown] == ["seed1", "seed1"] and not problems


@pytest.fixture
def copied(made, tmp_path):
    """The finished table without its runs, as in a fresh clone."""
    shutil.copytree(made[0] / "r", tmp_path / "r")
    return tmp_path


@pytest.mark.slow
def test_failures_alone_leave_the_files_as_they_were(copied, capsys):
    """Byte for byte, and so they are without the data of what is done, and with other commands."""
    before = contents(copied / "r")
    stamps = {path: path.stat().st_mtime_ns for path in before}
    for more in ([], ["--rows", "No"], ["--set", "evaluators.test.bins=7"]):
        assert main(arguments(copied, *more)) == 1
        assert contents(copied / "r") == before
        assert {path: path.stat().st_mtime_ns for path in before} == stamps
    output = capsys.readouterr()
    assert output.err.count("error: No config, seeds 0, 1: config: no file 'nowhere.py'") == 3
    assert "cells:  0 read from" in output.out and "0 run, 4 failed" in output.out


@pytest.mark.slow
def test_files_follow_the_records(copied):
    table = copied / "r" / "a_table" / "table.json"
    rewrite(copied, lambda r: "" if (r["row"], r["seed"]) == ("One", 1) else r)
    main(arguments(copied, "--rows", "No"))
    assert [len(row["results"]) for row in read_json(table)["rows"]] == [1, 0, 2, 0]


BARE = dict(row="One", seed=1, metrics={}, failures={}, config={"evaluators": {}}, hardware={})
BAD_RECORDS = [  # of the cell One, seed 1
    (dict(row="One", seed=1), "'metrics' is missing or of another type"),
    (BARE | {"failures": []}, "'failures' is missing or of another type"),
    (BARE | {"metrics": {"a": "x"}}, "a = 'x' is not a number"),
    (BARE | {"config": {}}, "'config.evaluators' is missing"),
    (BARE | {"hardware": {"a": []}}, "'hardware.a' is of another type"),
    (BARE | {"versions": []}, "'versions.' is of another type"),
    (BARE | {"run": "../.."}, "'run' is '../..'"),
    (BARE | {"sets": {"test": 3}}, "has no name, number of examples and digest"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS)
def test_a_damaged_record_is_named_and_the_others_are_shown(copied, capsys, record, reason):
    rewrite(copied, lambda r: record if (r["row"], r["seed"]) == ("One", 1) else r)
    before = contents(copied / "r")
    assert main(arguments(copied, "--rows", "One", "--seeds", "0,1")) == 1
    output = capsys.readouterr()
    (error,) = (line for line in output.err.splitlines() if line.startswith("error: "))
    file = copied / "r" / "a_table" / FILE
    assert error.startswith(f"error: One, seed 1: {file}, line 2, is damaged: ")
    assert reason in error and error.endswith("delete it to run the cell again")
    assert "Two: of them" in output.out and "1 read from" in output.out
    assert contents(copied / "r") == before


@pytest.mark.slow
@pytest.mark.parametrize("line", ["{", "[]", '{"row": "One"}', "<<<<<<< HEAD"])
def test_a_line_of_no_cell_is_named(copied, capsys, line):
    """As after a merge that went wrong; no file is changed."""
    rewrite(copied, lambda r: line if (r["row"], r["seed"]) == ("Two: of them", 0) else r)
    before = contents(copied / "r")
    assert main(arguments(copied, "--rows", "One")) == 1
    output = capsys.readouterr()
    file = copied / "r" / "a_table" / FILE
    assert f"error: {file}, line 3, is damaged: " in output.err
    assert "2 read from" in output.out and contents(copied / "r") == before


@pytest.mark.slow
def test_records_of_an_earlier_version_are_read_and_moved_into_the_file(copied):
    """Which had a file for each cell."""
    table = copied / "r" / "a_table"
    before = contents(table)
    old = table / "runs"
    old.mkdir()
    for (row, seed), record in records(copied).items():
        write_json(old / f"{slug(row)}-seed{seed}.json", record)
    (table / FILE).unlink()
    assert main(arguments(copied, "--rows", "One|Two")) == 0
    assert {p: text for p, text in contents(table).items() if p.parent == table} == {
        p: text for p, text in before.items() if p.name != FILE
    }
    Cells("a_table", str(copied / "r"), str(copied / "w"), {}).records.convert()
    assert contents(table) == before and not old.exists()


def test_a_column_that_nothing_fills_is_refused_before_any_cell(tables, tmp_path, capsys):
    keys = ["classification/acuracy", "ood/later/auroc_entropy", "no_such/thing"]
    for key, hint in zip(
        keys, ("did you mean 'classification/accuracy'", "they yield", "they yield"), strict=True
    ):
        row = f'dict(label="One", config="{tables / "digits_config.py"}:runlocal")'
        text = f"def get_table():\n    return dict(title='', seeds=(0,), rows=[{row}],\n"
        text += f"        columns=[dict(key={key!r}, header='A')])\n"
        name = f"typo_{len(list(tables.iterdir()))}"
        (tables / f"{name}.py").write_text(text)
        more = arguments(tmp_path)[1:]
        assert main([name, *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(
            f"error: table {name}: column {key!r}: no row's evaluators yield it; "
        )
        assert hint in error
        assert list(tmp_path.iterdir()) == []
    fills = "evaluators.ood={'name':'ood','data':{'name':'digits'},'sets':{'later':{'name':'npz'}}}"
    Cells("a_table", "r", "w", config_lib.assignments([fills])).check_columns()
    Cells("digits", "r", "w", {"evaluators.ood": "none"}).check_columns()  # left out, so empty


def test_rows_do_not_share_files(tables, tmp_path):
    rows = "[dict(label='A (1)', config='x.py'), dict(label='A 1', config='y.py')]"
    text = f"def get_table():\n    return dict(title='', seeds=(0,), rows={rows}, columns=[])\n"
    (tables / "alike.py").write_text(text)
    with pytest.raises(ConfigError, match=r"rows 'A \(1\)' and 'A 1' would share the folder 'a-1'"):
        Cells("alike", tmp_path, tmp_path, {})
    assert slug("模型 A") != slug("模 A") and slug("模型")


@pytest.mark.slow
def test_fresh_runs_replace_records_one_by_one_and_are_resumed(made, copied, capsys):
    shutil.copytree(made[0] / "w", copied / "w")
    before, old = records(copied), contents(copied / "w" / "a_table" / "one")
    assert main(arguments(copied, "--fresh", "--rows", "One", "--seeds", "0")) == 0
    assert "0 read from" in capsys.readouterr().out
    after = records(copied)
    assert list(after) == list(before)
    assert [cell for cell in before if after[cell] != before[cell]] == [("One", 0)]
    one, two = before["One", 0], after["One", 0]
    assert two["run"] == "fresh/1/one/seed0" and two["metrics"]["cost/step"] == 4
    for key in ("classification/nll", "classification/accuracy"):
        assert one["metrics"][key] == two["metrics"][key]  # the same numbers again
    assert contents(copied / "w" / "a_table" / "one") == old
    cells = Cells("a_table", copied / "r", copied / "w", {})
    row = cells.table["rows"][0]
    assert cells.run_directory(row, 0) == copied / "w" / "a_table" / "fresh" / "1" / "one" / "seed0"
    assert cells.run_directory(row, 1) == copied / "w" / "a_table" / "one" / "seed1"

    # As after an interruption: what is recorded in the round is not run again.
    mark = copied / "w" / "a_table" / "fresh" / "1" / "unfinished"
    assert not mark.exists()
    mark.touch()
    assert main(arguments(copied, "--fresh", "--rows", "One|Two", "--seeds", "0")) == 0
    assert "1 read from" in capsys.readouterr().out and not mark.exists()
    assert records(copied)["Two: of them", 0]["run"] == "fresh/1/two-of-them/seed0"
    # A finished round is over: the next begins anew, and one with failures stays open.
    assert main(arguments(copied, "--fresh", "--rows", "No config", "--seeds", "0")) == 1
    assert (copied / "w" / "a_table" / "fresh" / "2" / "unfinished").exists()
    assert records(copied)["One", 1] == before["One", 1]


def test_workers_of_a_round_that_finish_nothing_have_failed(tables, tmp_path, monkeypatch, capsys):
    """Records of before the round are no results of it; the same command resumes the round."""
    cells = Cells("a_table", tmp_path / "r", tmp_path / "w", {})
    row = cells.table["rows"][0]

    def record(seed):
        config = cells.config(row, seed)
        rest = dict(metrics={}, failures={}, hardware={}, versions={}, sets={}, run="")
        cells.records.put(dict(row="One", seed=seed, config=config, **rest))

    def workers(of, command, args, jobs):
        """Finish seed 0 of two, or none."""
        started.append([seed for _, seed in jobs])
        for row, seed in jobs[: len(jobs) - 1]:
            record(seed)
            of.run_directory(row, seed).mkdir(parents=True)
            (of.run_directory(row, seed) / "recorded").touch()
        code = subprocess.run([sys.executable, "-S", "-c", "raise SystemExit(3)"]).returncode
        return [f"worker 0 (7): status {code}"]

    record(0)
    record(1)
    started = []
    monkeypatch.setattr(launch, "run_workers", workers)
    monkeypatch.setattr(launch, "check", lambda args: None)  # submitit may be missing
    asked = arguments(tmp_path, "--rows", "One", "--fresh", "--launcher", "local")
    assert main(asked) == 1
    output = capsys.readouterr()
    assert "error: One, seed 1: no worker has finished it; worker 0 (7): status 3" in output.err
    assert "0 read from" in output.out and "1 run, 1 failed" in output.out
    assert main(asked) == 1
    assert "1 read from" in capsys.readouterr().out and started == [[0, 1], [1]]
    assert (tmp_path / "w" / "a_table" / "fresh" / "1" / "unfinished").exists()


@pytest.mark.slow
def test_check_compares_with_the_committed_numbers_and_leaves_them(copied, capsys):
    """The same code and seeds give the same numbers; other ones are named."""
    before = contents(copied / "r")
    one = ["--rows", "One", "--seeds", "0", "--check"]
    assert main(arguments(copied, *one)) == 0
    assert "check:  3 numbers compared, 0 differ; 0 cells read" in capsys.readouterr().out
    assert contents(copied / "r") == before

    def otherwise(record):
        return record | {"metrics": record["metrics"] | {"cost/parameters": 7}}

    rewrite(copied, lambda r: otherwise(r) if r["row"] == "One" else r)
    assert main(arguments(copied, *one)) == 1
    output = capsys.readouterr().out
    assert "differs: One, Parameters: 592.00, committed 7.00" in output
    assert "3 numbers compared, 1 differ; 1 cells read" in output
    assert main(arguments(copied, *one, "--set", "steps=3")) == 2
    assert "--set steps=3 changes; leave it out" in capsys.readouterr().err
    assert main(arguments(copied, "--rows", "No data", "--check")) == 2
    assert "has no record of these rows" in capsys.readouterr().err


@pytest.mark.slow
def test_from_another_directory(made, tmp_path, monkeypatch):
    """Configs are the project's, and so is where things go by default."""
    monkeypatch.chdir(tmp_path)
    cells = Cells("digits", "r", "w", {"steps": "7"})
    assert cells.config(cells.table["rows"][0], 3)["steps"] == 7
    Cells("toy_regression", "r", "w", {}).check_columns()
    assert project.default("results") == str(project.ROOT / "results")
    brackets = [column["header"] for column in table_of("toy_regression")["columns"]]
    monkeypatch.chdir(project.ROOT)
    assert brackets == [column["header"] for column in table_of("toy_regression")["columns"]]
    assert "(" in brackets[0]
    monkeypatch.chdir(tmp_path)
    more = ["--results", str(made[0] / "r"), "--workdir", str(made[0] / "none")]
    assert main(["a_table", "--rows", "One", *more]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_columns_of_all_tables_can_be_filled():
    for module in pkgutil.iter_modules(configs.tables.__path__):
        if (project.ROOT / "configs" / "tables" / f"{module.name}.py").is_file():
            Cells(module.name, "r", "w", {}).check_columns()


@pytest.mark.parametrize("program", ["reproduce", "sweep"])
@pytest.mark.parametrize(
    ("error", "code"), [(UnavailableError("503"), os.EX_TEMPFAIL), (OSError("no room"), 2)]
)
def test_a_server_that_does_not_answer_has_a_status_of_its_own(
    program, error, code, monkeypatch, tmp_path
):
    """It says that the same command may succeed later, as that of training does."""
    module = importlib.import_module(f"experiments.{program}")

    def unreachable(*_, **__):
        raise error

    monkeypatch.setattr(module, "Cells", unreachable)
    argv = dict(
        reproduce=["digits", "--results", str(tmp_path)],
        sweep=["--config", "configs/digits/mlp.py", "--sweep", "steps=[1,2]", "--workdir",
               str(tmp_path / "sweep")],
    )[program]  # fmt: skip
    assert module.main(argv) == code
