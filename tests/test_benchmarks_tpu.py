"""Rows of `benchmarks.tpu`: compiled once, each in a process of its own, and saved as they end."""

import argparse
import json

import pytest

from benchmarks import tpu

MEASURED = dict(
    flops=2e9,
    bytes_accessed=3e9,
    hbm_bytes=8e6,
    cycles=4e6,
    product_cycles=1e6,
    counts=dict(gather=3),
    temporary_bytes=5e6,
    program_bytes=6e6,
    seconds=1.0,
)


def options(**changes):
    return argparse.Namespace(**dict(only=[], most=10**9, timeout=0.01, again=False) | changes)


@pytest.mark.parametrize("name", ["moe", "executors"])
def test_rows_are_measured_once(tmp_path, name):
    path, rows = tmp_path / "rows.json", list(tpu.rows(name))
    assert len({json.dumps(row) for row in rows}) == len(rows)
    path.write_text(json.dumps(dict(rows=[row | MEASURED for row in rows[1:]])))
    found = tpu.measure(path, name, options())
    error = dict(error="not compiled after 0.01 s")
    assert found == [rows[0] | error, *(row | MEASURED for row in rows[1:])]
    assert json.loads(path.read_text())["rows"] == found
    again = tpu.measure(path, name, options(timeout=0))  # a row that failed is not tried again
    assert again == found
    assert tpu.measure(path, name, options(again=True, timeout=0.02))[0]["error"].endswith("0.02 s")


def test_a_process_that_fails_is_a_row_with_its_last_line():
    row = dict(program="update", model="a network", P=1, executor="vmap")
    error = tpu.in_a_process(row, 120)["error"]
    assert error.startswith("exit status 1: ")
    assert "KeyError: 'a network'" in error or "libtpu is not installed" in error


def test_ratios_are_to_as_many_single_steps():
    row = dict(program="update", model="LeNet5", P=1, executor="unroll") | MEASURED
    four = row | dict(P=4, executor="scan", hbm_bytes=64e6, cycles=8e6)
    line = tpu.table([row, four]).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1:8] == ["LeNet5, P = 4, scan", "2.0", "3.00", "64", "2.00", "8.00", "0.50"]


def test_words_that_no_row_has_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"no row of 'moe' is left; words: .*, S/32, "):
        tpu.measure(tmp_path / "rows.json", "moe", options(only=["LeNet5"]))
    assert not list(tmp_path.iterdir())
