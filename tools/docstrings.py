"""Docstrings for the site's API: an entry for each field, one for what returns, code as code."""

import re
import textwrap

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


SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Examples?):")


def whole(text: str) -> str:
    """A docstring whose `Returns:` is one entry, unless it names several.

    >>> print(whole("Returns:\\n  a sum\\n  of all"))
    Returns:
      a sum
        of all
    """

    def one(match: re.Match) -> str:
        first, *rest = match[2].splitlines()
        if re.match(r" +\w+: ", first):
            return match[0]
        end = "\n" * match[2].endswith("\n")
        return "\n".join([match[1], first, *(f"  {line}" for line in rest)]) + end

    return re.sub(r"^(Returns:|Yields:)\n((?: +\S.*(?:\n|\Z))+)", one, text, flags=re.MULTILINE)


def as_markdown(text: str) -> str:
    """A docstring whose doctests and indented lines are code, and `__call__` is no emphasis.

    >>> print(as_markdown("Of `f` and __call__:\\n\\n  a  b\\n"))
    Of `f` and \\_\\_call\\_\\_:
    <BLANKLINE>
    ```text
    a  b
    ```
    """
    paragraphs, inside = [], False
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        first = paragraph.partition("\n")[0]
        inside = bool(SECTION.fullmatch(first)) or (inside and first.startswith(" "))
        if first.startswith(">>>"):
            paragraph = f"```pycon\n{paragraph}\n```"
        elif not inside and all(line.startswith("  ") for line in paragraph.splitlines()):
            paragraph = f"```text\n{textwrap.dedent(paragraph)}\n```"
        elif not inside:
            paragraph = re.sub(r"(?<![\w`.])__(\w+)__(?!`)", r"\_\_\1\_\_", paragraph)
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)
