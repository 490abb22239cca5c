"""Configs: loading, overrides from the command line, and the checks that build nothing."""

import ast
import contextlib
import functools
import importlib.util
import inspect
import json
import logging
import re
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.data import assignment, source
from experiments.data.derived import derived
from experiments.data.splits import check_names
from experiments.evaluators import with_shared
from experiments.experiment.base import base
from experiments.experiment.load import STREAM
from experiments.runtime import project, writers
from experiments.runtime.workdir import renamed
from uncertainty import build
from uncertainty.build import ConfigError, nearest
from uncertainty.specs import imported

logger = logging.getLogger(__name__)

_NAMED = {"backbone", "ensemble", "head", "likelihood", "objective"}  # may be a name alone
# Checked where they are used.
_OPEN = {"mesh", "evaluators", "inference", "optimiser", "pretrained", *_NAMED}
_OPTIONAL = {"data": ("particles", "streams", "validation"), "logging": ("wandb",)}
_AT_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "evaluation.batch_size": 1,
    "evaluation.every": 0,
    "logging.every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
}


def load(path: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of `configs/file.py` or `configs/file.py:arg`, with dotted names overridden.

    A file that does not exist here is looked up in the project. 'package.module' and
    'package.module:arg' are modules of a package of your own, or of the project.

    Raises:
      ConfigError: a file that is missing, not a config, or that raises (with the line); an override
        in a section that the config lacks, or a name whose part lacks fields of the section.
    """
    file, _, arg = path.partition(":")
    config = _called(file, function_of(file, "config", "get_config"), arg)
    apply(config, overrides or {})
    return config


def function_of(file: str, field: str, name: str) -> Callable:
    """The function `name` of 'folder/file.py' or of 'package.module', from any directory.

    Args:
      file: a file, here or in the project, or a module.
      field: what it is, for messages.
      name: such as 'get_config'.

    Raises:
      ConfigError: no such file or module, or it fails or has no such function.
    """
    project.alias()
    location = project.find(file)
    if not location.is_file() and "/" not in file and not file.endswith(".py") and "." in file:
        return imported(file, field, name)
    if not location.is_file():
        files = location.parent.glob("*.py")
        near = [str(p) for p in files if f"def {name}(".encode() in p.read_bytes()]
        raise ConfigError(f"{field}: no file {file!r}" + (f"; {nearest(file, near)}" * bool(near)))
    if location.suffix != ".py":
        raise ConfigError(f"{field}: {file} is not a Python file")
    spec = importlib.util.spec_from_file_location(f"{field}_file", location)
    module = importlib.util.module_from_spec(spec)
    with _reported(file, field, str(location)):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{field}: {file} has no function {name}")
    return function


def apply(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Sets fields by dotted names, in order, see `override`.

    Raises:
      ConfigError: see `override`; or a field that belongs to a part of another name.
    """
    named = {name: _name_at(config, name) for name in overrides}
    for name, value in overrides.items():
        override(config, name, value)
    for name, former in named.items():
        if former is not None and former != _name_at(config, name):
            _check_renamed(config, name, former, overrides)


def _called(file: str, get_config: Callable, arg: str) -> ConfigDict:
    """The result of a file's `get_config`."""
    if arg and not inspect.signature(get_config).parameters:
        raise ConfigError(f"config: {file} takes no options, but has {arg!r} after it")
    with _reported(file, "config", inspect.getsourcefile(get_config) or ""):
        config = get_config(arg) if arg else get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"config: get_config of {file} returns {config!r:.80}, not a ConfigDict")
    return config


@contextlib.contextmanager
def _reported(file: str, field: str, location: str) -> Iterator[None]:
    """Errors of a user's file as ConfigErrors with its line."""
    try:
        yield
    except ConfigError:
        raise
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise ConfigError(f"{field}: {where}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == location]
        where = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"{field}: {file}{where}: {type(error).__name__}: {error}") from error


def _name_at(config: ConfigDict, name: str) -> str | None:
    """The current name in a section, for the dotted name `section.name`; None for other fields."""
    *parents, last = name.split(".")
    for parent in parents:
        config = config.get(parent) if isinstance(config, ConfigDict) else None
    value = config.get("name") if last == "name" and isinstance(config, ConfigDict) else None
    return value if isinstance(value, str) else None


# Where the name in a section is looked up; other sections are checked where they are used.
_PARTS = {
    "backbone": "backbones",
    "ensemble": "ensembles",
    "head": "heads",
    "likelihood": "likelihoods",
    "objective": "objectives",
    "optimiser": "optimisers.optimiser",
    "optimiser.schedule": "optimisers.schedules",
    "inference.direction": "inference.directions",
}


