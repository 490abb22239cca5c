"""Names and labels as text: nothing that a user calls something is markup in any renderer.

What each format escapes stands in `formats.py`, `html.py` and `style.py`; terminals get rich's
`Text`. What all of them share is here.
"""

import unicodedata


def one_line(text: object) -> str:
    """Text on one line, without what no renderer shows: controls, surrogates, unassigned codes."""
    joined = " ".join(str(text).split())
    if joined.isascii() and joined.isprintable():
        return joined
    return "".join("\ufffd" if _hidden(c) else c for c in joined)


def _hidden(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs", "Cn", "Co")
