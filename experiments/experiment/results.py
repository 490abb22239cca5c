"""Where the results of an evaluation go, and on which data sets they are."""

import contextlib
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.data.derived import path_of, specs
from experiments.data.source import Source
from experiments.runtime.workdir import read_json, write_json
from uncertainty.build import ConfigError

SETS = "sets.json"  # which data an evaluation read: name, examples, digest


def sets_of(name: str, spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, spec or source) of the sets of one evaluator: 'test' of `data`, 'ood.mnist' of `sets`,
    'map.groups.inner' of other fields."""
    for field, value in spec.items():
        at = path_of(name, field)
        if isinstance(value, Source):
            yield at, value
        else:
            yield from specs(value, at)


def print_sets(sets: Mapping[str, Mapping[str, Any]], step: int) -> None:
    """Prints which data were evaluated: a line for each set, and what was read otherwise."""
    lines: dict[str, list[str]] = {}
    for path, noted in sets.items():
        notes = "".join(f"; {note}" for note in noted.get("notes", ()))
        lines.setdefault(f"{noted['name']}, {noted['examples']:,} examples{notes}", []).append(path)
    print(f"Step {step:,} on")
    for text, paths in lines.items():
        print(f"  {', '.join(paths)}: {text}")


def write_results(
    directory: pathlib.Path,
    metrics: Mapping[str, float],
    arrays: Mapping[str, np.ndarray],
    sets: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes metrics.json, scores.npz and sets.json, whole or not at all."""
    half = directory / "half.npz"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(half, **arrays)
        write_json(directory / SETS, sets)
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
) -> str:
    """The name under evaluation/ for results that are not the run's own.

    Args:
      workdir: of the run.
      name: that the user gave; None for one made of the data: `name_of`, and where that has
        results of other data, or of these read otherwise, a checksum too.
      spec, source: of the data; None for those of the config.

    Raises:
      ConfigError: a name that is no folder's, or one that has results of other data.
    """

    identity = None if source is None else [source.digest(), *source.notes]

    def of_other_data(name: str) -> bool:
        folder = workdir / "evaluation" / name
        if not folder.exists():
            return False
        try:
            sets = read_json(folder / SETS)
            if identity is None:
                return "data" in sets
            return [sets["data"]["digest"], *sets["data"].get("notes", ())] != identity
        except (OSError, ValueError, KeyError, TypeError):  # of another version, or the config's
            return identity is not None

    if name is None:
        name = name_of(spec)
        suffix = f"{zlib.crc32(repr(identity).encode()):08x}"
        return f"{name}-{suffix}" if of_other_data(name) else name
    check_name(name)
    if of_other_data(name):
        raise ConfigError(
            f"--name: {name!r} has results of other data in {workdir / 'evaluation' / name}; "
            "give another name, or remove that folder"
        )
    return name


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is that of a folder."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"--name: {name!r}; letters, digits, '.', '_' and '-' make a name")
