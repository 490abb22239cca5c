"""The page of all results, and the command that measures them."""

import json
import sys
import time

import pytest

from benchmarks import all as every
from benchmarks import page, rows, timing

FOUND = rows.read()


def test_the_readme_has_the_results():
    """`python -m benchmarks.page` writes them."""
    text = page.README.read_text(encoding="utf-8")
    assert len(page.BLOCK.findall(text)) == 1
    assert page.rendered(text, FOUND) == text


def record(name):
    return json.loads((rows.RESULTS / f"{name}.json").read_text())


def ratio(section, ours, reference, job=""):
    named = (r for r in FOUND.rows if r[:1] + r[2:4] == (section, ours, reference))
    (row,) = (r for r in named if job in r.job)
    return row


@pytest.mark.parametrize(
    ("name", "row", "theirs", "ours"),
    [
        ("e3_128_32_1_05", ("Experts", "E3", "2 ViTs"), "2 ViTs", "E3"),
        (
            "svgd_steps",
            ("SVGD and SGLD", "SVGD", "deep ensemble", "P = 50"),
            "P = 50: deep ensemble",
            "P = 50: SVGD",
        ),
        (
            "svgd_libraries_784",
            ("SVGD and SGLD", "SVGD", "blackjax", "79,510 parameters, batch 128, P = 50"),
            "P = 50: blackjax",
            "P = 50: ours",
        ),
        (
            "gp_heads_prediction",
            ("Gaussian process heads", "Laplace", "dense head"),
            "dense",
            "Laplace",
        ),
        (
            "gp_heads_probly",
            ("Gaussian process heads", "SNGP", "probly", "covariance"),
            "covariance: theirs, 1 thread",
            "covariance: ours",
        ),
    ],
)
def test_a_ratio_is_the_time_of_the_reference_over_ours(name, row, theirs, ours):
    seconds = record(name)["seconds"]
    expected = [seconds[theirs][clock] / seconds[ours][clock] for clock in rows.CLOCKS]
    assert ratio(*row).ratios == pytest.approx(expected)


def test_goals_have_the_direction_of_ratios():
    """A step of SVGD may take 1.25 times a deep ensemble's at P = 50."""
    row = ratio("SVGD and SGLD", "SVGD", "deep ensemble", "P = 50")
    assert row.goal == pytest.approx(1 / 1.25)
    assert row._replace(ratios=(0.79, 0.79, None)).verdict() == "missed"
    assert row._replace(ratios=(0.81, 0.79, None)).verdict() == "met by the fastest block"
    assert row._replace(ratios=(0.81, None, None)).verdict() == "met"
    assert row._replace(goal=None).verdict() == ""


def test_records_of_a_gpu_are_read_and_small_sizes_are_not(tmp_path):
    job = dict(
        title="a step",
        ratios={
            "PyTorch's best / ours: vmap": dict(min=2.0, median=1.5),
            "sort, E = 8 / dense": dict(min=1.25, median=2.0),
        },
        missing={"PyTorch: compile": "the time was over"},
    )
    part = dict(part="mlp", status="done", where=dict(date="2026-01-02T03", device="a GPU"))
    for name, small in (("mlp", False), ("lenet", True)):
        path = tmp_path / "device" / f"{name}.json"
        timing.write(path, part | dict(part=name, settings=dict(small=small), jobs=[job]))
    found = rows.read(tmp_path)
    assert [row[1:5] for row in found.rows] == [
        ("a step", "vmap", "PyTorch's best", (2.0, 1.5, None)),
        ("a step", "sort, E = 8", "dense", (0.8, 0.5, None)),
    ]
    assert {f.job for f in found.failed} == {"lenet", "a step: PyTorch: compile"}


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "unknown.json").write_text("{}")
    with pytest.raises(ValueError, match=r"unknown\.json: not a result of a benchmark"):
        rows.read(tmp_path)


