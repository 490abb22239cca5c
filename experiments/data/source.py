"""Random access to examples: what every data set looks like to training and evaluation."""

import dataclasses
import inspect
import logging
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data import augment, from_tfds, images, labels
from experiments.data.fields import check_fields
from experiments.data.normalisation import check_finite, per_example, statistics_of
from experiments.data.order import LABELS, philox
from experiments.data.own import OWN
from experiments.data.splits import UNBOUNDED, Dataset, Range
from uncertainty.build import ConfigError, nearest

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The examples of one split, and how they are normalised.

    What leaves `gather` is (raw - mean) / std, where raw is in [0, 1] for images that have a range
    (`images`), bytes over 255, and as stored otherwise; targets of regression are
    (y - y_mean) / y_std, so that the error in the stored unit is y_std times as large and the NLL
    larger by sum(log y_std).
    """

    name: str
    x: Any  # [N, ...] array, or `from_tfds.Records`
    y: Any  # [N] int32 or [N, K] float32, already normalised; None where x is Records
    classes: int | None  # None: regression
    outputs: int  # K
    mean: np.ndarray | None = None  # of the shape of an example; None is 0
    std: np.ndarray | None = None  # likewise; None is 1
    y_mean: np.ndarray | None = None  # [K]
    y_std: np.ndarray | None = None  # [K]
    transform: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # raw x, indices
    range: Range = None  # of images, as stored
    measured: bool = False  # whether it is that of the training data, and others may be beyond it
    class_names: tuple[str, ...] | None = None
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # as in `Dataset`
    notes: tuple[str, ...] = ()  # what its spec has it read otherwise than the training data
    labelled: bool = True  # False: y is 0, whatever is stored
    file: str = ""  # that it was read from

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

    @property
    def title(self) -> str:
        """The name, with that of its file."""
        name, mark, rest = self.name.partition("/" if "/" in self.name and self.file else "[")
        return f"{name} {self.file}{mark}{rest}" if self.file else self.name

    @property
    def in_unit_range(self) -> bool:
        """Whether these are images whose values before normalisation are in [0, 1]."""
        return len(self.shape) == 3 and self.range != UNBOUNDED

    def raw(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """x [B, ...] float32 before normalisation, and y.

        Raises:
          ValueError: an example of a set on disk is one that `check` refuses.
        """
        if isinstance(self.x, np.ndarray):
            x, y = self.x.take(indices, axis=0), self.y.take(indices, axis=0)  # copies
        else:
            x, y = self.x.gather(indices)
            y = y if self.labelled else np.zeros(len(x), np.int32)
            _check_values(self, x, y, indices)
            y = _targets(y, self.classes, self.y_mean, self.y_std)
        x = images.in_units(x, self.range, clip=self.measured)
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

    def digest(self) -> str:
        """Eight hexadecimal digits that tell these examples from others.

        A CRC-32 of inputs and labels as they are stored; of a set that is not in memory, of its
        size and its first and last example.
        """
        x, y = self.x, self.y
        if not isinstance(x, np.ndarray):
            x, y = x.gather(np.array([0, len(x) - 1]))
            y = np.zeros(0) if y is None else y
        elif self.y_mean is not None:
            y = np.asarray(y * self.y_std + self.y_mean, np.float32)
        crc = zlib.crc32(repr((self.x.shape, x.dtype, self.classes)).encode())
        for array in (x, y):
            crc = zlib.crc32(np.ascontiguousarray(array), crc)
        return f"{crc:08x}"


def load(
    spec: Mapping[str, Any],
    field: str = "data",
    like: Source | None = None,
    labels: str = labels.OWN,
) -> Source:
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
        range: (low, high), the stored values of images that become 0 and 1 before `mean` and `std`;
          'measured': those of the split `statistics`; 'unbounded': values stay as they are stored,
          and what assumes a range (corruptions, most augmentations) is refused. By default bytes
          have (0, 255) and others must be in [0, 1].
        channels: 'first' for images [C, H, W], 'last' where the shape alone looks like that.
        label_noise: dict(transition=[[...]], seed=0): each label is redrawn once from its row.
      field: where the spec stands in the config, for messages.
      like: the training data of the model that is to see these examples. What the spec leaves open
        is read alike: mean and std, the range of images of the same type, the size of tfds' images
        and the side of the channels. Targets are always in units of the training targets, as the
        model predicts them. What the spec has otherwise stands in `Source.notes`.
      labels: 'own' for those of the set by itself; 'alike' if they are labels or targets of the
        model; 'unused' if they may be of any kind or missing, as in out-of-distribution data.

    Raises:
      ConfigError: an unknown name, field, split, class, or a missing file.
      ValueError: the data is empty, is not finite, has labels outside [0, K), or images outside of
        their range.
    """
    function, name, fields, common = check_spec(spec, field)
    given = {} if name in OWN else {"name": name}
    reading = {} if like is None else like.reading
    if name not in OWN:
        fields = {k: v for k, v in reading.items() if k in ("resize", "size")} | fields
    try:
        try:
            dataset = function(**given, **fields)
        except TypeError as error:
            raise ConfigError(f"{name}({fields}): {error}") from error
        try:
            source = _source(name, dataset, like, labels, **common)
        except (TypeError, IndexError) as error:
            raise ConfigError(f"{name}({common}): {error}") from error
        source = dataclasses.replace(source, file=pathlib.PurePath(fields.get("path", "")).name)
        check(source)
    except ConfigError as error:
        raise ConfigError(f"{field}.{error}") from error
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{field}: {name} does not fit in memory: {error}") from error
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
    like: Source | None = None,
    use: str = labels.OWN,
    *,
    split: str = "train",
    classes: Sequence[int] | None = None,
    mean: Any = None,
    std: Any = None,
    standardise: bool | None = None,
    statistics: str | None = None,
    range: Any = None,
    channels: str | None = None,
    label_noise: Mapping[str, Any] | None = None,
) -> Source:
    given = dict(range=range, channels=channels)
    x, y = dataset.read(split)
    label = f"{name}[{split}]" if "[" not in split else f"{name}/{split}"
    x, channels = images.channels_last(label, x, channels, like)
    in_memory = isinstance(x, np.ndarray)
    if in_memory:
        _check_inputs(label, x)
        x = x if x.dtype in (np.uint8, np.uint16) else np.asarray(x, np.float32)
    if x.shape[0] == 0:
        raise ValueError(f"{label}: the split is empty")
    if like is not None and tuple(x.shape[1:]) != like.shape:
        raise ValueError(f"{label}: inputs of shape {tuple(x.shape[1:])}, but the model was "
                         f"trained on {like.shape}")  # fmt: skip

    def read_statistics() -> tuple[str, np.ndarray, Any]:
        named = statistics or "train"
        try:
            x, y = dataset.read(named)
        except ConfigError as error:
            default = "" if statistics else " (statistics is 'train' unless it is given)"
            raise ConfigError(f"statistics: {error}{default}") from None
        return f"{name}[{named}]", images.channels_last(label, x, channels, like)[0], y

    range, is_measured = images.range_of(label, x, dataset, range, like, read_statistics)
    moments = _moments(dataset, like, mean, std, standardise, statistics, range, read_statistics)
    mean, std = (per_example(v, x.shape[1:], n)
                 for v, n in zip(moments[:2], ("mean", "std"), strict=True))  # fmt: skip
    source = Source(
        label,
        x,
        None,
        None,
        0,
        mean,
        std,
        *moments[2:],
        range=range,
        measured=is_measured,
        reading={**dataset.reading, **({"channels": channels} if channels else {})},
        labelled=use != labels.UNUSED,
    )
    source = dataclasses.replace(source, notes=_notes(source, like, given))
    if not in_memory and (classes is not None or label_noise is not None):
        raise ConfigError("classes: and label_noise need a set that fits in memory "
                          "(field in_memory)")  # fmt: skip
    source = _labelled(source, y, dataset, like, use, classes)
    if label_noise is not None:
        source = dataclasses.replace(source, y=_noisy(source.y, source.classes, label_noise))
    return source


