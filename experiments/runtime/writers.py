"""The output of a run: metrics.jsonl, TensorBoard files, W&B, a parameter table, a profile."""

import atexit
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import pathlib
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.runtime import segments, storage
from experiments.runtime.workdir import (
    CONFIG,
    from_jsonable,
    jsonable,
    mismatch,
    read_config,
    read_json,
    write_json,
)
from uncertainty.build import ConfigError, nearest

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
TIMING = ("seconds", "steps_per_second")  # clock readings; all else is equal in a resumed run


class Writer:
    """Appends one JSON object per line to `workdir/metrics.jsonl`, and on request to TensorBoard
    and W&B.

    On a disk a record reaches the operating system before `write` returns, so it survives if the
    process is killed; in a bucket it does so at the next `flush`, or some seconds later
    (`segments`). Write the records of a step, and flush, before saving its checkpoint: opening
    again with that step then drops exactly the records that the resumed run will repeat.

    Args:
      workdir: the run's directory, which exists.
      start: the step that the run resumes from: records of later steps are dropped, damaged ones
        too. 0 drops all records.
      tensorboard: also write TensorBoard files to `workdir/tensorboard`.
      wandb: also write to W&B: True, or fields of `WANDB`.
      prefix: of the names that are written, such as 'swag/'.

    Attributes:
      seconds: the last 'seconds' with this prefix in the remaining records, or 0: time so far.

    Raises:
      ConfigError: the packages of TensorBoard files or of W&B are requested, but not installed.
      ValueError: the existing records cannot be read.
    """

    def __init__(
        self,
        workdir: str | storage.Path,
        start: int = 0,
        *,
        tensorboard: bool = False,
        wandb: bool | Mapping[str, Any] = False,
        prefix: str = "",
    ):
        workdir = storage.path(workdir)
        self.path, self.prefix = workdir / METRICS, prefix
        self._lines, self._others = None, []
        previous = read_metrics(self.path, start) if start else []
        seconds = f"{prefix}seconds"
        self.seconds = next((r[seconds] for r in reversed(previous) if seconds in r), 0.0)
        if jax.process_index() != 0:
            return
        require(dict(tensorboard=tensorboard, wandb=wandb))
        if tensorboard:
            self._others.append(Summaries(workdir / "tensorboard"))
        if wandb is not False:
            self._others.append(Wandb(workdir, {} if wandb is True else wandb))
        self._lines = segments.opened(self.path, "".join(map(_line, previous)))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes numbers, arrays (such as one value per member) and strings under their names.

        All but those in `TIMING` are expected to be equal in a resumed run.

        Raises:
          OSError: the file cannot be written, for example because the disk is full.
          TypeError: a value has no form in JSON; the message names it.
        """
        if self._lines is None:
            return
        metrics = {f"{self.prefix}{name}": value for name, value in metrics.items()}
        line = _line({"step": int(step), **metrics})
        try:
            self._lines.append(line)
        except OSError as error:
            reason = f"could not write step {step} to {self.path}: {error.strerror}"
            raise OSError(error.errno, reason) from error
        scalars = dict(_scalars(metrics)) if self._others else {}
        for other in self._others:
            other.write(int(step), scalars)

    def flush(self) -> None:
        """Returns once all records are where a kill does not reach them.

        Raises:
          OSError: they cannot be written.
        """
        for file in (self._lines, *self._others):
            if file is not None:
                file.flush()

    def close(self) -> None:
        """Closes the files."""
        for file in (self._lines, *self._others):
            if file is not None:
                file.close()


class Summaries:
    """TensorBoard files; those for a bucket are written here, and copied there by each flush."""

    def __init__(self, folder: storage.Path):
        from clu.metric_writers import SummaryWriter  # imports TensorFlow, which takes seconds

        self._folder = storage.Outgoing(folder)
        self._writer = SummaryWriter(self._folder.path)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._writer.write_scalars(step, scalars)

    def flush(self) -> None:
        self._writer.flush()
        self._folder.upload()

    def close(self) -> None:
        self._writer.close()
        self._folder.close()


WANDB = ("project", "entity", "name", "group", "job_type", "tags", "notes", "mode")


class Wandb:
    """A run at Weights & Biases, one for each workdir: what resumes goes on with the same run.

    `mode='offline'`, or WANDB_MODE=offline, sends nothing: `wandb sync` does so later, from
    `workdir/wandb`. Records of steps that W&B has already are not sent again.

    Args:
      workdir: of the run; its config is shown there.
      fields: of `wandb.init`, those of `WANDB`; by default the project 'uncertainty' and the name
        of the workdir.
    """

    def __init__(self, workdir: storage.Path, fields: Mapping[str, Any]):
        import wandb

        noted = workdir / "wandb.json"
        if not noted.is_file():
            write_json(noted, {"id": secrets.token_hex(4)})
        local = isinstance(workdir, pathlib.Path)
        self._run = wandb.init(
            **{"project": "uncertainty", "name": workdir.absolute().name, **fields},
            id=read_json(noted, {"id": str})["id"],
            resume="allow",
            dir=str(workdir) if local else None,
            config=read_config(workdir) if (workdir / CONFIG).is_file() else None,
        )

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._run.log({name: value.item() for name, value in scalars.items()}, step=step)

    def flush(self) -> None:
        """Nothing: wandb has a process of its own that writes each record."""

    def close(self) -> None:
        self._run.finish()


def check_wandb(value: Any) -> None:
    """Raises ConfigError unless a value of `logging.wandb` is a bool, or fields of `WANDB`."""
    if isinstance(value, bool):
        return
    if not isinstance(value, Mapping):
        such = '{"project": "digits", "mode": "offline"}'
        raise ConfigError(f"config.logging.wandb: {value!r}; true, false or fields such as {such}")
    for field in value:
        if field not in WANDB:
            raise ConfigError(
                f"config.logging.wandb.{field}: no such field; {nearest(field, WANDB)}"
            )


NEEDED = {  # fields of `logging` -> packages, and the extra that has them
    "tensorboard": (("tensorflow", "tensorboard"), "tensorflow"),
    "wandb": (("wandb",), "wandb"),
}


def require(logging: Mapping[str, Any]) -> None:
    """Raises ConfigError if what a config's `logging` asks for is missing; imports nothing."""
    for field, (packages, extra) in NEEDED.items():
        asked = logging.get(field, False)
        missing = [name for name in packages if not importlib.util.find_spec(name)]
        if asked is not False and missing:
            raise ConfigError(
                f"config.logging.{field}: {asked} needs {' and '.join(missing)}, which is not "
                f"installed: pip install '.[{extra}]'"
            )


