"""Parts, data, evaluators, configs and tables of a package outside the project, by their paths."""

import sys

import numpy as np
import pytest

from experiments import evaluate
from experiments.experiment import config as config_lib
from experiments.tables import cells
from experiments.train import train
from uncertainty.build import ConfigError, resolve

PARTS = """
from experiments.data import embedded
from experiments.evaluators.classification import classification
from uncertainty.heads.dense import Dense


class Head(Dense):
    pass


def numbers(seed: int = 0):
    made = embedded.digits(seed=seed)
    return {split: made.read(split) for split in ("train", "test")}


def scores(data):
    return classification(data=data)


def broken():
    return 3


CONSTANT = 3
"""
CONFIG = """
from experiments.experiment.base import base, parse_arg


def get_config(arg=None):
    options = parse_arg(arg, own=False)
    config = base()
    own = options.own
    config.data.train = dict(name="own_parts.parts:numbers" if own else "digits", split="train")
    config.backbone = dict(name="mlp.MLP", widths=(8,))
    config.head = dict(name="own_parts.parts:Head" if own else "dense.Dense", outputs=10)
    config.steps, config.batch_size, config.logging.every = 2, 16, 1
    config.evaluators = dict(
        test=dict(
            name="own_parts.parts:scores" if own else "classification", data=dict(split="test")
        )
    )
    return config


def get_table():
    row = dict(label="One", config="own_parts.config:own=true")
    columns = {"test/nll": dict(header="NLL")}
    return dict(title="Mine", rows=[row], columns=columns, seeds=[0])
"""


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    """A package of the user's own; the current directory is another one."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "own_parts").mkdir()
    for name, text in (("__init__", ""), ("parts", PARTS), ("config", CONFIG)):
        (folder / "own_parts" / f"{name}.py").write_text(text)
    (folder / "own_parts" / "needy.py").write_text("import no_such_library\n")
    (folder / "own_parts" / "failing.py").write_text("1 / 0\n")
    sys.path.insert(0, str(folder))
    yield folder / "own_parts"
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "own_parts"]:
        del sys.modules[name]


@pytest.mark.slow
def test_parts_by_path_give_the_numbers_of_the_same_parts_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = {}
    for arg in ("", ":own=true"):
        experiment = train(config_lib.load(f"own_parts.config{arg}"), tmp_path / f"run{arg[1:]}")
        metrics[arg], failures = evaluate.evaluate(
            experiment, tmp_path / f"run{arg[1:]}", show=False
        )
        assert not failures
    numbers = [
        {key: value for key, value in each.items() if not key.startswith("cost/")}
        for each in metrics.values()
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) > 5


def test_a_table_by_path(package, tmp_path):
    for name in ("own_parts.config", "own_parts.config:get_table", str(package / "config.py")):
        table = cells.Cells(name, tmp_path, tmp_path, {})
        assert table.name == "config" and table.given == name
        (row,) = table.table["rows"]
        assert table.config(row, 3)["head"]["name"] == "own_parts.parts:Head"
    own = cells.Cells(str(cells.project.own("configs/tables/digits.py")), tmp_path, tmp_path, {})
    assert own.name == own.given == "digits"
    with pytest.raises(ConfigError, match=r"would share the results of .* table 'digits'"):
        cells.project_name("elsewhere/digits.py")


REFUSED = {
    "no_package.heads:Head": ("no module 'no_package'", "PYTHONPATH"),
    "own_parts.nothing:Head": ("no module 'own_parts.nothing'",),
    "own_parts.needy:Head": ("importing 'own_parts.needy' failed", "no_such_library"),
    "own_parts.failing:Head": ("importing 'own_parts.failing' failed: ZeroDivisionError",),
    "own_parts.parts:Haed": ("has no 'Haed'; did you mean 'Head'?", "parts.py"),
    "own_parts.parts:CONSTANT": ("is a int; a class or function is needed",),
    "own_parts/parts.py:Head": ("is 'package.module:Name'",),
    "own_parts.parts.Head": ("no file 'own_parts'", "is 'own_parts.parts:Head'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_was_tried_is_named(name):
    with pytest.raises(ConfigError) as error:
        resolve("heads", name, "head")
    for text in ("head.name: ", name.partition(".")[0], *REFUSED[name]):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.train.name": "own_parts.parts:broken"}, "data.train.name: .* returns a int"),
        ({"data.train.seeds": 3}, "data.train.seeds: no such field of numbers; .*'seed'"),
        ({"evaluators.test.name": "own_parts.parts:broken"}, "no such field of broken"),
        ({"head.output": 3}, "head.output: no such field; did you mean 'outputs'"),
    ],
)
def test_fields_are_checked_as_those_of_the_projects_parts(change, message, tmp_path):
    config = config_lib.load("own_parts.config:own=true", change)
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run")


def test_a_dict_of_splits_is_checked():
    from experiments.data.source import made

    x, y = np.zeros((4, 2), np.float32), np.arange(4)
    assert made({"train": dict(x=x, y=y)}, "f").classes == 0
    assert made({"train": dict(x=x, y=y / 2)}, "f").classes is None
    with pytest.raises(ConfigError, match="entries of 'train' differ in length"):
        made({"train": dict(x=x, y=y[1:])}, "f")
    with pytest.raises(ConfigError, match="split 'train' is not a dict with 'x'"):
        made({"train": x}, "f")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_package.config", "config: 'no_package.config': there is no module 'no_package'"),
        ("own_parts.parts", "config: 'own_parts.parts'.* has no 'get_config'"),
        ("nowhere.py", "config: no file 'nowhere.py'"),
    ],
)
def test_a_missing_config_is_named(path, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load(path)