def test_the_page_is_written_with_the_figures_of_growth(tmp_path):
    side = dict(wall_ms=1.0, megabytes=2.0)
    points = [
        dict(axis="particles", value=1, sides=dict(SVGD=side, pairs=side)),
        dict(axis="particles", value=2, sides=dict(SVGD=side)),
        dict(axis="particles", value=4, error="exit status 1: <no memory>"),
    ]
    about = dict(date="2026-01-02T03", cpu="a CPU", cores=2)
    timing.write(tmp_path / "growth.json", dict(points=points, **about))
    page.write_html(tmp_path / "page.html", rows.read(tmp_path))
    text = (tmp_path / "page.html").read_text()
    assert "particles = 4: exit status 1: &lt;no memory&gt;" in text
    assert (tmp_path / "page_figures" / "growth_particles.png").exists()


def test_results_belong_to_one_job_and_have_a_place_on_the_page():
    names = [name for job in every.JOBS.values() for name in job.results]
    assert len(set(names)) == len(names)
    known = (*rows.SECTIONS, *rows.ABSOLUTE, rows.GROWTH, "device/")
    assert all(name.startswith(known) for name in names)
    assert {path.stem for path in rows.RESULTS.glob("*.json")} <= set(names) | {
        f"{name}".removesuffix("_1_core") for name in names
    }


def test_a_job_depends_on_the_files_that_it_names():
    names = {path.stem for path in every.sources("mlp_ensemble")}
    assert {"mlp_ensemble", "against_torch", "timing", "torch_ensembles", "torch_side"} <= names
    assert not {"svgd", "gp_heads", "page", "all"} & names
    assert "parts" in {path.stem for path in every.sources("device")}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(every, "LOGS", tmp_path / "logs")
    return tmp_path / "results"


def writing(path, number, then=""):
    """A command that writes a result."""
    code = "import pathlib, sys; from benchmarks import timing;"
    code += f"timing.write(pathlib.Path({str(path)!r}), dict(number={number})); {then}"
    return [sys.executable, "-c", code]


def test_a_result_is_done_for_the_code_that_measured_it(folder):
    job = every.Job("growth", ("growth",), 1)
    path = folder / "growth.json"
    assert not every.done(job, folder)
    assert every.measure("a", job, writing(path, 1), 60, False) == ""
    assert every.done(job, folder)
    assert not every.done(job._replace(command="growth --rounds 7"), folder)
    failed = every.measure("a", job, writing(path, 2, "sys.exit('no memory')"), 60, False)
    assert failed == "exit status 1: no memory"
    assert json.loads(path.read_text())["number"] == 2
    assert not every.done(job, folder)
    assert every.measure("a", job, [sys.executable, "-c", ""], 60, False).endswith("not written")


def test_points_of_other_code_are_not_taken_over_and_not_lost(folder):
    job = every.Job("growth", ("growth",), 1, partial=True)
    path = folder / "growth.json"
    timing.write(path, dict(number=1, measured="older"))
    gone = f"import os, sys; sys.exit(os.path.exists({str(path)!r}) and 'found it' or 'no memory')"
    command = [sys.executable, "-c", gone]
    assert every.measure("a", job, command, 60, False) == "exit status 1: no memory"
    assert json.loads(path.read_text())["number"] == 1
    assert every.measure("a", job, writing(path, 2, "sys.exit(3)"), 60, False).startswith("exit")
    assert every.measure("a", job, command, 60, False) == "exit status 1: found it"
    assert not list(folder.glob("*.old"))


def test_a_command_that_takes_too_long_is_ended(folder):
    began = time.monotonic()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert every.run(command, every.LOGS / "a.log", {}, 0.5).startswith("not done after")
    assert time.monotonic() - began < 20


def test_words_that_begin_no_name_are_refused(capsys):
    with pytest.raises(SystemExit):
        every.main(["--only", "resnett"])
    assert "'resnett' begins no name of mlp, lenet, resnet" in capsys.readouterr().err


def test_what_is_lacking_is_named(capsys):
    assert every.main(["--list", "--only", "vmoe", "mlp"]) == 0
    text = capsys.readouterr().out
    assert "mlp: left out, needs --opponents" in text
    assert "vmoe: left out, needs --vmoe" in text
