"""Two processes train as one does, of one mind and together, or not at all."""

import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from experiments import stage
from experiments.evaluate import evaluate, restore
from experiments.experiment.config import load
from experiments.runtime import processes as processes_lib
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_json
from experiments.train import train

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
}
CONFIG = "configs/digits/mlp.py:size=2"


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start(programs):
    """Starts one process for each dict of fields."""

    def started(workdir, *fields):
        address = free_address()
        return [
            programs.start(
                "train",
                "--config",
                CONFIG,
                "--workdir",
                workdir,
                *(f"--config.{k}={v}" for k, v in {**FIELDS, **own}.items()),
                f"--distributed={address},{len(fields)},{i}",
                devices=2,
            )
            for i, own in enumerate(fields)
        ]

    return started


def ended(processes, seconds=180):
    """Exit status and output of each."""
    end = time.monotonic() + seconds
    results = [process.result(max(end - time.monotonic(), 0.1)) for process in processes]
    return [result.code for result in results], [result.output for result in results]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process and device make of it: the state, the precision's factor, metrics."""
    workdir = tmp_path_factory.mktemp("one")
    experiment = train(load(CONFIG, {**FIELDS, "mesh": dict(data=1)}), workdir)
    state, _ = Checkpoints(workdir, read_only=True).restore(experiment.shapes)
    stage.run(experiment, workdir)
    metrics, _ = evaluate(experiment, workdir, show=False)
    return experiment, state, factor_of(experiment, workdir), metrics


def factor_of(experiment, workdir):
    return jax.tree.leaves(restore(experiment, workdir)[0].collections["precision"])[0]


@pytest.mark.slow
def test_two_processes_train_as_one(one, start, tmp_path):
    mesh = dict(particle=2, data=2)  # each has both particles, and half of a batch
    codes, errors = ended(start(tmp_path, *[{"mesh": mesh}] * 2))
    assert codes == [0, 0], "\n".join(errors)
    experiment, state, factor, metrics = one
    two, step = Checkpoints(tmp_path, read_only=True).restore(experiment.shapes)
    assert step == 6
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # sums in another order
    np.testing.assert_allclose(factor_of(experiment, tmp_path), factor, rtol=1e-3, atol=1e-4)
    found = read_json(tmp_path / "evaluation" / "test" / "metrics.json")
    for name, value in metrics.items():
        if not name.startswith("cost/"):
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_processes_that_would_run_different_things_say_so_before_anything_is_written(
    start, tmp_path
):
    run = tmp_path / "run"
    fields = LONG | {"logging.tensorboard": False}
    other = {"optimiser.learning_rate": 0.2, "data.train.split": "train[:1000]"}
    codes, errors = ended(start(run, fields, {**fields, **other}))
    assert codes == [2, 2], "\n".join(errors)
    for error in errors:
        lines = error[error.index("error: ") :].splitlines()
        assert lines[0] == "error: the processes of this run differ:"
        assert "  config.optimiser.learning_rate: 0.1 in process 0, 0.2 in process 1" in lines
        assert "  data: examples: 1200 in process 0, 1000 in process 1" in lines
    assert not run.exists()


def test_the_code_is_known_by_its_sources():
    code = processes_lib.code()
    assert len(code["code.sources"]) == 16 and code["code.jax"] == jax.__version__


# What is trained does not matter here; as little as can be is compiled.
LONG = {
    "mesh": dict(data=4),
    "steps": 1_000_000,
    "checkpoint.every": 20,
    "head": dict(name="dense.Dense", outputs=10),
    "inference.size": 2,
    "inference.executor": "loop",
    "stages": (),
    "evaluators": {},
}


