"""Arguments of the command line that several programs take."""

import os

from experiments.runtime import storage


def labelled(argument: str) -> tuple[str | None, str]:
    """LABEL, or None without one, and PATH of `[LABEL=]PATH`; either may contain '='.

    An argument that exists as a path is that path. Otherwise the label ends at the first '=' with
    an existing path behind it. A '~' at the start of a path is expanded.

    Raises:
      FileNotFoundError: an argument with '=' of which no reading exists; the message has them all.
      ConfigError: a path that is not valid, see `storage.path`.
    """
    parts = argument.split("=")
    readings = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(len(parts))]
    for label, text in readings:
        text = os.path.expanduser(text)
        if len(parts) == 1 or (text and storage.path(text).exists()):
            return label or None, text
    others = " nor ".join(f"{text!r} with the label {label!r}" for label, text in readings[1:])
    raise FileNotFoundError(f"{argument}: there is neither {argument!r} nor {others}")