def _check_renamed(
    config: ConfigDict, name: str, former: str, overrides: Mapping[str, Any]
) -> None:
    """Refuses fields of a section that belong to the part that it named before.

    Fields that both parts have, such as head.outputs, are kept with a warning.
    """
    path = name.removesuffix(".name")
    section = config
    for parent in path.split("."):
        section = section[parent]
    valid = _fields_of(path, section.name)
    left = [k for k in section if k != "name" and f"{path}.{k}" not in overrides]
    unknown = [k for k in left if valid is not None and k not in valid]
    if not unknown:
        if left and path in _PARTS:
            fields = ", ".join(f"{k}={plain(section)[k]!r}" for k in left)
            _warn_once(f"config.{path}: {section.name!r} keeps fields of {former!r}: {fields}")
        return
    remaining = {k: v for k, v in plain(section).items() if k not in unknown}
    raise ConfigError(
        f"config.{path}.{unknown[0]}: comes from the config's {path}, which is {former!r}, and "
        f"{section.name!r} has no such field; replace the whole section: "
        f"--config.{path}={shlex.quote(json.dumps(remaining, default=str))}"
    )


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def _fields_of(path: str, name: str) -> set[str] | None:
    """The fields of the part `name` of the section at `path`; None if unknown."""
    try:
        if path in _PARTS:
            valid, _ = build.signature(build.resolve(_PARTS[path], name, path))
            if path == "optimiser":
                own = build.resolve("optimisers.optimiser", "optimiser", path)
                common, _ = build.signature(own)
                valid |= common
            return valid
        if re.match(r"data\.(?!particles)|evaluators\..+\.", path):
            function = source.check_name(name, None, f"{path}.name")
            of_streams = STREAM if path.startswith("data.streams.") else ()
            return {*inspect.signature(function).parameters, *source.COMMON, *of_streams}
    except ConfigError:  # an unknown name is reported where the section is used
        pass
    return None


_WORDS = {"true": True, "false": False, "none": None, "null": None}


