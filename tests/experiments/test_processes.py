"""Two processes train as one does, and each reads its own half of the batches."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from experiments.checkpoint import Checkpoints
from experiments.config import load, plain
from experiments.setup import setup
from experiments.train import train
from experiments.workdir import read_json

FIELDS = {
    "steps": 6,
    "backbone.widths": (8,),
    "logging.every": 2,
    "checkpoint.every": 3,
    "evaluation.every": 0,
    # Not Adam, which makes the rounding of vanishing gradients large.
    "optimiser": dict(name="sgd", momentum=0.9, learning_rate=0.1),
    "data.train.classes": tuple(range(10)),
    "head": dict(name="sngp.Sngp", outputs=10, features=32),
    "stages": (dict(name="laplace"),),
    # Of 1,200 examples 80 are left for the last batch: as many as each process has of a whole one.
    "evaluation.batch_size": 160,
    "evaluators": dict(test=dict(name="classification", data=dict(name="digits", split="test"))),
}  # fmt: skip
CONFIG = "configs/digits/mlp.py:size=2"


def launch(workdir, mesh):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.train", "--config", CONFIG]
    command += ["--workdir", str(workdir)]
    command += [f"--config.{k}={v}" for k, v in {**FIELDS, "mesh": mesh}.items()]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    processes = [
        subprocess.Popen(
            [*command, f"--distributed={address},2,{i}"],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(data=4), dict(particle=2, data=2)])
def test_two_processes_train_as_one(tmp_path, mesh):
    launch(tmp_path / "two", mesh)
    config = plain(load(CONFIG, {**FIELDS, "mesh": dict(data=1)}))
    experiment = train(config, tmp_path / "one")
    one, _ = Checkpoints(tmp_path / "one", read_only=True).restore(experiment.shapes)
    here = setup(config)
    two, step = Checkpoints(tmp_path / "two", read_only=True).restore(here.shapes)
    assert step == 6
    import jax

    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # sums in another order
    from experiments import stage
    from experiments.evaluate import evaluate, restore

    stage.run(experiment, tmp_path / "one")
    factors = [
        jax.tree.leaves(restore(e, tmp_path / name)[0].collections["precision"])[0]
        for e, name in ((experiment, "one"), (here, "two"))
    ]
    np.testing.assert_allclose(factors[1], factors[0], rtol=1e-3, atol=1e-4)
    expected, _ = evaluate(experiment, tmp_path / "one", show=False)
    found = read_json(tmp_path / "two" / "evaluation" / "test" / "metrics.json")
    for name, value in expected.items():
        if not name.startswith("cost/"):
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
