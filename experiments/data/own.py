"""The data sets that do not need tfds, by their names in configs."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping

from experiments.data import cifar, embedded, files
from experiments.data.splits import Dataset


def _of(module: object) -> dict[str, Callable[..., Dataset]]:
    """The functions of a module that make a Dataset."""
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and inspect.signature(function).return_annotation is Dataset
        and not name.startswith("_")
    }


EMBEDDED, FILES = _of(embedded), _of(files) | _of(cifar)
# Modules that are imported when one of their sets is asked for.
GENERATED = {
    "linear_and_slabs": "shortcuts",
    "predictive_and_available": "shortcuts",
    "sprites": "sprites",
}
MADE_OF_OTHERS = {"dominoes": "blocks", "turned": "turned"}


class _Sets(Mapping[str, Callable[..., Dataset]]):
    """name -> function that makes the Dataset."""

    _later = GENERATED | MADE_OF_OTHERS

    def __getitem__(self, name: str) -> Callable[..., Dataset]:
        if name in self._later:
            module = importlib.import_module(f"{__package__}.{self._later[name]}")
            return getattr(module, name)
        return (EMBEDDED | FILES)[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*EMBEDDED, *FILES, *self._later))

    def __len__(self) -> int:
        return len(list(iter(self)))


OWN = _Sets()


def needs_no_file(name: str) -> bool:
    """Whether a data set of this name is generated, or comes with scikit-learn."""
    return name in EMBEDDED or name in GENERATED
