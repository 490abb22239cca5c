"""Records of parts as JSON files, one a part, and the table; needs the standard library alone.

A record has `part`, `status` ('done'; 'partial' if what follows was cut off; 'failed'), `reason`,
`settings`, `where` and `jobs`. A job has `title`, `sides` (name -> min and median in ms, and what
else is known of the side), `missing` (name -> why it was not measured) and `ratios`
(name -> min and median).
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

COLUMNS = {  # key of a side -> title, format
    "min": ("min, ms", "{:,.3f}"),
    "median": ("median, ms", "{:,.3f}"),
    "compile_seconds": ("first call, s", "{:.1f}"),
    "megabytes": ("peak, MB", "{:,.0f}"),
    "difference": ("losses differ by", "{:.1e}"),
}


def write(folder: pathlib.Path, record: Mapping[str, Any]) -> pathlib.Path:
    """Writes FOLDER/<part>.json whole: a reader sees the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['part']}.json"
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


def read(folder: pathlib.Path, part: str) -> dict[str, Any] | None:
    """The record of a part, or None if there is none.

    Raises:
      ValueError: the file is not a record of that part.
    """
    path = folder / f"{part}.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it") from error
    if not isinstance(record, dict) or record.get("part") != part:
        raise ValueError(f"{path}: not a record of the part {part!r}; remove it")
    return record


def table(folder: pathlib.Path, parts: Iterable[str]) -> str:
    """The records of a folder as Markdown, in the order of `parts`.

    Raises:
      ValueError: there is no record of any of the parts.
    """
    records = [record for part in parts if (record := read(folder, part))]
    if not records:
        raise ValueError(f"{folder}: no record of any part")
    machines = {_machine(record) for record in records}
    lines = [] if len(machines) > 1 else [*machines, ""]
    for record in records:
        lines += [f"## {record['part']}", ""]
        if len(machines) > 1:
            lines += [_machine(record), ""]
        if record["status"] != "done":
            lines += [f"**{record['status']}**: {record.get('reason', '')}", ""]
        for job in record.get("jobs", ()):
            lines += [*_job(job), ""]
    return "\n".join(lines).rstrip() + "\n"


def _machine(record: Mapping[str, Any]) -> str:
    where = record.get("where", {})
    names = ("device", "driver", "jax", "flax", "torch", "python")
    known = [f"{name} {where[name]}" for name in names if where.get(name)]
    small = ["small sizes: not a measurement"] if record["settings"]["small"] else []
    date = [where["date"][:10]] if where.get("date") else []
    return ", ".join([*known, *date, *small])


def _job(job: Mapping[str, Any]) -> list[str]:
    lines = [f"### {job['title']}", ""]
    sides = job["sides"]
    columns = [
        key for key in COLUMNS if any(values.get(key) is not None for values in sides.values())
    ]
    if sides:
        lines += ["| | " + " | ".join(COLUMNS[key][0] for key in columns) + " |"]
        lines += ["| --- |" + " ---: |" * len(columns)]
    for name, values in sides.items():
        cells = [
            COLUMNS[key][1].format(values[key]) if values.get(key) is not None else ""
            for key in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if job.get("ratios"):
        lines += ["", "| ratio | min | median |", "| --- | ---: | ---: |"]
        lines += [
            f"| {name} | {ratio['min']:.2f} | {ratio['median']:.2f} |"
            for name, ratio in job["ratios"].items()
        ]
    if job.get("values"):
        lines += ["", "| value | |", "| --- | ---: |"]
        lines += [f"| {name} | {_text(value)} |" for name, value in job["values"].items()]
    lines += [f"\nNot measured: {name}: {why}" for name, why in job.get("missing", {}).items()]
    return lines


def _text(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
