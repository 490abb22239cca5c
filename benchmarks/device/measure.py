"""Sides of a comparison on one device: compiled, checked for equal losses, timed in turns."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import timing

BLOCK, FEWEST, MOST = 0.05, 3, 9  # seconds in a block, and blocks of a side
# Relative differences of the losses of the first steps: of rounding, and its growth by training.
TOLERANCES = {"float32": 2e-3, "tf32": 1e-2, "bfloat16": 5e-2}
# On a GPU XLA's default for products of float32 is TF32.
PRODUCTS = {"float32": "highest", "tf32": "default", "bfloat16": "default"}


class TorchError(Exception):
    """An error in the process of PyTorch."""


class Side(NamedTuple):
    """One way to do a job, compiled and warmed up."""

    block: Callable[[int], float]  # steps -> seconds of so many steps, until the device is done
    losses: np.ndarray | None = None  # of the first steps from the common parameters
    about: Mapping[str, Any] = {}  # compile_seconds, megabytes, ...


class Run:
    """What a part is given: the sizes, its time, and the process that runs PyTorch."""

    def __init__(self, small: bool, seconds: float, opponents: str | None, data: str | None = None):
        self.small, self.data, self._opponents = small, data, opponents
        self._deadline = time.monotonic() + seconds
        self._torch: timing.Worker | None = None
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="device"))
        self.torch_about: dict[str, Any] = {}

    def left(self) -> float:
        """Seconds until the part should end."""
        return self._deadline - time.monotonic()

    def torch(self, **request: Any) -> Any:
        """The answer of `torch_side.py`; a process that died is started again.

        Raises:
          TorchError: PyTorch says what went wrong.
          RuntimeError: it is missing, or died.
        """
        if self._opponents is None:
            raise RuntimeError("PyTorch was left out (--opponents none)")
        if self._torch is None:
            self._torch = timing.Worker(self._opponents, "device/torch_side.py")
        try:
            answer = self._torch.ask(**request)
        except (RuntimeError, OSError):
            self._torch = None
            raise
        if "error" in answer:
            raise TorchError(answer["error"])
        self.torch_about |= answer.pop("about", {})
        return answer


class Job:
    """Sides of one job. A side that fails, or whose losses differ, is left out with the reason."""

    def __init__(self, run: Run, title: str, **values: Any):
        self.run, self.title, self.values = run, title, values
        self.sides: dict[str, Side] = {}
        self.missing: dict[str, str] = {}
        self.differences: dict[str, float] = {}
        self.seconds: dict[str, dict[str, float]] = {}
        self._reference: np.ndarray | None = None

    def add(self, name: str, make: Callable[[], Side], precision: str = "tf32") -> None:
        """Builds a side; its losses must agree with those of the first side that has any."""
        try:
            side = make()
            if side.losses is not None:
                self.differences[name] = self._difference(side.losses, TOLERANCES[precision])
        except Exception as error:  # anything may be missing on a machine: the other sides go on
            self.missing[name] = reason(error)
            print(f"  {name}: {self.missing[name]}", flush=True)
        else:
            self.sides[name] = side
            print(f"  {name}: ready, {self.run.left():.0f} s left", flush=True)

    def _difference(self, losses: np.ndarray, tolerance: float) -> float:
        if self._reference is None:
            if not np.isfinite(losses).all():
                raise ValueError("losses are not finite")
            self._reference = losses
        if losses.shape != self._reference.shape:
            raise ValueError(f"losses {losses.shape}, not {self._reference.shape}")
        apart = float(np.abs(losses / self._reference - 1).max())
        if not apart <= tolerance:
            raise ValueError(
                f"refused: losses of the first steps differ by {apart:.2g}; at most {tolerance}"
            )
        return apart

    def time(self, seconds: float) -> "Job":
        """Times all sides in turns, for about so many seconds, and at least FEWEST blocks each."""
        self.seconds, lost = take_turns(
            {name: side.block for name, side in self.sides.items()},
            seconds,
            0.01 if self.run.small else BLOCK,
        )
        for name, why in lost.items():
            self.missing[name] = why
            self.sides.pop(name)
        return self

    def record(self, ratios: Mapping[str, dict[str, float]]) -> dict[str, Any]:
        sides = {}
        for name, seconds in self.seconds.items():
            ms = {key: 1e3 * value for key, value in seconds.items() if key != "blocks"}
            about = dict(self.sides[name].about)
            if name in self.differences:
                about["difference"] = self.differences[name]
            sides[name] = ms | dict(blocks=seconds["blocks"]) | about
        return dict(
            title=self.title,
            sides=sides,
            missing=self.missing,
            ratios=dict(ratios),
            values=self.values,
        )

    def against_torch(self) -> dict[str, dict[str, float]]:
        """PyTorch's best over each of ours, for each statistic: above 1 ours is faster."""
        theirs = [v for name, v in self.seconds.items() if name.startswith("PyTorch")]
        if not theirs:
            return {}
        best = {key: min(v[key] for v in theirs) for key in ("min", "median")}
        return {
            f"PyTorch's best / {name}": {key: best[key] / v[key] for key in best}
            for name, v in self.seconds.items()
            if name.startswith("ours")
        }

    def over(self, *bases: str) -> dict[str, dict[str, float]]:
        """Each other side over the best of the bases: below 1 it is faster than these."""
        present = [self.seconds[base] for base in bases if base in self.seconds]
        if not present:
            return {}
        best = {key: min(v[key] for v in present) for key in ("min", "median")}
        label = bases[0] if len(bases) == 1 else f"the best of {', '.join(bases)}"
        return {
            f"{name} / {label}": {key: v[key] / best[key] for key in best}
            for name, v in self.seconds.items()
            if name not in bases
        }


