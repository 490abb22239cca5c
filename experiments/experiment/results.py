"""Writes the results of an evaluation, and the data sets that they belong to."""

import contextlib
import json
import logging
import pathlib
import re
import traceback
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data.derived import path_of
from experiments.data.source import Source
from experiments.runtime import keys, storage
from experiments.runtime.workdir import read_json, write_json
from uncertainty.build import ConfigError

logger = logging.getLogger(__name__)

SETS = "sets.json"  # the data of an evaluation: name, examples, digest
FITS = f"{keys.FITTED}.npz"  # what evaluators fitted, `prediction.fitted`
PREDICTIONS = "predictions.npz"  # of the members, `exported.export_all`
RUNS = "runs.json"  # the runs of the members, if there are several: workdir, step


def path_in(evaluator: str, field: str) -> str:
    """The path of a set in sets.json: 'test' of `data`, 'ood.mnist' of `sets.mnist`,
    'map.groups.inner' of other fields."""
    first, dot, rest = field.partition(".")
    return path_of(evaluator, first) + dot + rest


def print_sets(
    sets: Mapping[str, Mapping[str, Any]],
    step: int,
    trained: str = "",
    mismatches: Sequence[str] = (),
) -> None:
    """Prints the evaluated data: a line for each set, with differences from the training data.

    Args:
      sets: of sets.json.
      step: that was evaluated.
      trained: name and size of the training data.
      mismatches: sentences on sets that are not parts of the training data's set.
    """
    lines: dict[str, list[str]] = {}
    for path, noted in sets.items():
        notes = "".join(f"; {note}" for note in noted.get("notes", ()))
        lines.setdefault(f"{noted['name']}, {noted['examples']:,} examples{notes}", []).append(path)
    print(f"Step {step:,}, trained on {trained}, on" if trained else f"Step {step:,} on")
    for text, paths in lines.items():
        print(f"  {', '.join(paths)}: {text}")
    for sentence in mismatches:
        logger.warning("%s", sentence)


@contextlib.contextmanager
def reported(name: str, failures: dict[str, str]) -> Iterator[None]:
    """Logs the error of one evaluator and adds it to `failures`, so that the others still run."""
    try:
        yield
    except Exception as error:
        plain = isinstance(error, ValueError | OSError | ArithmeticError | ImportError)
        failures[name] = str(error) if plain else repr(error)
        logger.error("evaluator %s: %s", name, failures[name])
        logger.debug("%s", traceback.format_exc())


def write_results(
    directory: storage.Path,
    metrics: Mapping[str, float],
    arrays: Mapping[str, np.ndarray],
    sets: Mapping[str, Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes metrics.json, scores.npz and sets.json atomically; for several runs RUNS too.

    What was fitted (`prediction.fitted`) is in a file of its own. Predictions of an earlier
    evaluation are removed if they are of another step, of other runs or of other test data.
    """
    of_fits = {key: arrays[key] for key in arrays if keys.split(key)[0] == keys.FITTED}
    scores = {key: array for key, array in arrays.items() if key not in of_fits}
    try:
        with storage.whole(directory / "scores.npz") as half:
            if of_fits:
                with storage.whole(directory / FITS) as other, other.open("wb") as file:
                    np.savez_compressed(file, **of_fits)
            else:
                (directory / FITS).unlink(missing_ok=True)
            with half.open("wb") as file:
                np.savez_compressed(file, **scores)
            write_json(directory / SETS, sets)
            (directory / RUNS).unlink(missing_ok=True)
            if not _are_of(directory / PREDICTIONS, sets, runs):
                (directory / PREDICTIONS).unlink(missing_ok=True)
            if len(runs) > 1:
                write_json(directory / RUNS, runs)
            write_json(directory / "metrics.json", metrics)
    except OSError as error:
        raise OSError(error.errno, f"could not write {directory}: {error.strerror}") from error


def _are_of(
    file: storage.Path, sets: Mapping[str, Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether a file of predictions, if there is one, is of these data and steps of these runs."""
    from experiments.prediction import archive

    if not file.is_file():
        return True
    try:
        with file.open("rb") as stream, zipfile.ZipFile(stream) as packed:
            noted = json.loads(packed.read(archive.METADATA))
        steps, theirs = (
            [(run["workdir"], run["step"]) for run in of] for of in (runs, noted["runs"])
        )
        test = noted["sets"].get(archive.TEST, {}).get("digest")
        return steps == theirs and test in (None, *(one["digest"] for one in sets.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return False  # damaged, or of an earlier version


def name_of(spec: Mapping[str, Any]) -> str:
    """The folder below evaluation/ for a data set: 'digits-validation', 'npz-mine-test'."""
    parts = (spec["name"], pathlib.Path(str(spec.get("path", ""))).stem, spec.get("split", ""))
    return re.sub(r"[^\w.-]+", "-", " ".join(map(str, parts))).strip("-.") or "data"


def place(
    workdir: storage.Path,
    name: str | None,
    spec: Mapping[str, Any] | None,
    source: Source | None,
    others: Sequence[storage.Path] = (),
) -> str:
    """The folder below evaluation/ for results on other data, or of several runs.

    Args:
      workdir: of the run.
      name: given by the user; None to make one from the data and the other runs: `name_of`, with a
        checksum if that folder has other results.
      spec, source: of the data; None for those of the config.
      others: workdirs of the runs joined with this one.

    Raises:
      ConfigError: an invalid folder name, or a folder with other results.
    """
    identity = None if source is None else [source.digest(), *source.notes]
    runs = [storage.relative(other, workdir) for other in others]

    def has_others(name: str) -> bool:
        """Whether the folder has results of other data or runs."""
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
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):  # written by another version, or the config's own evaluation
            return identity is not None or bool(runs)

    if name is None:
        name = "test" if spec is None else name_of(spec)
        if runs:
            name += "-with-" + "-".join(other.absolute().name for other in others)
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


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is a valid folder name."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"--name: {name!r}; use letters, digits, '.', '_' and '-'")
