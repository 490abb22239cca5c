"""Compiles a config's programs for a slice that need not be at hand, and says what they take.

    python -m experiments.compile --config configs/imagenet/vmoe.py --topology v5e:4x4
    python -m experiments.compile --config configs/digits/vit.py:method=e3 --topology cpu:8
    python -m experiments.compile --config ... --topology v5e:4x4 --search

For the training step, the prediction of a batch and the stages: does it compile and fit, memory of
a chip by kind, FLOPs, bytes, collectives by mesh axis, lower bounds of the time from the chip's
published peaks, and what to change if it does not fit. No data are read. `--search` tries meshes
and executors. Compiling for TPUs needs `pip install '.[tpu]'`, and takes seconds to many minutes;
finished programs are kept, so the command resumes.
"""

import json
import logging
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments.data.derived import derived
from experiments.experiment import config as config_lib
from experiments.planning import estimates, paper, requests, search, show, slices, table
from experiments.planning.programs import PREDICT, SHAPES, TRAIN
from experiments.planning.requests import Request
from experiments.planning.search import Candidate
from experiments.runtime import project, storage
from experiments.runtime.progress import setup_logging
from experiments.runtime.workdir import jsonable, write_json
from uncertainty.build import ConfigError, nearest

logger = logging.getLogger(__name__)


def cache_folder() -> pathlib.Path:
    """Of finished programs."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return pathlib.Path(base).expanduser() / "uncertainty" / "programs"


def programs_of(config: Mapping[str, Any]) -> list[str]:
    """The names of a config's programs."""
    stages = [
        f"stage {i} {spec if isinstance(spec, str) else spec.get('name')}"
        for i, spec in enumerate(config["stages"])
    ]
    return [TRAIN, PREDICT, *(name for stage in stages for name in (stage, f"{stage} finish"))]


def chosen(config: Mapping[str, Any], names: list[str]) -> list[str]:
    """The programs of `--programs`; all by default.

    Raises:
      ConfigError: one that the config does not have.
    """
    known = programs_of(config)
    for name in names:
        if name not in known:
            raise ConfigError(f"programs: {name!r}; {nearest(name, known)}")
    return names or known


def main(argv: list[str]) -> None:
    setup_logging()
    changes = config_lib.assignments(argv[1:], "--config.")
    if bool(TABLE.value) == bool(CONFIG.value):
        raise ConfigError("config: give --config and --topology, or --table")
    if TABLE.value:
        check_unused(changes)
        return run_table()
    if not TOPOLOGY.value:
        raise ConfigError("topology: needed, such as --topology v5e:4x4 or --topology cpu:8")
    topology = slices.parse(TOPOLOGY.value)
    given = paper.shape_of(SHAPE.value, CLASSES.value, TARGETS.value, EXAMPLES.value)
    config = derived(config_lib.plain(config_lib.load(CONFIG.value, changes)))
    config_lib.check(config)
    paper.described(config, given)  # raises what is wrong with the data first
    storage.require_writable(output_folder())
    if SEARCH.value:
        return run_search(config, topology, given)
    programs, problems = [], 0
    results = {}
    for name in chosen(config, PROGRAMS.value):
        logger.info("%s: compiling for %s", name, topology.name)
        result = compile_one(config, topology, given, name)
        advice = estimates.advice(result, config, topology)
        print("\n".join(show.lines(name, result, topology, advice)), flush=True)
        programs.append(show.shown(name, result, topology, advice))
        results[name] = result
        problems += not estimates.compiles(result) or estimates.fits(result, topology) is False
    write({"config": config, "topology": topology.name, "programs": results}, programs,
          f"{CONFIG.value} on {topology.name}", {topology.name: topology})  # fmt: skip
    sys.exit(1 if problems else 0)


def check_unused(changes: Mapping[str, str]) -> None:
    """Checks that nothing is given with --table that its rows would not follow.

    Raises:
      ConfigError: a flag of a single config.
    """
    of_config = dict(topology=TOPOLOGY, search=SEARCH, shape=SHAPE, classes=CLASSES,
                     targets=TARGETS, examples=EXAMPLES)  # fmt: skip
    unused = [*(name for name, flag in of_config.items() if flag.value),
              *(f"config.{name}" for name in changes)]  # fmt: skip
    if unused:
        raise ConfigError(f"{unused[0]}: not used by --table, whose rows have their own")


def output_folder() -> storage.Path:
    """Of the JSON and the page of a config."""
    return storage.path(OUTPUT.value or f"{project.default('runs')}/compile")


def compile_one(
    config: Mapping[str, Any], topology: slices.Topology, given: paper.Shape | None, name: str
) -> dict[str, Any]:
    """The result of one program.

    Raises:
      ConfigError: a config that is wrong for these devices.
    """
    request = Request(config, topology.name, name, given)
    result = requests.compiled(request, cache_folder(), TIMEOUT.value, FRESH.value)
    if result.get("failed") == "config":
        raise ConfigError(result["reason"])
    return result


