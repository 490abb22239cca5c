"""The data sets that do not need tfds, by their names in configs."""

import inspect

from experiments.data import cifar, embedded, files
from experiments.data.splits import Dataset

OWN = {
    name: function
    for module in (cifar, embedded, files)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and inspect.signature(function).return_annotation is Dataset
    and not name.startswith("_")
}
