"""Random access to examples: what every data set looks like to training and evaluation."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data import augment, embedded, files, from_tfds
from experiments.data.fields import check_fields
from experiments.data.normalisation import check_finite, per_example, statistics_of
from experiments.data.order import LABELS, philox
from experiments.data.splits import Dataset
from uncertainty.build import ConfigError, nearest

OWN = {
    name: function
    for module in (embedded, files)
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and inspect.signature(function).return_annotation is Dataset
    and not name.startswith("_")
}


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The examples of one split, and how they are normalised.

    What leaves `gather` is (raw - mean) / std, where raw is in [0, 1] for images of bytes and as
    stored otherwise; targets of regression are (y - y_mean) / y_std, so that the error in the
    stored unit is y_std times as large and the NLL larger by sum(log y_std).
    """

    name: str
    x: Any  # [N, ...] array of uint8 or float32, or `from_tfds.Records`
    y: Any  # [N] int32 or [N, K] float32, already normalised; None where x is Records
    classes: int | None  # None: regression
    outputs: int  # K
    mean: np.ndarray | None = None  # of the shape of an example; None is 0
    std: np.ndarray | None = None  # likewise; None is 1
    y_mean: np.ndarray | None = None  # [K]
    y_std: np.ndarray | None = None  # [K]
    transform: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # raw x, indices

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example: [H, W, C] or [D]."""
        return tuple(self.x.shape[1:])

    @property
    def task(self) -> str:
        """'classification' or 'regression'."""
        return "regression" if self.classes is None else "classification"

    def raw(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """x [B, ...] float32 before normalisation, and y."""
        if isinstance(self.x, np.ndarray):
            x, y = self.x.take(indices, axis=0), self.y.take(indices, axis=0)  # copies
        else:
            x, y = self.x.gather(indices)
            y = _targets(y, self.classes, self.y_mean, self.y_std)
        if x.dtype == np.uint8:
            x = np.divide(x, np.float32(255), dtype=np.float32)
        elif x.dtype != np.float32:
            x = x.astype(np.float32)
        if self.transform is not None:
            x = self.transform(x, indices)
        return {"x": x, "y": y}

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """(x - mean) / std, in place."""
        if self.mean is not None:
            x -= self.mean
        if self.std is not None:
            x /= self.std
        return x

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """x [B, ...] float32, normalised, and y: int32 [B] or float32 [B, K]."""
        batch = self.raw(indices)
        batch["x"] = self.normalise(batch["x"])
        return batch


def load(spec: Mapping[str, Any], field: str = "data") -> Source:
    """The split of a data set that a config describes.

    Args:
      spec: `name`, the fields of that set (arguments of the function of this name in `embedded` or
        `files`, of `from_tfds.tfds` for any other name), and for every set
        split: 'train' by default; slices and sums as in tfds.
        classes: keep these classes only, relabelled 0, 1, ... in the order given.
        mean, std: numbers or one per channel or feature, subtracted and divided by.
        standardise: take mean and std, also of regression targets, from the split `statistics`;
          by default True for scikit-learn's tables and False for all else.
        statistics: 'train' by default.
        label_noise: dict(transition=[[...]], seed=0): each label is redrawn once from its row.
      field: where the spec stands in the config, for messages.

    Raises:
      ConfigError: an unknown name, field, split, class, or a missing file.
      ValueError: the data is empty, is not finite, or has labels outside [0, K).
    """
    function, name, fields, common = check_spec(spec, field)
    given = {} if name in OWN else {"name": name}
    try:
        try:
            dataset = function(**given, **fields)
        except TypeError as error:
            raise ConfigError(f"{name}({fields}): {error}") from error
        source = _source(name, dataset, **common)
        check(source)
    except ConfigError as error:
        raise ConfigError(f"{field}.{error}") from error
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    return source


def check_spec(spec: Mapping[str, Any], field: str = "data") -> tuple[Callable, str, dict, dict]:
    """Whether there is such a set and it can have these fields; no file is read.

    Returns:
      The function that makes the Dataset, the set's name, the fields of the function, and those
      that every set has.

    Raises:
      ConfigError: no name or an unknown one, an unknown field, or a missing one.
    """
    if not hasattr(spec, "keys"):
        raise ConfigError(f"{field}: {spec!r} is not a dict of fields, such as "
                          '{"name": "digits", "split": "train"}')  # fmt: skip
    fields = dict(spec)
    name = fields.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{field}.name: {name!r} is not a name; {nearest('', OWN)}, or one of "
                          "tfds")  # fmt: skip
    common = {key: fields.pop(key) for key in COMMON if key in fields}
    function = OWN.get(name, from_tfds.tfds)
    given = () if name in OWN else ("name",)
    if name not in OWN:
        from_tfds.check_name(name, fields.get("data_dir"), f"{field}.name")
    check_fields(function, fields, f"{field}.", given=given, also=COMMON)
    return function, name, fields, common


def _source(
    name: str,
    dataset: Dataset,
    split: str = "train",
    classes: Sequence[int] | None = None,
    mean: Any = None,
    std: Any = None,
    standardise: bool | None = None,
    statistics: str = "train",
    label_noise: Mapping[str, Any] | None = None,
) -> Source:
    x, y = dataset.read(split)
    label = f"{name}[{split}]" if "[" not in split else f"{name}/{split}"
    in_memory = isinstance(x, np.ndarray)
    k = dataset.classes
    if k == 0:
        k = int(np.max(y, initial=0)) + 1
    y_mean = y_std = None
    if dataset.standardise if standardise is None else standardise:
        if mean is not None or std is not None:
            raise ConfigError("standardise: True, but mean or std is given too")
        mean, std, y_mean, y_std = statistics_of(
            f"{name}[{statistics}]", *dataset.read(statistics), k
        )
    mean, std = (per_example(v, x.shape[1:], n) for v, n in ((mean, "mean"), (std, "std")))
    if not in_memory:
        if classes is not None or label_noise is not None:
            raise ConfigError("classes: and label_noise need a set that fits in memory "
                              "(field in_memory)")  # fmt: skip
        return Source(label, x, None, k, k or 1, mean, std)
    if len(x) != len(y):
        raise ValueError(f"{label}: {len(x)} inputs but {len(y)} labels")
    _check_labels(label, y, k)
    y = _targets(y, k, y_mean, y_std)
    if classes is not None:
        x, y, k = _only_classes(x, y, k, classes)
    if label_noise is not None:
        y = _noisy(y, k, **label_noise)
    x = x if x.dtype == np.uint8 else np.asarray(x, np.float32)
    outputs = k if k is not None else y.shape[1]
    return Source(label, x, y, k, outputs, mean, std, y_mean, y_std)


COMMON = tuple(inspect.signature(_source).parameters)[2:]


def check(source: Source, sample: int = 256) -> None:
    """Refuses data that would fail in training, or worse, not fail.

    Every example of a set in memory is looked at, and the first `sample` of another.

    Raises:
      ValueError: no examples; a value that is not finite (the first example is named); a label
        outside [0, K).
    """
    if len(source) == 0:
        raise ValueError(f"{source.name}: the split is empty")
    x, y = source.x, source.y
    if not isinstance(x, np.ndarray):
        batch = source.raw(np.arange(min(sample, len(source))))
        x, y = batch["x"], batch["y"]
    check_finite(source.name, x, y)
    _check_labels(source.name, y, source.classes)


def _check_labels(name: str, y: np.ndarray, classes: int | None) -> None:
    if classes is None:
        return
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(f"{name}: labels are {y.dtype} {list(y.shape)}; integers [N] are needed")
    bad = np.flatnonzero((y < 0) | (y >= classes))
    if len(bad):
        raise ValueError(f"{name}: label {y[bad[0]]} of example {bad[0]} is not in [0, {classes})")


def _targets(y, classes: int | None, mean: np.ndarray | None, std: np.ndarray | None):
    if classes is not None:
        return np.asarray(y, np.int32)
    y = np.asarray(y, np.float32).reshape(len(y), -1)
    return y if mean is None else (y - mean) / std


def _only_classes(x, y, k: int | None, classes: Sequence[int]) -> tuple:
    if k is None or not classes or len(set(classes)) != len(classes):
        raise ConfigError(f"classes: {list(classes)}; distinct labels are needed")
    if not all(isinstance(c, int | np.integer) and 0 <= c < k for c in classes):
        raise ConfigError(f"classes: {list(classes)}; labels must be in [0, {k})")
    renamed = np.full(k, -1, np.int32)
    renamed[list(classes)] = np.arange(len(classes))
    y = renamed[y]
    return x[y >= 0], y[y >= 0], len(classes)


def _noisy(y: np.ndarray, k: int | None, transition: Any, seed: int = 0) -> np.ndarray:
    if k is None:
        raise ConfigError("label_noise: needs classes")
    draw = augment.Draw(philox(seed, LABELS), len(y))
    return augment.label_noise({"y": y}, draw, transition=transition)["y"]
