"""The seeds of one program are the cells of the table."""

import pytest

from experiments.tables.cells import Cells
from studies import seeds
from uncertainty.build import ConfigError

CONFIG = "configs/toys/shortcuts.py:runlocal,data=slabs,method=d_bat,size=2"


def cells_of(folder, **fields):
    row = dict(label="one", config=CONFIG, set={"mesh": {"data": 1}, **fields})
    columns = [dict(key="classification/nll", header="NLL", digits=3)]
    table = dict(title="table", seeds=(0, 3), rows=[row], columns=columns)
    return Cells("table", folder, folder / "runs", {}, table=table), row


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True])
def test_each_seed_is_its_cell(tmp_path, at_once):
    cells, row = cells_of(tmp_path)
    first, second = seeds.records(cells, row, (0, 3), at_once)
    cells.run(row, 3)
    record = cells.record(row, 3)
    same = {k: v for k, v in record["metrics"].items() if not k.startswith("cost/")}
    assert {k: second["metrics"][k] for k in same} == pytest.approx(same, rel=1e-3, abs=1e-5)
    assert first["metrics"]["classification/nll"] != second["metrics"]["classification/nll"]
    for field in ("sets", "trained", "config", "config_file", "seed"):
        assert second[field] == record[field], field
    cells.records.put(first)
    assert cells.done(row, 0)


def test_what_is_refused(tmp_path):
    cells, row = cells_of(tmp_path, stages=(dict(name="swag"),))
    with pytest.raises(
        ConfigError, match="stages: .*swag.*; unset it, or use experiments.reproduce"
    ):
        seeds.records(cells, row, (0,), False)