def _moments(
    dataset: Dataset,
    like: Source | None,
    mean: Any,
    std: Any,
    standardise: bool | None,
    statistics: str | None,
    limits: Range,
    read_statistics: Callable[[], tuple],
) -> tuple:
    """mean and std of the inputs, y_mean and y_std: those given, measured, or of `like`."""
    if standardise not in (None, True, False):
        raise ConfigError(f"standardise: {standardise!r}; true or false")
    of_targets = (None, None) if like is None else (like.y_mean, like.y_std)
    wanted = dataset.standardise if standardise is None else standardise
    if mean is not None or std is not None:
        if standardise:
            raise ConfigError("standardise: True, but mean or std is given too")
        return mean, std, *of_targets
    if wanted and (like is None or statistics or (standardise and like.mean is None)):
        where, x, y = read_statistics()
        regression = dataset.classes is None and y is not None
        measured = statistics_of(where, x, y, None if regression else 0, limits)
        return measured if like is None else (*measured[:2], *of_targets)
    if like is not None and standardise is not False:
        return like.mean, like.std, *of_targets
    return None, None, *of_targets


def _labelled(
    source: Source,
    y: Any,
    dataset: Dataset,
    like: Source | None,
    use: str,
    classes: Sequence[int] | None,
) -> Source:
    """The source with labels or targets, for what they are used (`labels`)."""
    label, x = source.name, source.x
    unused = use == labels.UNUSED
    if y is None and not (unused and classes is None):
        raise ValueError(f"{label}: there are no labels")
    if isinstance(x, np.ndarray) and y is not None and len(x) != len(y):
        raise ValueError(f"{label}: {len(x)} inputs but {len(y)} labels")
    if classes is not None:
        k = labels.number_of(label, y, dataset)
        labels.check(label, y, k)
        names = dataset.class_names or tuple(map(str, np.arange(k or 0)))
        x, y, k = _only_classes(x, y, k, classes)
        dataset = dataset._replace(classes=k, class_names=tuple(names[c] for c in classes))
        source = dataclasses.replace(source, x=x)
    if unused:
        k = like.classes if like is not None else 1
        y = np.zeros(len(x), np.int32) if isinstance(x, np.ndarray) else None
        return dataclasses.replace(source, y=y, classes=k, outputs=k or 1)
    if like is not None and use == labels.ALIKE and like.classes is None and dataset.classes == 0:
        dataset = dataset._replace(classes=None)  # whole numbers may be targets
    in_memory = isinstance(x, np.ndarray)
    k, names = labels.classes_of(label, y if in_memory else None, dataset, like, use)
    outputs = k or 1
    if in_memory:
        labels.check(label, y, k)
        outputs = k if k is not None else np.size(y) // len(y)
        y = _targets(y, k, source.y_mean, source.y_std)
    if like is not None and use == labels.ALIKE and outputs != like.outputs:
        raise ValueError(f"{label}: {outputs} targets, but the model was trained on {like.outputs} "
                         f"({like.name})")  # fmt: skip
    y = y if in_memory else None
    return dataclasses.replace(source, y=y, classes=k, outputs=outputs, class_names=names)


