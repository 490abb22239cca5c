"""An exported predictor against the predictions of the run, in a process without this package."""

import subprocess
import sys

import numpy as np
import pytest

from experiments.data.source import load
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.export import export
from experiments.prediction.predictor import Predictor
from tests.test_contract import config_of
from uncertainty.build import ConfigError

ALONE = """
import sys
sys.modules["uncertainty"] = sys.modules["experiments"] = sys.modules["flax"] = None
sys.path.insert(0, sys.argv[1])
import numpy as np, predict
np.savez(sys.argv[3], **predict.load()(np.load(sys.argv[2])))
"""


def experiment_of(names, train, **changes):
    config = config_lib.plain(base()) | config_of(*names) | changes
    config["data"] = dict(train=train, validation=None, augment=())
    config["evaluation"] = dict(config["evaluation"], batch_size=48, every=0)
    config["evaluators"], config["mesh"] = {}, dict(data=1)
    return setup(config)


def alone(folder, x, tmp_path):
    """The outputs for x, by the folder alone."""
    np.save(tmp_path / "x.npy", x)
    arguments = [str(folder), str(tmp_path / "x.npy"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, timeout=120)
    with np.load(tmp_path / "out.npz") as file:
        return dict(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "platforms"),
    [
        (("mlp", "multi_head", "hetsngp", "collect"), ["cpu"]),
        (("vmoe", "e3", "dense", "particles"), ["cpu", "cuda", "tpu"]),
    ],
    ids=["hetsngp", "e3"],
)
def test_classes(names, platforms, tmp_path):
    rng = np.random.default_rng(0)
    images, y = rng.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8), np.arange(100) % 3
    np.savez(tmp_path / "set.npz", x_train=images, y_train=y)
    spec = dict(name="npz", path=str(tmp_path / "set.npz"), mean=0.4, std=0.3)
    experiment = experiment_of(names, spec)
    state = experiment.init()
    export(experiment, state, tmp_path / "out", platforms)
    found = alone(tmp_path / "out", images, tmp_path)
    wanted = Predictor(experiment, state)(load(spec))
    np.testing.assert_allclose(found["log_p"], wanted.log_p, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["p"], np.exp(wanted.log_p).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_targets_are_in_the_unit_that_they_are_stored_in(tmp_path):
    train = dict(name="diabetes")
    experiment = experiment_of(
        ("mlp", "multi_head", "mean_variance", "particles"), train,
        likelihood=dict(name="gaussian", noise_std=0.5),
        head=dict(name="mean_variance.MeanVariance", outputs=1),
    )  # fmt: skip
    state, source = experiment.init(), experiment.source
    export(experiment, state, tmp_path / "out", batch_size=100)
    found = alone(tmp_path / "out", source.entries["x"], tmp_path)
    wanted = Predictor(experiment, state)(train)
    np.testing.assert_allclose(found["mean"], wanted.mean * source.y_std + source.y_mean, rtol=1e-4)
    np.testing.assert_allclose(found["variance"], wanted.variance * source.y_std**2, rtol=1e-4)
    few, variance = found["mean"][:, :3], found["variance"][:, :3]
    draws = np.random.default_rng(0).normal(few, variance**0.5, (20_000, *few.shape))
    np.testing.assert_allclose(draws.mean((0, 1)), found["mixture_mean"][:3], rtol=0.01)
    np.testing.assert_allclose(draws.var((0, 1)), found["mixture_variance"][:3], rtol=0.03)


def test_what_cannot_be_exported_is_refused(tmp_path):
    experiment = experiment_of(("mlp", "single", "dense", "particles"), dict(name="iris"))
    state = experiment.shapes
    with pytest.raises(ConfigError, match=r"output: .* exists"):
        export(experiment, state, tmp_path)
    with pytest.raises(ConfigError, match="platforms: 'gpu'"):
        export(experiment, state, tmp_path / "out", ["gpu"])
    with pytest.raises(ConfigError, match="platforms: none; of cpu, cuda"):
        export(experiment, state, tmp_path / "out", [])
    with pytest.raises(ConfigError, match="batch_size: -1; at least 1"):
        export(experiment, state, tmp_path / "out", batch_size=-1)
    assert not (tmp_path / "out").exists()
