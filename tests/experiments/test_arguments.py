"""`LABEL=PATH`, where a path may contain '=' too."""

import re

import pytest

from experiments import combine, report, score
from experiments.runtime.arguments import labelled

PLACES = ("runs/lr=0.1/seed=0", "a=b", "b")
READ = {  # argument -> label and path
    "runs/lr=0.1": (None, "runs/lr=0.1"),
    "runs/lr=0.1/seed=0": (None, "runs/lr=0.1/seed=0"),
    "Low=runs/lr=0.1": ("Low", "runs/lr=0.1"),
    "lr = 0.1=runs/lr=0.1/seed=0": ("lr = 0.1", "runs/lr=0.1/seed=0"),
    "a=b": (None, "a=b"),  # `b` exists too
    "c=b": ("c", "b"),
    "c=a=b": ("c", "a=b"),
    "=b": (None, "b"),
    "gone": (None, "gone"),  # what it lacks is said by those who read it
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in PLACES:
        tmp_path.joinpath(name).mkdir(parents=True)
    return tmp_path


def test_the_path_that_exists_is_meant(places, monkeypatch):
    assert {argument: labelled(argument) for argument in READ} == READ
    monkeypatch.setenv("HOME", str(places))
    assert labelled("c=~/b") == ("c", f"{places}/b")
    for argument, (label, path) in READ.items():
        assert report.parse(argument) == {"workdir": path} | ({"label": label} if label else {})
        assert score.labelled([argument]) == [(label or path.rpartition("/")[2], path)]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("A=gone", "A=gone: there is neither 'A=gone' nor 'gone' with the label 'A'"),
        ("A=", "A=: there is neither 'A=' nor '' with the label 'A'"),
        (
            "lr=0.2/seed=1",
            "lr=0.2/seed=1: there is neither 'lr=0.2/seed=1' nor '0.2/seed=1' with the label 'lr' "
            "nor '1' with the label 'lr=0.2/seed'",
        ),
    ],
)
def test_all_readings_of_what_does_not_exist_are_named(places, capsys, argument, message):
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        labelled(argument)
    for program, status in ((score, 2), (combine, 2), (report, 1)):
        assert program.main([argument]) == status
        assert f"error: {message}" in capsys.readouterr().err
