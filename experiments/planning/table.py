"""A table of compiled programs: rows of configs and topologies, finished ones kept as lines."""

import importlib.util
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.data.derived import derived
from experiments.experiment import config as config_lib
from experiments.planning import estimates, requests, scaling, show, slices
from experiments.planning.programs import PREDICT, SHAPES, TRAIN
from experiments.planning.requests import Request
from experiments.planning.slices import GIB
from experiments.reports import formats
from experiments.reports.compiled import Bounds, sizes_figure, write_page
from experiments.reports.study import Study
from experiments.reports.style import save_png
from experiments.runtime import project, storage
from experiments.runtime.workdir import jsonable
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)
RECORDS = "programs.jsonl"
PROGRAMS = (TRAIN, PREDICT)


class Row(NamedTuple):
    """A config for a slice."""

    label: str
    config: str  # as on the command line
    fields: Mapping[str, Any]  # that differ from it, by dotted names
    topology: str

    def request(self, program: str) -> Request:
        config = config_lib.plain(config_lib.load(self.config, self.fields))
        return Request(derived(config), self.topology, program)


class Table(NamedTuple):
    """What a file says."""

    title: str
    rows: list[Row]
    programs: Sequence[str] = PROGRAMS


def read_table(path: str) -> Table:
    """The table of a file with `get_table`.

    Raises:
      ConfigError: no such file, or not such a file.
    """
    location = project.find(path)
    if location.suffix != ".py" or not location.is_file():
        raise ConfigError(f"table: no file {path!r}; there is configs/accelerators.py")
    spec = importlib.util.spec_from_file_location("table_file", location)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_table"):
        raise ConfigError(f"table: {path} has no function get_table")
    table = module.get_table()
    rows = [Row(**row) for row in table["rows"]]
    for row in rows:
        if slices.parse(row.topology, installed=False).chip is None:
            raise ConfigError(f"table: {row.label}: {row.topology} has no published peaks")
    return Table(table["title"], rows, table.get("programs", PROGRAMS))


def records(folder: storage.Path) -> dict[str, dict[str, Any]]:
    """key -> record of each finished program."""
    path = folder / RECORDS
    if not path.is_file():
        return {}
    lines = (json.loads(line) for line in path.read_text().splitlines() if line.strip())
    return {line["key"]: line for line in lines}


def key_of(request: Request) -> str:
    """Of the program and the versions of packages; the sources may have changed since."""
    made_by = {k: v for k, v in requests.versions().items() if k != "sources"}
    return requests.key_of(request, made_by)


