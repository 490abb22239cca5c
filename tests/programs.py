"""Runs the programs as a user does, each in a process of its own that has imported all already."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

ROOT = Path(__file__).parents[1]
# Seconds after which a process of several is lost; read when it is imported.
ENVIRONMENT = {"UNCERTAINTY_SILENCE": "12"}

# Forks a child for each job, and waits for one where it is asked to; JAX starts its threads
# at the first computation only, which the parent never makes. A child leaves out nothing at its end
# but freeing the memory that it shares with its parent, which takes seconds.
SERVER = """
import atexit, contextlib, ctypes, importlib, json, os, pkgutil, resource, runpy, signal, sys
import threading, traceback, warnings
for name in ("uncertainty", "experiments"):
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        with contextlib.suppress(ImportError):  # of what is not installed
            importlib.import_module(module.name)
import clu.parameter_overview, sklearn.datasets

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
    module = job["module"]
    sys.modules.pop(module, None)  # runpy warns of a module that is there already
    sys.argv = [module or "-c", *job["arguments"]]
    code = 0
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            exec(job["script"], {"__name__": "__main__"})
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
    job = json.loads(line)
    if "wait" in job:
        child, status = os.waitpid(job["wait"], 0 if job["block"] else os.WNOHANG)
        print("code", os.waitstatus_to_exitcode(status) if child else "none", flush=True)
        continue
    child = os.fork()
    if child == 0:
        run(job)
    print("pid", child, flush=True)
"""


class Result(NamedTuple):
    code: int  # minus the signal's number, where one ended the process
    output: str  # standard output and error


class Running:
    """A program that runs."""

    def __init__(self, ask: Callable[[dict], str], job: dict):
        self._ask, self._output = ask, Path(job["output"])
        self._code: int | None = None
        self.pid = int(ask(job))

    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)  # nobody else waits for it, so that it is still the same

    def poll(self, block: bool = False) -> int | None:
        """Its exit status, or None while it runs."""
        if self._code is None:
            answer = self._ask(dict(wait=self.pid, block=block))
            self._code = None if answer == "none" else int(answer)
        return self._code

    def result(self, seconds: float | None = None) -> Result:
        """Waits for its end; after so many seconds, if they are given, it is killed."""
        end = time.monotonic() + (seconds or 0)
        while seconds and self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
            time.sleep(0.02)
        return Result(self.poll(block=True), self.output())


class Programs:
    """`programs("train", "--config", ...)` is `python -m experiments.train --config ...`.

    A name with dots is that of a module: `programs("studies.reference", ...)`.
    """

    def __init__(self, directory: Path):
        self._directory, self._count = directory, 0
        self._server: subprocess.Popen | None = None
        self._started: list[Running] = []

    def _ask(self, job: dict) -> str:
        print(json.dumps(job), file=self._server.stdin, flush=True)
        return self._server.stdout.readline().split()[1]

    def _run(self, arguments: tuple, devices: int, largest_file: int = 0, **what: str) -> Running:
        if self._server is None:
            environment = dict(os.environ, COLUMNS="100", PYTHONPATH=str(ROOT), **ENVIRONMENT)
            environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
            least = jax.config.jax_persistent_cache_min_compile_time_secs
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(least)
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                cwd=ROOT,
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            assert self._server.stdout.readline() == "ready\n"
        self._count += 1
        own = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
        job = dict(
            {"module": "", "script": ""} | what,
            arguments=[str(argument) for argument in arguments],
            output=str(self._directory / f"{self._count}.txt"),
            largest_file=largest_file,
            xla_flags=" ".join([*own, f"--xla_force_host_platform_device_count={devices}"]),
        )
        self._started.append(Running(self._ask, job))
        return self._started[-1]

    def start(
        self, program: str, *arguments: str, devices: int = 1, largest_file: int = 0
    ) -> Running:
        """Starts one, with so many CPU devices, and with a limit on the size of files if asked."""
        module = program if "." in program else f"experiments.{program}"
        return self._run(arguments, devices, largest_file, module=module)

    def script(self, text: str, *arguments: str, devices: int = 1) -> Running:
        """Starts `python -c TEXT ARGUMENTS`."""
        return self._run(arguments, devices, script=text)

    def __call__(self, program: str, *arguments: str, **options: int) -> Result:
        return self.start(program, *arguments, **options).result()

    def stop(self) -> None:
        """Kills all that are left."""
        for running in self._started:
            running.send(signal.SIGKILL)
            running.result()
        self._started.clear()

    def close(self) -> None:
        if self._server is not None:
            self.stop()
            self._server.stdin.close()
            self._server.wait()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """One process for all tests of a worker, which forks a child for each program."""
    made = Programs(tmp_path_factory.mktemp("output"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_program_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kills what a test that failed has left."""
    used = "programs" in request.fixturenames
    programs = request.getfixturevalue("programs") if used else None
    yield
    if programs is not None:
        programs.stop()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of two MLPs on the digits, trained for 300 steps and evaluated.

    The workers of a session train it once; each has a copy of its own.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which they share
    with open(folder / "digits.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "digits"
        if not made.exists():
            _train_digits(folder / "digits.unfinished")
            (folder / "digits.unfinished").rename(made)
    return shutil.copytree(made, tmp_path_factory.mktemp("digits") / "run")


def _train_digits(workdir: Path) -> None:
    from experiments import evaluate, train
    from experiments.experiment import config

    fields = {"steps": 300, "mesh": {"data": 1}, "evaluation.every": 100, "logging.every": 20}
    experiment = train.train(config.load("configs/digits/mlp.py:size=2", fields), workdir)
    _, failures = evaluate.evaluate(experiment, workdir, show=False)
    assert not failures
