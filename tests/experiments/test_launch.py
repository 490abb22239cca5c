"""Workers save when a scheduler stops them."""

import signal
import sys
import time

import pytest

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