def take_turns(
    sides: Mapping[str, Callable[[int], float]], seconds: float, block: float = BLOCK
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Blocks of each side in turn, so that a change of the clock affects all alike.

    Args:
      sides: name -> steps -> seconds of so many steps; warmed up.
      seconds: for all; at least FEWEST blocks of each side are run whatever it takes.
      block: seconds of a block, of one step at least.

    Returns:
      Name -> seconds a step, `min` and `median` over `blocks`; and why sides failed, by name.
    """
    until = time.monotonic() + seconds
    lost: dict[str, str] = {}
    steps: dict[str, int] = {}
    blocks: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(MOST + 1):
        if turn > FEWEST and time.monotonic() > until:
            break
        for name, side in sides.items():
            if name in lost:
                continue
            try:
                if turn == 0:  # warm again, after the others were compiled, and see how long it is
                    steps[name] = int(np.clip(round(block / max(side(1), 1e-7)), 1, 500))
                else:
                    blocks[name].append(side(steps[name]) / steps[name])
            except Exception as error:
                lost[name] = reason(error)
    times = {
        name: dict(min=min(b), median=float(np.median(b)), blocks=len(b))
        for name, b in blocks.items()
        if b and name not in lost
    }
    return times, lost


def reason(error: BaseException) -> str:
    """One short line."""
    text = " ".join(str(error).split())
    if isinstance(error, TorchError):
        return text
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Within this context, traced products have this precision."""
    with jax.default_matmul_precision(PRODUCTS[precision]):
        yield


def compiled(function: Callable, *arguments: Any, donate: tuple[int, ...] = ()) -> tuple[Any, dict]:
    """The compiled function, with its seconds of compilation and its peak memory."""
    began = time.perf_counter()
    program = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    about: dict[str, Any] = dict(compile_seconds=time.perf_counter() - began)
    memory = program.memory_analysis()
    if memory is not None:
        size = memory.argument_size_in_bytes + memory.output_size_in_bytes
        size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        about["megabytes"] = size / 1e6
    return program, about


def repeated(call: Callable[[], Any]) -> Callable[[int], float]:
    """A block of so many calls, until the device is done."""

    def block(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            result = call()
        jax.block_until_ready(result)
        return time.perf_counter() - began

    return block


def where() -> dict[str, Any]:
    """Date, device, driver, and versions."""
    device = jax.devices()[0]
    about: dict[str, Any] = dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=device.device_kind,
        platform=device.platform,
        runtime=getattr(device.client, "platform_version", "").split("\n")[0],
        cores=len(os.sched_getaffinity(0)),
        load=round(os.getloadavg()[0], 1),
        python=sys.version.split()[0],
    )
    fields = ("driver_version", "memory.total", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        values = [v.strip() for v in answer.stdout.splitlines()[0].split(",")]
        about |= dict(zip(("driver", "memory", "max_clock", "power_limit"), values, strict=True))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        about["driver"] = None
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        about[name] = importlib.metadata.version(name)
    return about
