"""What a reader sees: a terminal's screen, and the lines of a log file."""

import io
import os
import pty
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from experiments.runtime import progress
from experiments.runtime.progress import Finished, Progress, duration, format_losses

# Two jobs of 40 steps with absl and standard log records in between.
SCRIPT = """
import logging, time
from absl import app
from absl import logging as absl_logging
from experiments.runtime.progress import Progress, format_losses, setup_logging

def main(_):
    setup_logging()
    with Progress(2, "jobs") as jobs:
        for job in range(2):
            with Progress(40, "train") as progress:
                for step in range(1, 41):
                    time.sleep(0.01)
                    losses = format_losses([1 / step, 3 / step], 1 / step)
                    progress.update(step, losses if step % 10 == 0 else None)
                    if step == 20:
                        absl_logging.info("absl speaks in job %d", job)
                        logging.getLogger("other").warning("other [speaks]")
            jobs.update(job + 1)
app.run(main)
"""
# A write that ends after the event loop that awaited it, as when another write of a save failed;
# then a fault that is to be seen.
ABANDONED = """
import asyncio
import tensorstore
from experiments.runtime.progress import setup_logging

setup_logging()
promise, write = tensorstore.Promise.new()

async def awaited():
    await write

async def failed():
    await asyncio.sleep(0)
    raise OSError("disk")

async def save():
    await asyncio.gather(awaited(), failed())

loop = asyncio.new_event_loop()  # as orbax does; asyncio.run would cancel the other write
try:
    loop.run_until_complete(save())
except OSError:
    loop.close()
    promise.set_result(0)

class Faulty:
    def __del__(self):
        raise RuntimeError("to be seen")

Faulty()
"""
LOSSES = re.escape("loss 0.0500 ensemble 0.0250 [0.0250 0.0750]")


def screen(output: str) -> list[str]:
    """The lines that a terminal shows, scrolled ones included, after it printed `output`."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A"):
            row -= int(token[2:-1] or 1)
        elif token.endswith("K"):
            lines[row] = ""
        elif not token.startswith("\x1b"):
            lines[row] = (
                lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            )
            column += len(token)
    return [line.rstrip() for line in lines]


@pytest.mark.slow
def test_on_a_terminal_log_records_do_not_cut_the_bars():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "110", "TERM": "xterm"},
    )
    os.close(theirs)
    output = b""
    try:
        while block := os.read(ours, 1 << 16):
            output += block
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    text = output.decode()
    shown = [line for line in screen(text) if line]
    records = [line for line in shown if "speaks" in line]
    assert [bool(re.search(r"(INFO|WARNING) +\S", line)) for line in records] == [True] * 4
    assert "absl speaks in job 1" in records[2] and "other [speaks]" in records[3]
    bars = [line for line in shown if "━" in line]
    assert len(bars) == 1 and len(shown) == 5  # inner bars are gone when they are done
    assert re.fullmatch(r"━+ jobs · 2/2 · 100% · 0:0\d in all", bars[0])
    assert re.search(f"━ train · 40/40 · 100% · .* · {LOSSES}", re.sub(r"\x1b\[[0-9;]*m", "", text))


@pytest.mark.slow
def test_in_a_log_file_it_is_few_plain_lines():
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True, check=True
    )
    lines = process.stderr.splitlines()
    assert "\x1b" not in process.stderr and "\r" not in process.stderr
    assert len([line for line in lines if "speaks" in line]) == 4
    progress = [line for line in lines if "speaks" not in line]
    expected = [
        r"jobs 0/2 · train · 10/40 · 25% · [\d.]+ steps/s · 0:0\d left · loss 0\.200 .*",
        rf"jobs 0/2 · train · 40/40 · 100% · 0:0\d in all · {LOSSES}",
        r"jobs 1/2 · train · 10/40 · 25% · [\d.]+ steps/s · 0:0\d left · loss 0\.200 .*",
        rf"jobs 1/2 · train · 40/40 · 100% · 0:0\d in all · {LOSSES}",
        r"jobs · 2/2 · 100% · 0:0\d in all",
    ]
    assert len(progress) == len(expected)
    for line, pattern in zip(progress, expected, strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.slow
def test_what_a_failed_save_abandons_says_nothing():
    process = subprocess.run(
        [sys.executable, "-c", ABANDONED], stderr=subprocess.PIPE, text=True, check=True
    )
    assert "to be seen" in process.stderr
    assert "Event loop is closed" not in process.stderr


def lines_of(monkeypatch, total, seconds_per_step, start=0, **settings):
    """What a loop prints to a file, with a clock that moves `seconds_per_step` a step."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    with Progress(total, start=start, console=rich.console.Console(file=file), **settings) as bar:
        for step in range(start + 1, total + 1):
            clock[0] += seconds_per_step
            bar.update(step)
    return file.getvalue().splitlines()


