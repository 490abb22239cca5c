"""From names and fields to objects: the only place that knows how a config becomes a program.

`name='file.Attr'` in the section `heads` is `uncertainty/heads/file.py`, attribute `Attr`; a bare
`name='file'` is `file.file`. There is nothing to register. A nested dict with a `name` makes a
factory: an initialiser where the field ends in `_init`, else a layer of `uncertainty/layers`.
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from uncertainty import optimisers
from uncertainty.model import from_network
from uncertainty.types import Inference, Model


class ConfigError(ValueError):
    """A config that cannot be built: names the field, the value and what is allowed."""


def nearest(word: str, valid: typing.Iterable[str]) -> str:
    """`did you mean 'a'? (valid: a, b, c)`."""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(word), valid, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}(valid: {', '.join(valid)})"


def resolve(section: str, name: Any, field: str) -> Callable:
    """The class or function that `name` stands for in `uncertainty/<section>`.

    Raises:
      ConfigError: there is no such file or attribute; the message lists the nearest names.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{field}.name: {name!r} is not a name")
    package = importlib.import_module(f"uncertainty.{section}")
    if hasattr(package, "__path__"):
        file, _, attribute = name.partition(".")
        files = [m.name for m in pkgutil.iter_modules(package.__path__)]
        if file not in files:
            raise ConfigError(f"{field}.name: no file {file!r} in uncertainty/{section}; "
                              + nearest(file, files))  # fmt: skip
        module = importlib.import_module(f"{package.__name__}.{file}")
        attribute = attribute or file
    else:
        module, attribute = package, name
    public = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }
    if attribute not in public:
        raise ConfigError(f"{field}.name: {module.__name__} has no {attribute!r}; "
                          + nearest(attribute, public))  # fmt: skip
    return public[attribute]


def make(section: str, spec: Any, field: str, **given: Any) -> Any:
    """Calls what `spec['name']` stands for with the other fields of `spec` and with `given`.

    Args:
      section: a package or module of `uncertainty`.
      spec: a mapping with `name` and fields, or a name alone.
      field: where `spec` stands in the config, for messages.
      **given: arguments that are objects already; `spec` cannot set them.

    Raises:
      ConfigError: an unknown name or field, a missing field, a value of the wrong type, or one that
        the callee refuses.
    """
    target, fields = _parse(section, spec, field, given)
    try:
        return target(**fields, **given)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {error}") from error


def partial(section: str, spec: Any, field: str, given: tuple[str, ...] = ()) -> Callable:
    """Like `make`, but waits for the arguments named in `given`."""
    target, fields = _parse(section, spec, field, dict.fromkeys(given))
    return functools.partial(target, **fields)


def network(config: Mapping[str, Any]) -> nn.Module:
    """The Flax network of a config's `backbone`, `ensemble` and `head`."""
    return make(
        "ensembles",
        config["ensemble"],
        "ensemble",
        backbone=make("backbones", config["backbone"], "backbone"),
        head=make("heads", config["head"], "head"),
    )


def model(config: Mapping[str, Any]) -> Model:
    """The Model of a config's `backbone`, `ensemble`, `head` and `likelihood`."""
    return from_network(network(config), make("likelihoods", config["likelihood"], "likelihood"))


def optimiser(config: Mapping[str, Any]) -> Any:
    """The optax transformation of a config's `optimiser`, over its `steps`."""
    fields = dict(config["optimiser"])
    schedule_spec = fields.pop("schedule", "constant")
    common, _ = _signature(optimisers.optimiser)
    common -= {"direction", "schedule"}
    own = {key: fields.pop(key) for key in list(fields) if key in common}
    schedule = make("schedules", schedule_spec, "optimiser.schedule", total_steps=config["steps"])
    direction_fn = resolve("optimisers", fields.get("name"), "optimiser")
    unknown = set(fields) - {"name"} - _signature(direction_fn)[0]
    if unknown:
        valid = common | {"name", "schedule"} | _signature(direction_fn)[0]
        raise _unknown_field("optimiser", sorted(unknown)[0], valid)
    direction = make("optimisers", fields, "optimiser")
    _check_types(optimisers.optimiser, own, "optimiser")
    missing = {"learning_rate"} - set(own)
    if missing:
        raise ConfigError("optimiser.learning_rate: missing")
    try:
        return optimisers.optimiser(direction, schedule=schedule, **own)
    except ValueError as error:
        raise ConfigError(f"optimiser.{error}") from error


