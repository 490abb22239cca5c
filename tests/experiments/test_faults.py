"""A particle that overflows is named, with its step; the others do not notice."""

import functools
import logging

import jax
import numpy as np
import pytest

from experiments.data.order import indices
from experiments.evaluate import evaluate
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.experiment.config import plain
from experiments.prediction.predictor import Predictor
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.loop import ParticleFault
from experiments.runtime.workdir import open_workdir
from experiments.runtime.writers import METRICS, read_metrics, without_timing
from experiments.train import train
from uncertainty import metrics

N, B, STEPS, BAD_STEP, BAD = 128, 8, 12, 8, 1  # the batch of step index 8 harms particle 1
OTHERS = [0, 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Three Gaussian classes. Feature 0 is 0 but for one example, which only BAD_STEP has."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % 3
    x = rng.normal(size=(N, 4)) + 2 * np.eye(4)[1 + y]
    x[:, 0] = 0
    arrays = dict(x_test=1.01 * x)
    x[indices(0, BAD_STEP, B, N)[3], 0] = 2
    arrays |= dict(x_train=x, x_validation=1.01 * x)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **arrays, **{name.replace("x", "y"): y for name in arrays})
    return str(path)


def config_of(data: str, executor: str = "vmap", on_fault: str = "freeze", size: int = 3) -> dict:
    config = base()
    config.data.train = dict(name="npz", path=data)
    config.data.validation = dict(name="npz", path=data, split="test")
    config.batch_size, config.steps = B, STEPS
    config.backbone = dict(name="mlp.MLP", widths=(6,))
    config.head = dict(name="dense.Dense", outputs=3)
    config.inference.update(size=size, executor=executor)
    config.on_fault = on_fault
    config.evaluation = dict(batch_size=N, every=5)
    config.evaluators = dict(test=dict(name="classification", data=config.data.validation))
    config.mesh = dict(data=1)
    config.logging.every = 3
    config.checkpoint = dict(every=4, keep=10)
    config.optimiser = dict(name="adam", learning_rate=1e-3)
    return plain(config)


def overflowing(params, value=3e38):
    """Feature 0 of particle BAD weighs so much that 2 x weight is infinite."""
    params["backbone"]["dense0"]["kernel"][BAD, 0] = value
    return params


def not_a_number(params):
    for leaf in jax.tree.leaves(params):
        leaf[BAD] = np.nan
    return params


@functools.cache
def initial(data: str, size: int):
    """The shapes of the state of these runs, and its value, whatever executes them."""
    experiment = setup(config_of(data, size=size))
    return experiment.shapes, experiment.init()


def begin(config: dict, workdir, edit) -> None:
    """A run whose checkpoint of step 0 has the edited parameters."""
    open_workdir(workdir, config)
    checkpoints = Checkpoints(workdir)
    _, state = initial(config["data"]["train"]["path"], config["inference"]["size"])
    params = jax.tree.map(np.array, state.params)
    checkpoints.save(0, state.replace(params=edit(params)))
    checkpoints.close()


def particles(workdir, config: dict, step: int, which: list[int]) -> list[bytes]:
    """The bits of all leaves of some particles."""
    shapes, _ = initial(config["data"]["train"]["path"], 3)
    state, _ = Checkpoints(workdir, read_only=True).restore(shapes, step)
    state = state.replace(key=jax.random.key_data(state.key), step=None)
    return [np.asarray(leaf)[which].tobytes() for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def sound(data, tmp_path_factory):
    """executor -> the workdir of a run without any fault."""

    @functools.cache
    def run(executor):
        workdir = tmp_path_factory.mktemp(executor) / "run"
        config = config_of(data, executor)
        begin(config, workdir, lambda params: params)
        train(config, workdir)
        return workdir

    return run


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["vmap", "loop"])
def test_frozen_for_a_step(sound, data, tmp_path, caplog, executor):
    expected = sound(executor)
    config = config_of(data, executor)
    begin(config, tmp_path, overflowing)
    with caplog.at_level(logging.WARNING):
        train(config, tmp_path)
    (warning,) = [r.getMessage() for r in caplog.records if "particle" in r.getMessage()]
    assert f"particle {BAD}: loss, gradient or update is not finite at step {BAD_STEP + 1};" in (
        warning
    )
    # The others are the same bits; the faulty one has missed one step.
    assert particles(tmp_path, config, STEPS, OTHERS) == particles(expected, config, STEPS, OTHERS)
    for step, moved in (BAD_STEP, BAD_STEP), (STEPS, STEPS - 1):
        state, _ = Checkpoints(tmp_path).restore(initial(data, 3)[0], step)
        counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (3,)]
        for count in counts:
            np.testing.assert_array_equal(count, [step, moved, step])
    # Their losses are the same too, and the faulty one's is that of its own parameters.
    ours, theirs = (
        [r for r in without_timing(read_metrics(run / METRICS)) if "loss" in r]
        for run in (tmp_path, expected)
    )
    assert [r["step"] for r in ours] == [3, 6, 9, 12]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss/0"] == b["loss/0"] and a["loss/2"] == b["loss/2"]
        assert np.isfinite(a["loss/1"]) == (a["step"] != BAD_STEP + 1)
        assert np.isfinite(a["loss"]) and np.isfinite(a["ensemble_loss"])
    np.testing.assert_allclose(ours[2]["loss"], (ours[2]["loss/0"] + ours[2]["loss/2"]) / 2)


