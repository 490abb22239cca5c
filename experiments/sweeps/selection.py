"""The choice of a setting on validation data, and what it costs on test data: its regret."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.reports.study import Summary, round_pair, summarise

Values = Mapping[str, Mapping[int, float]]  # row -> seed -> a metric


class Selection(NamedTuple):
    """A choice and its regret.

    Attributes:
      row: that is best on validation data, in the mean over seeds; None if there is none to choose.
      left_out: row -> why it could not be chosen.
      best: that is best on test data, in the mean over seeds; None without a test metric.
      regret: of the choice: how much worse it is on test data than `best`, in the mean over seeds,
        with the standard error of the paired differences. At least 0, and so above 0 by chance
        alone: `best` is the largest of as many means as there are rows.
      by_seed: seed -> the row that this seed alone would choose.
      regret_by_seed: the mean over seeds of how much worse that row is than the best on test data,
        both of this seed alone.
    """

    row: str | None
    left_out: dict[str, str]
    best: str | None = None
    regret: Summary | None = None
    by_seed: Mapping[int, str] = {}
    regret_by_seed: Summary | None = None


def choose(
    validation: Values, test: Values, seeds: Sequence[int], better: str = "lower"
) -> Selection:
    """Chooses among the rows that have all seeds.

    A row with a value that is not finite, or without one, cannot be chosen: it failed with that
    seed, and the others' mean would be of other seeds. Test values decide nothing.

    Args:
      validation, test: the same metric of each row and seed.
      seeds: over which rows are compared.
      better: 'higher' or 'lower'.
    """
    sign = -1.0 if better == "higher" else 1.0
    left_out = {}
    for row, of in validation.items():
        missing = [seed for seed in seeds if seed not in of]
        if missing:
            left_out[row] = f"no result with {_seeds(missing)}"
        elif bad := [seed for seed in seeds if not math.isfinite(of[seed])]:
            left_out[row] = f"not finite with {_seeds(bad)}"
    rows = [row for row in validation if row not in left_out]
    if not rows:
        return Selection(None, left_out)

    def lowest(values: Values, among: Sequence[str], of: Sequence[int]) -> str:
        return min(among, key=lambda row: sign * np.mean([values[row][seed] for seed in of]))

    chosen = lowest(validation, rows, seeds)
    by_seed = {seed: lowest(validation, rows, [seed]) for seed in seeds}
    tested = [
        row for row in rows if all(math.isfinite(test.get(row, {}).get(s, math.nan)) for s in seeds)
    ]
    if chosen not in tested:
        return Selection(chosen, left_out, by_seed=by_seed)
    best = lowest(test, tested, seeds)
    regret = summarise([sign * (test[chosen][s] - test[best][s]) for s in seeds])
    alone = None
    if all(row in tested for row in by_seed.values()):
        bests = {s: test[lowest(test, tested, [s])][s] for s in seeds}
        alone = summarise([sign * (test[by_seed[s]][s] - bests[s]) for s in seeds])
    return Selection(chosen, left_out, best, regret, by_seed, alone)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def sentences(selection: Selection, name: str, unit: tuple[float, str, int]) -> list[str]:
    """What was chosen and its regret, in words.

    Args:
      selection: by a metric.
      name: of the metric, such as 'NLL'.
      unit: factor, unit and decimals with which it is shown.
    """
    if selection.row is None:
        return ["Nothing is selected: no setting has a finite result with every seed."]
    lines = [f"Selected on validation {name}: {selection.row}."]
    if selection.regret is None:
        return [*lines, "Its regret is not known: it has no test metric of this name."]
    if selection.best == selection.row:
        lines.append(f"It is the best on test {name} too, in the mean over seeds: regret 0.")
    else:
        lines.append(
            f"Regret on test {name}: {_shown(selection.regret, unit)} against {selection.best}, "
            "the best on test data (mean of the differences over seeds; by choice of the best at "
            "least 0)."
        )
    if selection.regret_by_seed and selection.regret.n > 1:
        others = sum(row != selection.row for row in selection.by_seed.values())
        lines.append(
            f"One seed by itself chooses another setting in {others} of {len(selection.by_seed)} "
            f"cases; its regret is {_shown(selection.regret_by_seed, unit)}, against the best of "
            "that seed."
        )
    return lines


def _shown(entry: Summary, unit: tuple[float, str, int]) -> str:
    scale, suffix, digits = unit
    error = None if entry.error is None else entry.error * scale
    text = " ± ".join(filter(None, round_pair(entry.mean * scale, error, digits)))
    return f"{text} {suffix}".rstrip()


def values_of(records: Mapping[tuple[str, int], Mapping[str, Any]], key: str) -> Values:
    """A metric of finished cells, by row and seed."""
    values: dict[str, dict[int, float]] = {}
    for (row, seed), record in records.items():
        if (value := record["metrics"].get(key)) is not None:
            values.setdefault(row, {})[seed] = float(value)
    return values