def schedule(config: Mapping[str, Any]) -> Callable:
    """step -> learning rate, as the optimiser of this config uses it."""
    spec = dict(config["optimiser"]).get("schedule", "constant")
    multiple = make("schedules", spec, "optimiser.schedule", total_steps=config["steps"])
    return lambda step: config["optimiser"]["learning_rate"] * multiple(step)


def inference(config: Mapping[str, Any]) -> Inference:
    """The Inference of a whole config (plain dicts, not ConfigDicts)."""
    spec = dict(config["inference"])
    given = {}
    if "direction" in spec:
        given["direction"] = partial(
            "inference", spec.pop("direction"), "inference.direction", ("over", "accumulate")
        )
    return make(
        "inference", spec, "inference", model=model(config), optimiser=optimiser(config), **given
    )


def _parse(section: str, spec: Any, field: str, given: Mapping) -> tuple[Callable, dict]:
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ConfigError(f"{field}: {spec!r} is neither a name nor a dict with one")
    target = resolve(section, spec["name"], field)
    valid, required = _signature(target)
    fields = {key: value for key, value in spec.items() if key != "name"}
    for key in fields:
        if key not in valid - set(given):
            raise _unknown_field(field, key, valid - set(given))
    for key in required:
        if key not in fields and key not in given:
            raise ConfigError(f"{field}.{key}: missing; {target.__name__} needs it")
    _check_types(target, fields, field)
    return target, {key: _nested(value, f"{field}.{key}") for key, value in fields.items()}


def _nested(value: Any, field: str) -> Any:
    """Factories for nested specs; tuples for lists, since Flax modules must be hashable."""
    if isinstance(value, Mapping) and "name" in value:
        if field.endswith("_init"):
            return _initialiser(value, field)
        required = _signature(resolve("layers", value["name"], field))[1]
        return partial("layers", value, field, tuple(required - set(value)))
    if isinstance(value, Mapping):
        return {key: _nested(v, f"{field}.{key}") for key, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_nested(v, f"{field}[{i}]") for i, v in enumerate(value))
    return value


def _initialiser(spec: Mapping[str, Any], field: str) -> Callable:
    found = getattr(nn.initializers, str(spec["name"]), None)
    if found is None:
        valid = [name for name in dir(nn.initializers) if not name.startswith("_")]
        raise ConfigError(f"{field}.name: no initialiser; {nearest(spec['name'], valid)}")
    try:
        return found(**{key: value for key, value in spec.items() if key != "name"})
    except TypeError as error:
        raise ConfigError(f"{field}: {error}") from error


def _signature(target: Callable) -> tuple[set[str], set[str]]:
    """The names of all arguments, and of those without a default."""
    parameters = inspect.signature(target).parameters
    names = set(parameters) - {"parent", "self"}
    if inspect.isclass(target) and issubclass(target, nn.Module):
        names -= {"name"}
    required = {n for n in names if parameters[n].default is inspect.Parameter.empty}
    return names, required


def _unknown_field(field: str, key: str, valid: typing.Iterable[str]) -> ConfigError:
    return ConfigError(f"{field}.{key}: no such field; {nearest(key, valid)}")


def _check_types(target: Callable, fields: Mapping[str, Any], field: str) -> None:
    init = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(target if inspect.isclass(target) else init)
    except (NameError, TypeError):
        return
    for key, value in fields.items():
        if key in hints and not _fits(value, hints[key]):
            expected = getattr(hints[key], "__name__", None) or str(hints[key])
            raise ConfigError(f"{field}.{key}: {value!r} is a {type(value).__name__}; "
                              f"{expected} is needed")  # fmt: skip


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config's value can stand for a type hint; True where that cannot be told."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if origin in (tuple, list) or str(hint).startswith("collections.abc.Sequence"):
        return isinstance(value, list | tuple)
    return value is not None or hint is typing.Any