@pytest.mark.slow
def test_frozen_for_good_and_left_out_of_evaluation(sound, data, tmp_path, caplog):
    expected = sound("vmap")
    config = config_of(data)
    begin(config, tmp_path, not_a_number)
    with caplog.at_level(logging.WARNING):
        experiment = train(config, tmp_path)
    messages = [r.getMessage() for r in caplog.records]
    assert sum(f"particle {BAD}" in m and "at step 1;" in m for m in messages) == 1
    left_out = "the predictions of member 1 are not finite and are left out"
    assert sum(left_out in m for m in messages) == 2
    assert particles(tmp_path, config, STEPS, OTHERS) == particles(expected, config, STEPS, OTHERS)

    found, failures = evaluate(experiment, tmp_path, show=False)
    assert not failures
    state, _ = Checkpoints(expected).restore(experiment.shapes)
    p = Predictor(experiment, state)(config["data"]["validation"])
    wanted = metrics.evaluate_classification(p.log_p[OTHERS], p.y)
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.slow
@pytest.mark.parametrize("edit, step", [(overflowing, BAD_STEP + 1), (not_a_number, 1)])
def test_stopped(sound, data, tmp_path, edit, step):
    expected = sound("vmap")
    config = config_of(data, on_fault="stop")
    begin(config, tmp_path, edit)
    with pytest.raises(ParticleFault, match=rf"^particle {BAD}: .* not finite at step {step}\."):
        train(config, tmp_path)
    # What was saved before is intact, and nothing of the fault was saved.
    saved = Checkpoints(tmp_path).steps()
    assert saved == list(range(0, step, 4))
    last = saved[-1]
    assert particles(tmp_path, config, last, OTHERS) == particles(expected, config, last, OTHERS)
    assert max([r["step"] for r in read_metrics(tmp_path / METRICS)], default=0) < step
    found, failures = evaluate(setup(config), tmp_path, show=False)
    if edit is overflowing:  # the checkpoint is as good as ever
        assert not failures and found["cost/step"] == last
        assert np.isfinite(found["classification/nll"])
    else:
        assert not found
        assert failures == {"test": "npz[test]: the predictions of member 1 are not finite"}

    # The same run goes on with the other policy.
    train(config | {"on_fault": "freeze"}, tmp_path)
    assert particles(tmp_path, config, STEPS, OTHERS) == particles(expected, config, STEPS, OTHERS)


@pytest.mark.slow
def test_infinite_in_validation_alone(data, tmp_path):
    config = config_of(data, on_fault="stop")
    config["data"]["validation"]["split"] = "validation"
    begin(config, tmp_path, overflowing)
    message = r"validation at step 5: npz\[validation\]: the predictions of member 1 are not finite"
    with pytest.raises(ParticleFault, match=message):
        train(config, tmp_path)
    assert Checkpoints(tmp_path).steps() == [0, 4]


@pytest.mark.slow
def test_no_particle_left(data, tmp_path):
    config = config_of(data, size=2)
    begin(config, tmp_path, lambda params: jax.tree.map(lambda leaf: leaf * np.nan, params))
    with pytest.raises(ParticleFault, match="no particle has had a finite step since step 1"):
        train(config, tmp_path)
    assert Checkpoints(tmp_path).steps() == [0]


@pytest.mark.slow
def test_a_diverging_learning_rate_in_the_program(programs, tmp_path):
    """Exit status 2 and one line; the checkpoints before it stay."""
    run = tmp_path / "run"
    result = programs(
        "train",
        "--config",
        "configs/digits/mlp.py:size=2",
        "--workdir",
        run,
        "--config.optimiser={'name':'sgd','learning_rate':1e15}",
        "--config.steps=50",
        "--config.checkpoint.every=1",
        "--config.backbone.widths=(8,)",
    )
    assert result.code == 2, result.output
    last = result.output.splitlines()[-1]
    assert last.startswith("error: particle 0: loss, gradient or update is not finite at step ")
    assert "Lower the learning rate" in last and "Traceback" not in result.output
    step = int(last.split("at step ")[1].split(".")[0])
    assert step > 1 and Checkpoints(run).latest_step() == step - 1
