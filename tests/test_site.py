"""The site's pages, without MkDocs: links, pages of methods, tutorials as Markdown."""

import ast
import doctest
import inspect
import json
import pathlib
import re

import pytest

from experiments import describe
from experiments.evaluators import build_all
from experiments.experiment.base import base, derived
from experiments.experiment.config import plain
from tools import docs, docstrings, methods, tutorials

ROOT = pathlib.Path(__file__).parent.parent
FILES = [
    *docs.files(),
    *(ROOT / f"{n}.md" for n in ("ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")),
    ROOT / "benchmarks/README.md",
]


def anchors(file):
    """The anchors of a page's headings, as code hosts and the site make them."""
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_links_lead_to_files_and_headings(file):
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        if "://" in path:
            continue
        target = (file.parent / path) if path else file
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.fixture(scope="module")
def pages():
    return methods.pages()


def test_every_method_has_a_page_with_a_line_of_a_config(pages):
    """The line is Python, names the part, and gives the fields that it needs."""
    for section in set(methods.METHODS) & describe.SECTIONS.keys():
        for name, target in describe.SECTIONS[section].parts().items():
            page = pages[f"docs/methods/{section}/{name}.md"]
            line = re.search(r"```python\n(config\..*?)\n```", page, re.DOTALL)[1]
            calls = [n for n in ast.walk(ast.parse(line)) if isinstance(n, ast.Call)]
            given = {keyword.arg for keyword in calls[0].keywords}
            part = describe.part_of(section, name, target)
            of_evaluator = section in ("posthoc", "conformal", "ood")  # whose line is run below
            needed = {f.name for f in part.fields if f.default is None}
            assert given >= {"data", "fit"} if of_evaluator else given == {"name", *needed}
            assert all(f"`{field.name}`" in page for field in part.fields)
            assert f"`{name}`]({name}.md)" in pages[f"docs/methods/{section}/index.md"]


def test_results_of_a_method_are_those_of_the_rows_whose_configs_name_it(pages):
    table = json.loads((ROOT / "results/uci/table.json").read_text())
    page = pages["docs/methods/directions/svgd.md"]
    shown = page[page.index(table["title"][:20]) :].split("\n### ")[0]
    rows = [line.split(" | ")[0].strip("| ") for line in shown.splitlines() if "±" in line][:-1]
    first = {row["group"]: row["label"] for row in reversed(table["rows"])}
    expected = [
        row["label"]
        for row in table["rows"]
        if "method=svgd" in table["config"][row["label"]] or row["label"] in first.values()
    ]
    assert rows == expected


def test_links_of_generated_pages_lead_to_pages_or_files(pages):
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
            place = (ROOT / path).parent / target
            inside = place.resolve().relative_to(ROOT).as_posix()
            assert inside in pages or (ROOT / inside).is_file(), f"{path}: {target}"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("u = W^T h_i", "u = W<sup>T</sup> h<sub>i</sub>"),
        ("theta <- theta - eta g", "θ ← θ − η g"),
        ("sum_{p,m} mu_pm", "∑<sub>p,m</sub> μ<sub>pm</sub>"),
        ("var(u) <= noise_weight d_c^2", "var(u) ≤ noise_weight d<sub>c</sub><sup>2</sup>"),
        ("grad_{z_j} k(z_j, z_i)", "∇<sub>z<sub>j</sub></sub> k(z<sub>j</sub>, z<sub>i</sub>)"),
        ("a < b & c", "a &lt; b &amp; c"),
    ],
)
def test_an_equation_of_a_docstring_is_set(text, html):
    assert methods.display(text) == f'<div class="equation">{html}</div>'


def test_pages_of_methods_have_no_empty_equations_and_whole_sources(pages):
    for path, text in pages.items():
        assert '<div class="equation"></div>' not in text, path
        for source in re.findall(r"^\*\*Source\.\*\* (.*)$", text, re.MULTILINE):
            assert source.count("(") == source.count(")"), (path, source)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("Sets (Romano, Patterson & Candès 2019).", "Romano, Patterson & Candès 2019"),
        ("Of D'Angelo & Fortuin (2021), and later.", "D'Angelo & Fortuin 2021"),
        ("Adam (Kingma & Ba, 2015); Loshchilov &\nHutter 2017.",
         "Kingma & Ba 2015; Loshchilov & Hutter 2017"),
        ("Rates of 1e-3 since 2015.", ""),
    ],
)  # fmt: skip
def test_sources_that_a_docstring_cites(text, source):
    target = lambda: None  # noqa: E731
    target.__doc__, target.__module__ = text, "tests"
    assert describe.source_of(target) == source


def test_docstrings_for_the_site():
    failed, count = doctest.testmod(docstrings)
    assert count >= 3 and not failed


def test_prose_of_a_docstring_keeps_its_symbols():
    text = methods.markdown("v(h) * V, |V_c|, [M, B] and `a_b`\n\n  x_k = 1\n\nthen <b>")
    assert text == (
        "v(h) \\* V, |V\\_c|, \\[M, B\\] and `a_b`\n\n"
        '<div class="equation">x<sub>k</sub> = 1</div>\n\nthen &lt;b&gt;'
    )


def test_a_tutorial_is_its_cells_with_what_they_print(tmp_path):
    file = tmp_path / "short.py"
    file.write_text("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\na = 2\nprint(a)\na + 1\n")
    assert list(tutorials.cells(file.read_text())) == [
        (True, "# Title\n\nText."),
        (False, "a = 2\nprint(a)\na + 1"),
    ]
    text = tutorials.rendered(file)
    assert "# Title\n\nText." in text and "```text\n2\n3\n```" in text


@pytest.mark.parametrize("section", ["posthoc", "conformal", "ood"])
def test_config_lines_of_methods_on_held_out_examples_make_evaluators(section):
    """They are of an evaluator, and no stages."""
    for name, target in describe.SECTIONS[section].parts().items():
        line = methods.config_line(describe.part_of(section, name, target))
        config = base()
        exec(line, {"config": config})
        config.data.train = dict(name="digits", split="train")
        (built,) = build_all(derived(plain(config))["evaluators"]).values()
        takes = {"log_p"} & set(inspect.signature(target).parameters)
        of_targets = None if section == "ood" else "regression"  # scores of classes alone: `check`
        assert built.task == ("classification" if takes else of_targets)
