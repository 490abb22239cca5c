"""Stopping a run cleanly after a signal."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator


@dataclasses.dataclass
class Stop:
    """Whether the run was asked to stop, and by which signal ('SIGTERM' or 'SIGINT')."""

    requested: bool = False
    signal: str | None = None


class Interrupted(Exception):
    """A signal stopped the run.

    Args:
      message: where it stopped and what is saved.
      signal: 'SIGTERM' or 'SIGINT'.

    Attributes:
      code: the exit status of the program, 128 + the signal's number.
    """

    def __init__(self, message: str, signal: str):
        super().__init__(message)
        self.signal = signal
        self.code = status(signal)


def status(name: str) -> int:
    """128 + the number of a signal: 143 for 'SIGTERM', 130 for 'SIGINT'."""
    return 128 + signal.Signals[name]


@contextlib.contextmanager
def graceful_termination() -> Iterator[Stop]:
    """Turns the first SIGTERM or SIGINT into `stop.requested`, which the loop checks.

    A second SIGINT raises KeyboardInterrupt. The former handlers are restored afterwards. Outside
    the main thread, where Python allows no handlers, `requested` stays False.
    """
    stop = Stop()

    def request(number: int, frame) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested, stop.signal = True, signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    former = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