class _Words(ast.NodeTransformer):
    """Replaces true, false, none and null by their values, and refuses other names."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id.lower() not in _WORDS:
            raise SyntaxError(f"{node.id!r} needs quotes", ("", 1, node.col_offset + 1, ""))
        return ast.copy_location(ast.Constant(_WORDS[node.id.lower()]), node)

    def visit_Set(self, node: ast.Set) -> ast.AST:
        raise SyntaxError("pairs 'name': value are needed", ("", 1, node.col_offset + 1, ""))


def value_of(text: str, field: str) -> Any:
    """The value of a text on the command line: a literal of Python or JSON, else the text itself.

    `true`, `false`, `none` and `null` may have any case, within lists and dicts too.

    Args:
      text: of the command line.
      field: for the message.

    Raises:
      ConfigError: it begins like a dict, list or tuple but does not parse; the message says where.
    """
    stripped = text.strip()
    if not stripped.startswith(("{", "[", "(")):
        if stripped.lower() in _WORDS:
            return _WORDS[stripped.lower()]
        try:
            return ast.literal_eval(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_Words().visit(ast.parse(stripped, mode="eval")))
    except SyntaxError as error:
        reason = f"{error.msg} (character {error.offset})"
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        reason = str(error).partition(":")[0] or type(error).__name__
    raise ConfigError(
        f"{field}: {text!r} is not a dict or list: {reason}; text that begins so needs quotes"
    )


def override(config: ConfigDict, name: str, value: Any) -> None:
    """Sets the field of a dotted name, which may be new in its section.

    Text is parsed by `value_of`; if the field holds text already, only dicts are parsed.

    Raises:
      ConfigError: an unknown section, or text that does not parse.
    """
    *parents, last = name.split(".")
    if not parents and last not in base():
        raise ConfigError(f"config.{last}: no such section; {nearest(last, base().keys())}")
    section = config
    for i, parent in enumerate(parents):
        if parent not in section:
            path = ".".join(["config", *parents[: i + 1]])
            raise ConfigError(
                f"{path}: no such section; {nearest(parent, section.keys())}; one that is not set "
                f"yet is given whole: --{path}='{{...}}'"
            )
        section = section[parent]
        if not isinstance(section, ConfigDict):
            path = ".".join(["config", *parents[: i + 1]])
            raise ConfigError(f"{path}: {section!r} is not a section and has no field {last!r}")
    if isinstance(value, str):
        former = section.get(last)
        if not isinstance(former, str) or value.lstrip().startswith("{"):
            value = value_of(value, f"config.{name}")
    _check_keys(value, f"config.{name}")
    section[last] = value


def _check_keys(value: Any, field: str) -> None:
    """Refuses dicts whose keys are not field names."""
    if isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_keys(inner, f"{field}[{i}]")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or "." in key:
                raise ConfigError(
                    f"{field}: {key!r} is not a field name; text without a full stop is needed"
                )
            _check_keys(inner, f"{field}.{key}")


def assignments(items: Sequence[str], prefix: str = "") -> dict[str, str]:
    """['a.b=1'] as {'a.b': '1'}, each item after `prefix`.

    Raises:
      ConfigError: an item of another form.
    """
    result = {}
    for item in items:
        name, equals, text = item.removeprefix(prefix).partition("=")
        if not (item.startswith(prefix) and equals and all(name.split("."))):
            raise ConfigError(f"{item!r}: {prefix}field=value is needed")
        result[name] = text
    return result


def plain(config: ConfigDict | Mapping) -> dict[str, Any]:
    """The config as nested dicts of plain values, with current field names and full data sets.

    See `runtime/workdir.py`, RENAMED, `evaluators.with_shared` and `data/derived.py`.
    """
    return derived(with_shared(renamed(_plain(config))))


def _plain(config: ConfigDict | Mapping) -> dict[str, Any]:
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    return {k: _plain(v) if isinstance(v, Mapping | ConfigDict) else v for k, v in config.items()}


def check(config: Mapping[str, Any]) -> None:
    """Refuses unknown sections and settings, and numbers out of range.

    Raises:
      ConfigError: the message names the field, its value and what is allowed.
    """
    defaults = plain(base())
    for section, value in config.items():
        if section not in defaults:
            raise ConfigError(f"config.{section}: no such section; {nearest(section, defaults)}")
        if not isinstance(defaults[section], dict) or (
            section in _NAMED and isinstance(value, str)
        ):
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.{section}: {value!r} is not a dict of fields")
        valid = {*defaults[section], *_OPTIONAL.get(section, ())}
        for field in value:
            if section not in _OPEN and field not in valid:
                raise ConfigError(
                    f"config.{section}.{field}: no such field; {nearest(field, valid)}"
                )
        for field in defaults[section]:
            optional = field in _OPTIONAL.get(section, ())
            if section not in _OPEN and field not in value and not optional:
                raise ConfigError(f"config.{section}.{field}: missing")
    for section in defaults:
        if section not in config:
            raise ConfigError(f"config.{section}: missing; begin with experiment.base.base()")
    for name, least in _AT_LEAST.items():
        section, _, field = name.rpartition(".")
        value = (config[section] if section else config)[field]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"config.{name}: {value!r}; a whole number from {least} is needed")
    for name, value, such in (
        ("data.augment", config["data"]["augment"], '[{"name": "flip"}]'),
        ("sharding", config["sharding"], '[[".*dense0/kernel", [null, "model"]]]'),
    ):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"config.{name}: {value!r}; a list is needed, such as {such}")
    streams = config["data"].get("streams") or {}
    if not isinstance(streams, Mapping):
        raise ConfigError(f"config.data.streams: {streams!r} is not a dict of data sets by name")
    check_names(streams, "config.data.streams")
    assignment.parse(config["data"].get("particles") or "shared", "config.data.particles")
    sets = {name: config["data"].get(name) for name in ("train", "validation")}
    for name, value in (sets | {f"streams.{key}": spec for key, spec in streams.items()}).items():
        value = value or {}
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"config.data.{name}: {value!r} is not a dict of fields, such as "
                '{"name": "digits", "split": "train"}; '
                f"to change the name alone, set data.{name}.name"
            )
    seed, logging = config["seed"], config["logging"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"config.seed: {seed!r}; a whole number in [0, 2^32) is needed")
    if config["on_fault"] not in ("stop", "freeze"):
        raise ConfigError(f"config.on_fault: {config['on_fault']!r}; 'stop' or 'freeze'")
    if not isinstance(logging["tensorboard"], bool):
        raise ConfigError(f"config.logging.tensorboard: {logging['tensorboard']!r}; true or false")
    writers.check_wandb(logging.get("wandb", False))
    steps = logging["profile"]
    if not (isinstance(steps, list | tuple) and all(isinstance(s, int) for s in steps)) or not (
        len(steps) == 0 or (len(steps) == 2 and 0 <= steps[0] <= steps[1])
    ):
        raise ConfigError(f"config.logging.profile: {steps!r}; (first step, last step) or ()")
