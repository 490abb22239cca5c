"""Checks the fields of a config against the arguments of the function that they are for."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from uncertainty.build import ConfigError, nearest


def check_fields(
    function: Callable,
    fields: Mapping[str, Any],
    field: str = "",
    given: Collection[str] = (),
    also: Collection[str] = (),
) -> None:
    """Refuses fields that `function` does not take, and missing ones.

    Args:
      function: what will be called with `fields`.
      fields: of the config.
      field: where they stand in it, with a full stop at the end.
      given: arguments that the caller supplies.
      also: fields that are valid too, for the message.

    Raises:
      ConfigError: names the field and the nearest valid ones.
    """
    parameters = inspect.signature(function).parameters
    valid = set(parameters) - set(given)
    for key in fields:
        if key not in valid:
            raise ConfigError(f"{field}{key}: no such field of {function.__name__.strip('_')}; "
                              + nearest(key, valid | set(also)))  # fmt: skip
    for key in parameters:
        required = parameters[key].default is inspect.Parameter.empty
        if required and key in valid and key not in fields:
            raise ConfigError(f"{field}{key}: missing; {function.__name__.strip('_')} needs it")
