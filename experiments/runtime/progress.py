"""A progress bar with rate, time left and losses, or plain lines without a terminal."""

import collections
import logging
import math
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
import rich.console
import rich.logging
import rich.progress
import rich.table

CONSOLE = rich.console.Console(stderr=True)
_shown: list["Progress"] = []  # those on display, outermost first: they share one live display


LEAD = 2.0  # seconds by which dispatched steps may be ahead of finished ones


class Finished:
    """The last finished step, of those that were dispatched.

    Adding a step waits only if dispatching is ahead by more than LEAD, and leaves one step running
    meanwhile: a run that stops has to wait for all dispatched steps.
    """

    def __init__(self, start: int):
        self._step = start
        self._running: collections.deque[tuple[int, float, jax.Array]] = collections.deque()

    def add(self, step: int, result: jax.Array) -> None:
        """Adds step number `step`, which is finished once its `result` is."""
        now = time.monotonic()
        self._running.append((step, now, result))
        while len(self._running) > 1 and now - self._running[0][1] > LEAD:
            self._running[0][2].block_until_ready()
            self._step = self._running.popleft()[0]

    def step(self) -> int:
        """The last finished step, without waiting."""
        while self._running and self._running[0][2].is_ready():
            self._step = self._running.popleft()[0]
        return self._step


class Progress:
    """The progress of a loop; use it as a context manager.

    On a terminal it is a bar, redrawn at most ten times a second. Otherwise it prints lines: at the
    first loss, then whenever `interval` seconds and 5% of the elapsed time have passed, and at the
    end. A nested Progress is shown below the outer bar, or after its name.

    Args:
      total: the number of steps.
      name: of the task, such as 'train' or 'job 3 of 10'.
      unit: of what is counted, in the singular.
      finished: the finished steps, if `update` counts dispatched ones.
      start: the step at which the loop starts, when it resumes from a checkpoint.
      interval: least seconds between two lines without a terminal.
      show: False shows nothing, as in all but the first of several processes.
      console: to print to; standard error by default.
    """

    def __init__(
        self,
        total: int,
        name: str = "train",
        *,
        unit: str = "step",
        finished: Finished | None = None,
        start: int = 0,
        interval: float = 10.0,
        show: bool = True,
        console: rich.console.Console | None = None,
    ):
        self.total, self.name, self.step, self.unit = total, name, start, unit
        self.interval, self.show, self.finished = interval, show, finished
        self.console = console or CONSOLE
        self.live = show and self.console.is_terminal
        self.text = ""
        self._began = time.monotonic()
        self._next = self._began + (0.1 if self.live else interval if show else math.inf)
        # (time, step) of recent updates, for the rate; the first step compiles.
        self._marks: collections.deque = collections.deque(maxlen=300)
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def update(self, step: int, text: str | None = None) -> None:
        """Records that `step` steps are done; `text`, such as `format_losses`', stays until
        replaced.

        Takes well under a microsecond if nothing is displayed.
        """
        self.step = step
        first_text = text is not None and not self.text
        if text is not None:
            self.text = text
        now = time.monotonic()
        if not self._marks:
            self._marks.append((now, step))
        if now >= self._next or first_text:
            self._show(now)

    def rate(self) -> float | None:
        """Recent steps per second, without the first step (it compiles); None if unknown."""
        if not self._marks:
            return None
        (t0, step0), now = self._marks[0], time.monotonic()
        return (self.step - step0) / (now - t0) if self.step > step0 and now > t0 else None

    def __enter__(self) -> "Progress":
        if self.live:
            if _shown and _shown[0].console is self.console:
                self._bar = _shown[0]._bar
            else:
                self._bar = rich.progress.Progress(
                    rich.progress.BarColumn(
                        bar_width=16, table_column=rich.table.Column(min_width=16)
                    ),
                    rich.progress.TextColumn(
                        "{task.description} · {task.fields[status]}",
                        markup=False,
                        table_column=rich.table.Column(ratio=1, no_wrap=True),
                    ),
                    console=self.console,
                    expand=True,
                    refresh_per_second=10,
                    redirect_stdout=sys.stdout.isatty(),
                )
                self._bar.start()
            self._task = self._bar.add_task(
                self.name, total=self.total, completed=self.step, status=self.status()
            )
        _shown.append(self)
        return self

    def __exit__(self, kind, value, traceback) -> None:
        inner = len(_shown) > 1
        self._show(time.monotonic(), final=True)
        _shown.remove(self)
        if self._bar is not None:
            if inner:
                self._bar.remove_task(self._task)
            else:
                self._bar.stop()
            self._bar = None

    def status(self) -> str:
        """Such as '1,200/2,000 · 60% · 85 steps/s · 0:09 left · loss 0.312'."""
        parts = [f"{self.step:,}/{self.total:,}", f"{self.step / max(self.total, 1):.0%}"]
        rate = self.rate()
        if self.step >= self.total:
            parts.append(f"{duration(time.monotonic() - self._began)} in all")
        elif rate:
            fast = rate >= 1
            parts.append(f"{rate:.3g} {self.unit}s/s" if fast else f"{1 / rate:.3g} s/{self.unit}")
            parts.append(f"{duration((self.total - self.step) / rate)} left")
        return " · ".join([*parts, self.text] if self.text else parts)

    def _show(self, now: float, *, final: bool = False) -> None:
        if self.finished is not None:
            self.step = self.finished.step()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.step, status=self.status(), refresh=final)
            self._next = now + 0.1
        elif self.show:
            outer = _shown[: _shown.index(self)] if self in _shown else _shown
            line = " · ".join(
                [*(f"{p.name} {p.step}/{p.total}" for p in outer), self.name, self.status()]
            )
            print(line, file=self.console.file, flush=True)
            self._next = now + max(self.interval, 0.05 * (now - self._began))
        self._marks.append((now, self.step))