def run_search(
    config: Mapping[str, Any], topology: slices.Topology, given: paper.Shape | None
) -> None:
    """Tries meshes and executors for the training step, and prints the best that fits."""
    found = search.candidates(config, topology)
    if not found:
        raise ConfigError(
            f"batch_size: {config['batch_size']} examples cannot be shared by {topology.size} "
            "devices in any mesh; change it, or choose another topology"
        )
    print(f"{len(found)} candidates, of which at most {LIMIT.value} are compiled (--limit)")

    def compile_(candidate: Candidate) -> dict[str, Any]:
        changed = search.changed(config, candidate)
        try:
            return compile_one(changed, topology, given, TRAIN)
        except ConfigError as error:
            return dict(failed="config", reason=str(error))

    tried, programs = [], []
    for each in search.search(found, compile_, topology, LIMIT.value):
        tried.append(each)
        programs.append(show.shown(each.candidate.label, each.result, topology, ()))
        print(f"{len(tried):>3}  {each.candidate.label}: {outcome(each.result, topology)}",
              flush=True)  # fmt: skip
    best = search.best(tried, topology)
    kept = [dict(fields=each.candidate.fields, result=each.result) for each in tried]
    content = {"config": config, "topology": topology.name, "tried": kept,
               "best": None if best is None else best.candidate.fields}  # fmt: skip
    write(content, programs, f"Meshes of {CONFIG.value} on {topology.name}",
          {topology.name: topology})  # fmt: skip
    if best is None:
        closest, lines = search.advice(tried, config, topology)
        said = f"; {closest.candidate.label} needs the least" if closest else ""
        print("\n".join([f"nothing that was tried fits{said}", *(f"  try: {x}" for x in lines)]))
        sys.exit(1)
    fields = " ".join(
        f"--config.{name}={shlex.quote(json.dumps(jsonable(value)))}"
        for name, value in best.candidate.fields.items()
    )
    print(f"best of those that fit: {best.candidate.label}\n  {fields}")


def outcome(result: Mapping[str, Any], topology: slices.Topology) -> str:
    """One line of a candidate."""
    if not estimates.compiles(result):
        return show.short(result["reason"], 160)
    said = show.facts(result, topology)
    names = ("memory a chip", "of HBM", "sent a chip", "roofline", "bound by")
    fits = " (does not fit)" * (estimates.fits(result, topology) is False)
    return ", ".join(f"{name} {said[name]}" for name in names if name in said) + fits


def run_table() -> None:
    """Compiles what a table lacks, and writes it."""
    whole = table.read_table(TABLE.value)
    known = [SHAPES, *table.PROGRAMS]
    for name in PROGRAMS.value:
        if name not in known:
            raise ConfigError(f"programs: {name!r}; {nearest(name, known)}")
    try:
        rows = [row for row in whole.rows if re.search(ROWS.value, f"{row.label} {row.topology}")]
    except re.error as error:
        raise ConfigError(f"rows: {ROWS.value!r} is no regular expression: {error}") from None
    if not rows:
        raise ConfigError(f"rows: {ROWS.value!r} matches no row of {TABLE.value}")
    name = pathlib.Path(TABLE.value).stem
    folder = storage.path(OUTPUT.value or f"{project.default('results')}/{name}")
    storage.require_writable(folder)
    command = f"python -m experiments.compile --table {TABLE.value}"
    page = pathlib.Path(project.default("runs")) / "compile" / f"{name}.html"

    def written() -> None:
        table.write(whole, folder, page, command)

    names = PROGRAMS.value or whole.programs
    table.run(rows, folder, cache_folder(), TIMEOUT.value, names, FRESH.value, written)
    written()
    print(f"{folder / 'table.md'}, {page}")


def write(content: dict[str, Any], programs: list[Any], title: str, topologies: dict) -> None:
    """Writes the JSON and the page of a command."""
    from experiments.reports.compiled import write_page

    folder = output_folder()
    write_json(folder / "programs.json", content)
    command = shlex.join(["python", "-m", "experiments.compile", *sys.argv[1:]])
    page = folder / "programs.html"
    made_by = requests.compiled_by(requests.versions(), topologies)
    write_page(page, title, programs, command, made_by, above=show.sources(topologies))
    print(f"{folder / 'programs.json'}, {page}")


if __name__ == "__main__":
    from experiments.runtime import program

    CONFIG = flags.DEFINE_string("config", None, "As for experiments.train.")
    TOPOLOGY = flags.DEFINE_string(
        "topology", None, "v5e:4x4, v5p:2x2x2, ... in chips, or cpu:8 for virtual CPU devices."
    )
    PROGRAMS = flags.DEFINE_list(
        "programs",
        [],
        "Of train, predict, 'stage 0 NAME' and 'stage 0 NAME finish'; default: all. "
        "Of a table: train, predict, shapes.",
    )
    SEARCH = flags.DEFINE_bool("search", False, "Try meshes and executors for the training step.")
    LIMIT = flags.DEFINE_integer(
        "limit", 12, "Programs that --search compiles at most.", lower_bound=1
    )
    SHAPE = flags.DEFINE_list("shape", None, "Of an example, such as 224,224,3, of unknown sets.")
    CLASSES = flags.DEFINE_integer("classes", 0, "Their number of classes.")
    TARGETS = flags.DEFINE_integer("targets", 0, "Their number of regression targets.")
    EXAMPLES = flags.DEFINE_integer("examples", 0, "Their number of training examples.")
    TIMEOUT = flags.DEFINE_float("timeout", 3600, "Seconds for each program.", lower_bound=1)
    FRESH = flags.DEFINE_bool("fresh", False, "Compile again what was compiled before.")
    OUTPUT = flags.DEFINE_string("output", None, "The folder of the JSON and the page.")
    TABLE = flags.DEFINE_string("table", None, "A table of configs and topologies instead.")
    ROWS = flags.DEFINE_string("rows", "", "A regular expression: which rows of the table to run.")
    program.run(main)
