"""The tables in the terminal."""

import io
import math

import pytest
from rich.console import Console

from configs.published import PUBLISHED
from experiments.reports.study import Column, Row, Study
from experiments.reports.tables import human, pretty, print_metrics, print_study

METRICS = {
    "classification/accuracy": 0.93214,
    "classification/member_nll": 0.3,
    "calibration/ece": 0.0123,
    "uncertainty/mutual_information": 0.1,
    "selective/aurc": 0.0123,
    "ood/kmnist/auroc_entropy": 0.9876,
    "ood/kmnist/aupr_out_entropy": 0.97,
    "ood/kmnist/fpr95_max_probability": 0.05,
    "ood/mnist/auroc_entropy": 0.9,
    "corruption/accuracy": 0.7,
    "corruption/blur/1/accuracy": 0.8,
    "corruption/blur/2/accuracy": 0.6,
    "corruption/noise/1/accuracy": 0.9,
    "corruption/noise/2/accuracy": 0.5,
    "cost/parameters": 545546,
    "cost/train_seconds": 431.5,
    "cost/predict_ms_per_example": 0.0213,
    "cost/step": 5000,
    "custom/thing": 2.5,
}


def lines(metrics):
    console = Console(file=io.StringIO(), width=110)
    print_metrics(metrics, console)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("accuracy", 0.93214, ("93.21", "%")),
        ("ece_mass", 0.0123, ("1.23", "%")),
        ("coverage_0.9", 0.88, ("88.00", "%")),
        ("best_member", 0.5, ("50.00", "%")),
        ("10_shot_error", 0.5, ("50.00", "%")),
        ("mean_error", 0.5, ("0.5000", "")),
        ("std_error", 0.5, ("0.5000", "")),
        ("member_nll", 0.25, ("0.2500", "nats")),
        ("mutual_information", 0.1, ("0.1000", "nats")),
        ("parameters", 545546, ("545.55", "K")),
        ("parameters", 36.5e6, ("36.50", "M")),
        ("parameters", 12, ("12", "")),
        ("train_seconds", 43.21, ("43.2", "s")),
        ("train_seconds", 431.5, ("7.2", "min")),
        ("train_seconds", 7500.0, ("2.1", "h")),
        ("predict_ms_per_example", 0.02134, ("0.0213", "ms")),
        ("predict_ms_per_example", 1234.5, ("1,234", "ms")),
        ("rmse", 2.5, ("2.5000", "")),
        ("aurc", 0.000126, ("0.00013", "")),
        ("nll", 9.99e-4, ("0.001", "nats")),
        ("excess_aurc", -2e-17, ("0.0000", "")),
        ("excess_aurc", 0.0, ("0.0000", "")),
        ("step", 5000, ("5,000", "")),
        ("step", 4.0, ("4", "")),
        ("rmse", 12.0, ("12.0000", "")),
        ("nll", math.nan, ("nan", "")),
        ("nll", math.inf, ("inf", "")),
    ],
)
def test_human_units(name, value, expected):
    assert human(name, value) == expected


def test_names():
    assert pretty("member_nll") == "Member NLL"
    assert pretty("excess_aurc") == "Excess AURC"
    assert pretty("predict_ms_per_example") == "Predict per example"


def test_every_metric_of_an_evaluation_is_printed_in_its_group():
    shown = lines(METRICS)
    headings = [line[0] for line in shown if line[0][0].isupper()]
    order = ["Classification", "Calibration", "Uncertainty", "Out", "Corruption", "Selective"]
    assert [h for h in headings if h in [*order, "Cost", "Custom"]] == [*order, "Cost", "Custom"]
    assert ["Accuracy", "93.21", "%"] in shown
    assert ["Mutual", "information", "0.1000", "nats"] in shown
    assert ["Out", "of", "distribution", "AUROC", "%", "AUPR", "out", "%", "FPR95", "%"] in shown
    assert ["kmnist:", "entropy", "98.76", "97.00"] in shown
    assert ["kmnist:", "max", "probability", "5.00"] in shown
    assert ["Train", "7.2", "min"] in shown
    assert ["Step", "5,000"] in shown
    assert ["Step", "4"] in lines({"cost/step": 4})
    assert ["Thing", "2.5000"] in shown


def test_corruption_is_shown_by_severity_and_by_kind():
    shown = lines(METRICS)
    start = shown.index(["Corruption", "Accuracy", "%"])
    assert shown[start + 1 : start + 6] == [
        ["mean", "70.00"],
        ["severity", "1", "85.00"],
        ["severity", "2", "55.00"],
        ["blur", "70.00"],
        ["noise", "70.00"],
    ]


def study(columns=6):
    keys = [f"m{i}" for i in range(columns)]
    rows = [
        Row("Deterministic network", [dict.fromkeys(keys, 0.5), dict.fromkeys(keys, 0.7)]),
        Row("Ensemble (10)", [dict.fromkeys(keys, 0.8), dict.fromkeys(keys, 0.9)]),
        Row("Broken", published={"m0": (12.3, "a paper")}, failed="no [memory]"),
    ]
    return Study("T", [Column(k, f"Metric {k}", "", "higher", 2) for k in keys], rows)


def printed(study, width):
    console = Console(file=io.StringIO(), width=width)
    print_study(study, console)
    return console.file.getvalue()


@pytest.mark.parametrize(("columns", "width"), [(2, 120), (6, 120), (6, 80), (12, 60), (12, 45)])
def test_a_study_is_whole_at_every_width(columns, width):
    text = printed(study(columns), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("0.60 ± 0.10") == columns
    assert text.count("0.85 ± 0.05") == columns
    assert text.count("12.30 [2]") == 1 and text.count("failed") >= 1
    assert "[1] Failed: no [memory]" in text and "[2] a paper" in text
    assert "…" not in text


def test_the_best_cell_is_bold():
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    print_study(study(1), console)
    assert "\x1b[1;32m0.85 ± 0.05\x1b[0m" in console.file.getvalue()
    assert "\x1b[1;32m0.60" not in console.file.getvalue()


def test_published_numbers_all_have_a_source():
    entries = [e for table in PUBLISHED.values() for row in table.values() for e in row.values()]
    assert len(entries) == 135
    assert all(value > 0 and source.startswith("google") for value, source in entries)
    assert PUBLISHED["fashion_mnist"]["Ensemble (10)"]["classification/nll"][0] == 0.2
