"""Locates the project's files from any working directory, in a checkout or where it is installed.

An installed copy has the programs in the package `uncertainty`, with configs and results beside
them (setup.py).
"""

import importlib
import importlib.abc
import importlib.util
import os
import pathlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = __name__.removesuffix(".runtime.project")  # the package of the programs
PARENT = PROGRAMS.rpartition("experiments")[0]  # '' in a checkout, 'uncertainty.' if installed
PATH = ROOT.parent if PARENT else ROOT  # from which the packages are imported


def find(path: str | os.PathLike) -> pathlib.Path:
    """`path` if it exists; otherwise the project's file or directory of this path, if it exists."""
    here = pathlib.Path(path)
    return ROOT / here if not here.exists() and (ROOT / here).exists() else here


def own(path: str | os.PathLike) -> pathlib.Path:
    """The project's file or directory `path` if it exists, else `path` itself."""
    return ROOT / path if (ROOT / path).exists() else pathlib.Path(path)


def default(folder: str) -> str:
    """The default `folder` for output: in the checkout, or here if installed."""
    return folder if PARENT else str(ROOT / folder)


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of an installed copy under their names in a checkout."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        ours = name.partition(".")[0] in ("experiments", "configs")
        return importlib.util.spec_from_loader(name, self) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(PARENT + spec.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # which the import has replaced


def alias() -> None:
    """Lets configs of your own import `experiments` from an installed copy too.

    Only names that are found nowhere else are ours. In a checkout nothing changes.
    """
    if PARENT and not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.append(_Alias())
