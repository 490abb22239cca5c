"""Docstrings for the site's API: an entry `a, b: text` becomes one for each field."""

import re

import griffe

ENTRY = re.compile(r"^( +)(\w+(?:, \*{0,2}\w+)+): ", re.MULTILINE)


def apart(text: str) -> str:
    """A docstring whose entries of several fields are repeated for each.

    >>> print(apart("  a, b: of both,\\n    see below.\\n  c: other"))
      a: of both,
        see below.
      b: of both,
        see below.
      c: other
    """
    while match := ENTRY.search(text):
        indent, names = match[1], match[2].split(", ")
        rest = text[match.end() :]
        stop = re.search(rf"\n(?!{indent} +\S)", rest)
        end = stop.start() if stop else len(rest)
        entries = (f"{indent}{name}: {rest[:end]}" for name in names)
        text = text[: match.start()] + "\n".join(entries) + rest[end:]
    return text


class FieldsApart(griffe.Extension):
    """Applied by mkdocs.yml to every object."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring and re.search(
            r"^\s*(Args|Attributes):", obj.docstring.value, re.MULTILINE
        ):
            obj.docstring.value = apart(obj.docstring.value)
