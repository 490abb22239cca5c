"""Tables in the terminal: one evaluation, grouped, and a study over seeds."""

import math
import re
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from experiments.reports.layout import Head, Layout, layout, transpose
from experiments.reports.study import Study, one_line
from experiments.runtime import keys

GROUPS = {
    "classification": "Classification",
    "regression": "Regression",
    "calibration": "Calibration",
    "uncertainty": "Uncertainty (mean over examples)",
    "ood": "Out of distribution",
    "human": "Against people's votes",
    "halves": "Calibrated on the other half",
    "corruption": "Corruption",
    "selective": "Selective prediction",
    "posthoc": "Post-hoc calibration",
    "conformal": "Conformal sets",
    "intervals": "Conformal intervals",
    "regions": "Conformal regions",
    "joint": "Joint predictions",
    "kinds": "Kinds of members",
    "combination": "Combined members",
    "cost": "Cost",
}
ACRONYMS = (
    "NLL ECE MCE AUGRC LAC APS RAPS SAPS CQR RMSE MAE CRPS AUC AUROC AUPR FPR95 AURC KL OOD FLOPs"
)
ACRONYMS = {word.lower(): word for word in ACRONYMS.split(" ")}
PERCENT = {"accuracy", "error", "ece", "mce", "auroc", "aupr", "fpr95", "coverage", "disagreement"}
PERCENT |= {"empty", "single", "whole", "expected", "unbounded", "overconfidence"}
PERCENT |= {"inconsistency", "won", "share"}
ACCURACIES = ("best_member", "worst_member", "mixture")  # of `simplicity` and `disambiguation`
OF_FUNCTIONS = ("mean_error", "std_error")  # of the evaluator `posterior`, in the unit of f
# The columns of groups with a line for each method; metrics.json has all.
OF_METHODS = {
    "posthoc": (
        *("accuracy", "nll", "ece", "temperature"),
        *("crps", "coverage_0.9", "width_0.9", "scale"),  # of targets
    ),
    "conformal": ("coverage", "size", "empty", "worst_class_coverage", "worst_group_coverage"),
    "intervals": ("coverage", "width", "worst_group_coverage"),
    "regions": ("coverage", "volume", "worst_group_coverage"),
    "combination": ("accuracy", "nll", "brier", "ece", "smooth_ece", "members"),
}
NATS = {"nll", "entropy", "information", "kl", "loss"}


def pretty(name: str) -> str:
    """A metric's display name: 'member_nll' -> 'Member NLL'."""
    words = [ACRONYMS.get(w, w) for w in name.split("_") if w not in ("ms", "seconds")]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def human(name: str, value: float) -> tuple[str, str]:
    """`(digits, unit)` of a metric for display; `name` is the last part of its key.

    Rates in %, information in nats, times in ms, s, min or h, parameters in K, M or B, whole steps.
    """
    words = set(name.split("_"))
    if not math.isfinite(value):
        return str(value), ""
    if name.endswith("_ms") or "ms" in words:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}", "ms"
    if words & {"seconds", "duration"}:
        for size, unit in ((3600, "h"), (60, "min")):
            if value >= 2 * size:
                return f"{value / size:.1f}", unit
        return f"{value:.3g}", "s"
    if words & {"parameters", "flops"}:
        for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
            if value >= size:
                return f"{value / size:.2f}", unit
        return f"{value:.0f}", ""
    if (words & PERCENT and name not in OF_FUNCTIONS) or name in ACCURACIES:
        return f"{100 * value:z.2f}", "%"
    if words & {"step", "steps"}:
        return f"{value:,.0f}", ""
    if abs(value) < 100:  # two significant digits, unless it is 0 up to rounding
        digits = f"{value:.2g}" if 1e-9 < abs(value) < 1e-3 else f"{value:z.4f}"
    else:
        digits = f"{value:,.1f}"
    return digits, "nats" if words & NATS else ""


def print_metrics(
    metrics: Mapping[str, float], console: Console | None = None, title: str = "Evaluation"
) -> None:
    """Prints one evaluation as a grouped table in readable units.

    Args:
      metrics: name -> value, as in metrics.json ('calibration/ece', 'ood/<set>/auroc_entropy',
        'corruption/<kind>/<severity>/nll'). Unknown groups come last.
      console: to print to; standard output by default.
      title: the table's heading.
    """
    grouped: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in GROUPS}
    for key, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        group, *rest = keys.split(key)
        where, parts = (group, rest) if rest else ("other", [group])
        grouped.setdefault(where, {})[tuple(parts)] = float(value)
    heading = Text(one_line(title), style="bold")
    table = Table(title=heading, box=None, show_header=False, padding=(0, 1))
    table.add_column(min_width=20)  # however many columns a group has
    for group, entries in grouped.items():
        if not entries:
            continue
        heading = GROUPS.get(group, pretty(group))
        if group in ("ood", "corruption"):
            _matrix(table, heading, entries, group)
            continue
        if group in OF_METHODS:
            _methods(table, heading, entries, OF_METHODS[group])
            continue
        _heading(table, heading)
        for parts, value in entries.items():
            digits, unit = human(parts[-1], value)
            name = " / ".join(pretty(part) for part in parts)
            table.add_row(Text("  " + one_line(name)), digits, Text(unit, style="dim"))
    (console or Console()).print(table)