def wait(condition, processes, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert all(p.poll() is None for p in processes), ended(processes, 10)
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_lost_is_named_and_the_same_command_resumes(start, tmp_path, victim):
    checkpoints = Checkpoints(tmp_path, read_only=True)
    processes = start(tmp_path, LONG, LONG)
    wait(checkpoints.steps, processes)
    began = time.monotonic()
    processes[victim].send(signal.SIGKILL)
    codes, errors = ended(processes, 70)
    assert time.monotonic() - began < 60
    survivor = 1 - victim
    assert codes[victim] == -signal.SIGKILL
    assert codes[survivor] == processes_lib.LOST, errors[survivor]
    last = errors[survivor].splitlines()[-1]
    assert last.startswith(f"error: process {victim} of 2 was lost: no heartbeat for "), last
    assert last.endswith("The same command on every host resumes from the last checkpoint.")
    assert "Check failure" not in errors[survivor] and "Traceback" not in errors[survivor]
    saved = checkpoints.latest_step()
    if victim == 1:  # once is enough
        again = start(tmp_path, LONG, LONG)
        wait(lambda: checkpoints.latest_step() > saved, again)
        again[1].send(signal.SIGTERM)  # to one of the two
        codes, errors = ended(again)
        assert codes == [143, 143], "\n".join(errors)
        for error in errors:
            assert f"resuming from step {saved} of" in error
            assert "stopped by SIGTERM at step" in error


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others(start, tmp_path):
    run = tmp_path / "run"
    other = {**LONG, "data.train.name": "nothing"}
    began = time.monotonic()
    codes, errors = ended(start(run, other, LONG))
    assert codes == [2, 2], "\n".join(errors)
    first, second = (error.splitlines()[-1] for error in errors)
    assert first.startswith("error: data.train.name: ")
    assert second.startswith(f"error: process 0 of 2 failed: {first.removeprefix('error: ')}")
    assert time.monotonic() - began < 100 and not run.exists()


# Process 1 aborts, as the thread of a collective does whose peer is lost.
ABORTS = """
import ctypes, os, signal, sys, threading, time
from absl import flags
import jax
from experiments.runtime import processes

flags.FLAGS(sys.argv[:1])
with processes.joined(sys.argv[1]):
    processes.barrier()
    if jax.process_index() == 1:
        threading.Thread(target=ctypes.CDLL(None).abort).start()
    elif sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("other", ["killed", "alive"])
def test_an_abort_is_the_loss_of_another_process_if_one_was_lost(programs, other):
    address = free_address()
    codes, errors = ended([programs.script(ABORTS, f"{address},2,{i}", other) for i in range(2)])
    if other == "killed":
        assert codes == [-signal.SIGKILL, processes_lib.LOST], "\n".join(errors)
        assert errors[1].splitlines()[-1].startswith("error: process 0 of 2 was lost: ")
    else:
        assert codes == [processes_lib.LOST, -signal.SIGABRT], "\n".join(errors)
        assert errors[0].splitlines()[-1].startswith("error: process 1 of 2 was lost: ")
        assert "most recent call first" in errors[1]


# Trains runs one after the other. One process dies where it would save a step of the last of them.
SEVERAL = """
import ast, os, signal, sys
from absl import flags
from experiments.evaluate import evaluate
from experiments.experiment.config import load
from experiments.runtime import processes
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.progress import setup_logging
from experiments.train import train

distributed, dies_at, runs = map(ast.literal_eval, sys.argv[1:])
flags.FLAGS(sys.argv[:1])

class Dying(Checkpoints):
    def save(self, step, state):
        if step == dies_at:
            self.wait()  # so that the one before is complete
            os.kill(os.getpid(), signal.SIGKILL)
        super().save(step, state)

with processes.joined(distributed):
    setup_logging()
    for workdir, config, fields in runs:
        if dies_at and workdir == runs[-1][0]:
            train.__globals__["Checkpoints"] = Dying
        experiment = train(load(config, fields), workdir)
        if fields["evaluators"]:
            assert not evaluate(experiment, workdir, show=False)[1]
"""
SHORT = FIELDS | {
    "steps": 9,
    "head": dict(name="dense.Dense", outputs=10),
    "stages": (),
    "evaluators": {},
}
POSTERIOR = {
    "inference.direction": dict(name="svgd"),
    "inference.prior": dict(name="gaussian", scale=1.0),
}
EXPERTS = {k: v for k, v in SHORT.items() if k != "backbone.widths"} | {
    "backbone.depth": 1,
    "backbone.expert_blocks": (0,),
    "backbone.experts.num_experts": 4,
    "backbone.experts.router.group_size": 8,
}
MLP, VIT = "configs/digits/mlp.py:size=4", "configs/digits/vit.py:method=vmoe"
RUNS = {  # name -> config, fields, and the mesh of four processes with one device each
    "interacting": (MLP, SHORT | POSTERIOR, dict(particle=4)),
    "independent": (MLP, SHORT | {"data.particles": "bootstrap"}, dict(particle=2, data=2)),
    "experts": (VIT, EXPERTS, dict(expert=4)),
}


@pytest.mark.slow
def test_four_processes_share_particles_batches_and_experts_and_resume(programs, tmp_path):
    """As one process trains, also where one of the four is killed, or where one began."""

    def start(*runs, dies_at=0):
        address = free_address()
        return [
            programs.script(SEVERAL, repr(f"{address},4,{i}"), dies_at * (i == 2), repr(runs))
            for i in range(4)
        ]

    def run(name, **other):
        config, fields, mesh = RUNS[name]
        return str(tmp_path / name), config, fields | {"mesh": mesh} | other

    evaluated, alone = {"evaluators": FIELDS["evaluators"]}, tmp_path / "alone"
    experiments = {
        name: train(load(config, fields | evaluated | {"mesh": dict(data=1)}), alone / name)
        for name, (config, fields, _) in RUNS.items()
    }
    shutil.copytree(alone / "experts", tmp_path / "experts")
    shutil.rmtree(tmp_path / "experts" / "checkpoints" / "9")

    codes, errors = ended(start(run("interacting"), run("independent"), dies_at=6))
    lost = processes_lib.LOST
    assert codes == [lost, lost, -signal.SIGKILL, lost], "\n".join(errors)
    assert "error: process 2 of 4 was lost" in errors[0]
    codes, errors = ended(
        start(run("interacting", **evaluated), run("independent"), run("experts"))
    )
    assert codes == [0] * 4, "\n".join(errors)
    for error in errors:  # the third from the checkpoint of one process
        assert re.findall(r"resuming from step (\d)", error) == ["9", "3", "6"]

    for name, experiment in experiments.items():
        states = [
            Checkpoints(workdir, read_only=True).restore(experiment.shapes)
            for workdir in (alone / name, tmp_path / name)
        ]
        assert [step for _, step in states] == [9, 9]
        one, four = (jax.tree.leaves((s.params, s.opt_state)) for s, _ in states)
        for a, b in zip(one, four, strict=True):  # sums in another order
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)
    metrics, _ = evaluate(experiments["interacting"], alone / "interacting", show=False)
    found = read_json(tmp_path / "interacting" / "evaluation" / "test" / "metrics.json")
    for name, value in metrics.items():
        if not name.startswith("cost/"):
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
