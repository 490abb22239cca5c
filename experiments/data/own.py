"""The data sets that do not need tfds, by their names in configs."""

import inspect

from experiments.data import blocks, cifar, embedded, files, shortcuts, sprites
from experiments.data.splits import Dataset

GENERATED = (embedded, shortcuts, sprites)  # modules of sets that need no file

OWN = {
    name: function
    for module in (*GENERATED, cifar, files, blocks)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and inspect.signature(function).return_annotation is Dataset
    and not name.startswith("_")
}


def needs_no_file(name: str) -> bool:
    """Whether a data set of this name is generated, or comes with scikit-learn."""
    return name in OWN and OWN[name].__module__ in {module.__name__ for module in GENERATED}
