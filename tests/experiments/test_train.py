"""The train loop learns what it should, and what it writes is true."""

import importlib.util
import itertools
import logging
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import stage
from experiments import train as train_lib
from experiments.data.description import read_description
from experiments.evaluate import cost, evaluate
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.runtime.checkpoint import Checkpoints, DamagedCheckpointError
from experiments.runtime.workdir import open_workdir, read_config, read_json
from experiments.runtime.writers import METRICS, read_metrics
from experiments.train import train
from uncertainty import build

DIGITS = "configs/digits/mlp.py"


def final_state(workdir):
    shapes = setup(read_config(workdir), read_description(workdir)).shapes
    return Checkpoints(workdir, read_only=True).restore(shapes)[0]


def records(workdir):
    return [r for r in read_metrics(workdir / METRICS) if "loss" in r]


def test_digits_are_learned(digits):
    metrics = read_json(digits / "evaluation" / "test" / "metrics.json")
    assert metrics["classification/accuracy"] > 0.95
    assert metrics["classification/nll"] <= metrics["classification/member_nll"]
    assert metrics["ood/held_out/auroc_entropy"] > 0.85
    assert metrics["cost/step"] == 300
    first, *_, last = records(digits)
    assert last["loss"] < first["loss"] / 3


def test_what_is_written(digits):
    written = records(digits)
    assert [r["step"] for r in written] == list(range(20, 301, 20))
    rate = build.schedule(read_config(digits))
    for record in written:
        mean = (record["loss/0"] + record["loss/1"]) / 2
        np.testing.assert_allclose(record["loss"], mean, rtol=1e-6)  # float32
        assert record["ensemble_loss"] <= record["loss"]  # Jensen
        np.testing.assert_allclose(record["learning_rate"], rate(record["step"] - 1), rtol=1e-5)
    times = [r["seconds"] for r in written]
    assert times == sorted(times)
    validated = [r for r in read_metrics(digits / METRICS) if "loss" not in r]
    assert [r["step"] for r in validated] == [100, 200]
    for record in validated:
        assert record["validation/classification/accuracy"] > 0.8
        assert not any("cost" in name for name in record)


def linear(path, x, y, noise_std):
    """Linear regression by gradient descent on the whole data."""
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    config = base()
    spec = dict(name="npz", path=str(path))
    config.data.train = spec
    config.batch_size = len(x)
    config.backbone = dict(name="mlp.MLP", widths=())
    config.head = dict(name="dense.Dense", outputs=y.shape[1])
    config.likelihood = dict(name="gaussian", noise_std=noise_std)
    config.steps = 300
    config.optimiser = dict(name="sgd", momentum=0.9, learning_rate=0.1 * noise_std**2)
    config.evaluation.batch_size = len(x)
    config.evaluators = dict(test=dict(name="regression", data=dict(spec, split="test")))
    config.mesh = dict(data=1)
    return config