COMMON = tuple(
    n for n, p in inspect.signature(_source).parameters.items() if p.kind is p.KEYWORD_ONLY
)


def _check_inputs(label: str, x: np.ndarray) -> None:
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{label}: inputs are {x.dtype}; real numbers are needed")


def _notes(source: Source, like: Source | None, given: Mapping[str, Any]) -> tuple[str, ...]:
    """What is read otherwise than the training data, with the values.

    Args:
      source: so far.
      like: the training data.
      given: fields of its spec that may be otherwise without that being so by default.
    """
    if like is None:
        return ()
    notes = []
    for field, absent in (("mean", 0.0), ("std", 1.0)):
        mine, theirs = (absent if v is None else v for v in (getattr(source, field),
                                                            getattr(like, field)))  # fmt: skip
        if not np.allclose(mine, theirs, rtol=1e-6, atol=1e-7):
            notes.append(f"{field} {_short(mine)} is its own, not that of the training data")
    if given["range"] is not None and source.range != like.range:
        notes.append(f"range {source.range} is its own, not that of the training data")
    if given["channels"] is not None and given["channels"] != like.reading.get("channels"):
        notes.append(f"channels {given['channels']} is its own, not that of the training data")
    return tuple(notes)


def _short(value: np.ndarray | float) -> str:
    """The first of different numbers in the last axis."""
    last = np.asarray(value).reshape(-1, np.shape(value)[-1] if np.shape(value) else 1)[0]
    shown = last if len(np.unique(last)) > 1 else last[:1]
    return " ".join(f"{v:.6g}" for v in shown[:3]) + " ..." * (len(shown) > 3)


