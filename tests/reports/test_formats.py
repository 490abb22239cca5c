"""Markdown, LaTeX, CSV and JSON hold the same numbers as the study."""

import csv
import json
import math
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from experiments.reports import formats
from experiments.reports.layout import layout
from experiments.reports.study import Column, Row, Study
from experiments.runtime.workdir import read_json
from tests.reports.made import WORDS, plain

RNG = np.random.default_rng(0)
COLUMNS = [
    Column("classification/accuracy", "Accuracy", "%", "higher", 1),
    Column("classification/nll", "NLL", "", "lower", 3),
    Column("cost_a/b", "Cost & more_of #1", "M", None, 2),
]


def results(n, accuracy, nll):
    return [
        {
            "classification/accuracy": accuracy + RNG.normal() * 0.002,
            "classification/nll": nll + RNG.normal() * 0.01,
            "cost_a/b": 61706,
            "other": 1.0,
        }
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def study():
    published = {
        "classification/accuracy": (93.2, "uncertainty-baselines README"),
        "classification/nll": (0.2, "another_paper, Table 3 (50 %)"),
    }
    rows = [
        Row("One | net", results(3, 0.89, 0.36)),
        Row("Ensemble_10 *new* 100%", results(3, 0.93, 0.26), published, note="a_b & c"),
        Row("Broken {x}", failed=r"cost is C:\tmp ~ 5^2 <nan>"),
        Row("One seed", results(1, 0.9, 0.3)),
    ]
    hardware = {"processor": "Xeon", "cores": 2, "date": "2025-01-31"}
    return Study("A & B", COLUMNS, rows, "python -m x --f=1", {"lr": 1e-3}, (0, 1, 2), hardware)


def expected_cells(study):
    """Texts of every row, computed without the renderers: label, ours, published."""
    rows = []
    for head, cells in layout(study).lines:
        row = [head.text]
        for cell, compared in zip(cells, layout(study).compared, strict=True):
            row += [cell.ours(), cell.published] if compared else [cell.ours()]
        rows.append(row)
    return rows


def test_markdown_parses_back_to_the_same_cells(study):
    text = formats.to_markdown(study)
    tokens = MarkdownIt().enable("table").parse(text)
    tables = [token for token in tokens if token.type == "table_open"]
    assert len(tables) == 1
    rows, cells, bold = [], [], []
    for i, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("td_open", "th_open"):
            inline = tokens[i + 1]
            cells = [t.content for t in inline.children if t.type in ("text", "text_special")]
            rows[-1].append("".join(cells))
            if any(t.type == "strong_open" for t in inline.children):
                bold.append(rows[-1][-1])
    without_marks = [[re.sub(r"( \[\d+\])+$", "", cell) for cell in row] for row in rows]
    assert without_marks[1:] == expected_cells(study)
    assert without_marks[0][1:3] == ["Accuracy (%) ↑", "published"]
    best = [cell.ours() for _, cells in layout(study).lines for cell in cells if cell.best]
    assert bold == best and len(best) == 2


def test_markdown_notes_are_numbered_as_in_the_cells(study):
    text = formats.to_markdown(study)
    number = re.search(r"93\.2 \[(\d)\]", text).group(1)
    assert f"- [{number}] uncertainty-baselines README" in text
    assert "python -m x --f=1" in text and "Xeon, 2 cores; 2025-01-31" in text


def test_latex_parses_back_to_the_same_cells(study):
    text = formats.to_latex(study)
    body = text[text.index(r"\midrule") + len(r"\midrule") : text.index(r"\bottomrule")]
    lines = [line.removesuffix(r" \\") for line in body.strip().splitlines()]
    rows = [[plain(cell).strip() for cell in re.split(r"(?<!\\)&", line)] for line in lines]
    assert rows == expected_cells(study)
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text).group(1)
    assert len(columns) == len(rows[0])
    assert r"\caption{A \& B. Mean $\pm$ standard error over 3 seeds." in text


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"])))
@example("a--b")
@example("'',,---")
def test_latex_escaping_loses_nothing_and_leaves_nothing_special(text):
    escaped = formats.escape_latex(text)
    assert plain(escaped) == " ".join(text.split())
    known = rf"\\(?:[&%$#_{{}}]|text(?:{'|'.join(WORDS)})\{{\}})|\{{[\[\]*]?\}}"
    left = re.sub(known, "", escaped)
    assert not re.search(r"[\\&%$#_{}~^<>|`*\[\]]", left)
    assert not re.search(r"--|''|,,", escaped)


