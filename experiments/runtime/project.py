"""Locates the project's files from any working directory."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The package of the programs and configs: '' in a checkout, 'uncertainty.' where it is installed.
PARENT = __name__.removesuffix("experiments.runtime.project")


def name(module: str) -> str:
    """The full name of a module of the project, such as `configs.tables`; others unchanged."""
    first = module.partition(".")[0]
    return PARENT + module if first in ("experiments", "configs") else module


def find(path: str | os.PathLike) -> pathlib.Path:
    """`path` if it exists; otherwise the project's file or directory of this path, if it exists."""
    here = pathlib.Path(path)
    return ROOT / here if not here.exists() and (ROOT / here).exists() else here


def own(path: str | os.PathLike) -> pathlib.Path:
    """The project's file or directory `path` if it exists, else `path` itself."""
    return ROOT / path if (ROOT / path).exists() else pathlib.Path(path)


def default(folder: str) -> str:
    """The default `folder` for output: in the checkout, or here if installed."""
    return str(ROOT / folder) if (ROOT / "setup.py").is_file() else folder
