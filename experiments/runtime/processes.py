"""Training on several hosts: checks that all processes run the same program and are alive.

They share a key-value store, the coordination service of `jax.distributed`. Before anything is
compiled they compare their programs there (`agree`). Afterwards each writes a heartbeat every
second, and a thread in each reads the heartbeats of the others. If a process is lost or fails, the
others report which one and exit, rather than wait for it in a collective.

The service is a separate process, started by process 0, so that the others outlive process 0 long
enough to report its loss. With `--distributed=auto` it is a thread of process 0, as in JAX: if
process 0 is lost, JAX itself ends the others.
"""

import contextlib
import ctypes
import faulthandler
import functools
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags

import uncertainty
from experiments.runtime import execution, project
from experiments.runtime.lock import SILENCE
from experiments.runtime.program import REPORTED, code_of
from experiments.runtime.termination import Interrupted, Stop, status
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)

LOST = os.EX_TEMPFAIL  # exit status where the same command resumes: a process was lost, ...
BEAT = 1.0  # seconds between heartbeats
SUSPECT = 5.0  # the same after a collective has failed, as when a connection breaks
LINGER = SILENCE + 15.0  # seconds for the others to notice that process 0 was killed
GRACE = 3.0  # seconds for a process to report its own error before that of another ends it
MEETING = 300.0  # seconds for all processes to start
PATIENCE = 3600.0  # seconds to wait for a process that reads its data
ROOT = "uncertainty/"  # prefix of our keys in the store
PACKAGES = ("scalable-uncertainty", "jax", "jaxlib", "flax", "optax", "numpy")

# Outlives its parent by the number of seconds written to its standard input or, if the parent is
# killed, by the time that the others need to notice (the third argument).
SERVICE = """
import sys, time
from jax._src.lib import _jax
service = _jax.get_distributed_runtime_service(
    sys.argv[1], int(sys.argv[2]), heartbeat_timeout=100, shutdown_timeout=300)
print("ready", flush=True)
time.sleep(float(sys.stdin.read() or sys.argv[3]))
"""


@contextlib.contextmanager
def joined(processes: str | None) -> Iterator[None]:
    """Joins the processes of a training run on several hosts, before any other use of JAX.

    An error in the block is printed in one line and ends this process at once, and the others with
    it. `Interrupted` is raised, as all processes stop together.

    Args:
      processes: None for one process, 'auto' if JAX finds the others itself (Cloud TPU, SLURM, Open
        MPI), else 'HOST:PORT,COUNT,INDEX' with the address of process 0.

    Raises:
      ConfigError: another form, or another program listens at the address of process 0.
    """
    if processes is None:
        yield
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    service = _initialize(processes)
    watch = Watch(service)
    try:
        yield
    except Interrupted:
        watch.leave()
        raise
    except (Exception, KeyboardInterrupt) as error:
        watch.fail(error)
    watch.leave()


def _initialize(processes: str) -> subprocess.Popen | None:
    """Joins; returns the process of the service if this process started it."""
    if processes == "auto":
        return _meet()
    try:
        address, count, index = processes.split(",")
        _, port = address.rsplit(":", 1)
        port, count, index = int(port), int(count), int(index)
        if not (0 <= index < count and 0 < port < 2**16):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--distributed: {processes!r}; 'auto' or HOST:PORT,COUNT,INDEX with INDEX < COUNT"
        ) from None
    if index:
        return _meet(address, count, index)
    _wait_for(port)
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, f"[::]:{port}", str(count), str(LINGER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C does not reach it
    )
    if service.stdout.readline() != b"ready\n":  # another version of JAX
        service.kill()
        logger.warning("the coordination service is a thread of process 0: if it is lost, all exit")
        return _meet(address, count, index)
    # JAX's own service, which nothing else refers to.
    _meet(address, count, index, coordinator_bind_address="127.0.0.1:0")
    return service


