"""The finished cells of a table: `runs.jsonl`, a line for each row and seed.

A line is one JSON object: row, seed, metrics, failures, sets, trained, config_file, config,
hardware, versions, run. Lines are in the order of the table's rows and of the seeds.
`cat a.jsonl >> b.jsonl` merges the cells of two machines: if a cell has two lines, the later one
counts.

Earlier versions kept a file for each cell in a folder `runs`. These files are read if `runs.jsonl`
has no line for the cell; the next write moves them into it.
"""

import contextlib
import json
import logging
import math
import pathlib
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.reports import datasets
from experiments.reports.study import numbers
from experiments.runtime import lock, storage
from experiments.runtime.workdir import from_jsonable, jsonable

logger = logging.getLogger(__name__)

FILE, FOLDER = "runs.jsonl", "runs"
LOOK = 5.0  # seconds
Key = tuple[str, int]  # slug of the row, seed


def slug(name: str) -> str:
    """A file name for a row's name; names with other than ASCII characters get a checksum."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    lossy = any(c.isalnum() and not c.isascii() for c in name) or not plain
    return f"{plain}-{zlib.crc32(name.encode()):08x}".lstrip("-") if lossy else plain


class Entry(NamedTuple):
    text: str  # the line, without its end
    where: str  # file and line, for messages
    record: dict[str, Any] | None  # None if it is damaged
    reason: str = ""  # why it is damaged
    file: storage.Path | None = None  # the cell's file of an earlier version


class Contents(NamedTuple):
    cells: dict[Key, Entry]
    strays: list[Entry]  # damaged lines whose cell is unknown


class Records:
    """The records in a folder, which several processes may read and write.

    Args:
      folder: of the table's results.
      slugs: of the table's rows, in order.
    """

    def __init__(self, folder: storage.Path, slugs: Sequence[str]):
        self.folder, self.path = folder, folder / FILE
        self._slugs = list(slugs)
        self._read: tuple[Any, Contents] | None = None
        self._looked = -math.inf

    def seeds(self, slug: str) -> list[int]:
        """The seeds of a row that have a record, including damaged ones."""
        return sorted(seed for of, seed in self._contents().cells if of == slug)

    def get(self, slug: str, seed: int) -> dict[str, Any] | None:
        """The record of a cell, or None.

        Raises:
          ValueError: the record is damaged.
        """
        entry = self._contents().cells.get((slug, seed))
        if entry and entry.record is None:
            raise ValueError(
                f"{entry.where} is damaged: {entry.reason}; delete it to run the cell again"
            )
        return entry and entry.record

    def where(self, slug: str, seed: int) -> str:
        """File and line of a record."""
        return self._contents().cells[slug, seed].where

    def damaged(self) -> list[str]:
        """A message for each damaged line whose cell is unknown."""
        return [
            f"{entry.where} is damaged: {entry.reason}; delete it, or restore it"
            for entry in self._contents().strays
        ]

    def any_damaged(self) -> bool:
        """Whether any record is damaged, so that a table would lack it."""
        cells, strays = self._contents()
        return bool(strays) or any(
            entry.record is None for (of, _), entry in cells.items() if of in self._slugs
        )

    def put(self, record: dict[str, Any]) -> None:
        """Writes the record of a cell, replacing an earlier one.

        The file is replaced atomically, under a lock: a reader sees the old lines or the new ones,
        and concurrent writers lose no records.
        """
        entry = Entry(json.dumps(jsonable(record), allow_nan=False), "", record)
        self._write({(slug(record["row"]), record["seed"]): entry})

    def refresh(self) -> None:
        """The next look is at the file, in a bucket too."""
        self._looked = -math.inf

    def convert(self) -> None:
        """Moves the files of an earlier version into `runs.jsonl`; damaged ones stay."""
        self._write({})

    def _write(self, new: dict[Key, Entry]) -> None:
        """Writes all lines in order: rows of the table, other rows, lines whose cell is unknown."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock.exclusive(self.folder, wait=True):
            cells, strays = self._contents(fresh=True)
            entries = {k: e for k, e in cells.items() if e.file is None or e.record is not None}
            entries |= new
            places = {name: i for i, name in enumerate(self._slugs)}
            order = sorted(entries, key=lambda key: (places.get(key[0], len(places)), key))
            lines = [entries[key].text for key in order] + [entry.text for entry in strays]
            text = "".join(line + "\n" for line in lines)
            if not self.path.is_file() or self.path.read_bytes() != text.encode():
                lock.check(self.path)
                storage.write(self.path, text)
            for key, entry in cells.items():
                if entry.file and key in entries:
                    entry.file.unlink()
            self._looked = -math.inf
            if isinstance(self.folder, pathlib.Path):
                with contextlib.suppress(OSError):  # it does not exist, or has a damaged file
                    (self.folder / FOLDER).rmdir()

    def _contents(self, fresh: bool = False) -> Contents:
        """The entries on disk; files are read again when they have changed.

        In a bucket, where it takes a while, it is looked for changes after LOOK seconds only.
        """
        now = time.monotonic()
        if not fresh and isinstance(self.path, storage.BucketPath) and now - self._looked < LOOK:
            return self._read[1]
        try:
            files = [*self._files(), *([self.path] if self.path.is_file() else [])]
            state = [(p, storage.fingerprint(p)) for p in files]
            if self._read is None or self._read[0] != state:
                cells = {key: entry for path in self._files() for key, entry in _of_file(path)}
                lines, strays = self._lines() if self.path.is_file() else ({}, [])
                self._read = state, Contents(cells | lines, strays)
        except FileNotFoundError:  # another process has moved it into `runs.jsonl`
            return self._contents(fresh)
        self._looked = now
        return self._read[1]

    def _files(self) -> list[storage.Path]:
        """The files of an earlier version."""
        return sorted((self.folder / FOLDER).glob("*-seed*.json"))

    def _lines(self) -> tuple[dict[Key, Entry], list[Entry]]:
        cells, strays = {}, []
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            where = f"{self.path}, line {number},"
            value, reason = _parsed(text)
            if value is None and number == len(lines):  # the newline is written last
                logger.warning("%s is incomplete and is dropped: its cell is run again", where)
                continue
            row, seed = (value.get("row"), value.get("seed")) if isinstance(value, dict) else (0, 0)
            if not isinstance(row, str) or not isinstance(seed, int):
                strays.append(Entry(text, where, None, reason or "it has no row and seed"))
                continue
            cells[slug(row), seed] = _entry(text, where, value)
        return cells, strays


