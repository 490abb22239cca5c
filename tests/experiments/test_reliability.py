"""Whatever ends a run, the next one goes on from there and ends with the same bits."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.data.description import read_description
from experiments.experiment.build import setup
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_config, read_json
from experiments.runtime.writers import METRICS, read_metrics, without_timing
from experiments.train import train

pytestmark = pytest.mark.slow  # every test runs the program, most of them to its end

STEPS, EVERY = 100, 10
FIELDS = {
    "steps": STEPS,
    "checkpoint.every": EVERY,
    "logging.every": 1,
    "evaluation.every": 20,
    "backbone.widths": "(128,)",
    "evaluators.corruption.severities": "(3,)",
    # Random numbers of all kinds: dropout, augmentation, the order of examples.
    "ensemble": "{'name':'mc_dropout','size':2,'rate':0.1}",
    "data.augment": "[{'name':'crop','pad':1}]",
}


def command(run: Path, fields: dict) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config", "configs/digits/mlp.py:size=2", "--workdir", str(run), *flags]


def restored(run: Path, mesh: dict | None = None):
    """The newest checkpoint of a run."""
    config = read_config(run) | {"mesh": mesh or {"data": 1}}
    shapes = setup(config, read_description(run)).shapes
    return Checkpoints(run, read_only=True).restore(shapes)


def bits(tree) -> dict[str, bytes]:
    def raw(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): raw(leaf) for path, leaf in leaves}


def outcome(run: Path) -> dict:
    """All that a run leaves behind, clock readings aside."""
    state, step = restored(run)
    timed = ("cost/train_seconds", "cost/train_ms_per_example", "cost/predict_ms_per_example")
    metrics = read_json(run / "evaluation" / "test" / "metrics.json")
    stored = run / "evaluation" / "test" / "scores.npz"
    with stored.open("rb") as file, np.load(file) as archive:
        scores = {name: archive[name].tobytes() for name in archive.files}
    return dict(
        step=step,
        state=bits(state),
        records=without_timing(read_metrics(run / METRICS)),
        metrics={name: value for name, value in metrics.items() if name not in timed},
        scores=scores,
    )


def same(run: Path, expected: dict) -> None:
    for name, value in outcome(run).items():
        assert value == expected[name], name


def reached(run: Path) -> int:
    """The last step in metrics.jsonl, or 0."""
    records = read_metrics(run / METRICS)
    return records[-1]["step"] if records else 0


def wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory) -> tuple[Path, dict]:
    """A run that nothing interrupted, and what it left."""
    run = tmp_path_factory.mktemp("whole") / "run"
    result = programs("train", *command(run, FIELDS))
    assert result.code == 0, result.output
    expected = outcome(run)
    assert [r["step"] for r in expected["records"] if "loss" in r] == list(range(1, STEPS + 1))
    assert sum("validation/classification/nll" in r for r in expected["records"]) == 4
    return run, expected


@pytest.fixture(scope="module")
def stopped(programs, tmp_path_factory) -> tuple[Path, int]:
    """A run that SIGTERM stopped, and its step."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    running = programs.start("train", *command(run, FIELDS))
    wait(lambda: reached(run) >= 42)
    running.send(signal.SIGTERM)
    code, output = running.result()
    assert code == 128 + signal.SIGTERM, output
    step = restored(run)[1]
    assert 42 <= step < STEPS and step == reached(run)
    assert f"stopped by SIGTERM at step {step} of {STEPS}; saved" in output
    assert "The same command resumes" in output
    assert not (run / "evaluation").exists()
    return run, step


