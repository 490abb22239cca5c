"""The entry of a program: common flags, and errors in one line."""

import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags

from experiments.runtime.buckets import UnavailableError
from experiments.runtime.termination import Interrupted, status

logger = logging.getLogger(__name__)

flags.DEFINE_bool("debug", False, "Show the traceback of an error in the config or the data.")
REPORTED = (ValueError, OSError, FloatingPointError, ImportError)  # in one line


def run(main: Callable[[list[str]], Any]) -> None:
    """`app.run`, with one line in place of a traceback for errors that the user can fix.

    The exit status is that of `code_of`, and 128 + the number of a signal that ended the program.

    `main` gets the program and the arguments that are not absl flags, including
    `--config.field=value`.
    """

    def parse(argv: list[str]) -> list[str]:
        fields = [item for item in argv if item.startswith("--config.")]
        try:
            return flags.FLAGS([item for item in argv if item not in fields]) + fields
        except flags.Error as error:
            fail(str(error))

    def wrapped(argv: list[str]) -> Any:
        try:
            return main(argv)
        except Interrupted as message:
            logger.warning("%s. The same command resumes.", message)
            sys.exit(message.code)
        except REPORTED as error:
            if flags.FLAGS.debug:
                raise
            fail(str(error), code_of(error))
        except KeyboardInterrupt:
            fail("interrupted", code=status("SIGINT"))

    app.run(wrapped, flags_parser=parse)


def code_of(error: BaseException | None) -> int:
    """The exit status of an error: 2, or EX_TEMPFAIL if the same command may succeed later."""
    while error is not None:
        if isinstance(error, UnavailableError):
            return os.EX_TEMPFAIL
        error = error.__cause__
    return 2


def fail(message: str, code: int = 2) -> None:
    """Prints a message on standard error and ends the program."""
    print(f"error: {re.sub(r'^.Errno [0-9]+. ', '', message)}", file=sys.stderr)
    sys.exit(code)
