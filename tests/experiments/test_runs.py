"""Trained runs from Python: the numbers of `evaluate`, bit for bit, for arrays as stored."""

import json
import shutil

import numpy as np
import pytest

from experiments import evaluate, load_run
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.train import train
from uncertainty.build import ConfigError
from uncertainty.distributions import Classes, Gaussians
from uncertainty.posthoc import temperature

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (120, 1, 6, 6), dtype=np.uint8)  # channels first
LABELS = np.arange(120) % 3
TABLE = RNG.normal(50, 20, (120, 4))
TARGETS = 1000 + 10 * TABLE[:, :1]


# What is fitted on held-out examples and saved, of few steps of training.
FITTED = {
    "classification": dict(
        posthoc=dict(
            name="posthoc", methods=("temperature", dict(name="temperature", of="members"))
        ),
        sets=dict(name="conformal", methods=("lac", "aps"), alpha=0.3, posthoc=("temperature",)),
    ),
    "regression": dict(
        posthoc=dict(name="posthoc", methods=("variance_scale",)),
        sets=dict(name="intervals", alpha=0.3),
    ),
}


def made(folder, train_data, head, likelihood, task, seed=0):
    config = config_lib.plain(base())
    config |= dict(seed=seed, steps=2, batch_size=15, likelihood=dict(name=likelihood))
    config |= dict(backbone=dict(name="mlp.MLP", widths=(8,)), head=head, mesh=dict(data=1))
    config["inference"] = dict(config["inference"], size=2)
    config["data"] = dict(config["data"], train=train_data)
    config["evaluation"] = dict(batch_size=32, every=0)
    config["evaluators"] = {}
    if task:
        held_out = dict(data=dict(split="test"), fit=dict(split="validation"))
        config["evaluators"] = dict(
            test=dict(name=task, data=dict(split="test")),
            **{k: spec | held_out for k, spec in FITTED[task].items()},
        )
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
    splits = dict(train=slice(0, 40), test=slice(40, 90), validation=slice(90, 120))
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
    predicted = run.predict(BYTES[40:90], progress=False)
    assert isinstance(predicted, Classes) and len(predicted) == 50
    np.testing.assert_array_equal(predicted.log_p, predictions["images"]["log_p"])
    p = np.exp(predicted.log_p.astype(np.float64))
    q = p.mean(0)
    np.testing.assert_allclose(predicted.probs, q, rtol=1e-12)
    entropy = -(q * np.log(q)).sum(-1)
    np.testing.assert_allclose(predicted.entropy, entropy, rtol=1e-6)
    expected = -(p * np.log(p)).sum(-1).mean(0)
    np.testing.assert_allclose(predicted.mutual_information, entropy - expected, atol=1e-6)
    assert run.features(BYTES[40:90]).shape == (50, 16)
    with pytest.raises(ValueError, match="no conformal method is fitted"):
        predicted.sets(0.1)
    sets = load_run(folder / "images", conformal=lambda log_p, alpha: log_p > np.log(alpha))
    np.testing.assert_array_equal(sets.predict(BYTES[40:90]).sets(0.3), q > 0.3)


def test_workdirs_join(runs):
    folder, predictions = runs
    joined = load_run(folder / "images", str(folder / "other"), folder / "images")
    other = load_run(folder / "other").predict(BYTES[40:90]).log_p
    both = np.concatenate([predictions["images"]["log_p"], other])
    np.testing.assert_array_equal(joined.predict(BYTES[40:90]).log_p, both)
    with pytest.raises(ConfigError, match="cannot be joined"):
        load_run(folder / "images", folder / "table")


def test_targets_are_in_their_units(runs):
    folder, predictions = runs
    predicted, file = load_run(folder / "table").predict(TABLE[40:90]), predictions["table"]
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
    whole = TABLE[40:90].round()
    run = load_run(folder / "table")
    np.testing.assert_array_equal(
        run.predict(whole).member_mean, run.predict(whole.astype(int)).member_mean
    )


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("images", BYTES[:, 0], r"x: shape \(120, 6, 6\); \[B, 1, 6, 6\] is needed"),
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
    for options in ({}, dict(posthoc="temperature")):
        with pytest.raises((ValueError, OSError), match="nowhere") as error:
            load_run(tmp_path / "nowhere", **options)
        assert "has no results" not in str(error.value)
    with pytest.raises(ConfigError, match="none is given"):
        load_run()
    config = json.loads((runs[0] / "images" / "config.json").read_text())
    assert config["evaluation"]["batch_size"] == 32  # 50 examples: a full batch and a padded one


def saved_numbers(folder):
    return json.loads((folder / "evaluation" / "test" / "metrics.json").read_text())


