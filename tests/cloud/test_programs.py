"""Every program with its workdir in a bucket, on servers of this machine, as on a disk."""

import json
import random
import signal
import time

import numpy as np
import pytest

from experiments import reproduce
from experiments.data.description import read_description
from experiments.experiment.build import setup
from experiments.prediction import standalone
from experiments.reports.runs import load_run
from experiments.runtime import processes, storage
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_config, read_json
from experiments.runtime.writers import METRICS, read_metrics, without_timing
from tests.cloud.conftest import free_port
from tests.experiments.test_reliability import bits, command, outcome, same, wait

STEPS, EVERY = 60, 10
FIELDS = {
    "steps": STEPS,
    "checkpoint.every": EVERY,
    "logging.every": 1,
    "evaluation.every": 20,
    "backbone.widths": "(32,)",
    "optimiser": "{'name': 'adam', 'learning_rate': 0.01}",
    "evaluators.corruption": "none",
    "ensemble": "{'name':'mc_dropout','size':2,'rate':0.1}",
}


def in_one(scheme):
    return pytest.mark.parametrize("bucket", [scheme], indirect=True)


def newest(run):
    """The step of the newest checkpoint, or 0."""
    return Checkpoints(run, read_only=True).latest_step() or 0


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory):
    """A run on a disk that nothing interrupted, and what it left."""
    run = tmp_path_factory.mktemp("whole") / "run"
    result = programs("train", *command(run, FIELDS))
    assert result.code == 0, result.output
    return run, outcome(run)


@pytest.fixture(params=["gs", "s3"])
def bucket(request, servers):
    """An empty folder of a bucket of each server; `in_one` where one of them is enough."""
    return storage.path(f"{request.param}://test/{time.monotonic_ns()}")


def test_killed_again_and_again(programs, whole, bucket):
    """Without a signal, at any moment; then it ends with the bits of a run that was not."""
    seed = random.SystemRandom().randrange(1000)
    print(f"seed {seed}")
    moments, run, found = random.Random(seed), bucket / "run", []
    for step in (0, EVERY, 3 * EVERY):
        running = programs.start("train", *command(run, FIELDS))
        wait(lambda step=step: newest(run) >= step)
        time.sleep(moments.uniform(0, 0.5))
        running.send(signal.SIGKILL)
        assert running.result().code == -signal.SIGKILL
        found.append(newest(run))
    print("newest checkpoint after each kill:", found)
    result = programs("train", *command(run, FIELDS))
    assert result.code == 0, result.output
    assert f"resuming from step {found[-1]} of {STEPS}" in result.output
    same(run, whole[1])
    names = storage.find(run)
    assert not any(name.startswith("damaged") for name in names)
    steps = {n.split("/")[1] for n in names if n.startswith("checkpoints")}
    assert steps == {"50", "60"} or (found[-1] == STEPS and {"50", "60"} < steps)  # none to save


