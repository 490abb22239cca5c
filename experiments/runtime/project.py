"""Where the project's own files are, whatever directory a program is started in."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def find(path: str | os.PathLike) -> pathlib.Path:
    """The file or directory `path` as it is; where there is none, the project's, if it has it."""
    here = pathlib.Path(path)
    return ROOT / here if not here.exists() and (ROOT / here).exists() else here


def own(path: str | os.PathLike) -> pathlib.Path:
    """The project's file or directory `path`, if it has it; else `path` as it is."""
    return ROOT / path if (ROOT / path).exists() else pathlib.Path(path)


def default(folder: str) -> str:
    """Where a program puts things unless told: `folder` of the checkout; of here if installed."""
    return str(ROOT / folder) if (ROOT / "setup.py").is_file() else folder
