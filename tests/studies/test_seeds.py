"""The seeds of one program are the cells of the table."""

import pytest

from experiments.runtime.workdir import jsonable
from experiments.tables.cells import Cells
from studies import seeds
from uncertainty.build import ConfigError

CONFIG = "configs/toys/shortcuts.py:runlocal,data=slabs,method=d_bat,size=2"
SMALL = {
    "mesh": {"data": 1},
    "data.train.size": 300,
    "data.train.test_size": 200,
    "evaluation.batch_size": 200,
    "evaluators.cues": None,
    "evaluators.disambiguation": None,
}


def cells_of(folder, **fields):
    row = dict(label="one", config=CONFIG, set={**SMALL, **fields})
    columns = [dict(key="classification/nll", header="NLL", digits=3)]
    table = dict(title="table", seeds=(0, 3), rows=[row], columns=columns)
    return Cells("table", folder, folder / "runs", {}, table=table), row


@pytest.mark.slow
def test_each_seed_is_its_cell(tmp_path):
    cells, row = cells_of(tmp_path)
    cells.run(row, 3)
    record = cells.record(row, 3)
    same = {k: v for k, v in record["metrics"].items() if not k.startswith("cost/")}
    assert "simplicity/complex_share" in same
    for at_once in (False, True):
        first, second = seeds.records(cells, row, (0, 3), at_once)
        assert {k: second["metrics"][k] for k in same} == pytest.approx(same, rel=1e-4, abs=1e-6)
        assert first["metrics"]["classification/nll"] != second["metrics"]["classification/nll"]
        for field in ("sets", "trained", "config", "config_file", "seed"):
            assert jsonable(second[field]) == jsonable(record[field]), field
    cells.records.put(first)
    assert cells.done(row, 0)


def test_what_is_refused(tmp_path):
    for field, value in (("stages", (dict(name="swag"),)), ("evaluation.every", 5)):
        cells, row = cells_of(tmp_path, **{field: value})
        with pytest.raises(ConfigError, match=rf"{field}: .*unset it, or use experiments\.reprod"):
            seeds.records(cells, row, (0,), False)


def test_data_that_depend_on_the_seed_are_refused(tmp_path):
    """As splits by the seed: all cells would be of the split of the first."""
    cells = Cells("uci", tmp_path / "r", tmp_path / "w", {})
    row = cells.table["rows"][0]
    assert cells.config(row, 3)["data"]["train"]["seed"] == 3
    message = r"data\.train\.seed: 0 -> 3 between seeds 0 and 3; .*use experiments\.reproduce"
    with pytest.raises(ConfigError, match=message):
        seeds.records(cells, row, (0, 3), False)
