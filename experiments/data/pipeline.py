"""The augmentations of a config in sequence: the entries that each changes, and views of x.

An augmentation is written for x (and y). `keys` applies it to further entries with the same draws,
so that `dict(name="flip", keys=("x", "segments"))` mirrors an image together with its segmentation.
A view is a new entry with its own draws: `dict(name="view", to="x2", augment=[dict(name="crop")])`
augments the current x into x2, and leaves x unchanged.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.data.augment import IN_UNIT_RANGE, LABELS, NAMES, Batch, Draw
from experiments.data.order import AUGMENT, philox
from experiments.data.splits import check_names
from uncertainty.build import ConfigError, nearest
from uncertainty.specs import check_fields

VIEW = "view"


class Augmentation(NamedTuple):
    """All augmentations of a config, one after the other."""

    run: Callable[..., Batch]  # batch, seed, step, size, rows, particles -> batch
    views: tuple[str, ...]  # the entries that it makes from x, normalised like x


def pipeline(
    specs: Sequence[Mapping[str, Any]],
    classes: int | None,
    field: str = "augment",
    in_unit_range: bool = True,
    names: Collection[str] = ("x", "y"),
) -> Augmentation:
    """The augmentations of a config, one after the other.

    `run(batch, seed, step, size, rows, particles=(0,))` augments the `rows` of a global batch of
    `size`; rows of several particles follow one another, each particle with its own draws.

    Args:
      specs: names and fields, with `keys` for entries other than x (label noise: other than y).
      classes: of the data; None for regression.
      field: where the specs stand in the config, for messages.
      in_unit_range: whether images are in [0, 1].
      names: the entries of a batch.

    Raises:
      ConfigError: an unknown or missing name or field; one of IN_UNIT_RANGE for images that are not
        in [0, 1]; one of LABELS for data without labels; a key that is not an entry.
    """
    stages, names, views = [], list(names), []
    for i, spec in enumerate(specs):
        where, fields = f"{field}[{i}]", _fields(spec, f"{field}[{i}]")
        if fields["name"] == VIEW:
            check_fields(_view, fields, f"{where}.")
            to, of, inner = _view(**fields)
            check_names([to], f"{where}.to")
            if to in names:
                raise ConfigError(f"{where}.to: {to!r} is an entry already; a new name is needed")
            _check_keys((of,), names, f"{where}.of")
            inner = _stages(inner, classes, f"{where}.augment", in_unit_range, ("x",))
            views += [to] if of in ("x", *views) else []
            names.append(to)
            stages.append((of, to, inner))
        else:
            stages.append(_stages([spec], classes, field, in_unit_range, names, i)[0])

    def run(
        batch: Batch,
        seed: int,
        step: int,
        size: int,
        rows: slice = slice(None),
        particles: Sequence[int] = (0,),
    ) -> Batch:
        def draw(stage: int) -> Draw:
            bits = [philox(seed, AUGMENT, step=step, stage=stage + (p << 32)) for p in particles]
            return Draw(*bits, size=size, rows=rows)

        for i, stage in enumerate(stages):
            if isinstance(stage, tuple):
                of, to, inner = stage
                view = {"x": batch[of].copy()}
                for j, one in enumerate(inner):
                    view = one(view, functools.partial(draw, i + (j + 1 << 16)))
                batch = batch | {to: view["x"]}
            else:
                batch = stage(batch, functools.partial(draw, i))
        return batch

    return Augmentation(run, tuple(views))


def _view(*, name: str, to: str, augment: Sequence[Mapping[str, Any]], of: str = "x") -> tuple:
    """The fields of a view."""
    return to, of, augment


def _fields(spec: Any, where: str) -> dict[str, Any]:
    fields = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    if fields.get("name") not in (*NAMES, VIEW):
        name = fields.get("name")
        raise ConfigError(f"{where}.name: {name!r}; {nearest(str(name), (*NAMES, VIEW))}")
    return fields


def _stages(
    specs: Any,
    classes: int | None,
    field: str,
    in_unit_range: bool,
    names: Collection[str],
    first: int = 0,
) -> list[Callable[[Batch, Callable[[], Draw]], Batch]]:
    """One function of a batch and of fresh draws for each spec."""
    if not isinstance(specs, list | tuple):
        raise ConfigError(f"{field}: {specs!r}; a list is needed, such as [{{'name': 'flip'}}]")
    stages = []
    for i, spec in enumerate(specs, first):
        where = f"{field}[{i}]"
        fields = _fields(spec, where)
        name = fields.pop("name")
        if name == VIEW:
            raise ConfigError(
                f"{where}.name: a view within a view; list the two one after the other"
            )
        if name in IN_UNIT_RANGE and not in_unit_range:
            raise ConfigError(
                f"{where}.name: {name!r} needs images that have a range; "
                "declare it in the data: range=(low, high)"
            )
        extra = {}
        if "classes" in inspect.signature(NAMES[name]).parameters:
            if classes is None:
                raise ConfigError(f"{where}: {name} needs classes, but these data have none")
            extra["classes"] = classes
        if name in LABELS and "y" not in names:
            raise ConfigError(f"{where}.name: {name!r} changes labels, but these data have none")
        acts_on = "y" if name == "label_noise" else "x"
        keys = fields.pop("keys", (acts_on,))
        _check_keys(keys, names, f"{where}.keys")
        check_fields(NAMES[name], fields, f"{where}.", ("batch", "draw", *extra), also=("keys",))
        function = functools.partial(NAMES[name], **fields, **extra)
        stages.append(functools.partial(_on_keys, function, acts_on, tuple(keys)))
    return stages


def _on_keys(
    function: Callable, acts_on: str, keys: tuple[str, ...], batch: Batch, draw: Callable
) -> Batch:
    """Applies `function` to each of `keys` in place of its `acts_on`, with the same draws.

    Its other changes, such as those of labels, are the same each time.
    """
    if keys == (acts_on,):
        return function(batch, draw())
    changed = {}
    for key in keys:
        out = function(batch | {acts_on: batch[key]}, draw())
        changed |= {k: v for k, v in out.items() if k not in (*keys, acts_on)}
        changed[key] = out[acts_on]
    return batch | changed


def _check_keys(keys: Any, names: Collection[str], field: str) -> None:
    if isinstance(keys, str) or not isinstance(keys, Sequence) or not keys:
        raise ConfigError(f"{field}: {keys!r}; a list of entries such as ['x']")
    for key in keys:
        if key not in names:
            raise ConfigError(f"{field}: {key!r}; {nearest(str(key), names)}")
