"""Post-hoc calibrators and conformal predictors of a run, as a file beside its evaluation.

calibrate = read(workdir / "evaluation" / "test", "posthoc", "temperature")
log_p = calibrate(log_p)                      # [M, B, K] -> [1, B, K] of the mixture
sets = read(workdir / "evaluation" / "test", "conformal", "lac")
chosen = sets(log_p[0])                       # [B, K], bool
"""

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.runtime import keys, storage
from uncertainty import posthoc
from uncertainty.build import ConfigError, nearest
from uncertainty.specs import resolve

FILE = f"{keys.FITTED}.npz"


def arrays_of(
    section: str, label: str, spec: Mapping[str, Any], fitted: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of a calibrator or predictor, for an evaluator to yield.

    Args:
      section: of `uncertainty`, 'posthoc' or 'conformal'.
      label: its name in the results.
      spec: its name and fields in the config.
      fitted: a NamedTuple of arrays, or what `posthoc.of_ensemble` returns.
    """
    kind, parts = "one", (fitted,)
    if isinstance(fitted, posthoc.OfMixture):
        kind, parts = "mixture", (fitted.calibrator,)
    elif isinstance(fitted, posthoc.OfMembers):
        kind, parts = "members", fitted.calibrators
    about = dict(spec=dict(spec), kind=kind, parts=len(parts))
    yield keys.join(keys.FITTED, section, label, "about"), np.array(json.dumps(about, default=str))
    for i, part in enumerate(parts):
        for name, value in part._asdict().items():
            yield keys.join(keys.FITTED, section, label, str(i), name), np.asarray(value)


class Saved(NamedTuple):
    """A calibrator or predictor, and the name and fields of its method in the config."""

    fitted: Any
    spec: Mapping[str, Any]


def read(folder: str | storage.Path, section: str, label: str) -> Any:
    """The calibrator or predictor `label` of the results in a folder; see `load`."""
    return load(folder, section, label).fitted


def names(folder: str | storage.Path, section: str) -> list[str]:
    """The labels of the calibrators or predictors of the results in a folder."""
    return [of[1] for of in _arrays(folder) if of[0] == section and of[-1] == "about"]


def load(folder: str | storage.Path, section: str, label: str) -> Saved:
    """The calibrator or predictor `label` of the results in a folder, and its spec.

    Args:
      folder: of the results, such as WORKDIR/evaluation/test.
      section: 'posthoc' or 'conformal'.
      label: its name there.

    Raises:
      ConfigError: the folder has no such one; the message names those that it has.
    """
    file, found = storage.path(folder) / FILE, _arrays(folder)
    if (section, label, "about") not in found:
        valid = names(folder, section)
        raise ConfigError(f"{file}: no {label!r} of {section}; {nearest(label, valid)}")
    about = json.loads(str(found[section, label, "about"]))
    of = typing.get_type_hints(resolve(section, about["spec"]["name"], section))["return"]
    parts = tuple(
        of(
            **{
                name: found[section, label, str(i), name][()]
                for name in of._fields
                if (section, label, str(i), name) in found  # others are newer than the file
            }
        )
        for i in range(about["parts"])
    )
    made: Any = parts[0]
    if about["kind"] != "one":
        made = posthoc.OfMixture(made) if about["kind"] == "mixture" else posthoc.OfMembers(parts)
    return Saved(made, about["spec"])


def _arrays(folder: str | storage.Path) -> dict[tuple[str, ...], np.ndarray]:
    """(section, label, ...) -> array of what the evaluators of a folder's results fitted."""
    file = storage.path(folder) / FILE
    if not file.exists():
        raise ConfigError(
            f"{file}: missing; an evaluator of the config that fits something, such as "
            f"dict(name='posthoc', ...), writes it"
        )
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
        return {keys.split(name)[1:]: archive[name] for name in archive.files}
