"""What evaluators say that they yield is what they did yield, in all finished cells."""

import json
import pathlib

import pytest

from experiments.evaluators import yields
from experiments.runtime import keys

ROOT = pathlib.Path(__file__).parents[2]
OF_THE_RUN = {"cost/parameters", "cost/train_seconds", "cost/train_ms_per_example", "cost/step"}


@pytest.fixture(scope="module")
def records():
    """The first seed of every row of every committed table, with the names that it declares."""
    files = sorted(ROOT.glob("results/*/runs.jsonl"))
    assert len(files) >= 9
    found = [record for file in files for record in map(json.loads, file.read_text().splitlines())
             if record["seed"] == 0]  # fmt: skip
    return [
        (r, set().union(*(yields(k, spec) for k, spec in r["config"]["evaluators"].items())))
        for r in found
    ]


def test_every_number_of_finished_cells_is_declared(records):
    for record, names in records:
        assert {k for k in record["metrics"] if not keys.among(k, names | OF_THE_RUN)} == set()


def test_nothing_is_declared_that_no_cell_has(records):
    found = {keys.split(key)[:1] + keys.split(key)[-1:] for r, _ in records for key in r["metrics"]}
    declared = {
        keys.split(name)[:1] + keys.split(name)[-1:] for _, names in records for name in names
    }
    assert declared - found == set()


def test_among():
    names = {"routing/*/dropped", "ood/a%2Fb/auroc_entropy"}
    for key in ("routing/block01/dropped", "routing/a/b/dropped", "ood/a%2Fb/auroc_entropy"):
        assert keys.among(key, names)
    for key in ("routing/dropped", "routing/block01/load", "ood/a/b/auroc_entropy", "x"):
        assert not keys.among(key, names)
