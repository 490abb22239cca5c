"""Builds objects from names and fields; every error names its field.

`name='file.Attr'` in the section `heads` is `uncertainty/heads/file.py`, attribute `Attr`; a bare
`name='file'` is `file.file`. There is nothing to register: `name='package.module:Attr'` is a part
of any package that can be imported. A nested dict with a `name` makes a factory: of an initialiser
if the field ends in `_init`, else of a part in the section given by NESTED, else of a layer of
`uncertainty/layers`.
"""

import collections.abc as abc
import difflib
import functools
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn

# Where the name in a field of a part of a section is looked up.
NESTED = {
    ("heads", "mean"): "heads",
    ("ensembles", "additive"): "backbones",
    ("ensembles", "prior"): "backbones",
    ("inference.directions", "kernel"): "inference.kernels",
    ("inference.directions", "weight_kernel"): "inference.kernels",
    ("inference.directions", "annealing"): "inference.annealing",
    ("inference.directions", "context"): "inference.context",
    ("objectives", "views"): "views",
    ("objectives", "predicted"): "views",
    ("objectives", "symmetry"): "symmetries",
}
# Sections whose factories are called without fields.
COMPLETE = ("inference.kernels", "inference.annealing", "inference.context", "symmetries")
NESTED_FOLDERS = ("layers",)  # sections whose folders are searched too


class ConfigError(ValueError):
    """A config that cannot be built; the message names the field, the value and what is allowed."""


def suggestion(word: str, valid: typing.Iterable[str]) -> str:
    """`did you mean 'a'? `, with the space; empty if no name is near.

    Nearness is difflib's ratio, 2 * (characters in common) / (characters of both), of at least .5.
    A second name is suggested only if its ratio is within .1 of the first's.
    """
    close = difflib.get_close_matches(word, sorted(set(valid)), n=2, cutoff=0.5)
    ratios = [difflib.SequenceMatcher(None, name, word).ratio() for name in close]
    if len(close) == 2 and ratios[1] < ratios[0] - 0.1:
        del close[1]
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""


def nearest(word: str, valid: typing.Iterable[str]) -> str:
    """`did you mean 'a'? (valid: a, b, c)`, see `suggestion`."""
    valid = sorted(valid)
    return f"{suggestion(str(word), valid)}(valid: {', '.join(valid)})"


def is_path(name: Any) -> bool:
    """Whether a name is that of a part of another package, 'package.module:Attr'."""
    return isinstance(name, str) and ":" in name


def imported(name: str, field: str, attribute: str = "") -> Callable:
    """The class or function of 'package.module:Attr', or `attribute` of 'package.module'.

    Raises:
      ConfigError: the module cannot be imported, or it has no such attribute; the message says what
        was tried.
    """
    path, colon, given = name.partition(":")
    attribute = given if colon else attribute
    words = [*path.split("."), *attribute.split(".")]
    if not all(word.isidentifier() for word in words):
        raise ConfigError(f"{field}: {name!r}; a part of your own package is 'package.module:Name'")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if path != missing and not path.startswith(f"{missing}."):
            raise ConfigError(f"{field}: {name!r}: importing {path!r} failed: {error}") from error
        raise ConfigError(
            f"{field}: {name!r}: there is no module {missing!r}; its package has to be "
            "installed, or its folder be on PYTHONPATH or the current one"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{field}: {name!r}: importing {path!r} failed: {type(error).__name__}: {error}"
        ) from error
    target: Any = module
    for word in attribute.split("."):
        if not hasattr(target, word):
            valid = [key for key, value in vars(module).items() if callable(value)]
            raise ConfigError(
                f"{field}: {name!r}: {path!r} ({getattr(module, '__file__', 'no file')}) has "
                f"no {attribute!r}; " + nearest(attribute, [v for v in valid if v[0] != "_"])
            )
        target = getattr(target, word)
    if not callable(target):
        raise ConfigError(
            f"{field}: {name!r} is a {type(target).__name__}; a class or function is needed"
        )
    return target


