"""Trained runs from Python: the numbers of `evaluate`, bit for bit, for arrays as stored."""

import json

import numpy as np
import pytest

from experiments import evaluate, load_run
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.train import train
from uncertainty.build import ConfigError
from uncertainty.distributions import Classes, Gaussians

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (90, 1, 6, 6), dtype=np.uint8)  # channels first
LABELS = np.arange(90) % 3
TABLE = RNG.normal(50, 20, (90, 4))
TARGETS = 1000 + 10 * TABLE[:, :1]


def made(folder, train_data, head, likelihood, task, seed=0):
    config = config_lib.plain(base())
    config |= dict(seed=seed, steps=2, batch_size=15, likelihood=dict(name=likelihood))
    config |= dict(backbone=dict(name="mlp.MLP", widths=(8,)), head=head, mesh=dict(data=1))
    config["inference"] = dict(config["inference"], size=2)
    config["data"] = dict(config["data"], train=train_data)
    config["evaluation"] = dict(batch_size=32, every=0)
    config["evaluators"] = dict(test=dict(name=task, data=dict(split="test"))) if task else {}
    train(config, folder)
    if task is None:
        return None
    experiment = evaluate.open_run(folder)  # on the devices here, as the program does
    evaluate.evaluate(experiment, folder, show=False, predictions=True)
    with np.load(folder / "evaluation" / "test" / "predictions.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    images, table = folder / "images.npz", folder / "table.npz"
    splits = dict(train=slice(0, 40), test=slice(40, 90))
    np.savez(
        images,
        **{f"x_{k}": BYTES[s] for k, s in splits.items()},
        **{f"y_{k}": LABELS[s] for k, s in splits.items()},
    )
    np.savez(
        table,
        **{f"x_{k}": TABLE[s] for k, s in splits.items()},
        **{f"y_{k}": TARGETS[s] for k, s in splits.items()},
    )
    het = dict(name="heteroscedastic.Heteroscedastic", outputs=3, rank=2)
    of_images = dict(
        name="npz", path=str(images), split="train", channels="first", mean=0.4, std=0.3
    )
    of_table = dict(name="npz", path=str(table), split="train", standardise=True)
    predictions = {
        "images": made(folder / "images", of_images, het, "softmax", "classification"),
        "other": made(folder / "other", of_images, het, "softmax", None, seed=1),
        "table": made(
            folder / "table",
            of_table,
            dict(name="mean_variance.MeanVariance", outputs=1),
            "gaussian",
            "regression",
        ),
    }
    return folder, predictions


def test_classes_are_those_of_evaluate(runs):
    """With draws of the latents, which depend on the place in the batch."""
    folder, predictions = runs
    run = load_run(folder / "images")
    assert run.data.title.startswith("npz") and list(run.steps.values()) == [2]
    predicted = run.predict(BYTES[40:], progress=False)
    assert isinstance(predicted, Classes) and len(predicted) == 50
    np.testing.assert_array_equal(predicted.log_p, predictions["images"]["log_p"])
    p = np.exp(predicted.log_p.astype(np.float64))
    q = p.mean(0)
    np.testing.assert_allclose(predicted.probs, q, rtol=1e-12)
    entropy = -(q * np.log(q)).sum(-1)
    np.testing.assert_allclose(predicted.entropy, entropy, rtol=1e-6)
    expected = -(p * np.log(p)).sum(-1).mean(0)
    np.testing.assert_allclose(predicted.mutual_information, entropy - expected, atol=1e-6)
    assert run.features(BYTES[40:]).shape == (50, 16)
    with pytest.raises(ValueError, match="no conformal method is fitted"):
        predicted.sets(0.1)
    sets = load_run(folder / "images", conformal=lambda log_p, alpha: log_p > np.log(alpha))
    np.testing.assert_array_equal(sets.predict(BYTES[40:]).sets(0.3), q > 0.3)


def test_workdirs_join(runs):
    folder, predictions = runs
    joined = load_run(folder / "images", str(folder / "other"), folder / "images")
    other = load_run(folder / "other").predict(BYTES[40:]).log_p
    both = np.concatenate([predictions["images"]["log_p"], other])
    np.testing.assert_array_equal(joined.predict(BYTES[40:]).log_p, both)
    with pytest.raises(ConfigError, match="cannot be joined"):
        load_run(folder / "images", folder / "table")


def test_targets_are_in_their_units(runs):
    folder, predictions = runs
    predicted, file = load_run(folder / "table").predict(TABLE[40:]), predictions["table"]
    assert isinstance(predicted, Gaussians)
    mean = file["mean"]
    np.testing.assert_array_equal(predicted.member_mean, mean)
    np.testing.assert_array_equal(predicted.member_variance, file["variance"])
    np.testing.assert_allclose(
        predicted.variance, predicted.member_variance.mean(0) + mean.var(0), rtol=1e-5
    )
    low, high = predicted.interval(0.9)
    assert (low < predicted.mean).all() and (predicted.mean < high).all()
    # Whole numbers in a table are numbers too.
    whole = TABLE[40:].round()
    run = load_run(folder / "table")
    np.testing.assert_array_equal(
        run.predict(whole).member_mean, run.predict(whole.astype(int)).member_mean
    )


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("images", BYTES[:, 0], r"x: shape \(90, 6, 6\); \[B, 1, 6, 6\] is needed"),
        ("images", np.moveaxis(BYTES, 1, -1), r"\[B, 1, 6, 6\] is needed, as npz"),
        ("images", BYTES[0], r"x\[None\] for a single example"),
        ("images", BYTES / np.float32(255), "x: float32; uint8 is needed"),
        ("images", BYTES[:0], "the split is empty|at least one"),
        ("table", TABLE[:, :3], r"\[B, 4\] is needed"),
        ("table", np.where(TABLE > 90, np.nan, TABLE), "x of example .* is nan"),
        ("table", TABLE.astype(str), "real numbers are needed"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(runs, name, x, message):
    run = load_run(runs[0] / name)
    with pytest.raises(ValueError, match=message):
        run.predict(x)


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises((ValueError, OSError), match="nowhere"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="none is given"):
        load_run()
    config = json.loads((runs[0] / "images" / "config.json").read_text())
    assert config["evaluation"]["batch_size"] == 32  # 50 examples: a full batch and a padded one
