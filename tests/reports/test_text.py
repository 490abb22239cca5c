"""Names are text in every renderer: what is read back is the name, whatever characters it has."""

import html.parser
import io
import itertools
import json
import re
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from rich.console import Console

from experiments.reports import formats
from experiments.reports.html import study_table, write_report
from experiments.reports.runs import load_run, study_of
from experiments.reports.study import Column, Row, Study, one_line
from experiments.reports.style import styled, svg_uri, text
from experiments.reports.tables import print_metrics, print_study
from experiments.runtime import keys
from tests.reports.made import plain, write_run

HOSTILE = (
    "mnist_corrupted/shot_noise",
    "a[b]",
    "[/x]",
    "$x_{",
    "[4] a",
    "* a",
    "a\nb",
    "a|b",
    "_a",
    "<b>&amp;",
    "&lt;",
    "`x``y",
    "50 % \\ {",
    "~~a~~",
    "--",
    "# a #",
    "é 模 ✓",
    "\x1b[31mred",
    "\ud83d",
    "\x00",
    "a\u2028b",
    "![i](u)",
    "\\$",
    "a\\",
    "$$",
    "$a$ $b$",
    "{{x}}",
)
NAMES = st.text(
    st.characters() | st.sampled_from("|\n[]$_%&<>/\\{}`*~#^-!"), min_size=1, max_size=20
).filter(lambda name: one_line(name))


def hostile(test):
    """The test with each of HOSTILE, and with names that hypothesis makes."""
    for name in HOSTILE:
        test = example(name)(test)
    return settings(max_examples=60)(given(NAMES)(test))


def study(name):
    rows = [
        Row(
            name, [{name: 0.5}, {name: 0.7}], {name: (0.6, f"a paper {name}")}, note=f"note {name}"
        ),
        Row("other", [{name: 0.8}], failed=f"for {name}"),
    ]
    return Study(f"T {name}", [Column(name, f"H {name}", "", "higher", 1)], rows, f"python {name}")


def test_one_line_keeps_what_can_be_shown():
    assert one_line(" a\n b\t é ✓ ") == "a b é ✓"
    assert one_line("\x1b[31m \ud83d \ufffe \x7f") == "\ufffd[31m \ufffd \ufffd \ufffd"


def inline(tokens, kinds):
    """The text of each inline token that follows one of these kinds; no markup but bold is left."""
    found = []
    for before, token in itertools.pairwise(tokens):
        if before.type in kinds:
            left = {t.type for t in token.children} - {"text", "text_special", "code_inline"}
            assert left <= {"strong_open", "strong_close", "em_open", "em_close"}
            found.append("".join(t.content for t in token.children))
    return found


@hostile
def test_markdown(name):
    shown = one_line(name)
    tokens = MarkdownIt().enable(["table", "strikethrough"]).parse(formats.to_markdown(study(name)))
    cells = inline(tokens, ("td_open", "th_open"))
    assert cells[:3] == ["", one_line(f"H {name} ↑"), "published"]
    assert cells[3] == f"{shown} [1]" and len(cells) == 9 and cells[6] == "other [3]"
    assert inline(tokens, ("heading_open",)) == [one_line(f"T {name}")]
    (origin,) = (t for t in tokens if t.type == "inline" and "Made by" in t.content)
    code = [t.content for t in origin.children if t.type == "code_inline"]
    assert code == [one_line(f"python {name}")]
    notes = inline(tokens, ("paragraph_open",))[1:]
    assert notes[0] == one_line(f"[1] note {name}")


@hostile
def test_latex(name):
    made = formats.to_latex(study(name))
    assert made.count("\n") == formats.to_latex(study("a")).count("\n")
    body = made[made.index(r"\midrule") + len(r"\midrule") : made.index(r"\bottomrule")]
    first, second = (line.removesuffix(r" \\") for line in body.strip().splitlines())
    assert not re.match(r"[\[*]", first)
    label, ours, published = re.split(r"(?<!\\)(?:\\\\)*&", first)
    assert plain(label).strip() == one_line(name)
    assert ours.strip() == r"$0.60 \pm 0.10$" and "0.6" in published and "other" in second