def test_a_damaged_newest_one_is_passed_over(programs, whole, bucket):
    run = bucket / "run"
    storage.upload(whole[0], run)  # of a disk: it goes on in the bucket
    result = programs("train", *command(run, FIELDS | {"steps": STEPS, "checkpoint.keep": 3}))
    assert result.code == 0 and "resuming from step 60 of 60" in result.output, result.output
    same(run, whole[1])
    storage.remove(run / "checkpoints" / "60" / "default" / "manifest.ocdbt")
    result = programs("train", *command(run, FIELDS | {"checkpoint.keep": 3}))
    assert result.code == 0, result.output
    assert "the checkpoint of step 60 is damaged" in result.output
    assert "resuming from step 50 of 60" in result.output
    same(run, whole[1])
    victim = max(
        (p for p in run.glob("checkpoints/60/arrays/*.bin")), key=lambda p: len(p.read_bytes())
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    storage.write(victim, bytes(content))
    result = programs("train", *command(run, FIELDS))
    assert result.code == 0, result.output
    assert "the checkpoint of step 60 is damaged" in result.output
    assert "resuming from step 50 of 60" in result.output
    same(run, whole[1])


@in_one("s3")
def test_two_trainings_cannot_share_a_workdir(programs, bucket):
    fields = FIELDS | {"steps": 100_000, "evaluation.every": 0}
    running = programs.start("train", *command(bucket / "run", fields))
    wait(lambda: newest(bucket / "run") > 0)
    result = programs("train", *command(bucket / "run", fields))
    assert result.code == 2, result.output
    assert f"error: workdir {bucket}/run is in use by process {running.pid} of " in result.output
    running.send(signal.SIGTERM)
    code, output = running.result()
    assert code == 143 and "stopped by SIGTERM" in output, output
    assert read_metrics(bucket / "run" / METRICS)[-1]["step"] == newest(bucket / "run")


@in_one("gs")
def test_two_processes_write_their_shares_and_resume(programs, bucket, tmp_path):
    """One is killed; then both end with what two on a disk end with."""
    fields = FIELDS | {
        "mesh": "{'data': 2, 'particle': 2}", "steps": 40, "checkpoint.every": 5,
        "data.train.classes": "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)", "head.outputs": 10,
        "evaluators": "{}", "evaluation.every": 0, "evaluation.batch_size": 160,
    }  # fmt: skip

    def start(run):
        address = f"127.0.0.1:{free_port()}"
        return [
            programs.start(
                "train", *command(run, fields), f"--distributed={address},2,{i}", devices=2
            )
            for i in range(2)
        ]

    def ended(processes):
        results = [process.result(240) for process in processes]
        return [r.code for r in results], "\n".join(r.output for r in results)

    def state(run):
        shapes = setup(read_config(run) | {"mesh": {"data": 1}}, read_description(run)).shapes
        found, step = Checkpoints(run, read_only=True).restore(shapes)
        assert step == 40
        return bits(found)

    codes, output = ended(start(tmp_path / "run"))
    assert codes == [0, 0], output
    run = bucket / "run"
    running = start(run)
    wait(lambda: newest(run) >= 10)
    running[1].send(signal.SIGKILL)
    codes, output = ended(running)
    assert codes == [processes.LOST, -signal.SIGKILL], output
    codes, output = ended(start(run))
    assert codes == [0, 0] and "resuming from step" in output, output
    names = [n for n in storage.find(run / "checkpoints" / "40") if n.endswith(".bin")]
    assert [n.split("-")[0] for n in names] == ["arrays/0", "arrays/1"]
    assert state(run) == state(tmp_path / "run")
    ours, theirs = (without_timing(read_metrics(r / METRICS)) for r in (run, tmp_path / "run"))
    assert ours == theirs


@in_one("s3")
def test_what_follows_training(programs, whole, bucket, tmp_path):
    """stage --start, evaluate on data of the bucket, predictions, several runs, a report."""
    first, second = bucket / "run", bucket / "laplace"
    storage.upload(whole[0], first)
    with np.load(whole[0] / "evaluation" / "test" / "scores.npz") as archive:
        assert archive.files
    with storage.whole(bucket / "own.npz") as half, half.open("wb") as file:
        x = np.random.default_rng(0).uniform(size=(40, 8, 8, 1)).astype(np.float32)
        np.savez(file, x_test=x, y_test=np.arange(40) % 8)
    result = programs(
        "stage", "--start", first, "--workdir", second,
        "--config.head.name=laplace.Laplace", "--config.stages=[{'name': 'laplace'}]",
    )  # fmt: skip
    assert result.code == 0, result.output
    assert read_metrics(second / METRICS) == read_metrics(whole[0] / METRICS)
    data = json.dumps(dict(name="npz", path=f"{bucket}/own.npz", split="test"))
    result = programs("evaluate", "--workdir", second, "--data", data, "--save-predictions")
    assert result.code == 0 and f"results: {second}/evaluation/npz-own-test" in result.output
    names = storage.find(second / "evaluation" / "npz-own-test")
    assert {"metrics.json", "sets.json", "scores.npz", "predictions.npz"} < set(names)
    path = second / "evaluation" / "npz-own-test" / "predictions.npz"
    with path.open() as file, np.load(file) as archive:
        assert archive["log_p"].shape[1:] == (40, 8)
    result = programs("score", path)
    assert result.code == 0 and "Accuracy" in result.output, result.output
    result = programs("evaluate", "--workdir", second)
    assert result.code == 0, result.output
    result = programs("evaluate", "--workdir", first, "--workdir", second)
    assert result.code == 0, result.output
    runs = read_json(first / "evaluation" / "test-with-laplace" / "runs.json")
    assert [run["workdir"] for run in runs] == [".", "../laplace"]
    page = bucket / "page.html"
    result = programs("report", first, f"Laplace={second}", "--output", page)
    assert result.code == 0, result.output
    assert "Laplace" in page.read_text() and list((bucket / "page_figures").glob("*.png"))
    assert load_run(first).history == load_run(whole[0]).history
    result = programs("export", "--workdir", first, "--output", bucket / "exported")
    assert result.code == 0 and "copy it to a disk" in result.output, result.output
    for output in (["report", first], ["export", "--workdir", first]):
        result = programs(*output, "--output", "s3://none/new")
        assert result.code and "there is no bucket s3://none" in result.output
    with storage.local_copy(bucket / "exported") as folder:
        predict = standalone.load(str(folder))
        assert predict(x)["p"].shape == (40, 8)


@in_one("gs")
def test_a_run_starts_from_the_parameters_of_one_in_a_bucket(programs, bucket, tmp_path):
    fields = FIELDS | {"steps": 10, "evaluators": "{}"}
    assert programs("train", *command(bucket / "a", fields)).code == 0
    start = dict(path=f"{bucket}/a", layout="own", particle=1)
    more = {"steps": 1, "inference.size": 1, "pretrained": json.dumps(start)}
    result = programs("train", *command(tmp_path / "b", fields | more))
    assert result.code == 0, result.output
    assert f"arrays of {bucket}/a" in result.output


@in_one("gs")
def test_tables(bucket, capsys):
    """Two commands of which the second finds what the first has made; then a fresh round."""
    arguments = ["digits", "--rows", "Single", "--seeds", "0", "--set", "steps=60",
                 "--set", "mesh={'data': 1}", "--set", "evaluators.corruption=none",
                 "--workdir", f"{bucket}/w", "--results", f"{bucket}/r", "--no-report"]  # fmt: skip
    for more, count in (((), 0), ((), 1), (("--fresh",), 0), ((), 1)):
        code = reproduce.main([*arguments, *more])
        output = capsys.readouterr()
        assert code == 0, output.err
        assert f"cells:  {count} read from {bucket}/r/digits/" in output.out
    names = storage.find(bucket / "r")
    assert {n.rpartition("/")[2] for n in names if ".locks" not in n} == {
        "runs.jsonl", "table.md", "table.tex", "table.csv", "table.json", "constraints.txt",
    }  # fmt: skip
    (place,) = (n for n in names if n.endswith("runs.jsonl"))
    (record,) = map(json.loads, (bucket / "r" / place).read_text().splitlines())
    assert record["run"] == "fresh/1/single-network/seed0"


def test_what_is_missing_is_said_before_training(programs, servers):
    for scheme in ("gs", "s3"):
        result = programs("train", *command(f"{scheme}://none/run", FIELDS))
        assert result.code == 2, result.output
        error = f"error: workdir {scheme}://none/run cannot be written: there is no bucket "
        assert error + f"{scheme}://none, or no access to it" in result.output
        assert "parameters" not in result.output
    result = programs("evaluate", "--workdir", "s3://test/nothing")
    assert "error: s3://test/nothing is not a run's workdir" in result.output and result.code == 2