def check(source: Source, sample: int = 256) -> None:
    """Refuses data that would fail in training, or worse, not fail.

    Every example of a set in memory is looked at, and the first `sample` of another, whose batches
    are looked at as they are read.

    Raises:
      ValueError: no examples; a value that is not finite (the first example is named); a label
        outside [0, K); images outside of their range.
    """
    if len(source) == 0:
        raise ValueError(f"{source.name}: the split is empty")
    if isinstance(source.x, np.ndarray):
        _check_values(source, source.x, source.y)
    else:
        source.raw(np.arange(min(sample, len(source))))


def _check_values(
    source: Source, x: np.ndarray, y: np.ndarray, indices: np.ndarray | None = None
) -> None:
    check_finite(source.name, x, y, indices)
    if x.ndim == 4:
        images.check(source.name, x, source.range, clipped=source.measured)
    labels.check(source.name, y, source.classes, indices)


def _targets(y, classes: int | None, mean: np.ndarray | None, std: np.ndarray | None):
    if classes is not None:
        return np.asarray(y, np.int32)
    y = np.asarray(y, np.float32).reshape(len(y), -1)
    return y if mean is None else (y - mean) / std


def _only_classes(x, y, k: int | None, classes: Sequence[int]) -> tuple:
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        raise ConfigError(f"classes: {classes!r}; a list of labels is needed")
    if k is None:
        raise ConfigError(f"classes: {list(classes)}, but there are real-valued targets")
    if not all(type(c) is not bool and isinstance(c, int | np.integer) and 0 <= c < k
               for c in classes):  # fmt: skip
        raise ConfigError(f"classes: {list(classes)}; labels must be in [0, {k})")
    if len(set(classes)) != len(classes):
        raise ConfigError(f"classes: {list(classes)}; distinct labels are needed")
    renamed = np.full(k, -1, np.int32)
    renamed[list(classes)] = np.arange(len(classes))
    y = renamed[y]
    return x[y >= 0], y[y >= 0], len(classes)


def _noisy(y: np.ndarray, k: int | None, fields: Mapping[str, Any]) -> np.ndarray:
    if k is None:
        raise ConfigError("label_noise: needs classes")
    if not isinstance(fields, Mapping):
        raise ConfigError(f"label_noise: {fields!r}; dict(transition=[[...]], seed=0)")
    check_fields(_label_noise, fields, "label_noise.", given=("y",))
    return _label_noise(y, **fields)


def _label_noise(y: np.ndarray, transition: Any, seed: int = 0) -> np.ndarray:
    draw = augment.Draw(philox(seed, LABELS), len(y))
    return augment.label_noise({"y": y}, draw, transition=transition)["y"]
