"""What a run leaves behind: metrics.jsonl, TensorBoard files, a parameter table, a profile."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.workdir import from_jsonable, jsonable, write_text

METRICS = "metrics.jsonl"
TIMING = "time/"  # names that begin so hold clock readings; all else repeats in a resumed run


class MetricsWriter:
    """Appends one JSON object a line to `workdir/metrics.jsonl`, and to TensorBoard if asked.

    A record reaches the operating system before `write` returns, so it outlives a killed process.
    Write the records of a step before its checkpoint is saved: opening again with that step then
    drops exactly what the resumed run writes again.

    Args:
        workdir: the run's directory, which exists.
        resumed: the step restored from a checkpoint: records of later steps are dropped. None is
            a run from its beginning: all earlier records are dropped.
        tensorboard: also write TensorBoard files to `workdir/tensorboard`.

    Raises:
        ModuleNotFoundError: TensorBoard files are asked for and TensorFlow is not installed.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, resumed: int | None = None, tensorboard: bool = False
    ):
        self.path = pathlib.Path(workdir) / METRICS
        self._file = self._summaries = None
        if jax.process_index() != 0:
            return
        if tensorboard:
            self._summaries = _summary_writer(pathlib.Path(workdir) / "tensorboard")
        kept = (
            [] if resumed is None else [r for r in read_metrics(self.path) if r["step"] <= resumed]
        )
        write_text(self.path, "".join(map(_line, kept)))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes numbers, arrays (one value a member, say) and strings under their names.

        Names that begin with 'time/' are clock readings; all others are expected to repeat when
        a killed run is resumed.
        """
        if self._file is None:
            return
        self._file.write(_line({"step": int(step), **metrics}))
        self._file.flush()
        if self._summaries is not None:
            self._summaries.write_scalars(int(step), dict(_scalars(metrics)))

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._summaries is not None:
            self._summaries.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, oldest first; none if there is no file.

    A last line that a killed process left half written is passed over.

    Raises:
        ValueError: a line before the last one is not a record.
    """
    path = pathlib.Path(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = from_jsonable(json.loads(line))
            int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} line {number} is not a record: {line[:80]!r}") from error
        records.append(record)
    return records


def without_timing(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without clock readings: what two runs of one config agree on."""
    return [{k: v for k, v in r.items() if not k.startswith(TIMING)} for r in records]


def parameter_overview(params: Any) -> str:
    """A table of the parameters with path, shape, type, size and their total."""
    from clu import parameter_overview as overview

    return overview.get_parameter_overview(params, include_stats=False)


class Profile:
    """A trace of the steps `first` to `last` in `workdir/profile`, for TensorBoard or Perfetto.

    Args:
        workdir: the run's directory.
        steps: (first, last), both included; None traces nothing.
    """

    def __init__(self, workdir: str | os.PathLike, steps: tuple[int, int] | None):
        if steps is not None and not 0 <= steps[0] <= steps[1]:
            raise ValueError(f"profile = {steps}; give (first, last) with 0 <= first <= last")
        self.directory = pathlib.Path(workdir) / "profile"
        self.first, self.last = steps or (None, None)
        self._tracing = False

    def before(self, step: int) -> None:
        """Call before the step numbered `step` is dispatched."""
        if step == self.first:
            jax.profiler.start_trace(str(self.directory))
            self._tracing = True

    def after(self, step: int, result: Any) -> None:
        """Call after it; `result` is waited for at the end, so that the trace is complete."""
        if step == self.last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still open; call it when the loop is left early too."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


def hardware() -> dict[str, Any]:
    """What a result was computed with: devices, processor, versions and the day (UTC)."""
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


def _summary_writer(directory: pathlib.Path) -> Any:
    try:
        from clu.metric_writers import SummaryWriter  # imports TensorFlow, which takes seconds
    except ImportError as error:
        raise ModuleNotFoundError(
            "config.logging.tensorboard = True needs TensorFlow and TensorBoard: "
            "pip install .[tensorflow]"
        ) from error
    return SummaryWriter(str(directory))