def test_json_holds_every_value_of_every_seed(study):
    content = json.loads(formats.to_json(study), parse_constant=pytest.fail)
    assert content["command"] == "python -m x --f=1"
    assert content["config"] == {"lr": 1e-3}
    assert content["seeds"] == [0, 1, 2]
    assert content["hardware"]["date"] == "2025-01-31"
    for row, stored in zip(study.rows, content["rows"], strict=True):
        assert stored["results"] == row.results
        for column in COLUMNS:
            values = [r[column.key] for r in row.results]
            cell = stored["cells"][column.key]
            assert cell["values"] == values and cell["n"] == len(values)
            if not values:
                assert cell["mean"] is None and cell["standard_error"] is None
                continue
            assert math.isclose(cell["mean"], np.mean(values), rel_tol=1e-12)
            if len(values) > 1:
                error = np.std(values, ddof=1) / np.sqrt(len(values))
                assert math.isclose(cell["standard_error"], error, rel_tol=1e-9, abs_tol=1e-15)
            else:
                assert cell["standard_error"] is None
    cell = content["rows"][1]["cells"]["classification/nll"]
    assert cell["published"] == {
        "value": 0.2,
        "unit": "",
        "source": "another_paper, Table 3 (50 %)",
    }


def test_json_writes_what_is_not_finite(tmp_path):
    study = Study("", COLUMNS[1:2], [Row("a", [{"classification/nll": math.nan}])])
    paths = formats.write_study(study, tmp_path / "new", "table")
    assert [p.name for p in paths] == ["table.md", "table.tex", "table.csv", "table.json"]
    content = read_json(paths[-1])
    assert math.isnan(content["rows"][0]["cells"]["classification/nll"]["mean"])


def test_csv_has_the_numbers_of_the_seeds_in_the_units_of_the_table(study, tmp_path):
    _, _, path, _ = formats.write_study(study, tmp_path, "table")
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == [plain(row.label) for row in study.rows]
    for row, line in zip(study.rows, lines, strict=True):
        assert int(line["seeds"]) == len(row.results)
        for name, key, scale in (
            ("Accuracy (%)", "classification/accuracy", 100),
            ("NLL", "classification/nll", 1),
        ):
            values = [scale * result[key] for result in row.results]
            if not values:
                assert line[name] == line[f"{name}: standard error"] == ""
                continue
            np.testing.assert_allclose(float(line[name]), np.mean(values))
            if len(values) > 1:
                error = np.std(values, ddof=1) / len(values) ** 0.5
                np.testing.assert_allclose(float(line[f"{name}: standard error"]), error)
            published = row.published.get(key, ("",))[0]
            assert line.get(f"{name}: published", "") == str(published)


def test_csv_tells_columns_of_one_header_apart():
    columns = [Column("a/nll", "NLL"), Column("b/nll", "NLL")]
    text = formats.to_csv(Study("", columns, [Row('a "b", c', [{"a/nll": 1.0}], group="g")]))
    head, line = csv.reader(text.splitlines())
    assert head[3:] == ["NLL [a/nll]", "NLL [a/nll]: standard error",
                        "NLL [b/nll]", "NLL [b/nll]: standard error"]  # fmt: skip
    assert line == ["g", 'a "b", c', "1", "1.0", "", "", ""]
