"""Workers save when a scheduler stops them, and what docs/launch.md starts is started again."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "launch.md"
BLOCKS = re.findall(r"```(?:yaml)?\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

# As submitit does: its handler of a signal calls `checkpoint` in the main thread, on top of what
# runs there, then ends the process.
DRIVER = """
import importlib.util, pickle, signal, sys, types
from experiments.tables.launch import Worker
if not importlib.util.find_spec("submitit"):
    helpers = types.SimpleNamespace(DelayedSubmission=lambda function: function)
    sys.modules["submitit"] = types.SimpleNamespace(helpers=helpers)

def handle(number, frame):
    again = worker.checkpoint()
    print("again", pickle.loads(pickle.dumps(again)) is not None, flush=True)
    sys.exit(5)

signal.signal(signal.SIGUSR2, handle)
worker = Worker(sys.argv[1:])
worker()
"""
# Saves and leaves on SIGTERM, after a moment.
WORK = """
import pathlib, signal, sys, time

def stop(number, frame):
    time.sleep(0.2)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).write_text("running")
time.sleep(60)
"""


@pytest.mark.slow
def test_a_worker_that_is_told_to_stop_saves_and_is_queued_again(programs, tmp_path):
    file = tmp_path / "file"
    driver = programs.script(DRIVER, sys.executable, "-S", "-c", WORK, str(file))
    end = time.monotonic() + 60
    while not (file.exists() and file.read_text() == "running"):
        assert time.monotonic() < end and driver.poll() is None, driver.output()
        time.sleep(0.01)
    driver.send(signal.SIGUSR2)
    code, output = driver.result(seconds=30)
    assert (code, output) == (5, "again True\n")
    assert file.read_text() == "saved"  # before it was queued


@pytest.mark.slow
def test_a_worker_ends_with_its_process(programs):
    for code, expected in ((0, 0), (1, 0), (3, 1)):  # 1: a cell failed
        command = [sys.executable, "-S", "-c", f"import sys; sys.exit({code})"]
        result = programs.script(DRIVER, *command).result()
        assert result.code == expected
        assert ("the worker ended with status 3" in result.output) == (code == 3)


def commands(folder: pathlib.Path, **scripts: str) -> dict[str, str]:
    """An environment in which these commands are shell scripts."""
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True), (143, True)])
def test_the_script_for_slurm_queues_what_was_stopped(tmp_path, code, again):
    """SLURM itself does not queue a job again that ends, or is ended at its time limit."""
    (script,) = (block for block in BLOCKS if "#SBATCH" in block)
    environment = commands(
        tmp_path, srun=f'echo "$@"; exit {code}', scontrol=f'echo "$@" > {tmp_path}/asked'
    )
    environment["SLURM_JOB_ID"] = "17"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == code and not done.stderr
    assert done.stdout.startswith("python -m experiments.train --distributed=auto --config ")
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 17\n" if again else "")


JOBS = {
    part["metadata"]["name"]: part["spec"]
    for block in BLOCKS
    if "apiVersion" in block
    for part in yaml.safe_load_all(block)
    if part["kind"] == "Job"
}


@pytest.mark.parametrize("name", sorted(JOBS))
def test_sigterm_reaches_the_program_in_a_pod(tmp_path, name):
    (container,) = JOBS[name]["template"]["spec"]["containers"]
    saved = tmp_path / "saved"
    work = f'trap "echo saved > {saved}; exit 143" TERM; echo "$@"; while :; do sleep 0.05; done'
    environment = commands(tmp_path, python=work) | {"JOB_COMPLETION_INDEX": "3"}
    pod = subprocess.Popen(
        [*container["command"], *container["args"]],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        words = pod.stdout.readline().split()
        assert words[:2] == ["-m", "experiments.sweep" if name == "sweep" else "experiments.train"]
        pod.terminate()
        assert pod.wait(10) == 143 and saved.read_text() == "saved\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pod.pid, signal.SIGKILL)
        pod.communicate()


def test_a_pod_whose_cells_failed_is_not_started_again():
    spec = JOBS["sweep"]
    (container,) = spec["template"]["spec"]["containers"]
    (rule,) = (r for r in spec["podFailurePolicy"]["rules"] if r["action"] == "FailIndex")
    assert rule["onExitCodes"] == dict(containerName=container["name"], operator="In", values=[1])
    # What Kubernetes asks for to take the rule.
    assert spec["completionMode"] == "Indexed" and "backoffLimitPerIndex" in spec
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
