"""Configs: loading, flags, and the checks that need no object to be built."""

import importlib.util
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from configs.base import base
from uncertainty.build import ConfigError, nearest

# What may differ when a run goes on: none of it changes a number.
MAY_CHANGE = ("logging.*", "checkpoint.*", "mesh.*", "inference.executor", "evaluat*")
_OPEN = {"mesh", "data", "evaluators", "backbone", "ensemble", "head", "likelihood", "inference",
         "optimiser", "sharding"}  # fmt: skip
_OPTIONAL = {"validation"}


def load(path: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of `configs/file.py` or `configs/file.py:arg`, with dotted names overridden.

    Raises:
      ConfigError: no such file, or an override of a field that the config does not have.
    """
    file, _, arg = path.partition(":")
    if not pathlib.Path(file).is_file():
        raise ConfigError(f"config: no file {file!r}")
    spec = importlib.util.spec_from_file_location("config_file", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg) if arg else module.get_config()
    for name, value in (overrides or {}).items():
        *parents, last = name.split(".")
        section = config
        for parent in parents:
            if parent not in section:
                raise ConfigError(
                    f"config.{name}: no such field; {nearest(parent, section.keys())}"
                )
            section = section[parent]
        section[last] = value
    return config


def plain(config: ConfigDict | Mapping) -> dict[str, Any]:
    """Nested dicts of plain values, as everything but the flags wants it."""
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    return {k: plain(v) if isinstance(v, Mapping | ConfigDict) else v for k, v in config.items()}


def check(config: Mapping[str, Any]) -> None:
    """Refuses sections and settings that no experiment has, and numbers out of range.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    known = plain(base())
    for section, value in config.items():
        if section not in known:
            raise ConfigError(f"config.{section}: no such section; {nearest(section, known)}")
        if section not in _OPEN and isinstance(known[section], dict):
            for field in value:
                if field not in known[section]:
                    raise ConfigError(
                        f"config.{section}.{field}: no such field; {nearest(field, known[section])}"
                    )
    for section in known:
        if section not in config:
            raise ConfigError(f"config.{section}: missing; begin with configs.base.base()")
    for field in config["data"]:
        if field not in {*known["data"], *_OPTIONAL}:
            raise ConfigError(f"config.data.{field}: no such field; "
                              + nearest(field, {*known["data"], *_OPTIONAL}))  # fmt: skip
    for name, value in {
        "steps": config["steps"],
        "batch_size": config["batch_size"],
        "evaluation.batch_size": config["evaluation"]["batch_size"],
        "logging.every": config["logging"]["every"],
        "checkpoint.every": config["checkpoint"]["every"],
        "checkpoint.keep": config["checkpoint"]["keep"],
    }.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"config.{name}: {value!r}; a whole number from 1")
    if not isinstance(config["seed"], int) or not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"config.seed: {config['seed']!r}; a whole number in [0, 2^32)")
    if config["on_fault"] not in ("stop", "freeze"):
        raise ConfigError(f"config.on_fault: {config['on_fault']!r}; 'stop' or 'freeze'")


def run(main: Callable[[list[str]], Any]) -> None:
    """`app.run` with one line for what the user can mend, in place of a traceback."""

    def parse(argv: list[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _fail(f"flags: {error}")

    def wrapped(argv: list[str]) -> Any:
        try:
            return main(argv)
        except (ValueError, OSError, FloatingPointError) as error:
            if flags.FLAGS.is_parsed() and flags.FLAGS.debug:
                raise
            _fail(str(error))

    app.run(wrapped, flags_parser=parse)


def define_flags() -> flags.FlagHolder:
    """`--config FILE[:ARG]` with `--config.section.field=value` for everything in it."""
    return config_flags.DEFINE_config_file(
        "config", None, "configs/FILE.py, or configs/FILE.py:runlocal for seconds on a laptop"
    )


flags.DEFINE_bool("debug", False, "Show the traceback of an error in the config or the data.")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
