"""What the docs show: tables are those of the results, links lead somewhere, the example runs."""

import json
import pathlib
import re

import numpy as np
import pytest

from experiments.reports import formats
from tools import docs

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*docs.files(), *(ROOT / f"{n}.md" for n in ("ARCHITECTURE", "CONTRIBUTING", "CHANGELOG"))]


@pytest.mark.parametrize("file", docs.files(), ids=lambda file: file.name)
def test_tables_are_those_of_the_results(file):
    """`make docs` writes them."""
    text = file.read_text(encoding="utf-8")
    assert docs.rendered(text, file) == text
    assert len(docs.BLOCK.findall(text)) == text.count("<!-- table:")


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_lead_to_files(file):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8"))
    missing = [u for u in links if "://" not in u and not (file.parent / u).exists()]
    assert not missing


def test_every_committed_table_has_a_page():
    text = "".join(file.read_text(encoding="utf-8") for file in docs.files())
    for path in ROOT.glob("results/*/table.json"):
        assert f"table: results/{path.parent.name}/table.json" in text


def test_the_readme_is_what_one_needs_in_ten_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.slow
def test_the_example_of_the_readme_learns_the_digits():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = {
        name: re.search(rf"<!-- {name} -->\n```python\n(.*?)```", text, re.DOTALL)[1]
        for name in ("imports", "example")
    }
    names = {}
    exec(parts["imports"] + parts["example"], names)
    probabilities = np.asarray(names["probabilities"])
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == names["y"]).mean() > 0.97


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/*/table.json")), ids=str)
def test_a_table_is_read_back(path):
    """From its JSON, but for the data that it was evaluated on, which stand above the table."""
    study = formats.read_study(path)
    made = formats.to_markdown(study).split("\n|", 1)[1]
    assert made == path.with_suffix(".md").read_text(encoding="utf-8").split("\n|", 1)[1]


def page(fields):
    return f"a\n<!-- table: t/table.json\n{fields}\n-->\nold\n<!-- end -->\nb"


@pytest.fixture
def folder(tmp_path):
    rows = [
        dict(
            label=name,
            results=[{"nll": v}, {"nll": v + 0.2}],
            group="",
            note="",
            failed="",
            cells={"nll": {"published": {"value": 0.5, "source": "x"}} if name == "A" else {}},
        )
        for name, v in (("A", 1.0), ("B", 0.0))
    ]
    columns = [dict(key="nll", header="NLL", unit="", better="lower", digits=2)]
    content = dict(
        title="", columns=columns, rows=rows, command="", config=None, seeds=[0, 1], hardware={}
    )
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "table.json").write_text(json.dumps(content))
    return tmp_path


def test_rows_columns_and_headers_are_chosen(folder):
    text = docs.rendered(page("rows: ^A\ncolumns: nll = Loss"), folder / "d" / "x.md", folder)
    lines = text.splitlines()
    assert lines[0] == "a" and lines[-1] == "b" and "old" not in lines
    assert "|  | Loss | published |" in lines and "| A | 1.10 ± 0.10 | 0.50 |" in lines
    assert (
        "Mean ± standard error over 2 seeds. Published: x. [All columns](../t/table.md)." in lines
    )
    assert docs.rendered(text, folder / "d" / "x.md", folder) == text
    both = docs.rendered(page(""), folder / "x.md", folder)
    assert "| B | **0.10 ± 0.10** |  |" in both


@pytest.mark.parametrize(
    ("fields", "message"),
    [("rows: C", "matches none of"), ("columns: nl", "no column"), ("row: A", "unexpected")],
)
def test_what_is_not_there_is_named(folder, fields, message):
    with pytest.raises(ValueError, match=rf"x\.md: table t/table\.json: .*{message}"):
        docs.rendered(page(fields), folder / "x.md", folder)