@pytest.mark.slow
def test_regression_is_least_squares(tmp_path):
    rng = np.random.default_rng(0)
    noise_std = 0.3
    x = rng.normal(size=(256, 4)).astype(np.float32)
    y = x @ rng.normal(size=(4, 2)) + 1.5 + noise_std * rng.normal(size=(256, 2))
    workdir = tmp_path / "run"
    experiment = train(linear(tmp_path / "data.npz", x, y.astype(np.float32), noise_std), workdir)
    metrics, failures = evaluate(experiment, workdir, show=False)
    assert not failures
    design = np.concatenate([x, np.ones((256, 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    params = final_state(workdir).params["head"]
    (layer,) = params.values()
    np.testing.assert_allclose(layer["kernel"][0].squeeze(), solution[:-1], atol=1e-3)
    np.testing.assert_allclose(layer["bias"][0].squeeze(), solution[-1], atol=1e-3)
    residual = y - design @ solution
    np.testing.assert_allclose(metrics["regression/rmse"], np.sqrt(np.mean(residual**2)), rtol=1e-4)
    nll = np.log(2 * np.pi * noise_std**2) + np.mean(np.sum(residual**2, 1)) / 2 / noise_std**2
    np.testing.assert_allclose(metrics["regression/nll"], nll, rtol=1e-4)
    np.testing.assert_allclose(records(workdir)[-1]["loss"], nll, rtol=1e-4)


def small(steps=40, **fields):
    overrides = {
        "steps": steps,
        "backbone.widths": (16,),
        "evaluators": {},
        "mesh": {"data": 1},
        "evaluation.every": 0,
        # Not Adam, whose division makes rounding errors of vanishing gradients large.
        "optimiser": dict(name="sgd", momentum=0.9, learning_rate=0.05),
        **{name.replace("__", "."): value for name, value in fields.items()},
    }
    return config_lib.load(DIGITS, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("steps, every", [(1, 50), (3, 50), (3, 1)])
def test_the_cost_of_a_short_run_is_known_or_left_out(tmp_path, steps, every):
    fields = dict(logging__every=every)
    experiment = train(small(steps, **fields), tmp_path)
    state, _ = Checkpoints(tmp_path, read_only=True).restore(experiment.shapes)
    found = cost(experiment, state, tmp_path)
    assert found["cost/train_seconds"] > 0 and np.isfinite(list(found.values())).all()
    assert ("cost/train_ms_per_example" in found) == (steps > 1)
    timed = [r for r in records(tmp_path) if "steps_per_second" in r]
    assert [r["step"] for r in timed] == {(1, 50): [], (3, 50): [3], (3, 1): [2, 3]}[steps, every]


@pytest.mark.slow
def test_a_renamed_checkpoint_of_before_does_not_end_a_run(tmp_path):
    """One that does not say of which step it is: its state does."""
    config = small(3, checkpoint__every=2)
    experiment = setup(config_lib.plain(config))
    open_workdir(tmp_path, experiment.config)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, experiment.init())
    checkpoints.close()
    for run in (lambda: train(config, tmp_path), lambda: evaluate(experiment, tmp_path)):
        with pytest.raises(DamagedCheckpointError, match="named 2 belongs to step 0;"):
            run()


@pytest.mark.slow
def test_another_executor_is_told_and_gives_the_same_training_to_rounding(tmp_path, caplog):
    fields = dict(inference__size=2, checkpoint__every=5)
    train(small(10, inference__executor="vmap", **fields), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")
    with caplog.at_level(logging.INFO):
        train(small(10, inference__executor="scan", **fields), tmp_path / "run")
    assert (
        'executor: "vmap" -> "scan": from here on, results are equal up to rounding' in caplog.text
    )
    for a, b in zip(
        *(jax.tree.leaves(final_state(tmp_path / run).params) for run in ("whole", "run")),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_batch(tmp_path):
    train(small(), tmp_path / "whole")
    train(small(inference__accumulate=4), tmp_path / "parts")
    a, b = (jax.tree.leaves(final_state(tmp_path / name).params) for name in ("whole", "parts"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        records(tmp_path / "parts")[-1]["ensemble_loss"],
        records(tmp_path / "whole")[-1]["ensemble_loss"],
        rtol=1e-4,
    )


@pytest.mark.slow
def test_half_precision_learns_with_float32_parameters(tmp_path):
    test = dict(name="classification", data=dict(split="test"))
    fields = dict(backbone__dtype="bfloat16", evaluators=dict(test=test))
    experiment = train(small(200, **fields), tmp_path)
    state = final_state(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    x = np.zeros((1, 8, 8, 1), np.float32)
    text = jax.jit(experiment.inference.predict).lower(state, x).as_text()
    assert "bf16" in text
    metrics, _ = evaluate(experiment, tmp_path, show=False)
    assert metrics["classification/accuracy"] > 0.9


def test_a_finished_run_is_left_alone(digits):
    before = {p: p.stat().st_mtime_ns for p in digits.rglob("*") if p.is_file()}
    train(read_config(digits), digits)
    after = {p: p.stat().st_mtime_ns for p in digits.rglob("*") if p.is_file()}
    changed = {p.name for p in after if after[p] != before.get(p)}
    assert changed <= {".lock", "data.json"}


@pytest.mark.slow
def test_nothing_is_made_of_the_config_again(tmp_path, monkeypatch):
    """Training, stages, validation and evaluation take all from the experiment."""
    optimiser = dict(name="sgd", learning_rate=0.01)
    fields = {
        "backbone.widths": (8,),
        "stages": (dict(name="snapshots", steps=2, size=1, optimiser=optimiser),),
        "evaluators.corruption": None,
        "evaluators.ood": None,
        "evaluation.every": 2,
        "mesh": {"data": 1},
    }
    config = config_lib.load(f"{DIGITS}:runlocal,size=2", fields)
    experiment = setup(config)

    def never(name):
        def fail(*_, **__):
            raise AssertionError(f"build.{name} is called again")

        return fail

    for name in ("network", "model", "optimiser", "schedule", "inference", "stages", "make"):
        monkeypatch.setattr(build, name, never(name))
    monkeypatch.setattr(train_lib, "setup", lambda *_, **__: experiment)
    assert train(config, tmp_path) is experiment
    stage.run(experiment, tmp_path)
    metrics, failures = evaluate(experiment, tmp_path, show=False)
    assert not failures and metrics["cost/step"] == 4


@pytest.mark.slow
def test_the_seed_changes_the_run(tmp_path):
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(small(10, seed=seed, logging__every=10), tmp_path / name)
        losses.append(records(tmp_path / name)[-1]["loss"])
    assert losses[0] == losses[1] != losses[2]


@pytest.fixture(scope="module")
def logged(programs, tmp_path_factory):
    """The output of the program, with a learning rate and a profile from its flags."""
    workdir = tmp_path_factory.mktemp("logged") / "run"
    result = programs(
        "train",
        "--config",
        DIGITS + ":size=2",
        "--workdir",
        workdir,
        "--config.steps=120",
        "--config.optimiser.learning_rate=0.0123",
        "--config.logging.every=10",
        "--config.logging.profile=(3,5)",
        "--config.optimiser.schedule.name=constant",
        "--config.optimiser.schedule.warmup_steps=0",
    )
    assert result.code == 0, result.output
    return workdir, result.output


@pytest.mark.slow
def test_flags_reach_the_run(logged):
    workdir, _ = logged
    assert read_config(workdir)["optimiser"]["learning_rate"] == 0.0123
    np.testing.assert_allclose([r["learning_rate"] for r in records(workdir)], 0.0123, rtol=1e-6)


@pytest.mark.slow
def test_a_profile_is_written(logged):
    traces = list((logged[0] / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000


@pytest.mark.slow
def test_the_log_is_readable(logged):
    """Plain lines, few, and the last of them at the end; then the table."""
    lines = logged[1].splitlines()
    assert not re.search(r"[\r\x1b]", logged[1])
    shown = [line for line in lines if line.startswith("train · ")]
    pattern = r"train · \d+/120 · \d+% (· .*)?· loss \d\S* ensemble \d\S* \[\d\S* \d\S*\]"
    assert 2 <= len(shown) < 10
    assert all(re.fullmatch(pattern, line) for line in shown), shown
    assert shown[0].startswith("train · 1/120 · 1% · loss") and " 120/120 · 100% · " in shown[-1]
    assert any("first step, with its compilation:" in line for line in lines)
    assert any("backbone/dense0/kernel" in line for line in lines)
    assert "Total: 51,728" in logged[1]  # 2 x (64 x 128 + 128 + 128 x 128 + 128 + 128 x 8 + 8)
    for word in ("Classification", "Calibration", "Out of distribution", "Corruption", "Cost"):
        assert word in logged[1]


@pytest.mark.slow
def test_tensorboard(programs, tmp_path):
    result = programs(
        "train",
        "--config",
        DIGITS + ":runlocal",
        "--workdir",
        tmp_path,
        "--config.logging.tensorboard=true",
    )
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
        assert result.code == 0, result.output
        assert list(tmp_path.rglob("events.out.tfevents*"))
    else:
        last = result.output.splitlines()[-1]
        assert result.code == 2 and "pip install '.[tensorflow]'" in last
        assert last.startswith("error: config.logging.tensorboard: True needs tensorflow")


@pytest.mark.slow
def test_imports_are_light():
    """Under three seconds of a core; TensorFlow, plots and scikit-learn wait until needed."""
    script = (
        "import time; began = time.process_time()\n"
        "import experiments.train, sys\n"
        "heavy = {'tensorflow', 'torch', 'keras', 'matplotlib', 'sklearn', 'tensorflow_datasets'}\n"
        "print(time.process_time() - began, *sorted(heavy & set(sys.modules)))"
    )
    best = None
    for _ in range(3):
        output = subprocess.check_output([sys.executable, "-c", script], text=True)
        seconds, *heavy = output.split()
        assert not heavy
        best = min(best or 99, float(seconds))
        if best < 3:
            return
    raise AssertionError(f"imports take {best} s")


@pytest.mark.slow
def test_mixed_labels_reach_the_loss(tmp_path):
    """Mixup makes labels probabilities, whose entropy no network can predict away."""
    train(small(60, data__augment=[dict(name="mixup", alpha=1.0)]), tmp_path / "mixed")
    train(small(60), tmp_path / "plain")
    mixed, plain = (records(tmp_path / name)[-1]["loss"] for name in ("mixed", "plain"))
    assert 2 * plain < mixed < np.log(8)


@pytest.mark.slow
def test_functions_are_compared_on_other_data_that_go_on_where_they_were():
    """The batch's context is the other set's, in an order of its own, the same after a restart."""
    digits = dict(name="digits", classes=list(range(8)))
    fields = {
        "backbone.widths": (8,),
        "data.streams": {"context": dict(digits, split="test")},
        "inference.direction": dict(name="svgd", space="functions", context=dict(name="other")),
        "optimiser.weight_decay": (),
        "mesh": {"data": 1},
    }
    experiment = setup(config_lib.load("configs/digits/mlp.py:runlocal,size=2", fields))
    whole = list(itertools.islice(experiment.batches(0), 4))
    for (a, one), (b, two) in zip(whole[2:], experiment.batches(2), strict=False):
        assert a == b
        jax.tree.map(np.testing.assert_array_equal, one, two)
    context = experiment.data.sources["context"]
    other = context.gather(np.arange(len(context)))["x"]
    for _, batch in whole:
        assert {*batch} == {"x", "y", "context"} and {*batch["context"]} == {"x"}
        assert batch["context"]["x"].shape == batch["x"].shape
        for x in batch["context"]["x"]:
            assert (np.abs(other - x).max(axis=(1, 2, 3)) == 0).any()
    state = experiment.init()
    _, metrics = jax.jit(experiment.inference.update)(state, whole[0][1])
    assert np.isfinite(metrics["loss"]).all()
    with pytest.raises(ValueError, match=r"data.streams.context: .* inputs of shape \(2,\), but"):
        other = fields | {"data.streams": {"context": dict(name="two_moons", split="train")}}
        setup(config_lib.load("configs/digits/mlp.py:runlocal", other))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("direction", "optimiser"),
    [
        (dict(name="svgd"), "sgld"),
        (dict(name="independent"), "sghmc"),
        (dict(name="wgd", space="functions", context=dict(name="perturbed")), "adam"),
    ],
    ids=["stochastic svgd", "sghmc", "functions"],
)
def test_particles_that_sample_or_interact_go_on_with_the_same_bits(direction, optimiser, tmp_path):
    fields = {
        "backbone.widths": (8,),
        "inference.direction": direction,
        "inference.prior": dict(name="gaussian"),
        "inference.collect": dict(name="after_burn_in", size=4, burn_in=0.0),
        "optimiser": dict(name=optimiser, learning_rate=0.05),
        "steps": 8,
        "checkpoint.every": 4,
        "checkpoint.keep": 2,
        "evaluation.every": 0,
        "evaluators": {},
        "mesh": {"data": 1},
    }
    config = config_lib.load("configs/digits/mlp.py:runlocal,size=2", fields)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "8")
    train(config, tmp_path / "half")
    whole, half = (final_state(tmp_path / name) for name in ("whole", "half"))
    assert whole.samples.taken.all()
    for a, b in zip(*map(jax.tree.leaves, (whole, half)), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