def test_saved_calibrators_are_used_if_they_are_named(runs):
    """The numbers that the evaluators reported, from arrays."""
    folder = runs[0] / "images"
    numbers, y = saved_numbers(folder), LABELS[40:90]
    plain, held_out = map(load_run(folder).predict, (BYTES[40:90], BYTES[90:]))
    own = temperature(held_out.mixture, LABELS[90:])
    run = load_run(folder, posthoc="temperature", conformal="lac")
    predicted = run.predict(BYTES[40:90])
    np.testing.assert_allclose(predicted.mixture, own(plain.mixture), rtol=1e-6)
    nll = -predicted.mixture[np.arange(50), y].mean()
    assert nll == pytest.approx(numbers["posthoc/temperature/nll"], rel=1e-6)
    # Sets are of the predictions before, which their threshold is of.
    chosen = predicted.sets()
    np.testing.assert_array_equal(chosen, predicted.sets(0.3))
    assert chosen[np.arange(50), y].mean() == pytest.approx(numbers["conformal/lac/coverage"])
    assert chosen.sum(1).mean() == pytest.approx(numbers["conformal/lac/size"])
    # ... and after the temperature of their own half where they have one.
    other = load_run(folder, conformal="lac_temperature").predict(BYTES[40:90])
    np.testing.assert_array_equal(other.log_p, plain.log_p)
    size = other.sets().sum(1).mean()
    assert size == pytest.approx(numbers["conformal/lac_temperature/size"])
    # Randomised sets need draws, those of the evaluator here.
    sets = load_run(folder, conformal="aps").predict(BYTES[40:90])
    u = np.random.default_rng([0, 3]).random(50)
    assert sets.sets(u=u).sum(1).mean() == pytest.approx(numbers["conformal/aps/size"])
    with pytest.raises(ValueError, match="u: missing; a randomised method needs a uniform draw"):
        sets.sets()
    with pytest.raises(ValueError, match=r"alpha: 0.1, but 'lac' was calibrated for 0.3"):
        predicted.sets(0.1)
    with pytest.raises(ValueError, match="mutual_information: these are the calibrated probab"):
        predicted.mutual_information  # noqa: B018
    members = load_run(folder, posthoc="temperature_members").predict(BYTES[40:90])
    assert len(members.log_p) == 2 and (members.mutual_information >= 0).all()


def test_saved_scales_and_intervals_of_targets(runs):
    folder, y = runs[0] / "table", TARGETS[40:90]
    numbers = saved_numbers(folder)
    predicted = load_run(folder, posthoc="variance_scale", conformal="cqr").predict(TABLE[40:90])
    plain = load_run(folder).predict(TABLE[40:90])
    np.testing.assert_allclose(predicted.mean, plain.mean)
    scale = numbers["posthoc/variance_scale/scale"]
    np.testing.assert_allclose(predicted.variance, scale**2 * plain.variance, rtol=1e-5)
    low, high = predicted.sets()
    hits = ((low <= y) & (y <= high)).mean()
    assert hits == pytest.approx(numbers["intervals/cqr/coverage"])
    assert np.mean(high - low) == pytest.approx(numbers["intervals/cqr/width"], rel=1e-5)
    with pytest.raises(ValueError, match="no conformal method is fitted"):
        plain.sets()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(posthoc="temprature"), "no 'temprature' of posthoc; did you mean 'temperature'"),
        (dict(conformal="lack"), "no 'lack' of conformal; did you mean 'lac'"),
        (dict(posthoc="before_lac_temperature"), "is fitted to a part of the held-out examples"),
        (dict(posthoc="temperature", evaluation="other"), "evaluation: .*other has no results; py"),
        (dict(others=["other"], posthoc="temperature"), "are of 1 run, but 2 predict here"),
    ],
)
def test_calibrators_of_other_names_or_members_are_refused(runs, options, message):
    folder = runs[0]
    others = [folder / name for name in options.pop("others", [])]
    with pytest.raises(ConfigError, match=message):
        load_run(folder / "images", *others, **options)


def test_calibrators_of_another_step_are_refused(runs, tmp_path):
    shutil.copytree(runs[0] / "table", tmp_path / "run")
    file = tmp_path / "run" / "evaluation" / "test" / "metrics.json"
    file.write_text(json.dumps(saved_numbers(tmp_path / "run") | {"cost/step": 1}))
    with pytest.raises(ConfigError, match="is of step 1, but the checkpoint of step 2; python -m"):
        load_run(tmp_path / "run", conformal="cqr")


def test_calibrators_of_another_step_of_any_run_are_refused(runs, tmp_path):
    """The largest step of several runs alone may not have changed."""
    pair = [tmp_path / name for name in ("images", "other")]
    for workdir in pair:
        shutil.copytree(runs[0] / workdir.name, workdir)
    together = shutil.copytree(pair[0] / "evaluation" / "test", pair[0] / "evaluation" / "both")

    def load(*steps):
        noted = zip((".", "../other"), steps, strict=True)
        runs_of = [dict(workdir=path, step=step) for path, step in noted]
        (together / "runs.json").write_text(json.dumps(runs_of))
        return load_run(*pair, evaluation="both", conformal="lac")

    assert load(2, 2).steps == {str(path): 2 for path in pair}
    with pytest.raises(
        ConfigError, match="is of steps 2, 1, but the checkpoints of steps 2, 2; py"
    ):
        load(2, 1)
