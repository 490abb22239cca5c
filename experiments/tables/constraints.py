"""The package versions of a table's runs, as a constraints file for `pip install -c`."""

import collections
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

# Packages that results may depend on.
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
    "scikit-learn",
    "ml_collections",
    "orbax-checkpoint",
)


def installed() -> dict[str, str]:
    """package -> version, for the packages that are installed here."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def text_of(records: Iterable[Mapping[str, Any]]) -> str:
    """The constraints file of a table's records.

    A package with several versions, or without a recorded version, becomes a comment.

    Args:
      records: each with `hardware` and, in newer ones, `versions`.
    """
    counts: dict[str, collections.Counter] = {name: collections.Counter() for name in PACKAGES}
    pythons, machines, count = collections.Counter(), collections.Counter(), 0
    for count, record in enumerate(records, 1):  # noqa: B007
        environment = {**record["hardware"], **record.get("versions", {})}
        for name in PACKAGES:
            counts[name][environment.get(name)] += 1
        pythons[environment.get("python", "unknown")] += 1
        machines[
            f"{environment.get('processor', 'unknown')}, {environment.get('devices', 'unknown')}"
        ] += 1
    lines = [
        "# The versions that the cells of this table were made with:",
        "#     pip install --constraint constraints.txt --editable .",
        f"# Python {_counted(pythons)}; {_counted(machines)}; cells: {count}",
    ]
    for name, versions in counts.items():
        if set(versions) == {None}:
            lines.append(f"# {name}: not recorded")
        elif len(versions) == 1:
            lines.append(f"{name}=={next(iter(versions))}")
        else:
            lines.append(f"# {name}: {_counted(versions)}")
    return "\n".join(lines) + "\n"


def _counted(values: Mapping[Any, int]) -> str:
    """'3.11.7', or '3.11.7 (4) and 3.12.1 (6)' with the number of cells of each."""
    if len(values) == 1:
        return str(next(iter(values)))
    counts = sorted(values.items(), key=str)
    return " and ".join(f"{value or 'not recorded'} ({n})" for value, n in counts)
