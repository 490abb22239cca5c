"""The examples of docs/combining.md run."""

import pathlib
import re

import numpy as np
from scipy import special

from experiments.evaluators import build_all
from experiments.experiment.base import base, derived
from experiments.experiment.config import plain

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "combining.md"


def test_examples():
    in_a_config, functions = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    config = base()
    exec(in_a_config, {"config": config})
    built = build_all(derived(plain(config))["evaluators"], "classification")
    assert set(built) == {"kinds", "combination"}
    assert "kinds/eq+inv/accuracy_4" in built["kinds"].yields

    rng = np.random.default_rng(0)
    log_p = special.log_softmax(rng.normal(size=(3, 60, 4)), -1)
    names = dict(log_p_validation=log_p, labels=rng.integers(4, size=60), log_p_test=log_p[:, :5])
    exec(functions, names)
    assert names["log_p"].shape == (2, 5, 4)
