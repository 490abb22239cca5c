"""Combinations as tables in the terminal, JSON, and files of predictions."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.combining.measure import Found
from experiments.combining.pool import Pool
from experiments.evaluators.kinds import JOINT
from experiments.prediction import archive
from experiments.reports.study import one_line
from experiments.reports.tables import pretty
from experiments.runtime import keys, storage
from experiments.runtime.workdir import jsonable

PERCENT = ("accuracy", "disagreement", "inconsistency", "won", "ece")


def show(pool: Pool, found: Found, console: Console | None = None) -> None:
    """Prints members, kinds, classes and combinations."""
    console = console or Console()
    for note in pool.notes:
        console.print(Text(one_line(note), style="dim"))
    members = {
        member.name: values for member, values in zip(pool.members, found.members, strict=True)
    }
    _print(console, "Member", members)
    names = list(dict.fromkeys(pool.kinds))
    couples: dict[str, dict[str, float]] = {}
    of_kinds: dict[str, dict[str, float]] = {}
    for key, value in found.kinds.items():
        _, name, metric = keys.split(key)
        (couples if JOINT in name else of_kinds).setdefault(name, {})[metric] = value
    if len(names) > 1:
        _print(console, "Kind", of_kinds)
    if couples:
        _print(console, "Pairs of kinds, test", couples)
    _print(console, "Combination, test", found.metrics)
    for label, combine in found.fits.items():
        if combine is not None:
            for line in described(pool, label, combine):
                console.print(Text(line))


def described(pool: Pool, label: str, combine: Any) -> Iterator[str]:
    """What a combination is made of, in a line or two."""
    names = [member.name for member in pool.members]
    fields = combine._asdict()
    if "scores" in fields and np.ndim(fields["scores"]) == 1:  # one after the other
        path = (
            f"{names[m]} ({s:.4g})" for m, s in zip(combine.members, combine.scores, strict=True)
        )
        yield f"{label}, with the mixture's score on the validation set: " + ", ".join(path)
        return
    order = np.argsort(-combine.shares, kind="stable")
    shares = ", ".join(f"{names[m]} {combine.shares[m]:.0%}" for m in order if combine.shares[m])
    yield f"{label}, share of each member: {shares}"
    if not fields.get("converged", True):
        yield f"{label}: the fit has not converged; a larger --l2 helps"


def _print(console: Console, title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    columns = list(dict.fromkeys(name for values in rows.values() for name in values))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    for name in columns:
        table.add_column(pretty(name) + " %" * _percent(name), justify="right")
    for label, values in rows.items():
        cells = (_cell(name, values[name]) if name in values else "" for name in columns)
        table.add_row(Text(one_line(label)), *cells)
    console.print(table)


def _percent(name: str) -> bool:
    return bool(set(name.split("_")) & set(PERCENT))


def _cell(name: str, value: float) -> str:
    return f"{100 * value:.2f}" if _percent(name) else f"{value:.4g}"


def write(folder: storage.Path, pool: Pool, found: Found, command: str) -> list[storage.Path]:
    """Writes combination.json, and the predictions of each combination as NAME.npz.

    Their validation sets are left out: members were chosen by it, so nothing may be calibrated on
    what it has become.
    """
    paths = []
    for label, combine in found.fits.items():
        arrays = {}
        for name, part in pool.sets.items():
            if name != archive.VALIDATION:
                log_p = part.log_p if combine is None else combine(part.log_p)
                arrays[archive.joined(name, "log_p")] = np.asarray(log_p, np.float32)
                for entry, values in (("y", part.y), ("group", part.group)):
                    if values is not None:
                        arrays[archive.joined(name, entry)] = values
        paths.append(folder / f"{label}.npz")
        with storage.whole(paths[-1]) as half, half.open("wb") as file:
            np.savez(file, **arrays)
    methods = {
        label: dict(
            metrics=found.metrics[label],
            shares=None if combine is None else combine.shares.tolist(),
            fitted={} if combine is None else _plain(combine._asdict()),
        )
        for label, combine in found.fits.items()
    }
    content = dict(
        command=command,
        members=[
            dict(member._asdict(), **values)
            for member, values in zip(pool.members, found.members, strict=True)
        ],
        kinds=found.kinds,
        class_accuracy=dict(
            zip(dict.fromkeys(pool.kinds), found.class_accuracy.tolist(), strict=True)
        ),
        methods=methods,
        notes=pool.notes,
    )
    paths.append(folder / "combination.json")
    storage.write(paths[-1], json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n")
    return paths


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in fields.items()}
