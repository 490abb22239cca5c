"""One compilation for each request, in a process of its own; results are kept as JSON."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.planning import slices
from experiments.planning.paper import Shape
from experiments.runtime import processes, project, storage
from experiments.runtime.workdir import jsonable

TIMEOUT, ABORTED = "timeout", "aborted"  # beside the reasons of `child`
# Fields of a config that change no program.
IRRELEVANT = ("seed", "evaluators", "logging", "checkpoint", "pretrained", "on_fault")


class Request(NamedTuple):
    """What is compiled, and for which devices."""

    config: Mapping[str, Any]
    topology: str
    program: str
    data: Shape | None = None

    def json(self) -> dict[str, Any]:
        return jsonable(self._asdict())


def versions() -> dict[str, str]:
    """Of the packages that make a program, and the digest of the sources."""
    packages = ("jax", "jaxlib", "flax", "optax", "libtpu")
    found = {package: processes.version(package) for package in packages}
    return found | {"sources": processes.code()["code.sources"]}


def compiled_by(made_by: Mapping[str, str], topologies: Iterable[str]) -> dict[str, str]:
    """What a page says of how its programs were made, as `writers.hardware` would."""
    libraries = [f"jaxlib {made_by['jaxlib']}", f"libtpu {made_by['libtpu']}"]
    return dict(
        devices=f"{', '.join(topologies)} by {' and '.join(libraries)}",
        python=platform.python_version(),
        **{name: made_by[name] for name in ("jax", "flax", "optax")},
    )


def key_of(request: Request, made_by: Mapping[str, str]) -> str:
    """Equal for equal programs: of the config without fields that change none, and versions."""
    asked = request.json()
    asked["config"] = {k: v for k, v in asked["config"].items() if k not in IRRELEVANT}
    text = json.dumps([asked, dict(made_by)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def compiled(
    request: Request, cache: pathlib.Path, timeout: float, fresh: bool = False
) -> dict[str, Any]:
    """The result of a request, from the cache if it is there.

    Reasons that may pass (a time limit, an aborted process) are not kept.

    Args:
      request: what to compile.
      cache: the folder of results.
      timeout: seconds.
      fresh: compile in any case.

    Raises:
      ConfigError: a topology that cannot be compiled for.
    """
    topology = slices.parse(request.topology)
    made_by = versions()
    key = key_of(request, made_by)
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{key}.json"
    if path.is_file() and not fresh:
        with contextlib.suppress(ValueError):  # a damaged file
            return json.loads(path.read_text())
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        asked, made = (pathlib.Path(folder) / name for name in ("request.json", "result.json"))
        asked.write_text(json.dumps(request.json() | {"text": True}))
        command = [sys.executable, "-m", "experiments.planning.child", str(asked), str(made)]
        code, output = run_child(command, slices.environment(topology), timeout)
        if code == 0 and made.is_file():
            result = json.loads(made.read_text())
        elif code is None:
            result = dict(failed=TIMEOUT, reason=f"not compiled in {timeout:g} s")
        else:
            result = dict(failed=ABORTED, reason=reason_of(code, output))
        text = made.with_suffix(".hlo.gz")
        if text.is_file():
            storage.write(cache / f"{key}.hlo.gz", text.read_bytes())
    asked_for = dict(program=request.program, topology=request.topology)
    result |= dict(asked_for, versions=made_by, wall_seconds=time.monotonic() - began)
    if result.get("failed") not in (TIMEOUT, ABORTED):
        storage.write(path, json.dumps(result))
    return result


def run_child(
    command: Sequence[str], environment: Mapping[str, str], timeout: float
) -> tuple[int | None, str]:
    """The exit code of a process and what it printed; None if it was stopped after `timeout`."""
    path = os.pathsep.join([str(project.PATH), environment.get("PYTHONPATH", "")]).strip(os.pathsep)
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment, PYTHONPATH=path),
        ) as process,
    ):
        try:
            code: int | None = process.wait(timeout)
        except BaseException as error:
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
        output.seek(0)
        return code, output.read().decode(errors="replace")


def reason_of(code: int, output: str) -> str:
    """One line of why a process ended: a failed check of the compiler, or its last words."""
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    checks = [line for line in lines if re.match(r"F\d{4} |.*Check failed", line)]
    last = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)] or lines
    said = (checks or last[-1:] or ["without a word"])[0]
    if code == -signal.SIGKILL and not checks:
        said = "killed, which the system does where memory runs out"
    return f"the compiler's process ended ({ended}): {said}"