def resolve(section: str, name: Any, field: str) -> Callable:
    """The class or function `name` in `uncertainty/<section>`, or 'package.module:Attr'.

    Raises:
      ConfigError: there is no such file or attribute; the message lists the nearest names.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{field}.name: {name!r} is not a name")
    if is_path(name):
        return imported(name, f"{field}.name")
    package = importlib.import_module(f"uncertainty.{section}")
    if hasattr(package, "__path__"):
        file, _, attribute = name.partition(".")
        files = _files(package, section in NESTED_FOLDERS)
        if file not in files:
            folder = section.replace(".", "/")
            hint = nearest(file, files)
            if "." in attribute:
                path = ":".join(name.rsplit(".", 1))
                hint += f"; a part of your own package is {path!r}"
            raise ConfigError(f"{field}.name: no file {file!r} in uncertainty/{folder}; {hint}")
        module = importlib.import_module(files[file])
        attribute = attribute or file
    else:
        module, attribute = package, name
    own = getattr(module, "__all__", None)
    public = {
        key: value
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and (key in own if own else value.__module__ == module.__name__ and key[0] != "_")
    }
    if attribute not in public:
        raise ConfigError(
            f"{field}.name: {module.__name__} has no {attribute!r}; " + nearest(attribute, public)
        )
    return public[attribute]


def _files(package: types.ModuleType, folders: bool) -> dict[str, str]:
    """File -> module of a package; with `folders`, including its subfolders."""
    files: dict[str, str] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        if entry.name.startswith("_"):
            continue
        module = f"{package.__name__}.{entry.name}"
        if not entry.ispkg:
            files[entry.name] = module
        elif folders:
            files |= _files(importlib.import_module(module), folders)
    return files


def make(section: str, spec: Any, field: str, **given: Any) -> Any:
    """Calls the class or function `spec['name']` with the other fields of `spec` and with `given`.

    Args:
      section: a package or module of `uncertainty`.
      spec: a mapping with `name` and fields, or a name alone.
      field: the place of `spec` in the config, for messages.
      **given: further arguments, which `spec` cannot set.

    Raises:
      ConfigError: an unknown name or field, a missing field, a value of the wrong type, or a value
        that the callee refuses.
    """
    target, fields = _parse(section, spec, field, given)
    try:
        return target(**fields, **given)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {error}") from error


def partial(section: str, spec: Any, field: str, given: tuple[str, ...] = ()) -> Callable:
    """Like `make`, but returns a factory that takes the arguments named in `given`."""
    target, fields = _parse(section, spec, field, dict.fromkeys(given))
    return functools.partial(target, **fields)


def spec_of(value: Any, field: str) -> dict[str, Any]:
    """`value`, with a name alone expanded to a dict."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ConfigError(f"{field}: {value!r} is neither a name nor a dict with one")
    return dict(value)


def _parse(section: str, spec: Any, field: str, given: Mapping) -> tuple[Callable, dict]:
    spec = spec_of(spec, field)
    target = resolve(section, spec["name"], field)
    valid, required = signature(target)
    fields = {key: value for key, value in spec.items() if key != "name"}
    for key in fields:
        if key not in valid - set(given):
            raise unknown_field(field, key, valid - set(given))
    for key in required:
        if key not in fields and key not in given:
            raise ConfigError(f"{field}.{key}: missing; {target.__name__} needs it")
    check_types(target, fields, field)
    nested = {key: _nested(value, f"{field}.{key}", section) for key, value in fields.items()}
    return target, nested


def _nested(value: Any, field: str, section: str) -> Any:
    """Factories for nested specs; tuples for lists, since Flax modules must be hashable."""
    place = section, field.rpartition(".")[2].partition("[")[0]
    if isinstance(value, str) and place in NESTED:
        value = {"name": value}
    if isinstance(value, Mapping) and "name" in value:
        if field.endswith("_init"):
            return _initialiser(value, field)
        section = NESTED.get(place, "layers")
        valid, required = signature(resolve(section, value["name"], field))
        for key in set(value) - valid - {"name"}:
            raise unknown_field(field, key, valid)
        later = () if section in COMPLETE else tuple(required - set(value))
        return partial(section, value, field, later)
    if isinstance(value, Mapping):
        return {key: _nested(v, f"{field}.{key}", section) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_nested(v, f"{field}[{i}]", section) for i, v in enumerate(value))
    return value


