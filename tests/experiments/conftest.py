"""Runs the programs as a user does, each in a process of its own that has imported all already."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

ROOT = Path(__file__).parents[2]

# Forks a child for every line of its input; JAX starts its threads at the first computation only,
# which the parent never makes. A child leaves out nothing at its end but freeing the memory that it
# shares with its parent, which takes seconds.
SERVER = """
import atexit, ctypes, importlib, json, os, resource, runpy, signal, sys, threading, traceback
import warnings
for name in ("evaluate", "reproduce", "data.loader"):
    importlib.import_module("experiments." + name)
import sklearn.datasets

def end_with_parent():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL

def run(job):
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(file, number)
    os.environ["XLA_FLAGS"] = job["xla_flags"]
    if job["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
    module = "experiments." + job["program"]
    sys.modules.pop(module, None)  # runpy warns of a module that is there already
    sys.argv = [module, *job["arguments"]]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

warnings.filterwarnings("ignore", "os.fork")
end_with_parent()
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    print("pid", child, flush=True)
    print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Result(NamedTuple):
    code: int  # minus the signal's number, where one ended the process
    output: str  # standard output and error


class Running:
    """A program that runs."""

    def __init__(self, server: subprocess.Popen, output: Path):
        self._server, self._output = server, output
        self._code: int | None = None
        self.pid = self._answer("pid")

    def _answer(self, kind: str) -> int:
        name, number = self._server.stdout.readline().split()
        assert name == kind
        return int(number)

    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def send(self, number: int) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(self.pid, number)

    def result(self) -> Result:
        if self._code is None:
            self._code = self._answer("code")
        return Result(self._code, self.output())


class Programs:
    """`programs("train", "--config", ...)` is `python -m experiments.train --config ...`."""

    def __init__(self, directory: Path):
        self._directory, self._count = directory, 0
        self._server = self._last = None

    def start(
        self, program: str, *arguments: str, devices: int = 1, largest_file: int = 0
    ) -> Running:
        """Starts one, with so many CPU devices, and with a limit on the size of files if asked."""
        if self._server is None:
            environment = dict(os.environ, COLUMNS="100", PYTHONPATH=str(ROOT))
            environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER], cwd=ROOT, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            assert self._server.stdout.readline() == "ready\n"
        if self._last is not None:  # a test that failed may have left it
            self._last.send(signal.SIGKILL)
            self._last.result()
        self._count += 1
        output = self._directory / f"{self._count}.txt"
        own = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
        job = dict(
            program=program,
            arguments=[str(argument) for argument in arguments],
            output=str(output),
            largest_file=largest_file,
            xla_flags=" ".join([*own, f"--xla_force_host_platform_device_count={devices}"]),
        )
        print(json.dumps(job), file=self._server.stdin, flush=True)
        self._last = Running(self._server, output)
        return self._last

    def __call__(self, program: str, *arguments: str, **options: int) -> Result:
        return self.start(program, *arguments, **options).result()

    def close(self) -> None:
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.communicate()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    made = Programs(tmp_path_factory.mktemp("output"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of two MLPs on the digits, trained for 300 steps and evaluated."""
    from experiments import evaluate, train
    from experiments.experiment import config

    workdir = tmp_path_factory.mktemp("digits") / "run"
    fields = {"steps": 300, "mesh": {"data": 1}, "evaluation.every": 100, "logging.every": 20}
    experiment = train.train(config.load("configs/digits/mlp.py:size=2", fields), workdir)
    _, failures = evaluate.evaluate(experiment, workdir, show=False)
    assert not failures
    return workdir