def test_the_lines_of_a_long_run_thin_out(monkeypatch):
    ten_hours = lines_of(monkeypatch, 36_000, 1.0, interval=10)
    assert 100 < len(ten_hours) < 150
    assert ten_hours[0] == "train · 10/36,000 · 0% · 1 steps/s · 9:59:50 left"
    assert ten_hours[-1] == "train · 36,000/36,000 · 100% · 10:00:00 in all"


def test_what_is_counted_has_a_name(monkeypatch):
    lines = lines_of(monkeypatch, 10, 40.0, name="digits", unit="cell")
    assert lines[1] == "digits · 2/10 · 20% · 40 s/cell · 5:20 left"
    assert "4 cells/s" in lines_of(monkeypatch, 1_000, 0.25, unit="cell")[0]


@jax.jit
def slow(x):
    return jax.lax.fori_loop(0, 300, lambda _, y: jnp.sin(y @ y), x)


@pytest.mark.slow
def test_a_step_that_was_dispatched_is_not_done():
    x = jnp.eye(200)
    slow(x).block_until_ready()
    finished, results = Finished(10), []
    for step in (11, 12, 13):
        results.append(slow(x))
        finished.add(step, results[-1])
    assert finished.step() < 13  # they take a third of a second or so
    for step, result in zip((11, 12, 13), results, strict=True):
        result.block_until_ready()
        assert finished.step() >= step
    assert finished.step() == 13


@pytest.mark.slow
def test_dispatching_does_not_run_far_ahead(monkeypatch):
    """Whoever stops a run waits for what was dispatched: no more than one step if they are slow."""
    monkeypatch.setattr(progress, "LEAD", 0.0)
    x, finished = jnp.eye(200), Finished(0)
    bar = Progress(3, finished=finished, show=False)
    for step in (1, 2, 3):
        finished.add(step, result := slow(x))
        bar.update(step)
        assert finished.step() >= step - 1
    result.block_until_ready()
    assert finished.step() == 3 and "3/3" in bar.status()


def test_rate_and_time_left(monkeypatch):
    lines = lines_of(monkeypatch, 1_000, 0.25, start=600)
    assert lines[0] == "train · 640/1,000 · 64% · 4 steps/s · 1:30 left"
    lines = lines_of(monkeypatch, 10, 40.0)
    assert lines[1] == "train · 2/10 · 20% · 40 s/step · 5:20 left"


def test_the_rate_leaves_out_the_first_step(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    bar = Progress(100, show=False)
    assert bar.rate() is None
    clock[0] = 500.0  # compiling
    bar.update(1)
    clock[0] = 510.0
    bar.update(21)
    assert bar.rate() == 2.0


def test_others_than_the_first_process_show_nothing(monkeypatch):
    assert lines_of(monkeypatch, 100, 10.0, show=False) == []


def test_costs_little_when_nothing_is_shown():
    bar = Progress(10**6, console=rich.console.Console(file=io.StringIO()), interval=1e6)
    fastest = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for step in range(2_000):
            bar.update(step)
        fastest = min(fastest, (time.perf_counter() - began) / 2_000)
    assert fastest < 20e-6


@pytest.mark.parametrize(
    "members, ensemble, text",
    [
        ([0.5], None, "loss 0.500"),
        ([[0.25], [0.75]], 0.25, "loss 0.500 ensemble 0.250 [0.250 0.750]"),
        ([123.4, np.nan], None, "loss nan [123 nan]"),
        (np.arange(1, 12), 6.0, "loss 6.00 ensemble 6.00 [1.00 2.00 3.00 4.00 … 11.0]"),
    ],
)
def test_losses_are_shown_per_member_and_of_the_ensemble(members, ensemble, text):
    assert format_losses(members, ensemble) == text


def test_durations():
    assert [duration(s) for s in (0.4, 9, 754, 3723)] == ["0:00", "0:09", "12:34", "1:02:03"]
