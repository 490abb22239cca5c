"""The Study of a table's finished cells."""

import collections
import shlex
from collections.abc import Sequence
from typing import Any

from experiments.reports.datasets import evaluated
from experiments.reports.study import Study, machine, one_line
from experiments.tables.cells import Cells, name_of


def study(cells: Cells, failures: dict[str, dict[str, list[int]]]) -> Study:
    """The Study of all finished cells: the metrics that its columns show.

    Args:
      cells: of the table.
      failures: reason -> row -> seeds; records that cannot be read are added.
    """
    rows, all_seeds, ran_on = [], set(), []
    keys = [column["key"] for column in cells.table["columns"]]
    for row in cells.table["rows"]:
        records = []
        for seed in cells.seeds(row):
            try:
                records.append(cells.record(row, seed))
            except ValueError as error:
                known = failures.setdefault(one_line(error), {}).setdefault(name_of(row), [])
                known += [seed] * (seed not in known)
        records = [record for record in records if record is not None]
        notes = {f"{k}: {v}" for r in records for k, v in r["failures"].items()}
        all_seeds |= {r["seed"] for r in records}
        ran_on += [r["hardware"] for r in records]
        machines = collections.Counter(machine({**r["hardware"], "date": ""}) for r in records)
        if len(machines) > 1:
            counts = ", ".join(f"{where} ({n})" for where, n in sorted(machines.items()))
            notes.add(f"Its runs, and so its times, are of several machines: {counts}")
        reasons = {why: of[name_of(row)] for why, of in failures.items() if name_of(row) in of}
        rows.append(
            dict(
                label=name_of(row),
                group=row.get("group", ""),
                results=[
                    {key: r["metrics"][key] for key in keys if key in r["metrics"]} for r in records
                ],
                published=row.get("published", {}),
                note="; ".join(filter(None, [row.get("note", ""), *sorted(notes)])),
                failed="; ".join(f"{seeds_in_words(of)}: {why}" for why, of in reasons.items()),
                data=[
                    evaluated(r["config"], r["metrics"], r.get("sets"), r.get("trained"))
                    for r in records
                ],
            )
        )
    known = sorted({name for h in ran_on for name in h})
    # Without those that no cell was made with, which change no cell that is finished.
    overrides = [f"--set={k}={v}" for k, v in cells.overrides.items() if cells.made_with(k)]
    return Study(
        title=cells.table["title"],
        columns=cells.table["columns"],
        rows=rows,
        command=cells.table.get("command")
        or shlex.join(["python", "-m", "experiments.reproduce", cells.given, *overrides]),
        config={name_of(row): row["config"] for row in cells.table["rows"]},
        seeds=sorted(all_seeds),
        hardware={name: _joined([h[name] for h in ran_on if name in h]) for name in known},
    )


def seeds_in_words(seeds: Sequence[int]) -> str:
    """'seed 3', 'seeds 0 to 4' or 'seeds 0, 2, 5'."""
    first, last = min(seeds), max(seeds)
    if first == last:
        return f"seed {first}"
    if len(seeds) > 2 and sorted(seeds) == list(range(first, last + 1)):
        return f"seeds {first} to {last}"
    return f"seeds {', '.join(map(str, sorted(seeds)))}"


def _joined(values: list[Any]) -> Any:
    """The single value, or all values as text."""
    different = sorted(set(values))
    return different[0] if len(different) == 1 else " or ".join(map(str, different))
