"""The examples of docs/posthoc.md run."""

import pathlib
import re

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from experiments.evaluators import build_all
from experiments.experiment.base import base, derived
from experiments.experiment.config import plain

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "posthoc.md"


def test_examples():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    config_block, reading, predicting, functions, of_targets, of_table = blocks
    config = base()
    exec(config_block, {"config": config})
    assert isinstance(config, ConfigDict)
    built = build_all(derived(plain(config))["evaluators"], "classification")
    assert set(built) == {"posthoc", "sets", "detail", "joint"}
    names = {"config": config, "test": dict(split="test")}
    exec(of_table, names)
    built = build_all(derived(plain(config))["evaluators"], "classification")
    assert {column["key"] for column in names["columns"]} <= built["joint"].yields

    rng = np.random.default_rng(0)
    log_p = special.log_softmax(rng.normal(size=(60, 4)), -1)
    names = dict(log_p_validation=log_p, labels=rng.integers(4, size=60), log_p_test=log_p[:5])
    exec(functions, names)
    assert names["chosen"].shape == (5, 4) and names["chosen"].any(1).all()
    for block in (reading, predicting):  # need a trained run, as in tests/experiments
        compile(block, str(PAGE), "exec")
    config = base()
    exec(of_targets, {"config": config})
    built = build_all(derived(plain(config))["evaluators"], "regression")
    assert set(built) == {"scale", "intervals", "regions"}
