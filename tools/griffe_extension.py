"""Applies `docstrings.py` to every object of the site's API; mkdocs.yml loads it by its path."""

import griffe

from tools.docstrings import apart, as_markdown, whole


class ForTheSite(griffe.Extension):
    """Applied by mkdocs.yml to every object."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(whole(apart(obj.docstring.value)))
