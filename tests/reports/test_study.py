"""Means, errors, rounding and footnotes of tables over seeds."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.reports.layout import layout, transpose
from experiments.reports.study import (
    Column,
    Row,
    Study,
    machine,
    published_text,
    round_pair,
    summarise,
)

ACCURACY = Column("accuracy", "Accuracy", "%", "higher", 1)
NLL = Column("nll", "NLL", "", "lower", 3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_mean_and_standard_error_are_the_textbook_ones(values):
    mean, error, n = summarise(values)
    assert n == len(values)
    assert math.isclose(mean, math.fsum(values) / n, rel_tol=1e-9, abs_tol=1e-9)
    expected = statistics.stdev(values) / math.sqrt(n)
    assert math.isclose(error, expected, rel_tol=1e-6, abs_tol=1e-9)


def test_one_seed_has_no_error_and_none_has_no_cell():
    assert summarise([0.5]) == (0.5, None, 1)
    assert summarise([]) is None


def test_equal_seeds_have_no_rounding_noise():
    assert summarise([0.1, 0.1, 0.1]).error == 0


def test_a_seed_that_is_not_finite_shows():
    mean, error, n = summarise([0.5, math.nan])
    assert math.isnan(mean) and error is None and n == 2


@pytest.mark.parametrize(
    ("mean", "error", "digits", "expected"),
    [
        (93.2137, 0.1449, 1, ("93.21", "0.14")),
        (93.2137, 0.3449, 1, ("93.2", "0.3")),
        (0.25931, 0.00971, 3, ("0.259", "0.010")),
        (0.0996, 0.0299, 3, ("0.100", "0.030")),
        (1234.0, 123.0, 0, ("1230", "120")),
        (1234.0, 45.0, 0, ("1230", "40")),
        (-0.0004, 0.02, 3, ("0.000", "0.020")),
        (0.9999, 2e-9, 3, ("0.99990", "0.00001")),
        (1e-13, 8e-14, 3, ("0.00000", "0.00001")),
        (0.3, None, 2, ("0.30", "")),
        (0.3, 0.0, 2, ("0.30", "0.00")),
        (math.nan, None, 2, ("nan", "")),
    ],
)
def test_mean_and_error_are_rounded_to_the_same_place(mean, error, digits, expected):
    assert round_pair(mean, error, digits) == expected


@given(st.floats(-1e4, 1e4), st.floats(1e-6, 1e3))
def test_rounding_keeps_one_or_two_digits_of_the_error(mean, error):
    shown_mean, shown_error = round_pair(mean, error, 5)
    # The place of the last digit: at most half of it is lost, for mean and error alike.
    place = 10.0 ** math.floor(math.log10(error)) / (10 if error < 3 * _power(error) else 1)
    assert abs(float(shown_error) - error) <= place * 0.5001
    assert abs(float(shown_mean) - mean) <= place * 0.5001 + 1e-9
    assert 0.0 <= abs(float(shown_error) - error) / error <= 0.17
    decimals = [len(text.partition(".")[2]) for text in (shown_mean, shown_error)]
    assert decimals[0] == decimals[1]


def _power(x):
    return 10.0 ** math.floor(math.log10(x))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.2, 3, "0.200"), (99.1, 1, "99.1"), (0.0057, 3, "0.0057"), (91, 1, "91.0")],
)
def test_published_values_gain_zeros_but_are_never_rounded(value, digits, text):
    assert published_text(value, digits) == text


def seeds(accuracy, nll):
    return [{"accuracy": a, "nll": b} for a, b in zip(accuracy, nll, strict=True)]


def test_best_mean_is_marked_within_each_group():
    rows = [
        Row("a", seeds([0.9, 0.8], [0.5, 0.7]), group="x"),
        Row("b", seeds([0.86, 0.88], [0.65, 0.6]), group="x"),
        Row("c", seeds([0.99, 0.98], [0.05, 0.06]), group="y"),
        Row("d", seeds([0.97, 0.96], [0.06, 0.07]), group="y"),
    ]
    best = [[c.best for c in cells] for _, cells in layout(Study("", [ACCURACY, NLL], rows)).lines]
    assert best == [[False, True], [True, False], [True, True], [False, False]]


def test_nothing_is_best_alone_or_among_equals_or_without_a_direction():
    cost = Column("nll", "Cost")
    rows = [Row("a", seeds([0.9], [1])), Row("b", seeds([0.9], [2]))]
    for _, cells in layout(Study("", [ACCURACY, cost], rows)).lines:
        assert not any(cell.best for cell in cells)
    alone = layout(Study("", [ACCURACY], rows[:1])).lines[0][1][0]
    assert not alone.best


def test_published_values_stand_beside_ours_with_numbered_sources():
    rows = [
        Row("a", seeds([0.9, 0.91], [0.3, 0.3]), {"accuracy": (91.0, "README"), "nll": (0.2, "b")}),
        Row("b", published={"accuracy": (93.2, "README")}),
        Row("c"),
    ]
    shown = layout(Study("", [ACCURACY, NLL], rows))
    cells = [cells for _, cells in shown.lines]
    assert shown.notes == ("README", "b")
    assert shown.compared == (True, True)
    assert [(c.published, c.source) for c in cells[0]] == [("91.0", 1), ("0.200", 2)]
    assert [(c.published, c.source) for c in cells[1]] == [("93.2", 1), ("", 0)]
    assert all(c == (type(c)()) for c in cells[2])  # neither a result nor a source: empty


def test_failed_rows_and_seeds_say_why():
    rows = [
        Row("whole", failed="out of memory", note="size 4"),
        Row("part", seeds([0.9, 0.8], [1, 2]), failed="seed 2: NaN"),
        Row("fewer", seeds([0.9], [1])),
        Row("lacks", [*seeds([0.9, 0.8], [1, 2]), {"accuracy": 0.7}]),
    ]
    shown = layout(Study("", [ACCURACY, NLL], rows))
    notes = {head.text: [shown.notes[m - 1] for m in head.marks] for head, _ in shown.lines}
    assert notes == {
        "whole": ["size 4", "Failed: out of memory"],
        "part": ["Failed (2 of 3 seeds shown): seed 2: NaN"],
        "fewer": ["1 of 3 seeds."],
        "lacks": ["NLL: 2 of 3 seeds."],
    }
    whole = shown.lines[0][1]
    assert [(c.mean, c.failed) for c in whole] == [("failed", True), ("", False)]


def test_transposing_twice_gives_the_cells_back():
    rows = [
        Row("a", seeds([0.9, 0.91], [0.3, 0.4]), {"accuracy": (91.0, "README")}, note="n"),
        Row("b", seeds([0.8, 0.81], [0.5, 0.6])),
    ]
    shown = layout(Study("", [ACCURACY, NLL], rows))
    turned = transpose(shown)
    assert turned.compared == (True, False)
    assert [head.text for head, _ in turned.lines] == ["Accuracy (%) ↑", "NLL ↓"]
    assert transpose(turned) == shown


def test_columns_and_rows_may_be_dicts():
    study = Study("", [dict(key="nll", header="NLL")], [dict(label="a", results=[{"nll": 2.0}])])
    assert layout(study).lines[0][1][0].mean == "2.00"


def test_published_numbers_need_a_column_and_a_source():
    with pytest.raises(ValueError, match="published 'ece' is not a column"):
        Study("", [NLL], [Row("a", published={"ece": (0.1, "README")})])
    with pytest.raises(ValueError, match="with a source"):
        Study("", [NLL], [Row("a", published={"nll": (0.1, " ")})])
    with pytest.raises(ValueError, match="better='up'"):
        Column("nll", "NLL", better="up")


def test_the_machine_in_words():
    hardware = {"processor": "Xeon", "cores": 2, "devices": "1 x cpu", "jax": "0.10"}
    assert machine(hardware) == "Xeon, 2 cores; 1 x cpu"
    assert machine({}) == ""


def test_scaled_units():
    rows = [Row("a", [{"p": 61706}, {"p": 61706}])]
    cell = layout(Study("", [Column("p", "Parameters", "M", None, 3)], rows)).lines[0][1][0]
    assert cell.ours() == "0.062"  # a cost that no seed changes has no error
    rows = [Row("a", seeds([0.931, 0.933, 0.935], [1, 1, 1]))]
    cell = layout(Study("", [ACCURACY], rows)).lines[0][1][0]
    error = np.std([93.1, 93.3, 93.5], ddof=1) / np.sqrt(3)
    assert cell.ours() == f"93.30 ± {error:.2f}"
