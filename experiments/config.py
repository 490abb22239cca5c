"""Configs: loading, fields set from the command line, and the checks that build no object."""

import ast
import importlib.util
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from configs.base import base
from experiments.data.derived import derived
from experiments.termination import Interrupted, status
from uncertainty.build import ConfigError, nearest

logger = logging.getLogger(__name__)

# What may differ when a run is resumed: none of it changes what is trained. Another mesh or
# executor takes sums in another order, and so changes rounding.
MAY_CHANGE = (
    "logging.*", "checkpoint.*", "mesh.*", "inference.executor", "on_fault", "evaluat*",
    "pretrained.path",
)  # fmt: skip
_NAMED = {"backbone", "ensemble", "head", "likelihood"}  # may be a name alone
# Checked by who reads them.
_OPEN = {"mesh", "evaluators", "inference", "optimiser", "pretrained", *_NAMED}
_OPTIONAL = {"data": ("context", "validation")}
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

    Raises:
      ConfigError: no such file, or an override in a section that the config does not have.
    """
    file, _, arg = path.partition(":")
    location = pathlib.Path(file)
    if not location.is_file():
        files = location.parent.glob("*.py")
        near = [str(p) for p in files if "def get_config(" in p.read_text(encoding="utf-8")]
        raise ConfigError(f"config: no file {file!r}" + (f"; {nearest(file, near)}" * bool(near)))
    spec = importlib.util.spec_from_file_location("config_file", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config: {file} has no function get_config")
    config = module.get_config(arg) if arg else module.get_config()
    for name, value in (overrides or {}).items():
        override(config, name, value)
    return config


def override(config: ConfigDict, name: str, value: Any) -> None:
    """Sets the field of a dotted name, which may be new in its section.

    Where the field is not text already, text is read as Python's literal if it is one, else as
    true, false or none, else as it stands.

    Raises:
      ConfigError: there is no such section.
    """
    *parents, last = name.split(".")
    section = config
    for i, parent in enumerate(parents):
        if parent not in section:
            path = ".".join(["config", *parents[: i + 1]])
            raise ConfigError(f"{path}: no such section; {nearest(parent, section.keys())}")
        section = section[parent]
        if not isinstance(section, ConfigDict):
            path = ".".join(["config", *parents[: i + 1]])
            raise ConfigError(f"{path}: {section!r} has no fields such as {last!r}")
    if isinstance(value, str) and not isinstance(section.get(last), str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = {"true": True, "false": False, "none": None}.get(value.lower(), value)
    section[last] = value


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
    """Nested dicts of plain values with every data set written out (`data/derived.py`)."""
    return derived(_plain(config))


def _plain(config: ConfigDict | Mapping) -> dict[str, Any]:
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    return {k: _plain(v) if isinstance(v, Mapping | ConfigDict) else v for k, v in config.items()}


def check(config: Mapping[str, Any]) -> None:
    """Refuses sections and settings that no experiment has, and numbers out of range.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    known = plain(base())
    for section, value in config.items():
        if section not in known:
            raise ConfigError(f"config.{section}: no such section; {nearest(section, known)}")
        if not isinstance(known[section], dict) or (section in _NAMED and isinstance(value, str)):
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.{section}: {value!r} is not a dict of fields")
        valid = {*known[section], *_OPTIONAL.get(section, ())}
        for field in value:
            if section not in _OPEN and field not in valid:
                raise ConfigError(
                    f"config.{section}.{field}: no such field; {nearest(field, valid)}"
                )
        for field in known[section]:
            if section not in _OPEN and field not in value:
                raise ConfigError(f"config.{section}.{field}: missing")
    for section in known:
        if section not in config:
            raise ConfigError(f"config.{section}: missing; begin with configs.base.base()")
    for name, least in _AT_LEAST.items():
        section, _, field = name.rpartition(".")
        value = (config[section] if section else config)[field]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"config.{name}: {value!r}; a whole number from {least} is needed")
    for name, value in (
        ("data.augment", config["data"]["augment"]),
        ("sharding", config["sharding"]),
    ):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"config.{name}: {value!r}; a list is needed")
    seed, logging = config["seed"], config["logging"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"config.seed: {seed!r}; a whole number in [0, 2^32) is needed")
    if config["on_fault"] not in ("stop", "freeze"):
        raise ConfigError(f"config.on_fault: {config['on_fault']!r}; 'stop' or 'freeze'")
    if not isinstance(logging["tensorboard"], bool):
        raise ConfigError(f"config.logging.tensorboard: {logging['tensorboard']!r}; true or false")
    steps = logging["profile"]
    if not (isinstance(steps, list | tuple) and all(isinstance(s, int) for s in steps)) or not (
        len(steps) == 0 or (len(steps) == 2 and 0 <= steps[0] <= steps[1])
    ):
        raise ConfigError(f"config.logging.profile: {steps!r}; (first step, last step) or ()")


def run(main: Callable[[list[str]], Any]) -> None:
    """`app.run` with one line for what the user can fix, in place of a traceback.

    The exit status is 2 for an error, and 128 + the number of a signal that ended the program.

    `main` gets what is not a flag of absl's: the program, then its other arguments, among them
    `--config.field=value`.
    """

    def parse(argv: list[str]) -> list[str]:
        fields = [item for item in argv if item.startswith("--config.")]
        try:
            return flags.FLAGS([item for item in argv if item not in fields]) + fields
        except flags.Error as error:
            fail(str(error))

    def wrapped(argv: list[str]) -> Any:
        try:
            return main(argv)
        except Interrupted as message:
            logger.warning("%s. The same command resumes.", message)
            sys.exit(message.code)
        except REPORTED as error:
            if flags.FLAGS.debug:
                raise
            fail(str(error))
        except KeyboardInterrupt:
            fail("interrupted", code=status("SIGINT"))

    app.run(wrapped, flags_parser=parse)


flags.DEFINE_bool("debug", False, "Show the traceback of an error in the config or the data.")
REPORTED = (ValueError, OSError, FloatingPointError, ImportError)  # in one line


def fail(message: str, code: int = 2) -> None:
    """Prints a message on standard error and ends the program."""
    print(f"error: {re.sub(r'^.Errno [0-9]+. ', '', message)}", file=sys.stderr)
    sys.exit(code)
