"""Regex rules over parameter paths: one mechanism for all settings per parameter.

A rule is `(pattern, value)`; a parameter takes the value of the first rule whose pattern matches
its path (`re.search`), so paths such as `backbone/conv0/kernel` are API. Used for the learning
rate, weight decay, freezing, sharding and restoring.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

Rules = Sequence[tuple[str, Any]]


def path_of(key_path: tuple) -> str:
    """`backbone/conv0/kernel` from the key path that `jax.tree_util` gives."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    return [path_of(key) for key, _ in jax.tree_util.tree_leaves_with_path(tree)]


def check(rules: Rules, field: str) -> None:
    """Raises ValueError, naming `field`, unless `rules` are (valid regex, value) pairs."""
    for rule in rules:
        pair = isinstance(rule, list | tuple) and len(rule) == 2
        if not pair or not isinstance(rule[0], str):
            raise ValueError(f"{field}: {rule!r} is not a pair (pattern, value)")
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(f"{field}: {rule[0]!r} is not a regular expression: {error}") from None


def match(rules: Rules, tree: Any, *, field: str, default: Any = None) -> Any:
    """A tree like `tree` with the value of the first rule that matches each leaf's path.

    Args:
      rules: pairs (pattern, value).
      tree: parameters, or anything with the same structure.
      field: where the rules stand in the config, for error messages.
      default: the value if no rule matches; without a default this is an error.

    Raises:
      ValueError: a rule matches no parameter at all, or a parameter has no rule and no default.
    """
    check(rules, field)
    names = paths(tree)
    indices = [next((i for i, (r, _) in enumerate(rules) if re.search(r, n)), None) for n in names]
    for i, (pattern, _) in enumerate(rules):
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"{field}[{i}]: {pattern!r} matches no parameter; the paths are {', '.join(names)}"
            )
    if default is None and None in indices:
        raise ValueError(f"{field}: no rule matches {names[indices.index(None)]!r}")
    values = [default if i is None else rules[i][1] for i in indices]
    return jax.tree.unflatten(jax.tree.structure(tree), values)
