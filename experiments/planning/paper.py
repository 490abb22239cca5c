"""Data sets by their shapes alone: N examples that take no memory, so that no file is needed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.data import assignment
from experiments.data.description import Described
from experiments.data.examples import Source
from experiments.data.labels import ALIKE
from experiments.data.own import needs_no_file
from experiments.data.source import load
from experiments.data.splits import positions
from experiments.experiment.load import STREAM
from uncertainty.build import ConfigError


class Shape(NamedTuple):
    """Of the examples of a set that is not in `SETS`."""

    shape: tuple[int, ...]
    examples: int
    classes: int | None = None  # None: targets
    targets: int = 0


class Known(NamedTuple):
    """A set of tfds."""

    shape: tuple[int | None, ...]  # None: the spec's `size`
    classes: int
    splits: Mapping[str, int]


MNIST = Known((28, 28, 1), 10, dict(train=60_000, test=10_000))
SETS = {
    "mnist": MNIST,
    "fashion_mnist": MNIST,
    "kmnist": MNIST,
    "cifar10": Known((32, 32, 3), 10, dict(train=50_000, test=10_000)),
    "cifar100": Known((32, 32, 3), 100, dict(train=50_000, test=10_000)),
    "svhn_cropped": Known((32, 32, 3), 10, dict(train=73_257, test=26_032, extra=531_131)),
    "imagenet2012": Known((None, None, 3), 1000, dict(train=1_281_167, validation=50_000)),
    "places365_small": Known((None, None, 3), 365, dict(train=1_803_460, validation=36_500)),
}


def described(config: Mapping[str, Any], given: Shape | None = None) -> Described:
    """The data of a config without reading files.

    Args:
      config: of a run, with all its data sets written out (`derived`).
      given: of every set that is neither embedded nor known.

    Raises:
      ConfigError: a set of unknown shape, or a shape that no set needs.
    """
    data = config["data"]
    train = source_of(data["train"], "data.train", given)
    streams = {
        name: source_of(
            {key: value for key, value in spec.items() if key not in STREAM},
            f"data.streams.{name}",
            given,
            like=train,
            labelled=spec.get("labels") == ALIKE,
        )
        for name, spec in (data.get("streams") or {}).items()
    }
    validation = None
    if data.get("validation"):
        validation = source_of(data["validation"], "data.validation", given, like=train)
    _, fields = assignment.parse(data.get("particles") or assignment.SHARED)
    sets = tuple(
        source_of(spec, f"data.particles.sets[{i}]", given, like=train)
        for i, spec in enumerate(fields.get("sets", ()))
    )
    specs = [data["train"], data.get("validation") or None, *(data.get("streams") or {}).values(),
             *fields.get("sets", ())]  # fmt: skip
    if given is not None and all(known_here(str(spec["name"])) for spec in specs if spec):
        raise ConfigError(
            f"shape: not used, since the shape of {data['train']['name']!r} is known; leave it out"
        )
    return Described(train, streams, validation, sets)


def known_here(name: str) -> bool:
    """Whether the shape of a set need not be given."""
    return needs_no_file(name) or name in SETS


def source_of(
    spec: Mapping[str, Any],
    field: str,
    given: Shape | None = None,
    like: Source | None = None,
    labelled: bool = True,
) -> Source:
    """The source of a spec: embedded sets are read, others have their shape alone.

    Raises:
      ConfigError: a set of unknown shape, a split that it lacks.
    """
    name, split = str(spec["name"]), str(spec.get("split", "train"))
    if needs_no_file(name):
        return load(spec, field, like)
    known = SETS.get(name)
    if known is None and given is None:
        raise ConfigError(
            f"{field}: the shape of {name!r} is not known here; give --shape 224,224,3 "
            f"--classes 1000 --examples 1281167, or use one of {', '.join(SETS)}"
        )
    if known is None:
        return blank(name, given, labelled)
    size = spec.get("size")
    shape = tuple(size if side is None else side for side in known.shape)
    if size:
        shape = (size, size, shape[-1])
    if None in shape:
        raise ConfigError(f"{field}.size: needed, since images of {name} differ in size")
    try:
        parts = positions(split, list(known.splits), known.splits.__getitem__)
    except ConfigError as error:
        raise ConfigError(f"{field}.{error}") from error
    classes = spec.get("classes")
    examples = sum(stop - start for _, start, stop in parts)
    if classes is not None:
        examples = examples * len(classes) // known.classes
    of = Shape(shape, examples, known.classes if classes is None else len(classes))
    return blank(f"{name}[{split}]", of, labelled)


def blank(name: str, of: Shape, labelled: bool = True) -> Source:
    """A source of zeros, which has one example in memory; classes are in turn."""
    entries = {"x": np.broadcast_to(np.zeros(of.shape, np.uint8), (of.examples, *of.shape))}
    if len(of.shape) != 3:
        entries["x"] = np.broadcast_to(np.zeros(of.shape, np.float32), (of.examples, *of.shape))
    if labelled and of.classes:
        entries["y"] = np.arange(of.examples, dtype=np.int32) % of.classes
    elif labelled:
        entries["y"] = np.broadcast_to(np.zeros(of.targets, np.float32), (of.examples, of.targets))
    outputs = of.classes or of.targets
    return Source(name, entries, of.classes, outputs, labelled=labelled)


def shape_of(
    shape: Sequence[str] | None, classes: int, targets: int, examples: int
) -> Shape | None:
    """The Shape of the flags --shape, --classes, --targets and --examples; None without any.

    Raises:
      ConfigError: flags that do not make one.
    """
    if not shape:
        if classes or targets or examples:
            raise ConfigError("shape: needed with --classes, --targets and --examples")
        return None
    try:
        sides = tuple(int(side) for side in shape)
    except ValueError:
        sides = (0,)
    if min(sides) < 1:
        raise ConfigError(f"shape: {','.join(shape)!r}; whole numbers such as 224,224,3")
    if bool(classes) == bool(targets) or min(classes, targets) < 0:
        raise ConfigError("shape: needs --classes, or --targets for regression, and not both")
    if examples < 1:
        raise ConfigError(f"examples: {examples}; N, the number of training examples, is needed")
    return Shape(sides, examples, classes or None, targets)