def test_a_damaged_checkpoint_is_passed_over(programs, stopped, whole, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    before = stopped[1] - 1 - (stopped[1] - 1) % EVERY
    arrays = (run / "checkpoints" / str(stopped[1]) / "default").rglob("*")
    victim = max((p for p in arrays if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    result = programs("train", *command(run, FIELDS))
    assert result.code == 0, result.output
    assert f"the checkpoint of step {stopped[1]} is damaged" in result.output
    assert f"resuming from step {before} of {STEPS}" in result.output
    same(run, whole[1])


def test_another_config_is_refused_with_the_difference(programs, stopped):
    run = stopped[0]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    changes = {"optimiser.learning_rate": 0.5, "backbone.widths": "(8, 8)", "logging.every": 7}
    result = programs("train", *command(run, FIELDS | changes))
    assert result.code == 2
    lines = result.output.splitlines()
    assert lines[0].startswith(f"error: workdir {run} belongs to a run with another config")
    assert lines[1:3] == [
        "  backbone.widths: [128] -> [8, 8]",
        "  optimiser.learning_rate: 0.001 -> 0.5",
    ]
    assert "logging" not in result.output  # it may change
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_stopped_run_goes_on_and_a_full_disk_loses_nothing(programs, stopped, whole, tmp_path):
    """The limit on the size of files stands for the disk: writing fails in the same places."""
    run = shutil.copytree(stopped[0], tmp_path / "run")
    sums = run / "checkpoints" / str(stopped[1]) / "checksums.json"
    before = sums.read_bytes()
    result = programs("train", *command(run, FIELDS), largest_file=50_000)
    assert result.code == 2
    last = result.output.splitlines()[-1]
    assert last.startswith("error: could not save step "), result.output
    assert f"step {stopped[1]} is still safe" in last and "File too large" in last
    assert sums.read_bytes() == before
    result = programs("train", *command(run, FIELDS))
    assert result.code == 0, result.output
    assert f"resuming from step {stopped[1]} of {STEPS}" in result.output
    same(run, whole[1])


def test_a_full_disk_in_evaluation(programs, whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    before = outcome(run)
    # More than what is printed, less than what is saved.
    result = programs("evaluate", "--workdir", run, largest_file=16_000)
    assert result.code == 2
    directory = run / "evaluation" / "test"
    assert result.output.splitlines()[-1] == f"error: could not write {directory}: File too large"
    same(run, before)


def test_two_trainings_cannot_share_a_workdir(programs, tmp_path):
    run = tmp_path / "run"
    running = programs.start("train", *command(run, FIELDS | {"steps": 100_000}))
    wait(lambda: reached(run) > 0)
    before = read_config(run)
    with pytest.raises(BlockingIOError, match=f"in use by process {running.pid}"):
        train(before | {"mesh": {"data": 1}, "evaluators": {}}, run)
    assert read_config(run) == before
    running.send(signal.SIGKILL)
    assert running.result().code == -signal.SIGKILL


def test_killed_again_and_again(programs, whole, tmp_path):
    seed = random.SystemRandom().randrange(1000)
    print(f"seed {seed}")
    moments = random.Random(seed)
    run = tmp_path / "run"
    # Soon after some step: while a checkpoint is written, in validation, in between.
    steps = sorted(moments.randrange(2 * EVERY, STEPS - 1) for _ in range(3))
    kills = [(step, moments.uniform(0, 0.1)) for step in steps]
    # While it starts and restores; no longer, or a quick one would be at its end too soon.
    kills.insert(moments.randrange(1, 3), (0, moments.uniform(0, 0.8)))
    kills.insert(0, (0, 0.0))
    kills.append((STEPS, moments.uniform(0, 0.1)))  # in evaluation
    found = []
    for step, delay in kills:
        running = programs.start("train", *command(run, FIELDS))
        wait(lambda step=step: reached(run) >= step)
        if step == STEPS:
            wait(lambda running=running: "evaluate" in running.output())
        time.sleep(delay)
        running.send(signal.SIGKILL)
        assert running.result().code == -signal.SIGKILL
        found.append((Checkpoints(run).latest_step() or 0, reached(run)))
    print("(newest checkpoint, last record) after each kill:", found)
    assert found[0][0] == 0 and found[-1] == (STEPS, STEPS)
    assert sum(0 < saved < STEPS for saved, _ in found) >= 3
    result = programs("train", *command(run, FIELDS))
    assert result.code == 0, result.output
    same(run, whole[1])
    assert not (run / "damaged_checkpoints").exists()


def test_killed_in_a_stage(programs, whole, tmp_path):
    """Killed in a stage that trains, it ends as one that was not."""
    optimiser = {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9}
    stages = [{"name": "swag", "steps": 60, "every": 2, "samples": 2, "optimiser": optimiser}]
    ends = []
    for name, kills in (("killed", (137,)), ("alone", ())):
        run = tmp_path / name
        arguments = ["--start", whole[0], "--workdir", run, f"--config.stages={stages}"]
        running = programs.start("stage", *arguments)
        for step in kills:
            wait(lambda step=step, run=run: reached(run) >= step)
            running.send(signal.SIGKILL)
            assert running.result().code == -signal.SIGKILL
            assert (run / "stages" / "half" / f"{STEPS}-0-swag").is_dir()
            running = programs.start("stage", *arguments)  # the same command resumes
        code, output = running.result()
        assert code == 0 and ("resuming from step" in output) == bool(kills), output
        config = read_config(run) | {"mesh": {"data": 1}}
        shapes = setup(config, read_description(run)).final_shapes
        state, _ = Checkpoints(run / "stages", read_only=True).restore(shapes)
        ends.append((bits(state), without_timing(read_metrics(run / METRICS))))
    assert ends[0][0] == ends[1][0]
    assert ends[0][1] == ends[1][1]
    swag = [r for r in ends[0][1] if "swag/loss" in r]
    assert [r["step"] for r in swag] == list(range(STEPS + 1, STEPS + 61))


def test_a_checkpoint_fits_any_number_of_devices(whole):
    run, expected = whole
    for mesh in ({"data": 8}, {"particle": 2, "data": 4}):
        state, _ = restored(run, mesh)
        kernel = jax.tree.leaves(state.params)[0]
        assert len(kernel.sharding.device_set) == 8
        assert bits(state) == expected["state"]


def test_goes_on_with_other_devices(programs, tmp_path):
    """8 devices and then one, against one throughout; `test_a_checkpoint_fits` has the way back."""
    # Not Adam, whose division makes rounding errors of vanishing gradients large.
    fields = FIELDS | {"steps": 40, "optimiser": "{'name':'sgd','learning_rate':0.1,'clip':1.0}"}
    run, alone = tmp_path / "run", tmp_path / "alone"
    running = programs.start("train", *command(run, fields | {"mesh.particle": 2}), devices=8)
    wait(lambda: reached(run) >= 12)
    running.send(signal.SIGTERM)
    code, output = running.result()
    assert code == 143 and "stopped by SIGTERM" in output, output
    results = [programs("train", *command(folder, fields)) for folder in (run, alone)]
    for result in results:
        assert result.code == 0, result.output
    changed = "mesh.data: 4 -> 1; mesh.particle: 2 -> 1: from here on, results are equal "
    assert f"{changed}up to rounding, not bit for bit" in results[0].output
    assert results[1].output.count("resuming") == 0
    ours, expected = restored(run)[0], restored(alone)[0]
    # Sums over the batch are taken in another order: float32 rounding, grown over 40 steps.
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    metrics = [read_json(r / "evaluation" / "test" / "metrics.json") for r in (run, alone)]
    for name in ("classification/nll", "ood/held_out/auroc_entropy", "corruption/nll"):
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=1e-3)