def read_metrics(path: str | storage.Path, last: float = math.inf) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, oldest first; empty if there is no file.

    An incomplete last line, left by a killed process, is skipped.

    Args:
      path: the file; in a bucket its lines are in several objects (`segments`).
      last: records of later steps are left out, and with them damaged lines after the last
        remaining record, as records are in the order of steps.

    Raises:
      ValueError: a line is not a record; the message names the file and the line.
    """
    path = storage.path(path)
    lines = (segments.read(path) or b"").splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    records = [_record(line) for line in lines]
    end = len(records)
    if last < math.inf:
        end = max((i for i, r in enumerate(records, 1) if r and r["step"] <= last), default=0)
    for number, record in enumerate(records[:end], start=1):
        if record is None:
            raise ValueError(f"{path} line {number} is not a record: {lines[number - 1][:80]!r}")
    dropped = sum(record is None for record in records[end:])
    if dropped:
        logger.warning("%s: %d damaged lines after step %d are dropped", path, dropped, last)
    return [record for record in records[:end] if record["step"] <= last]


FORMS = {"step": int, **dict.fromkeys(TIMING, float)}  # types of the fields that are read here


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line of metrics.jsonl; None if it is damaged."""
    try:
        record = from_jsonable(json.loads(line))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    forms = {k: FORMS[last] for k in record if (last := k.split("/")[-1]) in FORMS}
    return None if mismatch(record, {"step": int, **forms}) else record


def without_timing(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without clock readings, which are equal for two runs of one config."""
    return [{k: v for k, v in r.items() if k.split("/")[-1] not in TIMING} for r in records]


def log_parameters(params: Any) -> None:
    """Logs a table of the parameters with path, shape, type and size, and their total."""
    from clu import parameter_overview

    logger.info(
        "parameters\n%s", parameter_overview.get_parameter_overview(params, include_stats=False)
    )


class Profile:
    """A trace of some steps in `workdir/profile`, for TensorBoard or Perfetto.

    Args:
      workdir: the run's directory.
      steps: (first, last), both included; () or None traces nothing.

    Raises:
      ValueError: `steps` is not such a pair.
    """

    def __init__(self, workdir: str | storage.Path, steps: Sequence[int] | None):
        if steps and not (len(steps) == 2 and 0 <= steps[0] <= steps[1]):
            raise ValueError(f"logging.profile = {steps}; give (first, last) with first <= last")
        self.directory = storage.path(workdir) / "profile"
        self.first, self.last = steps or (math.inf, -math.inf)
        self._tracing = False

    def __call__(self, step: int) -> contextlib.AbstractContextManager:
        """A context for step number `step`: `with profile(step): ...`."""
        return self._traced(step) if self.first <= step <= self.last else contextlib.nullcontext()

    @contextlib.contextmanager
    def _traced(self, step: int) -> Iterator[None]:
        if not self._tracing:
            self._outgoing = storage.Outgoing(self.directory)
            jax.profiler.start_trace(self._outgoing.path)
            atexit.register(self.close)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("step", step_num=step):
            yield
        if step == self.last:
            jax.block_until_ready(jax.live_arrays())  # steps are dispatched, not yet done
            self.close()

    def close(self) -> None:
        """Ends a trace that is still open, for example if the loop ends early."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            atexit.unregister(self.close)
            self._outgoing.close()


def hardware() -> dict[str, Any]:
    """The environment of a result: devices, processor, versions and the date (UTC)."""
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(record), allow_nan=False) + "\n"


def _scalars(metrics: Mapping[str, Any]):
    """Name and value of each number; those of an array are numbered: 'loss/0', 'loss/1', ..."""
    for name, value in metrics.items():
        if isinstance(value, str):
            continue
        array = np.asarray(value)
        if array.ndim == 0:
            yield name, array
        else:
            yield from ((f"{name}/{i}", v) for i, v in enumerate(array.ravel()))