@hostile
def test_terminal(name):
    console = Console(file=io.StringIO(), width=400)
    print_study(study(name), console)
    metrics = {keys.join("ood", name, "auroc_entropy"): 0.5, keys.join("map", name, "entropy"): 0.5}
    print_metrics(metrics, console, title=name)
    printed = console.file.getvalue()
    lines = [line.rstrip() for line in printed.split("\n")]
    assert "\x1b" not in printed
    assert one_line(f"T {name}") in lines and one_line(f"[1] note {name}") in lines
    found = [" ".join(line.split()) for line in lines]
    # What a terminal has no cell for, such as a mark that joins others, may come out elsewhere.
    if name.isascii():
        assert one_line(f"{name}: entropy 50.00") in found


class Cells(html.parser.HTMLParser):
    """The text of the cells and notes of a page."""

    def __init__(self, page):
        super().__init__()
        self.found, self.tags = [], set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("th", "td", "li"):
            self.found.append("")

    def handle_data(self, data):
        if self.found:
            self.found[-1] += data


@hostile
def test_html(name):
    page = Cells(study_table(study(name)))
    known = "div table thead tbody tr th td span sup strong p ol li"
    assert page.tags == set(known.split())
    assert page.found[2] == one_line(name) + "1"
    head = one_line(f"H {name} ↑")
    assert " ".join(page.found[1].split()) == " ".join(head.split()) + "published"
    assert one_line(f"note {name}") in page.found


@hostile
def test_figures(name):
    """matplotlib takes it as plain text, in a title and in a legend."""
    title = Figure().subplots().set_title(text(name))
    shown, mathematics = title._preprocess_math(title.get_text())
    assert not mathematics
    # It takes any `\$` for `$`, so of backslashes before one the last is lost.
    assert shown.strip() == re.sub(r"\\\$", "$", one_line(name)) or "$" in name
    assert not text(name).startswith("_") and "\n" not in text(name)
    assert shown.strip().count("$") == name.count("$")


@styled
def drawn(names):
    figure = Figure(layout="constrained")
    ax = figure.subplots()
    for i, name in enumerate(names):
        ax.plot([0, 1], [i, i], label=text(name))
    ax.legend(title=text("\n".join(names), 30))
    ax.set_yscale("log")
    return figure


def test_a_figure_with_all_of_them_is_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that the font lacks
        figure = drawn(HOSTILE)
        assert svg_uri(figure).startswith("data:image/svg")
    assert len(figure.axes[0].get_legend().get_texts()) == len(HOSTILE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_whole_report(tmp_path):
    """Of two runs, each with another OOD set and label."""
    names = ["mnist_corrupted/shot_noise", "$x_{ [/b] |<b>_%\n&\\"]
    runs = [
        dict(workdir=write_run(tmp_path / f"{i}", 0, 1, out=name), label=f"{name}{i}")
        for i, name in enumerate(names)
    ]
    loaded = [load_run(**run) for run in runs]
    headers = [c.header for c in study_of(loaded, "").columns if c.key.startswith("ood/")]
    assert headers == [f"{name} AUROC by entropy" for name in names]
    title = " ".join(names)
    page = write_report(tmp_path / "page.html", runs, title=title, command=title).read_text()
    assert {p.stem for p in (tmp_path / "page_figures").iterdir()} >= {"ood_entropy", "reliability"}
    assert "<b>" not in page
    assert json.loads(formats.to_json(study_of(loaded, title)))["title"] == title
    for i, name in enumerate(names):
        assert one_line(f"{name}{i}") in Cells(page).found
        assert np.isfinite(loaded[i].metrics[keys.join("ood", name, "auroc_entropy")])