def _of_file(path: storage.Path) -> Iterator[tuple[Key, Entry]]:
    """The record in a file of an earlier version, which is named after its cell."""
    if match := re.fullmatch(r"(.*)-seed(\d+)", path.stem):
        value, reason = _parsed(path.read_text(encoding="utf-8", errors="replace"))
        entry = Entry("", str(path), None, reason) if reason else _entry("", str(path), value)
        text = json.dumps(jsonable(entry.record))
        yield (match[1], int(match[2])), entry._replace(text=text, file=path)


def _parsed(text: str) -> tuple[Any, str]:
    """A JSON value, or None and the reason why it does not parse."""
    try:
        return from_jsonable(json.loads(text)), ""
    except ValueError as error:
        return None, f"not valid JSON: {error}"
    except RecursionError:
        return None, "not valid JSON: nested too deeply"


def _entry(text: str, where: str, value: Any) -> Entry:
    try:
        return Entry(text, where, checked(value))
    except ValueError as error:
        return Entry(text, where, None, " ".join(str(error).split())[:200])


def checked(record: Any) -> dict[str, Any]:
    """Checks that a record has the form that `Cells.run` writes, and returns it.

    Raises:
      ValueError: it has another form.
    """
    kinds = dict(row=str, seed=int, metrics=dict, failures=dict, config=dict, hardware=dict)
    for field, kind in kinds.items():
        if not isinstance(record, dict) or not isinstance(record.get(field), kind):
            raise ValueError(f"{field!r} is missing or of another type")
    if not isinstance(record["config"].get("evaluators"), dict):
        raise ValueError("'config.evaluators' is missing or of another type")
    for field in ("failures", "hardware", "versions"):
        of = record.get(field, {})
        for key, value in of.items() if isinstance(of, dict) else [("", None)]:
            if not isinstance(value, str | int | float):
                raise ValueError(f"'{field}.{key}' is of another type")
    run = record.get("run", "")
    if not isinstance(run, str) or pathlib.PurePath(run).is_absolute() or ".." in run:
        raise ValueError(f"'run' is {run!r}, which is not a folder below that of the runs")
    numbers(record["metrics"])
    datasets.check_sets(record.get("sets", {}))
    if record.get("trained") is not None:
        datasets.check_sets({"trained": record["trained"]})
    return record