def _heading(table: Table, text: str, columns: Iterable[str] = ()) -> None:
    if table.row_count:
        table.add_row()
    table.add_row(
        Text(one_line(text), style="bold cyan"), *[Text(one_line(c), style="dim") for c in columns]
    )


def _matrix(
    table: Table, heading: str, entries: Mapping[tuple[str, ...], float], group: str
) -> None:
    """Lines are OOD sets x scores, or means over kinds and severities; columns are metrics."""
    lines: dict[str, dict[str, list[float]]] = {"mean": {}} if group == "corruption" else {}
    for (*path, metric), value in entries.items():
        if metric.startswith("ratio_"):  # shown in studies only, as it would not fit here
            continue
        if group == "ood":  # 'aupr_out_entropy' of the set `path`
            match = re.fullmatch(r"((?:auroc|aupr|fpr95)(?:_in|_out)?)_(.+)", metric)
            metric, score = match.groups() if match else (metric, "")
            name = "/".join(path)
            places = [f"{name}: {pretty(score).lower()}" if score else name]
        else:  # 'accuracy', or 'blur/3/accuracy', part of the means of its kind and its severity
            kind, *severity = path or [""]
            places = [f"severity {s}" for s in severity] + [pretty(kind).lower() or "mean"]
        for place in places:
            lines.setdefault(place, {}).setdefault(metric, []).append(value)
    columns = list(dict.fromkeys(m for line in lines.values() for m in line))
    units = {m: human(m, 0.5)[1] for m in columns}
    _heading(table, heading, [f"{pretty(m)} {units[m]}".strip() for m in columns])
    for label, line in sorted(lines.items(), key=lambda item: _severity_order(item[0])):
        means = [human(m, sum(line[m]) / len(line[m]))[0] if m in line else "" for m in columns]
        table.add_row(Text("  " + one_line(label)), *means)


def _methods(
    table: Table,
    heading: str,
    entries: Mapping[tuple[str, ...], float],
    columns: Iterable[str],
) -> None:
    """Lines are methods, also under corruptions of a severity; columns are some metrics."""
    lines: dict[tuple[str, ...], dict[str, float]] = {}
    for (*path, metric), value in entries.items():
        lines.setdefault(tuple(path), {})[metric] = value
    shown = [m for m in columns if any(m in line for line in lines.values())]
    units = {m: human(m, 0.5)[1] for m in shown}
    _heading(table, heading, [f"{pretty(m)} {units[m]}".strip() for m in shown])
    for path, line in lines.items():
        texts = [human(m, line[m])[0] if m in line else "" for m in shown]
        if any(texts):
            label = ", ".join(
                [pretty(path[0]) if path else "", *map(str.lower, map(pretty, path[1:]))]
            )
            table.add_row(Text("  " + one_line(label)), *texts)


def _severity_order(label: str) -> tuple[int, str]:
    if label == "mean":
        return 0, ""
    return (1, label) if label.startswith("severity ") else (2, "")


def print_study(study: Study, console: Console | None = None) -> None:
    """Prints a study: best means bold, published values beside ours, sources as notes.

    If the rows are too wide for the console, the table is transposed; columns that still do not fit
    go into further tables below.
    """
    console = console or Console()
    shown = layout(study)
    if not _fits(shown, 0, len(shown.heads), console) and len(shown.heads) > len(shown.lines):
        shown = transpose(shown)
    console.print(Text(one_line(study.title), style="bold"))
    for sentence in shown.data:
        console.print(Text(sentence, style="dim"))
    for sentence in shown.warnings:
        console.print(Text(f"Warning: {sentence}", style="bold red"))
    start = 0
    while start < len(shown.heads):
        stop = len(shown.heads)
        while stop > start + 1 and not _fits(shown, start, stop, console):
            stop -= 1
        console.print(_study_table(shown, start, stop))
        start = stop
    if shown.caption:
        console.print(Text(shown.caption, style="dim"))
    for number, note in enumerate(shown.notes, 1):
        console.print(Text(f"[{number}] {note}", style="dim"))


def _fits(shown: Layout, start: int, stop: int, console: Console) -> bool:
    wide = console.options.update(width=100_000)
    table = _study_table(shown, start, stop)
    return Measurement.get(console, wide, table).maximum <= console.width


def _head(head: Head) -> Text:
    return Text.assemble(head.text, ("".join(f" [{mark}]" for mark in head.marks), "dim"))


def _study_table(shown: Layout, start: int, stop: int) -> Table:
    """The columns start to stop of the study."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    longest = max((len(head.text) for head, _ in shown.lines), default=0)
    table.add_column("", min_width=min(24, longest), max_width=36)
    for i in range(start, stop):
        table.add_column(_head(shown.heads[i]), justify="right", no_wrap=True)
        if shown.compared[i]:
            table.add_column("published", justify="right", style="dim", no_wrap=True)
    for head, cells in shown.lines:
        row = [_head(head)]
        for cell, compared in list(zip(cells, shown.compared, strict=True))[start:stop]:
            style = "red" if cell.failed else "bold green" if cell.best else ""
            row.append(Text(cell.ours(), style=style))
            if compared:
                row.append(Text(f"{cell.published} [{cell.source}]" if cell.published else ""))
        table.add_row(*row)
    return table