def _meet(*place: Any, **more: Any) -> None:
    """Waits for the other processes; JAX itself would abort if they do not start."""
    message = f"--distributed: not all processes have started within {MEETING:.0f} s"
    timer = threading.Timer(MEETING, _end, [message])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(*place, **more, initialization_timeout=int(2 * MEETING))
    finally:
        timer.cancel()


def _wait_for(port: int) -> None:
    """Waits until the port is free: the service of a killed training ends after LINGER seconds.

    JAX's service would share the port with another service, and mix up their processes.
    """
    end = time.monotonic() + LINGER + GRACE
    both = dict(family=socket.AF_INET6, dualstack_ipv6=True) if socket.has_dualstack_ipv6() else {}
    for attempt in itertools.count():
        try:
            return socket.create_server(("", port), **both).close()
        except OSError as error:
            if time.monotonic() > end:
                raise ConfigError(f"--distributed: port {port}: {error.strerror}") from None
            if not attempt:
                logger.info("waiting for port %d: another training run uses it", port)
        time.sleep(BEAT)


def _store() -> Any:
    """The client of the coordination service, which has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


_calls = itertools.count()  # processes synchronise in one order: a number identifies a barrier


def next_call() -> int:
    """A number for a name of `exchange`; all processes have to ask for it in the same order."""
    return next(_calls)


def exchange(name: str, value: Any) -> list[Any]:
    """The values that all processes of this run give under a name, in their order.

    It may be called in any thread, once for each name.

    Args:
      name: of this exchange, the same in all processes.
      value: of this process, in JSON's types.
    """
    if jax.process_count() == 1:
        return [value]
    store, place = _store(), f"{ROOT}{name}/"
    store.key_value_set(f"{place}{jax.process_index()}", json.dumps(value))
    return [
        json.loads(store.blocking_key_value_get(f"{place}{i}", int(1e3 * PATIENCE)))
        for i in range(jax.process_count())
    ]


def agree(facts: Mapping[str, str]) -> None:
    """Compares facts between the processes of this run; all of them have to call it.

    Args:
      facts: name -> value, as text.

    Raises:
      ConfigError: they differ; the message lists the facts (at most ten) and each value.
    """
    if jax.process_count() == 1:
        return
    first, *others = exchange(f"agree/{next_call()}", dict(facts))
    lines = []
    for i, other in enumerate(others, start=1):
        for name in sorted({**first, **other}):
            mine, theirs = (f.get(name, "(absent)") for f in (first, other))
            if mine != theirs:
                lines.append(f"  {name}: {mine} in process 0, {theirs} in process {i}")
    if lines:
        more = [f"  and {len(lines) - 10} more"] if len(lines) > 10 else []
        raise ConfigError("\n".join(["the processes of this run differ:", *lines[:10], *more]))


def barrier() -> None:
    """Waits until all processes of this run have called it."""
    if jax.process_count() > 1:
        _store().wait_at_barrier(f"{ROOT}barrier/{next(_calls)}", int(1e3 * PATIENCE))


def any_signal(stop: Stop) -> str | None:
    """The signal that one of the processes received, or None; all of them have to call it."""
    if jax.process_count() == 1:
        return stop.signal
    number = signal.Signals[stop.signal].value if stop.signal else 0
    largest = int(np.max(execution.host(np.asarray([number], np.int32))))
    return signal.Signals(largest).name if largest else None


@functools.cache
def code() -> dict[str, str]:
    """The versions of packages, and a digest of the sources of this project."""
    library = pathlib.Path(uncertainty.__file__).parent  # has the programs too, where installed
    folders = (project.ROOT / "experiments", library)
    sources = {path: folder.parent for folder in folders for path in folder.rglob("*.py")}
    digest = hashlib.sha256()
    for path, root in sorted(sources.items()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    versions = {f"code.{name}": version(name) for name in PACKAGES}
    return {**versions, "code.sources": digest.hexdigest()[:16]}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


class Watch:
    """Writes this process's heartbeats to the store, and reads those of the others.

    Args:
      service: the process of the service, if this process started it.
    """

    def __init__(self, service: subprocess.Popen | None):
        self._service, self._store = service, _store()
        self._suspicious = threading.Event()  # a collective failed here
        self._ending = threading.Event()  # this process reports its own error
        threading.Thread(target=self._run, name="watch", daemon=True).start()
        # Not Python's own handler, which would run in the main thread, after the end.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: self._on_abort())
        self._signal = ctypes.CDLL(None).signal
        self._signal.restype = ctypes.c_void_p
        self._signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        self._before = self._signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def leave(self) -> None:
        """Waits for the others, to end together."""
        jax.distributed.shutdown()
        self._signal(signal.SIGABRT, self._before)
        self._ending.set()
        self._end_service(0.0)

    def fail(self, error: BaseException) -> NoReturn:
        """Reports an error and ends this process, without waiting for the others.

        An error of a collective is usually due to the loss of another process, which is then
        reported.
        """
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            self._await_loss()
        self._ending.set()
        interrupted = isinstance(error, KeyboardInterrupt)
        message = "interrupted" if interrupted else str(error) or type(error).__name__
        code = status("SIGINT") if interrupted else code_of(error)
        with contextlib.suppress(Exception):  # the service may be lost
            sign = f"{code if code == LOST else 2} {message}"
            self._store.key_value_set(f"{ROOT}watch/failed/{jax.process_index()}", sign)
        if not isinstance(error, (*REPORTED, KeyboardInterrupt)) or flags.FLAGS.debug:
            traceback.print_exception(error)
        self._end_service(2 * (BEAT + GRACE))
        _end(message, code)

    def _await_loss(self) -> None:
        """Gives the thread time to end this process because another one is lost."""
        self._suspicious.set()
        time.sleep(2 * SUSPECT + GRACE)

    def _on_abort(self) -> None:
        """In the thread that aborts: a collective's own, perhaps because its peer is lost."""
        self._await_loss()
        faulthandler.dump_traceback()

    def _end_service(self, seconds: float) -> None:
        if self._service is not None:
            with contextlib.suppress(OSError):
                self._service.stdin.write(f"{seconds}".encode())
                self._service.stdin.close()

    def _run(self) -> None:
        # Process -> its last heartbeat, and when it was first seen.
        heartbeats = {i: ("", time.monotonic()) for i in range(jax.process_count())}
        for beat in itertools.count():
            problem = self._look(heartbeats, str(beat))
            if self._ending.wait(GRACE if problem else BEAT):
                return
            if problem:
                resume = "The same command on every host resumes from the last checkpoint."
                _end(f"{problem[0]}. {resume}", problem[1])

    def _look(self, seen: dict[int, tuple[str, float]], beat: str) -> tuple[str, int] | None:
        """A message about a process that is lost or has failed, and the exit status, or None."""
        place, now, count = f"{ROOT}watch/", time.monotonic(), len(seen)
        try:
            self._store.key_value_set(
                f"{place}alive/{jax.process_index()}", beat, allow_overwrite=True
            )
            signs = dict(self._store.key_value_dir_get(place))
        except Exception:  # the client raises various types if the service is unreachable
            signs = {}
        limit = SUSPECT if self._suspicious.is_set() else SILENCE
        for process, (last, since) in seen.items():
            if (reason := signs.get(f"{place}failed/{process}")) is not None:
                code, _, reason = reason.partition(" ")
                return f"process {process} of {count} failed: {reason}", int(code)
            sign = signs.get(f"{place}alive/{process}", last)
            if sign != last:
                seen[process] = (sign, now)
            elif now - since > limit and process != jax.process_index():
                lost = f"process {process} of {count} was lost: no heartbeat for {limit:.0f} s"
                return lost, LOST
        return None


def _end(message: str, code: int = 2) -> NoReturn:
    """Ends the process without exit handlers, threads or the service, which may wait for others."""
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
