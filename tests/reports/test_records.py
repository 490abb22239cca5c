"""Cells in a file of lines: order, replacement, interruption and two writers."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.tables.records import FILE, Records, slug

ROWS = ["A", "B: (1)", "C"]


def record(row, seed, **metrics):
    return dict(
        row=row,
        seed=seed,
        metrics=metrics,
        failures={},
        config={"evaluators": {}},
        hardware={"date": "2025-01-31"},
    )


def records(folder, rows=ROWS):
    return Records(folder, [slug(row) for row in rows])


def cells_of(folder):
    lines = map(json.loads, (folder / FILE).read_text().splitlines())
    return {(line["row"], line["seed"]): line["metrics"] for line in lines}


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from([*ROWS, "Z"]), st.integers(0, 3)), min_size=1, max_size=8)
)
def test_the_order_is_that_of_the_table_and_the_last_record_of_a_cell_stays(
    tmp_path_factory, cells
):
    folder = tmp_path_factory.mktemp("cells")
    expected = {}
    for n, (row, seed) in enumerate(cells):
        records(folder).put(record(row, seed, nll=n / 3))
        expected[row, seed] = {"nll": n / 3}
    written = cells_of(folder)
    assert written == expected
    assert list(written) == sorted(expected, key=lambda cell: ([*ROWS, "Z"].index(cell[0]), cell))


def test_nothing_is_written_where_nothing_changes(tmp_path):
    """Not even where a line has been written by another program, with other spaces."""
    file = tmp_path / FILE
    file.write_text(json.dumps(record("C", 0, a=1.0), separators=(",", ":")) + "\n")
    made = records(tmp_path)
    made.put(record("A", 1, b=float("nan")))
    text, stamp = file.read_bytes(), file.stat().st_mtime_ns
    assert text.splitlines()[1] == json.dumps(record("C", 0, a=1.0), separators=(",", ":")).encode()
    made.put(record("A", 1, b=float("nan")))
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (text, stamp)
    assert json.loads(text.splitlines()[0])["metrics"] == {"b": "NaN"}
    assert made.get("a", 1)["metrics"]["b"] != made.get("a", 1)["metrics"]["b"]


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_line_without_its_end_is_dropped_with_a_warning(tmp_path, caplog, cut):
    made = records(tmp_path)
    for seed in (0, 1):
        made.put(record("A", seed))
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(text[: -1 - cut])
    assert made.seeds("a") == [0] and not made.any_damaged() and not made.damaged()
    assert "line 2, is incomplete and is dropped: its cell is run again" in caplog.text
    made.put(record("A", 1))
    assert (tmp_path / FILE).read_text() == text
    (tmp_path / FILE).write_text(text[:-1])  # of a whole line only the end is missing
    assert made.seeds("a") == [0, 1]


def test_the_later_of_two_lines_for_a_cell_counts(tmp_path):
    lines = [record("A", 0, a=1), record("C", 2, a=2), record("A", 0, a=3)]
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert records(tmp_path).get("a", 0)["metrics"] == {"a": 3}
    records(tmp_path).put(record("B: (1)", 0))
    assert [cell for cell, _ in cells_of(tmp_path).items()] == [("A", 0), ("B: (1)", 0), ("C", 2)]


def test_a_damaged_line_stays_until_its_cell_is_run_again(tmp_path):
    (tmp_path / FILE).write_text('{"row": "A", "seed": 0}\nno JSON\n')
    made = records(tmp_path)
    with pytest.raises(ValueError, match="line 1, is damaged: 'metrics' is missing"):
        made.get("a", 0)
    (stray,) = made.damaged()
    assert "line 2, is damaged: not valid JSON" in stray
    made.put(record("C", 0))
    assert (tmp_path / FILE).read_text().splitlines()[0] == '{"row": "A", "seed": 0}'
    assert (tmp_path / FILE).read_text().splitlines()[2] == "no JSON"
    made.put(record("A", 0))
    assert made.get("a", 0)["metrics"] == {} and made.any_damaged()


def put_many(folder, row):
    for seed in range(20):
        records(folder).put(record(row, seed, a=seed))


def test_two_writers_lose_nothing(tmp_path):
    """Each has an object and a lock of its own, as two processes have."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(put_many, [tmp_path] * 2, "AC"))
    assert list(cells_of(tmp_path)) == [(row, seed) for row in "AC" for seed in range(20)]


def test_files_of_an_earlier_version(tmp_path):
    """They are read where there is no line, and moved by the next write; damaged ones stay."""
    old = tmp_path / "runs"
    old.mkdir()
    for seed in (0, 1):
        (old / f"b-1-seed{seed}.json").write_text(
            json.dumps(record("B: (1)", seed, a=0.1), indent=2)
        )
    (old / "a-seed3.json").write_text("{")
    (tmp_path / FILE).write_text(json.dumps(record("B: (1)", 1, a=2)) + "\n")
    made = records(tmp_path)
    assert made.seeds("b-1") == [0, 1] and made.seeds("a") == [3]
    assert [made.get("b-1", seed)["metrics"]["a"] for seed in (0, 1)] == [0.1, 2]
    with pytest.raises(ValueError, match=r"a-seed3\.json is damaged: not valid JSON"):
        made.get("a", 3)
    made.put(record("C", 0))
    assert cells_of(tmp_path) == {("B: (1)", 0): {"a": 0.1}, ("B: (1)", 1): {"a": 2}, ("C", 0): {}}
    assert sorted(path.name for path in old.iterdir()) == ["a-seed3.json", "b-1-seed1.json"]
    made.put(record("A", 3))
    assert made.get("a", 3)["metrics"] == {} and not made.any_damaged()