def run(
    rows: Sequence[Row],
    folder: storage.Path,
    cache: pathlib.Path,
    timeout: float,
    programs: Sequence[str] = PROGRAMS,
    fresh: bool = False,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Compiles what is not there yet, first the training steps of all rows, one after the other.

    A record of a time limit is tried again only if the limit is larger now.

    Args:
      rows: of the table.
      folder: of its records.
      cache: see `requests.compiled`.
      timeout: seconds for each program.
      programs: which, in this order.
      fresh: compile all again.
      after: called after each record.
    """
    for program in programs:
        for row in rows:
            request = row.request(program)
            key, known = key_of(request), records(folder)
            if key in known and not fresh and not again(known[key]["result"], timeout):
                continue
            slices.parse(row.topology)  # raises if its compiler is missing
            logger.info("%s, %s: %s", row.label, row.topology, program)
            result = requests.compiled(request, cache, timeout, fresh)
            record = dict(key=key, **row._asdict(), program=program, result=result)
            write_records(folder, records(folder) | {key: record})  # others may have written
            logger.info("  %s", result.get("reason") or f"{result['wall_seconds']:.0f} s")
            after()


def again(result: Mapping[str, Any], timeout: float) -> bool:
    """Whether a failure may pass."""
    failed = result.get("failed")
    if failed == requests.TIMEOUT:
        return timeout > result.get("wall_seconds", 0) + 30
    return failed == requests.ABORTED and "memory runs out" in result["reason"]


def write_records(folder: storage.Path, known: Mapping[str, Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(jsonable(record), sort_keys=True) for record in known.values()]
    storage.write(folder / RECORDS, "\n".join(lines) + "\n")


def of_rows(rows: Sequence[Row], folder: storage.Path) -> Iterator[tuple[Row, dict[str, Any]]]:
    """(row, program -> result) of those that have one; of the newest record of each."""
    known = records(folder)
    for row in rows:
        wanted = (row.label, row.topology)
        mine = {
            record["program"]: record["result"]
            for record in known.values()
            if (record["label"], record["topology"]) == wanted
        }
        if mine:
            yield row, mine


COLUMNS = (
    dict(key="parameters", header="Parameters", unit="M"),
    dict(key="flops", header="GFLOPs an example", digits=2),
    dict(key="state", header="State (GiB)", digits=2),
    dict(key="temporaries", header="Temporaries (GiB)", digits=2),
    dict(key="peak", header="All (GiB)", digits=2),
    dict(key="hbm", header="Of HBM", unit="%", digits=0),
    dict(key="predict_peak", header="Prediction (GiB)", digits=2),
    dict(key="sent", header="Sent a step (MiB)", digits=1),
    dict(key="roofline", header="Roofline (ms)", digits=2),
    dict(key="rate", header="Examples/s at the peaks", unit="K", digits=1),
)


def study(table: Table, folder: storage.Path, command: str) -> Study:
    """The table of the training steps; `hardware` says which versions compiled it.

    If SHAPES are among its programs, it is that of `scaling`, over sizes of slices.
    """
    title, rows, _ = table
    there = compiled_by(rows, folder)
    there["devices"] = f"Compiled for {there['devices']}"
    if SHAPES in table.programs:
        found = list(scaling.sizes(list(of_rows(rows, folder))))
        columns, lines = scaling.COLUMNS, scaling.table_rows(found)
        return Study(title, columns, lines, command=command, exact=True, hardware=there)
    made = []
    for row, results in of_rows(rows, folder):
        if TRAIN not in results:
            continue
        train, predict = results[TRAIN], results.get(PREDICT)
        topology = slices.parse(row.topology, installed=False)
        shown = dict(label=f"{row.label}, {row.topology}", group=row.topology)
        if not estimates.compiles(train):
            made.append(dict(shown, failed=show.short(train["reason"], 200)))
            continue
        notes = []
        if predict and not estimates.compiles(predict):
            notes.append(f"Prediction: {show.short(predict['reason'], 200)}")
        if estimates.roofline(train, topology).at_least:
            notes.append("It has loops of unknown length, which count once.")
        results = [numbers(train, predict, topology)]
        made.append(dict(shown, results=results, note=" ".join(notes)))
    return Study(title, COLUMNS, made, command=command, exact=True, hardware=there)


def compiled_by(rows: Sequence[Row], folder: storage.Path) -> dict[str, str]:
    """Topologies and versions of all records of the rows."""
    everything = [(row, n, r) for row, each in of_rows(rows, folder) for n, r in each.items()]
    found = [(row, r) for row, n, r in everything if n != SHAPES] or [
        (row, r) for row, _, r in everything
    ]
    each = [result["versions"] for _, result in found]
    versions = {name: " and ".join(sorted({v[name] for v in each})) for name in each[0]}
    return requests.compiled_by(versions, dict.fromkeys(row.topology for row, _ in found))


def numbers(
    train: Mapping[str, Any], predict: Mapping[str, Any] | None, topology: slices.Topology
) -> dict[str, float]:
    """The values of COLUMNS."""
    memory, bound = train["memory"], estimates.roofline(train, topology)
    state = sum(memory[kind] for kind in ("parameters", "optimiser", "other"))
    values = dict(
        parameters=train["parameters"],
        flops=train["flops"] / train["examples"] / 1e9,
        state=state / GIB,
        temporaries=memory["temporaries"] / GIB,
        peak=memory["peak"] / GIB,
        hbm=memory["peak"] / topology.chip.hbm,
        sent=estimates.sent(train) / 2**20,
        roofline=1e3 * bound.seconds,
        rate=train["examples"] / bound.seconds,
    )
    if predict and estimates.compiles(predict):
        values["predict_peak"] = predict["memory"]["peak"] / GIB
    return values


def write(table: Table, folder: storage.Path, page: storage.Path, command: str) -> None:
    """Writes table.md, .tex, .csv and .json into the folder of the records, and the page; over
    sizes of slices also bounds.png."""
    if not records(folder):
        return
    title, rows, _ = table
    formats.write_study(study(table, folder, command), folder, "table")
    if SHAPES in table.programs:
        found = scaling.sizes(list(of_rows(rows, folder)))
        bounds = [Bounds(each.label, each.chips, each.times, each.compiled) for each in found]
        save_png(sizes_figure(bounds), folder / "bounds.png")
    programs, topologies = [], {}
    for row, results in of_rows(rows, folder):
        topology = topologies[row.topology] = slices.parse(row.topology, installed=False)
        for name, result in results.items():
            if name == SHAPES:
                continue
            config = row.request(name).config
            advice = estimates.advice(result, config, topology)
            label = f"{row.label}, {row.topology}" + f": {name}" * (name != TRAIN)
            programs.append(show.shown(label, result, topology, advice))
    there, above = compiled_by(rows, folder), show.sources(topologies)
    write_page(page, title, programs, command, there, above)
