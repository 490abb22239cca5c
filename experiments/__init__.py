"""Programs, and their data, files and devices, around the pure library `uncertainty`.

`load_run(workdir)` gives a trained run, to predict arrays from Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.runs import Run, load_run

__all__ = ["Run", "load_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.runs"), name)
