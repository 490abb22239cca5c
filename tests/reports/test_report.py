"""The HTML page, from files in workdirs to the command."""

import base64
import html.parser
import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments import report
from experiments.experiment.build import full
from experiments.reports.figures import figures
from experiments.reports.html import study_table, write_report
from experiments.reports.layout import layout
from experiments.reports.runs import (
    Run,
    by_label,
    default_label,
    load_run,
    read_history,
    study_of,
)
from experiments.reports.study import Column, Row, Study
from tests.reports.made import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    names = [("single", 1), ("ensemble", 3)]
    return [write_run(root / n / f"seed{s}", s, m) for n, m in names for s in (0, 1)]


class Page(html.parser.HTMLParser):
    """What an HTML page refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.links, self.ids = [], [], [], set()
        self.cells, self._open = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids.add(attributes.get("id"))
        for name in ("src", "srcset", "data", "poster", "background", "action"):
            if name in attributes:
                self.sources.append(attributes[name])
        if "href" in attributes:
            self.links.append(attributes["href"])
        if tag in ("td", "th"):
            self.cells.append("")
            self._open = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data):
        if self._open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp("out") / "a" / "page.html", runs, "A < B")
    return path, path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(written):
    _, text = written
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.sources and all(s.startswith("data:image/svg+xml;base64,") for s in page.sources)
    assert page.links and all(link[0] == "#" and link[1:] in page.ids for link in page.links)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    for source in page.sources:
        figure = ElementTree.fromstring(base64.b64decode(source.partition(",")[2]))
        for element in figure.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:"))
                assert not re.search(r"url\((?!#)", value)


@pytest.mark.slow
def test_figures_of_every_aspect_are_there_and_small(written):
    path, text = written
    names = {"comparison", "reliability", "confidence", "ood_entropy", "ood_mutual_information"}
    names |= {"risk_coverage", "map", "corruption", "training"}
    pngs = {p.stem: p for p in (path.parent / "page_figures").iterdir()}
    assert pngs.keys() == names
    for name, png in pngs.items():
        assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size < 200_000
        assert f'<figure id="{name}">' in text
    assert text.count("<figcaption>") == len(names)
    assert text.count("First seed of each method.") == 2  # the map and the training curves
    assert text.count("Examples of all seeds") == 5


@pytest.mark.slow
def test_no_panel_is_empty(runs, tmp_path):
    other = write_run(tmp_path / "other", regression=True)
    groups = by_label([*map(load_run, runs), load_run(other)])
    study = study_of([run for group in groups.values() for run in group], "")
    for entry in figures(groups, study):
        assert all(ax.has_data() for ax in entry.figure.axes), entry.name


@pytest.mark.slow
def test_text_is_escaped_and_configs_are_folded(written):
    _, text = written
    assert "<title>A &lt; B</title>" in text
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text
    assert text.count("<details>") == 4  # definitions, all metrics, the config of two methods


@pytest.mark.slow
def test_the_summary_holds_means_over_seeds(written, runs):
    _, text = written
    loaded = [load_run(run) for run in runs]
    assert [run.label for run in loaded] == ["single", "single", "ensemble", "ensemble"]
    study = study_of(loaded, "")
    keys = [c.key for c in study.columns]
    assert "ood/far/auroc_entropy" in keys and "ood/far/auroc_max_probability" not in keys
    nll = [run.metrics["classification/nll"] for run in loaded[:2]]
    error = np.std(nll, ddof=1) / np.sqrt(2)
    found = next(c for c in Page(text).cells if "±" in c and abs(_mean(c) - np.mean(nll)) < error)
    assert float(found.split("±")[1]) == pytest.approx(error, rel=0.2)


def _mean(cell):
    return float(cell.split("±")[0])


@pytest.mark.slow
def test_regression_runs(tmp_path):
    runs = [
        {"workdir": write_run(tmp_path / str(m), 0, m, regression=True), "label": f"{m} members"}
        for m in (1, 3)
    ]
    path = write_report(tmp_path / "page.html", runs)
    pngs = {p.stem for p in (tmp_path / "page_figures").iterdir()}
    assert pngs == {"comparison", "band", "intervals", "predicted", "sharpness", "training"}
    assert "First seed" not in path.read_text()


def test_a_study_can_have_failed_rows_and_sources(tmp_path):
    columns = [Column("x", "X & Y", "%", "higher", 1)]
    rows = [
        Row("a<b", [{"x": 0.5}, {"x": 0.7}], {"x": (61.0, "a <paper>")}),
        Row("b", failed="out of memory"),
    ]
    study = Study("S", columns, rows, "make it", hardware={"processor": "Xeon", "jax": "1"})
    cells = Page(study_table(study)).cells
    assert cells == ["", "X & Y (%)\xa0↑published", "a<b", "60 ± 1061.01", "b2", "failed"]
    text = write_report(tmp_path / "s.html", [], "T", study, "other").read_text()
    assert "<li>a &lt;paper&gt;</li><li>Failed: out of memory</li>" in text
    assert "Run on Xeon" in text and "jax 1" in text and "<code>other</code>" in text


def test_many_columns_are_transposed():
    keys = [f"k{i}" for i in range(9)]
    study = Study("", [Column(k, k) for k in keys], [Row("a", [dict.fromkeys(keys, 1.0)])])
    cells = Page(study_table(study)).cells
    assert cells == ["", "a", *(text for k in keys for text in (k, "1.00"))]


def test_history_merges_records_of_a_step(tmp_path):
    lines = [{"step": 2, "loss": 1.0}, {"step": 1, "loss": [3.0, "NaN"]}, {"step": 2, "v": 4}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_history(path)
    assert first["loss/0"] == 3.0 and np.isnan(first["loss/1"])
    assert second == {"step": 2, "loss": 1.0, "v": 4}


def test_labels_come_from_directories(tmp_path):
    for name, label in (("a/seed0", "a"), ("a/seed_12", "a"), ("a/3", "a"), ("a/b1", "b1")):
        assert default_label(tmp_path / name) == label


def test_runs_of_a_label_may_differ_in_the_seed_only(tmp_path, runs):
    other = write_run(tmp_path / "single" / "seed9", 9, 1, learning_rate=0.5)
    by_label([load_run(runs[0]), load_run(runs[1])])
    with pytest.raises(ValueError, match=r"'single' differ.*learning_rate: 0.001 -> 0.5"):
        by_label([load_run(runs[0]), load_run(other)])
    split = load_run(runs[1])
    split.config["data"] = dict(train=dict(name="a", seed=3))
    first = load_run(runs[0])
    first.config["data"] = dict(train=dict(name="a", seed=2))
    by_label([first, split])  # the seed of the split may follow the run's
    split.config["data"]["train"]["name"] = "b"
    with pytest.raises(ValueError, match=r"data.train.name"):
        by_label([first, split])


@pytest.mark.parametrize(
    "path", ["r20/seed_{seed}/x", "{seed}{seed}", ["a{seed}0", "b{seed}"], "a"]
)
def test_seeds_may_begin_from_runs_of_their_seeds(path):
    seeds = (1, 0, 10, 100)
    each = [Run("Probe", full(dict(seed=s, pretrained=dict(path=path))), {}) for s in seeds]
    assert len(by_label(each)["Probe"]) == len(seeds)
    other = full(dict(seed=2, pretrained=dict(path=path)))
    other["pretrained"]["path"] = str(other["pretrained"]["path"]) + "2"
    with pytest.raises(ValueError, match="differ in more than the seed: pretrained"):
        by_label([*each, Run("Probe", other, {})])


def test_methods_of_different_seeds_lack_none():
    """A row is short of seeds only beside one that has more."""

    def notes(**seeds):
        runs = [
            Run(label, dict(seed=s), {"classification/accuracy": 0.9 + 0.001 * s})
            for label, of in seeds.items()
            for s in of
        ]
        return layout(study_of(runs, "")).notes

    assert notes(a=(0, 1, 2), b=(3, 4, 5)) == ()
    assert notes(a=(0, 1, 2), b=(3, 4)) == ("2 of 3 seeds.",)
    assert notes(a=(0, 1, 2), b=(0, 1)) == ("2 of 3 seeds.",)


def test_missing_files_are_named(tmp_path, runs):
    with pytest.raises(ValueError, match="no such directory"):
        load_run(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match=r"evaluations there: \['test'\].*experiments\.evaluate"):
        load_run(runs[0], name="mnist")
    with pytest.raises(ValueError, match="at least one run"):
        write_report(tmp_path / "page.html", [])
    bare = write_run(tmp_path / "bare")
    (bare / "metrics.jsonl").unlink()
    (bare / "evaluation" / "test" / "scores.npz").unlink()
    text = write_report(tmp_path / "page.html", [bare]).read_text()
    assert "no scores.npz" in text and "no metrics.jsonl" in text


@pytest.mark.slow
def test_command(tmp_path, capsys):
    page = tmp_path / "r.html"
    run = write_run(tmp_path / "run", regression=True)
    assert report.main([f"Only={run}", "--output", str(page), "--title", "One"]) == 0
    assert "r_figures" in capsys.readouterr().out and ">Only" in page.read_text()
    assert report.main([str(tmp_path / "gone"), "--output", str(page)]) == 1
    assert "error: workdir" in capsys.readouterr().err
    page.unlink()
    assert report.main([str(run), "B=gone", "--output", str(page)]) == 1  # and the others are read
    assert "neither 'B=gone' nor" in capsys.readouterr().err and "B=gone" in page.read_text()
    twice = [f"A={run}", f"B={run}/../run", "--output", str(page)]  # would count as two seeds
    assert report.main(twice) == 1 and "run: given twice" in capsys.readouterr().err
    assert report.main([str(run), "--output", str(tmp_path)]) == 1
    assert f"{tmp_path} is a folder; give a file" in capsys.readouterr().err
    assert report.main([str(run), "--output", "gs://bucket/"]) == 1  # not read: it has no name
    assert "gs://bucket is a folder; give a file" in capsys.readouterr().err


def test_importing_the_command_imports_neither_matplotlib_nor_jax():
    code = "import sys, experiments.report as r; print({'matplotlib', 'jax'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
