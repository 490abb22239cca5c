"""The first signal asks, the second interrupts."""

import signal
import subprocess
import sys
import threading

import pytest

from experiments.runtime.termination import Interrupted, graceful_termination


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_only_asks(number):
    former = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with graceful_termination() as stop:
        assert not stop.requested and stop.signal is None
        signal.raise_signal(number)
        assert stop.requested and stop.signal == number.name
        signal.raise_signal(signal.SIGTERM)  # asked already
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {n: signal.getsignal(n) for n in former} == former


def test_the_exit_status_is_that_of_a_program_which_the_signal_ended():
    for number in (signal.SIGTERM, signal.SIGINT):
        shell = subprocess.run(
            ["sh", "-c", f"sh -c 'kill -{number.value} $$'; exit $?"],
            # In a shell's background jobs SIGINT is ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert Interrupted("stopped", number.name).code == shell.returncode == 128 + number


def test_handlers_are_back_after_an_error():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), graceful_termination():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is former


def test_outside_the_main_thread_nothing_is_changed():
    seen = []

    def run():
        with graceful_termination() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_process_that_is_told_to_stop_finishes_its_step():
    script = (
        "import time\nfrom experiments.runtime.termination import graceful_termination\n"
        "with graceful_termination() as stop:\n    print('running', flush=True)\n"
        "    while not stop.requested:\n        time.sleep(0.01)\n    print('saved')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "saved\n" and process.returncode == 0