def format_losses(members: Sequence[float] | np.ndarray, ensemble: float | None = None) -> str:
    """'loss 0.312 ensemble 0.287 [0.301 0.323]': mean over members, the mixture, each member.

    With more than ten members the first four and the last are shown.
    """
    members = np.ravel(np.asarray(members, dtype=np.float64))
    text = f"loss {_digits(members.mean())}"
    if ensemble is not None:
        text += f" ensemble {_digits(float(ensemble))}"
    if len(members) == 1:
        return text
    formatted = [_digits(m) for m in members]
    if len(formatted) > 10:
        formatted = [*formatted[:4], "…", formatted[-1]]
    return f"{text} [{' '.join(formatted)}]"


def _digits(value: float) -> str:
    """Three significant digits, with trailing zeros so that columns stay aligned."""
    return f"{value:#.3g}".rstrip(".")


def duration(seconds: float) -> str:
    """Such as '0:09', '12:34' or '1:02:03'."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def setup_logging(level: int = logging.INFO, console: rich.console.Console | None = None) -> None:
    """Sends all logging, absl's included, to standard error without breaking progress bars.

    Call it after absl's `app.run` has started. Orbax's records are dropped: they are many, and
    `Checkpoints` raises their errors. So are tracebacks of pending writes after a failed save,
    which find orbax's event loop closed and would hide the error message.
    """
    import absl.logging

    console = console or CONSOLE
    if console.is_terminal:
        handler = rich.logging.RichHandler(console=console, show_path=False)
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: "orbax" not in pathlib.PurePath(record.pathname).parts)
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("jax").setLevel(logging.WARNING)  # it lists backends that are not installed
    absl.logging.set_verbosity(absl.logging.converter.standard_to_absl(level))
    hook = sys.unraisablehook

    def unless_abandoned(fault: "sys.UnraisableHookArgs") -> None:
        if fault.object is not None or str(fault.exc_value) != "Event loop is closed":
            hook(fault)

    sys.unraisablehook = unless_abandoned
