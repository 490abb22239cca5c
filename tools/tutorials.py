"""Tutorials: scripts in cells, run for the site with what they print and draw."""

import ast
import contextlib
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from experiments.runtime import project

FOLDER = project.ROOT / "docs" / "tutorials"
_pages: dict[tuple[str, float], str] = {}
_figures: dict[str, bytes] = {}


def cells(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is Markdown, its text) of the cells of a script.

    `# %%` starts a cell, `# %% [markdown]` one of comments that are Markdown.
    """
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        prose = "[markdown]" in head
        if prose:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        if body.strip():
            yield prose, body.strip("\n")


def run(code: str, names: dict[str, Any], filename: str) -> str:
    """Runs a cell as a notebook does: the value of a last expression is shown too.

    Returns:
      What it prints, with the value.
    """
    tree = ast.parse(code, filename)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, filename, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), filename, "eval"), names)
            if value is not None:
                print(repr(value))
    return printed.getvalue()


def rendered(file: pathlib.Path) -> str:
    """A tutorial as Markdown; its figures go to `figures()`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {"__name__": file.stem}
    parts = []
    for prose, text in cells(file.read_text(encoding="utf-8")):
        if prose:
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        if output := run(text, names, str(file)).rstrip():
            parts.append(f'<div class="output" markdown>\n\n```text\n{output}\n```\n\n</div>')
        for number in plt.get_fignums():
            name = f"{file.stem}_{len(_figures)}.png"
            drawn = io.BytesIO()
            plt.figure(number).savefig(drawn, dpi=144, bbox_inches="tight")
            _figures[f"docs/tutorials/{name}"] = drawn.getvalue()
            parts.append(f"![]({name})")
            plt.close(number)
    here = f"[{file.name}]({file.name})"
    parts.insert(1, f"This page is the script {here}, with its output.")
    return "\n\n".join(parts) + "\n"


def pages(folder: pathlib.Path = FOLDER) -> dict[str, str]:
    """Path -> Markdown of all tutorials; each is run again only after a change."""
    made = {}
    for file in sorted(folder.glob("*.py")):
        key = (file.name, file.stat().st_mtime)
        if key not in _pages:
            _pages[key] = rendered(file)
        made[f"docs/tutorials/{file.stem}.md"] = _pages[key]
    return made


def figures() -> dict[str, bytes]:
    """Path -> PNG of the tutorials that have been run."""
    return _figures
