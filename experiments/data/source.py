"""Loads the examples of a split from a spec of a config."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data import images, labels
from experiments.data.examples import Source, carried_entries, check
from experiments.data.labelled import labelled, with_noise
from experiments.data.normalisation import per_example, statistics_of
from experiments.data.own import OWN
from experiments.data.splits import Dataset, Range, within
from experiments.data.splits import dataset as dataset_of
from uncertainty.build import ConfigError, nearest
from uncertainty.specs import check_fields, imported, is_path


def load(
    spec: Mapping[str, Any],
    field: str = "data",
    like: Source | None = None,
    labels: str = labels.OWN,
) -> Source:
    """Loads the split of a data set that a spec describes.

    Args:
      spec: `name`, the fields of that set (arguments of the function of this name in `embedded` or
        `files`, of 'package.module:function' in a package of your own, see `made`, and of
        `from_tfds.tfds` for any other name), and for every set
        split: 'train' by default; slices and sums as in tfds.
        classes: keep these classes only, relabelled 0, 1, ... in the order given.
        mean, std: numbers or one per channel or feature, subtracted and divided by.
        standardise: take mean and std, also of regression targets, from the split `statistics`;
          by default True for scikit-learn's tables and False for all else.
        statistics: by default the split itself if it is made of parts of 'train' and these are the
          training data (without `like`), such as 'train[:90%]'; else 'train'.
        range: (low, high), the stored values of images that become 0 and 1 before `mean` and `std`;
          'measured': those of the split `statistics`; 'unbounded': values stay as they are stored,
          and what assumes a range (corruptions, most augmentations) is refused. By default bytes
          have (0, 255) and others must be in [0, 1].
        channels: 'first' for images [C, H, W], 'last' for [H, W, C] whose shape is ambiguous.
        label_noise: dict(transition=[[...]], seed=0): each label is redrawn once from its row.
      field: where the spec stands in the config, for messages.
      like: the training data of the model that these examples are for. What the spec leaves open is
        read as they were: mean and std, the range of images of the same type, the size of tfds
        images, the channel axis and the shape of generated sets. Targets are always normalised like
        the training targets, as the model predicts them. Differences that the spec asks for are
        listed in `Source.notes`.
      labels: 'own' for the set's own labels, if it has any; 'alike' if they have to match the
        model's labels or targets; 'unused' if they may be of any kind or missing, as for
        out-of-distribution data, and are left out.

    Raises:
      ConfigError: an unknown name, field, split, class, or a missing file.
      ValueError: data that are empty or not finite, labels outside [0, K), or images outside their
        range.
    """
    function, name, fields, common = check_spec(spec, field)
    reading = {} if like is None else like.reading
    if of_tfds(name):
        fields = {k: v for k, v in reading.items() if k in ("resize", "size")} | fields
    if like is not None and "shape" in inspect.signature(function).parameters:
        fields = {"shape": tuple(like.shape)} | fields  # of generated sets
    try:
        try:
            dataset = _dataset(function, name, fields, field)
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


def _dataset(function: Callable, name: str, fields: Mapping[str, Any], field: str) -> Dataset:
    """The Dataset of a spec, and those of which it is made."""
    fields = dict(fields)
    for key in parts_of(function) & set(fields):
        of_part, part, its_fields, _ = check_spec(fields[key], f"{field}.{key}")
        fields[key] = _dataset(of_part, part, its_fields, f"{field}.{key}")
    arguments = {"name": name} if of_tfds(name) else {}
    return made(function(**arguments, **fields), name)


def parts_of(function: Callable) -> set[str]:
    """The fields of a data set that are data sets themselves, without a split: those of its type.

    Such as the two sets of `blocks.dominoes`.
    """
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.annotation is Dataset}


def of_tfds(name: str) -> bool:
    """Whether a data set of this name is one of tfds."""
    return name not in OWN and not is_path(name)


def made(dataset: Any, name: str) -> Dataset:
    """The Dataset that a function has made, or that of its dict split -> {"x": ..., "y": ...}.

    In a dict, y of whole numbers are the labels of classes, and others are regression targets.

    Raises:
      ConfigError: it is neither.
    """
    if isinstance(dataset, Dataset):
        return dataset
    if not isinstance(dataset, Mapping) or not dataset:
        raise ConfigError(
            f"name: {name!r} returns a {type(dataset).__name__}; a Dataset, or a dict "
            '{"train": {"x": ..., "y": ...}, ...} is needed'
        )
    splits: dict[str, dict[str, np.ndarray]] = {}
    for split, entries in dataset.items():
        if not isinstance(entries, Mapping) or "x" not in entries:
            raise ConfigError(f"name: {name!r}: split {split!r} is not a dict with 'x'")
        splits[split] = {key: np.asarray(value) for key, value in entries.items()}
        sizes = {key: len(value) if value.ndim else 0 for key, value in splits[split].items()}
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"name: {name!r}: entries of {split!r} differ in length: {sizes}")
    labels = [entries["y"] for entries in splits.values() if "y" in entries]
    real = any(y.dtype.kind not in "iu" for y in labels)
    return dataset_of(splits, splits.__getitem__, None if real else 0)


def of_array(x: Any, like: Source, name: str = "x") -> Source:
    """Inputs x [N, ...] without labels, read as the training data were.

    Args:
      x: as the training data are stored: before scaling and normalisation, in their type and axis
        order. Tables may be any real numbers.
      like: the training data.
      name: for messages.

    Raises:
      ValueError: another shape or type, no examples, or values that are not finite or outside the
        range of the training images.
    """
    x = np.asarray(x)
    channels = like.reading.get("channels")
    shape = like.shape
    if channels == "first" and len(shape) == 3:
        shape = shape[-1:] + shape[:-1]
    sizes = ", ".join(map(str, shape))
    if x.shape[1:] != shape or not x.ndim:
        hint = "; x[None] for a single example" if x.shape == shape else ""
        raise ValueError(
            f"{name}: shape {x.shape}; [B, {sizes}] is needed, as {like.name} is stored{hint}"
        )
    stored = np.dtype(like.x.dtype)
    _check_inputs(name, x)
    is_image = len(shape) == 3
    of_kind = x.dtype == stored if stored.kind == "u" else x.dtype.kind == "f"
    if not (of_kind or (stored.kind == "f" and not is_image)):
        raise ValueError(
            f"{name}: {x.dtype}; {stored} is needed, as {like.name} is stored (before any scaling)"
        )
    dataset = Dataset(lambda split: {"x": x}, like.classes, reading=like.reading)
    source = _source(name, dataset, like, labels.UNUSED, channels=channels if is_image else None)
    check(source)
    return source


def check_name(name: str, data_dir: str | None, field: str) -> Callable:
    """The function that makes the Dataset `name`.

    Raises:
      ConfigError: there is no such data set.
    """
    if name in OWN:
        return OWN[name]
    if is_path(name):
        return imported(name, field)
    from experiments.data import from_tfds  # imported only for sets of tfds

    from_tfds.check_name(name, data_dir, field)
    return from_tfds.tfds


def check_spec(spec: Mapping[str, Any], field: str = "data") -> tuple[Callable, str, dict, dict]:
    """Checks that the data set exists and takes these fields; no file is read.

    Returns:
      The function that makes the Dataset, the set's name, the fields of the function, and the
      fields that every set has.

    Raises:
      ConfigError: a missing or unknown name or field.
    """
    if not hasattr(spec, "keys"):
        raise ConfigError(
            f"{field}: {spec!r} is not a dict of fields, such as "
            '{"name": "digits", "split": "train"}'
        )
    fields = dict(spec)
    name = fields.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"{field}.name: {name!r} is not a name; {nearest('', OWN)}, or one of tfds"
        )
    common = {key: fields.pop(key) for key in COMMON if key in fields}
    function = check_name(name, fields.get("data_dir"), f"{field}.name")
    supplied = ("name",) if of_tfds(name) else ()
    check_fields(function, fields, f"{field}.", given=supplied, also=COMMON)
    for key in parts_of(function) & set(fields):
        *_, of_all = check_spec(fields[key], f"{field}.{key}")
        if of_all:
            raise ConfigError(
                f"{field}.{key}.{min(of_all)}: belongs to the whole, {name!r}, not to a part of it"
            )
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
    declared = dict(range=range, channels=channels)
    entries = dataset.read(split)
    label = f"{name}[{split}]" if "[" not in split else f"{name}/{split}"
    in_memory = isinstance(entries, Mapping)
    x, channels = images.channels_last(
        label, entries["x"] if in_memory else entries, channels, like
    )
    if in_memory:
        _check_inputs(label, x)
        x = x if x.dtype in (np.uint8, np.uint16) else np.asarray(x, np.float32)
        entries = carried_entries(label, {**entries, "x": x})
    if x.shape[0] == 0:
        raise ValueError(f"{label}: the split is empty")
    if like is not None and tuple(x.shape[1:]) != like.shape:
        raise ValueError(
            f"{label}: inputs of shape {tuple(x.shape[1:])}, but the model was "
            f"trained on {like.shape}"
        )

    def read_statistics() -> tuple[str, np.ndarray, Any]:
        named = statistics or (split if like is None and within(split, "train") else "train")
        try:
            examples = dataset.read(named)
        except ConfigError as error:
            default = "" if statistics else " (statistics is 'train' unless it is given)"
            raise ConfigError(f"statistics: {error}{default}") from None
        if not isinstance(examples, Mapping):
            return f"{name}[{named}]", examples, None
        x = images.channels_last(label, examples["x"], channels, like)[0]
        return f"{name}[{named}]", x, examples.get("y")

    range, is_measured = images.range_of(label, x, dataset, range, like, read_statistics)
    moments = _moments(dataset, like, mean, std, standardise, statistics, range, read_statistics)
    mean, std = (
        per_example(v, x.shape[1:], n) for v, n in zip(moments[:2], ("mean", "std"), strict=True)
    )
    source = Source(
        label,
        entries,
        None,
        0,
        mean,
        std,
        *moments[2:],
        range=range,
        measured=is_measured,
        reading={**dataset.reading, **({"channels": channels} if channels else {})},
    )
    source = dataclasses.replace(source, notes=_notes(source, like, declared))
    if not in_memory and (classes is not None or label_noise is not None):
        raise ConfigError(
            "classes: and label_noise need a set that fits in memory (field in_memory)"
        )
    source = labelled(source, dataset, like, use, classes)
    return source if label_noise is None else with_noise(source, label_noise)


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
    standardises = dataset.standardise if standardise is None else standardise
    if mean is not None or std is not None:
        if standardise:
            raise ConfigError("standardise: True, but mean or std is given too")
        return mean, std, *of_targets
    if standardises and (like is None or statistics or (standardise and like.mean is None)):
        where, x, y = read_statistics()
        regression = dataset.classes is None and y is not None
        measured = statistics_of(where, x, y, None if regression else 0, limits)
        return measured if like is None else (*measured[:2], *of_targets)
    if like is not None and standardise is not False:
        return like.mean, like.std, *of_targets
    return None, None, *of_targets


COMMON = tuple(
    n for n, p in inspect.signature(_source).parameters.items() if p.kind is p.KEYWORD_ONLY
)


def _check_inputs(label: str, x: np.ndarray) -> None:
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{label}: inputs are {x.dtype}; real numbers are needed")


def _notes(source: Source, like: Source | None, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """What is read differently from the training data, with the values.

    Args:
      source: the data, without notes.
      like: the training data.
      fields: of its spec whose differences are not visible in `source`.
    """
    if like is None:
        return ()
    notes = []
    for field, absent in (("mean", 0.0), ("std", 1.0)):
        mine, theirs = (
            absent if v is None else v for v in (getattr(source, field), getattr(like, field))
        )
        if not np.allclose(mine, theirs, rtol=1e-6, atol=1e-7):
            notes.append(f"{field} {_short(mine)} differs from the training data")
    if fields["range"] is not None and source.range != like.range:
        notes.append(f"range {source.range} differs from the training data")
    if fields["channels"] is not None and fields["channels"] != like.reading.get("channels"):
        notes.append(f"channels {fields['channels']} differs from the training data")
    return tuple(notes)


def _short(value: np.ndarray | float) -> str:
    """The first of the different numbers in the last axis."""
    last = np.asarray(value).reshape(-1, np.shape(value)[-1] if np.shape(value) else 1)[0]
    values = last if len(np.unique(last)) > 1 else last[:1]
    return " ".join(f"{v:.6g}" for v in values[:3]) + " ..." * (len(values) > 3)
