"""Files that somebody or something has damaged."""

import pathlib
from collections.abc import Callable
from typing import Any


def readable(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
    """What `read` finds in a file.

    Raises:
      ValueError: whatever went wrong, in one line that names the file: readers of archives and
        nested text have many ways to fail on bytes that nobody wrote.
    """
    try:
        return read(path)
    except Exception as error:
        reason = " ".join(f"{error}".replace(str(path), "").split()) or type(error).__name__
        raise ValueError(f"{path} is damaged: {reason[:200]}") from error
