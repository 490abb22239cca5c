"""Where the results of an evaluation go, and on which data sets they are."""

import contextlib
import logging
import os
import pathlib
import re
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data.derived import path_of
from experiments.data.source import Source
from experiments.runtime.workdir import read_json, write_json
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)

SETS = "sets.json"  # which data an evaluation read: name, examples, digest
RUNS = "runs.json"  # of which runs the members are, where there are several: workdir, step


def path_in(evaluator: str, field: str) -> str:
    """The path of a set in sets.json: 'test' of `data`, 'ood.mnist' of `sets.mnist`,
    'map.groups.inner' of other fields."""
    first, dot, rest = field.partition(".")
    return path_of(evaluator, first) + dot + rest


def print_sets(sets: Mapping[str, Mapping[str, Any]], step: int) -> None:
    """Prints which data were evaluated: a line for each set, and what was read otherwise."""
    lines: dict[str, list[str]] = {}
    for path, noted in sets.items():
        notes = "".join(f"; {note}" for note in noted.get("notes", ()))
        lines.setdefault(f"{noted['name']}, {noted['examples']:,} examples{notes}", []).append(path)
    print(f"Step {step:,} on")
    for text, paths in lines.items():
        print(f"  {', '.join(paths)}: {text}")


@contextlib.contextmanager
def reported(name: str, failures: dict[str, str]) -> Iterator[None]:
    """Logs the error of one evaluator and adds its reason to `failures`; the others go ahead."""
    try:
        yield
    except Exception as error:
        plain = isinstance(error, ValueError | OSError | ArithmeticError | ImportError)
        failures[name] = str(error) if plain else repr(error)
        logger.error("evaluator %s: %s", name, failures[name])
        logger.debug("%s", traceback.format_exc())


def write_results(
    directory: pathlib.Path,
    metrics: Mapping[str, float],
    arrays: Mapping[str, np.ndarray],
    sets: Mapping[str, Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes metrics.json, scores.npz and sets.json, whole or not at all; of several runs RUNS."""
    half = directory / "half.npz"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(half, **arrays)
        write_json(directory / SETS, sets)
        (directory / RUNS).unlink(missing_ok=True)
        if len(runs) > 1:
            write_json(directory / RUNS, runs)
        write_json(directory / "metrics.json", metrics)
        os.replace(half, directory / "scores.npz")
    except OSError as error:
        with contextlib.suppress(OSError):  # on a disk that is read-only, say
            half.unlink()
        raise OSError(error.errno, f"could not write {directory}: {error.strerror}") from error


def name_of(spec: Mapping[str, Any]) -> str:
    """Where under evaluation/ the results of a set go: 'digits-validation', 'npz-mine-test'."""
    parts = (spec["name"], pathlib.Path(str(spec.get("path", ""))).stem, spec.get("split", ""))
    return re.sub(r"[^\w.-]+", "-", " ".join(map(str, parts))).strip("-.") or "data"


def place(
    workdir: pathlib.Path,
    name: str | None,
    spec: Mapping[str, Any] | None,
    source: Source | None,
    others: Sequence[pathlib.Path] = (),
) -> str:
    """The name under evaluation/ for results that are not the run's own.

    Args:
      workdir: of the run.
      name: that the user gave; None for one made of the data and of the other runs: `name_of`, and
        where that has other results, a checksum too.
      spec, source: of the data; None for those of the config.
      others: workdirs of the runs that are joined with this one.

    Raises:
      ConfigError: a name that is no folder's, or one that has other results.
    """
    identity = None if source is None else [source.digest(), *source.notes]
    runs = [relative(other, workdir) for other in others]

    def has_others(name: str) -> bool:
        """Whether there are results of other data or runs."""
        folder = workdir / "evaluation" / name
        if not folder.exists():
            return False
        try:
            noted = read_json(folder / RUNS)[1:] if (folder / RUNS).exists() else []
            sets = read_json(folder / SETS)
            if [run["workdir"] for run in noted] != runs:
                return True
            if identity is None:
                return "data" in sets
            return [sets["data"]["digest"], *sets["data"].get("notes", ())] != identity
        except (OSError, ValueError, KeyError, TypeError):  # of another version, or the config's
            return identity is not None or bool(runs)

    if name is None:
        name = "test" if spec is None else name_of(spec)
        if runs:
            name += "-with-" + "-".join(pathlib.PurePath(run).name for run in runs)
        name = re.sub(r"[^\w.-]+", "-", name)
        suffix = f"{zlib.crc32(repr((identity, runs) if runs else identity).encode()):08x}"
        return f"{name}-{suffix}" if has_others(name) else name
    check_name(name)
    if has_others(name):
        raise ConfigError(
            f"--name: {name!r} has results of other data or runs in "
            f"{workdir / 'evaluation' / name}; give another name, or remove that folder"
        )
    return name


def relative(other: pathlib.Path, workdir: pathlib.Path) -> str:
    """The path of another run from that of `workdir`, so that both can be moved together."""
    return os.path.relpath(other.absolute(), workdir.absolute())


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is that of a folder."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"--name: {name!r}; letters, digits, '.', '_' and '-' make a name")
