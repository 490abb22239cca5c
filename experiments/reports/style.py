"""How figures look: palette, axes, and saving as PNG or SVG.

matplotlib is imported when the first figure is made. Figures do not use pyplot, so they need no
display and do not stay open.
"""

import base64
import functools
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reports.study import one_line
from experiments.runtime import storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color universal design": distinct with every common colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX"
GREY = "#7f7f7f"
RC = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
    "svg.hashsalt": "figure",
}

Look = dict[str, Any]  # matplotlib's color, linestyle and marker


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A colour, line style and marker for each label, by its position."""
    n = len(PALETTE)
    return {
        label: {
            "color": PALETTE[i % n],
            "linestyle": LINES[i // n % len(LINES)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for i, label in enumerate(dict.fromkeys(labels))
    }


def styled(plot: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """Draws `plot` with this module's settings, regardless of the user's matplotlibrc."""

    @functools.wraps(plot)
    def draw(*args: Any, **kwargs: Any) -> "Figure":
        import matplotlib

        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **RC}):
            return plot(*args, **kwargs)

    return draw


def text(name: str, width: int = 0) -> str:
    """Escapes a name for matplotlib: no mathematics, and a leading `_` is shown in legends.

    With a `width`, lines have at most this many characters; an arrow stays on its word's line.
    """
    line, space = one_line(name), "\N{NO-BREAK SPACE}"
    if width:
        line = textwrap.fill(re.sub(" (?=[↑↓]$)", space, line), width).replace(space, " ")
    return (" " * line.startswith("_") + line).replace("$", r"\$")


def panels(
    rows: int, columns: int, width: float, height: float, **kwargs: Any
) -> tuple["Figure", Any]:
    """A figure of rows x columns axes, each `width` x `height` inches: `(figure, axes [r, c])`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def wrapped(
    titles: Iterable[str], width: float, height: float, most: int = 4, fill: int = 0, **kwargs: Any
) -> tuple["Figure", list["Axes"]]:
    """One panel per title, at most `most` in a row.

    Titles have lines of `fill` characters, by default as many as a panel has room for.
    """
    titles = list(titles)
    if not titles:
        raise ValueError("nothing to plot: no data was given")
    rows = -(-len(titles) // most)
    columns = -(-len(titles) // rows)
    figure, axes = panels(rows, columns, width, height, **kwargs)
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(text(title, fill or int(10 * width)))
    for ax in axes.flat[len(titles) :]:
        ax.remove()
    return figure, list(axes.flat[: len(titles)])


def legend(figure: "Figure") -> None:
    """A legend of all panels above them, for which the figure grows."""
    entries: dict[str, Any] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    if not entries:
        return
    width, height = figure.get_size_inches()
    columns = max(1, int(width / (0.5 + 0.07 * max(map(len, entries)))))
    figure.set_figheight(height + 0.17 * -(-len(entries) // columns))
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=columns)


def lines(labels: Sequence[str]) -> tuple[np.ndarray, float]:
    """Where labels stand below one another, from 0, and their height; one of one line has 1."""
    heights = np.array([1 + 0.65 * label.count("\n") for label in labels])
    return heights.cumsum() - heights / 2 - 0.5, float(heights.sum())


def save_png(figure: "Figure", path: str | storage.Path, dpi: int = 150) -> storage.Path:
    """Writes the figure as a PNG of 256 colours, a third of the size; creates the folder."""
    from PIL import Image

    path = storage.path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    image = Image.open(stream).convert("RGB")
    content = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(content, format="png", optimize=True)
    storage.write(path, content.getvalue())
    return path


def svg_uri(figure: "Figure") -> str:
    """The figure as a `data:` URI of an SVG, for the `src` of an `img`."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
