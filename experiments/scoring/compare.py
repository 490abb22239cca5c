"""Several files side by side: which can be compared, and paired bootstrap intervals."""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.prediction import archive
from experiments.scoring.scored import Frame, Scored
from uncertainty.metrics import resampling

# Metrics that resampling inflates, see `resampling.interval`.
BINNED = ("calibration/ece", "corruption/ece", "regression/calibration")


class Resampling(NamedTuple):
    """How intervals are made."""

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95
    clustered: bool = True  # over `group`, where a file has it

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        if self.resamples and self.resamples < 100:
            raise ValueError(
                f"--resamples: {self.resamples}; at least 100, or 0 for no intervals, is expected"
            )
        if self.seed < 0:
            raise ValueError(f"--seed: {self.seed}; an integer from 0 is expected")
        if not 0 < self.level < 1:
            raise ValueError(f"--level: {self.level}; a number between 0 and 1 is expected")


class Interval(NamedTuple):
    """A metric of a row, or its difference from that of a baseline."""

    label: str
    baseline: str | None
    key: str
    estimate: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Intervals, and which rows are compared."""

    intervals: list[Interval]
    sets: list[list[str]]  # labels of rows on the same labels
    notes: list[str]


def by_label(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """The files of each row, in order."""
    rows: dict[str, list[Scored]] = {}
    for one in scored:
        rows.setdefault(one.label, []).append(one)
    return rows


def difference(a: Scored, b: Scored) -> str:
    """Why two files cannot be compared; empty if they can."""
    if a.task != b.task:
        return f"one is of {a.task}, the other of {b.task}"
    x, y = a.frames[archive.TEST], b.frames[archive.TEST]
    if x.examples != y.examples:
        return f"{x.examples:,} and {y.examples:,} test examples"
    if x.y.shape != y.y.shape or not np.array_equal(x.y, y.y):
        if x.y.shape == y.y.shape and np.array_equal(np.sort(x.y, 0), np.sort(y.y, 0)):
            return "the same labels in another order"
        off = (
            int((x.y != y.y).reshape(x.examples, -1).any(1).sum()) if x.y.shape == y.y.shape else 0
        )
        return f"other labels for {off:,} of {x.examples:,} examples" if off else "other targets"
    first, second = (one.sets[archive.TEST]["data"] for one in (a, b))
    if first and second and first != second:
        return "the same labels, but other data (by the digests in their metadata)"
    if x.group is not None and y.group is not None and not np.array_equal(x.group, y.group):
        return "the same labels, but other groups"
    return ""


def partition(scored: Sequence[Scored]) -> tuple[list[list[str]], list[str]]:
    """The labels of rows that can be compared, and why others cannot.

    Raises:
      ValueError: files of one row are on different data.
    """
    sets: list[list[Scored]] = []
    notes: list[str] = []
    for label, files in by_label(scored).items():
        for other in files[1:]:
            if why := difference(files[0], other):
                raise ValueError(
                    f"{label}: {files[0].file} and {other.file} are one row, but {why}"
                )
        reasons = []
        for group in sets:
            why = difference(group[0], files[0])
            if not why:
                group.append(files[0])
                break
            reasons.append(f"{label} is not compared with {group[0].label}: {why}")
        else:
            sets.append([files[0]])
            notes += reasons
    return [[one.label for one in group] for group in sets], notes


def compare(
    scored: Sequence[Scored], options: Resampling, baseline: str | None = None
) -> Comparison:
    """Intervals of every row, and of its difference from a baseline where it is comparable.

    Rows of one set share their resamples, so that differences are paired. Several files of one row
    (seeds) are averaged within each resample: their spread is not part of the intervals.

    Args:
      scored: of all files.
      options: of the resampling.
      baseline: the label that others are compared with. By default a file is compared with the
        first of its set, and a row of a post-hoc method with its file without it.

    Raises:
      ValueError: see `partition`.
    """
    sets, notes = partition(scored)
    rows = by_label(scored)
    intervals: list[Interval] = []
    for labels in sets:
        if not options.resamples:
            break
        draws, more = _resampled([one for label in labels for one in rows[label]], options)
        notes += more
        values = {
            label: {
                key: np.mean([draws[id(one)][key] for one in rows[label]], axis=0)
                for key in draws[id(rows[label][0])]
                if all(key in draws[id(one)] for one in rows[label])
            }
            for label in labels
        }
        means = {
            label: {
                key: float(np.mean([one.metrics[key] for one in rows[label]]))
                for key in values[label]
            }
            for label in labels
        }
        plain = {label: rows[label][0].plain for label in labels}
        for label in labels:
            first = baseline if baseline in labels else labels[0]
            if first != baseline and plain[label] != label:
                first = plain[label]
            for key, each in values[label].items():
                estimate = means[label][key]
                biased = key in BINNED
                low, high = resampling.interval(each, estimate, options.level, biased)
                low = max(low, 0.0) if biased else low
                intervals.append(Interval(label, None, key, estimate, low, high))
                if label != first and key in values[first]:
                    with np.errstate(invalid="ignore"):  # infinity - infinity
                        estimate = estimate - means[first][key]
                        ends = resampling.interval(
                            each - values[first][key], estimate, options.level, biased
                        )
                    intervals.append(Interval(label, first, key, estimate, *ends))
    return Comparison(intervals, sets, notes)


def _resampled(
    scored: Sequence[Scored], options: Resampling
) -> tuple[dict[int, dict[str, np.ndarray]], list[str]]:
    """id of a score -> key -> values [R], for the same resamples of all."""
    frames, notes = _frames(scored, options.clustered)
    streams = {
        name: resampling.weights(
            frame.examples,
            options.resamples,
            (options.seed, zlib.crc32(name.encode())),
            frame.group,
        )
        for name, frame in frames.items()
    }
    parts: dict[int, dict[str, list[np.ndarray]]] = {id(one): {} for one in scored}
    for chunk in zip(*streams.values(), strict=True):
        weights = dict(zip(streams, chunk, strict=True))
        for one in scored:
            for statistic in one.statistics:
                if not all(name in frames for name in statistic.frames):
                    continue
                values = statistic.values(*(weights[name] for name in statistic.frames))
                for key, value in values.items():
                    parts[id(one)].setdefault(key, []).append(value)
    draws = {
        name: {key: np.concatenate(values) for key, values in of.items()}
        for name, of in parts.items()
    }
    return draws, notes


def _frames(scored: Sequence[Scored], clustered: bool) -> tuple[dict[str, Frame], list[str]]:
    """The frames that all files with them have alike, and what is left out."""
    frames: dict[str, Frame] = {}
    notes = []
    every: dict[str, list[tuple[str, Frame]]] = {}
    for one in scored:
        for name, frame in one.frames.items():
            every.setdefault(name, []).append((one.label, frame))
    for name, each in every.items():
        label, first = each[0]
        other = next(
            (
                other
                for other, frame in each
                if frame.examples != first.examples
                or (frame.y is None) != (first.y is None)
                or (first.y is not None and not np.array_equal(frame.y, first.y))
            ),
            None,
        )
        if other is not None:
            notes.append(f"{name}: {label} and {other} have other examples: no intervals for it")
            continue
        group = next((frame.group for _, frame in each if frame.group is not None), None)
        group = group if clustered else None
        frames[name] = first._replace(group=group)
        if group is not None and (count := len(np.unique(group))) < 30:
            notes.append(
                f"{name}: intervals of {count} groups are unreliable; --unclustered resamples the "
                "examples instead, if groups are not what makes them dependent"
            )
    return frames, notes


def described(options: Resampling, scored: Sequence[Scored]) -> str:
    """How the intervals are made, in a sentence."""
    if not options.resamples:
        return ""
    grouped = options.clustered and any(
        one.frames[archive.TEST].group is not None for one in scored
    )
    units = "groups of the test set" if grouped else "test examples"
    return (
        f"{100 * options.level:g} % intervals: paired bootstrap over {units}, "
        f"{options.resamples:,} resamples, seed {options.seed}; percentile intervals, of "
        "calibration errors basic ones; not adjusted for the number of comparisons."
    )


def of(intervals: Sequence[Interval], baseline: bool) -> Mapping[tuple[str, str], Interval]:
    """(label, key) -> interval, of differences or of values."""
    return {(i.label, i.key): i for i in intervals if (i.baseline is not None) == baseline}
