"""The committed tables are what their records say."""

import json
import pathlib
import shlex

import pytest

from experiments.experiment.config import assignments
from experiments.reports import formats
from experiments.tables import constraints
from experiments.tables.cells import Cells
from experiments.tables.summary import study

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.rglob("runs.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_are_rendered_to_the_same_bytes(folder):
    """But for the command, which may name where data sets were."""
    name, *variant = folder.relative_to(RESULTS).parts
    command = json.loads((folder / "table.json").read_text())["command"]
    settings = [word for word in shlex.split(command) if word.startswith("--set=")]
    settings = assignments(settings, "--set=") if variant else {}
    cells = Cells(name, str(RESULTS), "runs", settings)
    assert cells.results == folder and not cells.records.any_damaged()
    made = study(cells, {})
    made.command = command
    texts = {
        "table.md": formats.to_markdown(made),
        "table.tex": formats.to_latex(made),
        "table.csv": formats.to_csv(made),
        "table.json": formats.to_json(made),
        "constraints.txt": constraints.text_of(cells.finished().values()),
    }
    for name, text in texts.items():
        assert (folder / name).read_text(encoding="utf-8") == text, name


def test_constraints_say_what_is_not_known():
    records = [{"hardware": {"jax": "0.10.2", "numpy": v, "python": "3.11.7"}} for v in "112"]
    records[2]["versions"] = {"scipy": "1.16"}
    lines = constraints.text_of(records).splitlines()
    assert "jax==0.10.2" in lines and "# flax: not recorded" in lines
    assert "# numpy: 1 (2) and 2 (1)" in lines
    assert "# scipy: 1.16 (1) and not recorded (2)" in lines
    assert all(line.startswith("#") or line == "jax==0.10.2" for line in lines)
    assert constraints.installed()["jax"]