def _initialiser(spec: Mapping[str, Any], field: str) -> Callable:
    makers = {  # not `zeros` and `ones`, which are initialisers themselves
        name: value
        for name, value in vars(nn.initializers).items()
        if inspect.isfunction(value) and "key" not in signature(value)[0]
    }
    maker = makers.get(str(spec["name"]))
    if maker is None:
        raise ConfigError(
            f"{field}.name: no initialiser {spec['name']!r}; " + nearest(spec["name"], makers)
        )
    fields = {key: value for key, value in spec.items() if key != "name"}
    valid = signature(maker)[0]
    for key in fields:
        if key not in valid:
            raise unknown_field(field, key, valid)
    try:
        return maker(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {error}") from error


def signature(target: Callable) -> tuple[set[str], set[str]]:
    """The names of all arguments, and of those without a default."""
    parameters = inspect.signature(target).parameters
    names = set(parameters) - {"parent", "self"}
    if inspect.isclass(target) and issubclass(target, nn.Module):
        names -= {"name"}
    required = {n for n in names if parameters[n].default is inspect.Parameter.empty}
    return names, required


def unknown_field(field: str, key: str, valid: typing.Iterable[str]) -> ConfigError:
    return ConfigError(f"{field}.{key}: no such field; {nearest(key, valid)}")


def check_fields(
    function: Callable,
    fields: Mapping[str, Any],
    field: str = "",
    given: Collection[str] = (),
    also: Collection[str] = (),
) -> None:
    """Refuses fields that `function` does not take, and missing ones.

    Args:
      function: to be called with `fields`.
      fields: of the config.
      field: their place in it, ending with a full stop.
      given: arguments that the caller supplies.
      also: fields that are valid too, for the message.

    Raises:
      ConfigError: names the field and the nearest valid ones.
    """
    parameters = inspect.signature(function).parameters
    valid = set(parameters) - set(given)
    for key in fields:
        if key not in valid:
            raise ConfigError(
                f"{field}{key}: no such field of {function.__name__.strip('_')}; "
                + nearest(key, valid | set(also))
            )
    for key in parameters:
        required = parameters[key].default is inspect.Parameter.empty
        if required and key in valid and key not in fields:
            raise ConfigError(f"{field}{key}: missing; {function.__name__.strip('_')} needs it")


def check_types(target: Callable, fields: Mapping[str, Any], field: str) -> None:
    try:
        hints = typing.get_type_hints(target)
    except (NameError, TypeError):
        return
    for key, value in fields.items():
        if key in hints and not _fits(value, hints[key]):
            raise ConfigError(
                f"{field}.{key}: {value!r} is a {type(value).__name__}; "
                f"{_describe(hints[key])} is needed"
            )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config's value fits a type hint; True if that cannot be determined."""
    kind, of = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in of)
    if kind is type(None):
        return value is None
    if kind in _SCALARS:
        return isinstance(value, _SCALARS[kind]) and (kind is bool or not isinstance(value, bool))
    if kind is abc.Callable:
        return callable(value) or (isinstance(value, Mapping) and "name" in value)
    if kind is abc.Mapping:
        return isinstance(value, Mapping)
    if kind in (tuple, list, abc.Sequence):
        element = of[0] if of and of[0] in _SCALARS else typing.Any
        return isinstance(value, list | tuple) and all(_fits(v, element) for v in value)
    return value is not None or kind is typing.Any


def _describe(hint: Any) -> str:
    kind, of = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, of))
    if kind in (tuple, list, abc.Sequence):
        return f"a list of {_describe(of[0])}" if of and of[0] in _SCALARS else "a list"
    names = {type(None): "None", abc.Callable: "a dict with a name", abc.Mapping: "a dict"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))


_SCALARS = {bool: bool, int: int, float: int | float, str: str}
