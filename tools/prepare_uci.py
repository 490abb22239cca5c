"""Makes npz files of UCI regression sets from R packages that contain them.

    pip install '.[uci]'
    apt-get download r-cran-mlbench r-cran-modeldata
    for package in r-cran-*.deb; do dpkg-deb -x $package packages; done
    python -m tools.prepare_uci --from packages/usr/lib/R/site-library [--out DIR]

An R installation with mlbench and modeldata works as well; --from is then its library.

    boston    506 x 13, median value of homes in 1,000 dollars (mlbench, BostonHousing)
    concrete  1,030 x 8, compressive strength in MPa (modeldata)

Each file has `x` and `y` in float64, in the order of the source, checked by sha256. One column of
boston, b, is computed from the share of Black residents, for which scikit-learn removed the set; it
is here only for comparison with the literature.
"""

import hashlib
import io
import lzma
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags


class Origin(NamedTuple):
    """The source of a set, and its checksum."""

    file: str  # in the R library; without suffix for a lazy-load database
    name: str  # of the data frame
    outcome: str  # its column that is y; the others are x
    sha256: str  # of x and then y, as little-endian float64


ORIGINS = {
    "boston": Origin(
        "mlbench/data/BostonHousing.rda",
        "BostonHousing",
        "medv",
        "a452688f7de3e21b6013d6c370ad53e04c3181c33ad9f0dd91b8b2f67317e787",
    ),
    "concrete": Origin(
        "modeldata/data/Rdata",
        "concrete",
        "compressive_strength",
        "95cb952ae1ade7d55b866083620d52d512ccc12cabf2d5b48f19e558ffce6fd3",
    ),
}


def read(library: pathlib.Path, origin: Origin) -> Mapping[str, Any]:
    """The columns of a data frame of R, by name.

    Raises:
      ValueError: a file of the package is missing.
      ImportError: rdata is not installed.
    """
    path = library / origin.file
    lazy = not path.suffix
    for file in (path.with_suffix(".rdx"), path.with_suffix(".rdb")) if lazy else (path,):
        if not file.is_file():
            raise ValueError(
                f"--from: there is no {file}; Debian's package r-cran-{path.parts[-3]} has it"
            )
    try:
        import rdata
    except ImportError as error:
        raise ImportError(f"{error}; run pip install '.[uci]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata warns that it reads a tibble as a data frame
        if not lazy:
            return rdata.read_rda(path, default_encoding="ascii")[origin.name]
        index = rdata.read_rds(path.with_suffix(".rdx"), default_encoding="ascii")
        start, size = map(int, index["variables"][origin.name])
        chunk = path.with_suffix(".rdb").read_bytes()[start : start + size]
        return rdata.read_rds(io.BytesIO(unpack(chunk)), default_encoding="ascii")


def unpack(chunk: bytes) -> bytes:
    """One object of a lazy-load database: its size (big-endian uint32), 'Z', raw LZMA2.

    Raises:
      ValueError: another compression, or damaged.
    """
    if chunk[4:5] != b"Z":
        raise ValueError(f"an object of the database has compression {chunk[4:5]!r}, not b'Z' (xz)")
    filters = [dict(id=lzma.FILTER_LZMA2, preset=lzma.PRESET_DEFAULT)]
    try:
        data = lzma.decompress(chunk[5:], lzma.FORMAT_RAW, filters=filters)
    except lzma.LZMAError as error:
        raise ValueError(f"an object of the database is damaged ({error})") from error
    if len(data) != int.from_bytes(chunk[:4], "big"):
        raise ValueError("an object of the database is damaged: its size does not match")
    return data


def arrays(frame: Mapping[str, Any], outcome: str) -> tuple[np.ndarray, np.ndarray]:
    """x [N, D] and y [N] in float64; factors have numeric labels, which are their values."""
    columns = {str(name): np.asarray(frame[name]).astype(np.float64) for name in frame}
    y = columns.pop(outcome)
    return np.stack(list(columns.values()), axis=-1), y


def digest(x: np.ndarray, y: np.ndarray) -> str:
    """sha256 of the values."""
    parts = (np.ascontiguousarray(a, "<f8").tobytes() for a in (x, y))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def checked(name: str, columns: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a set of ORIGINS.

    Raises:
      ValueError: the values do not match the checksum.
    """
    origin = ORIGINS[name]
    x, y = arrays(columns, origin.outcome)
    if digest(x, y) != origin.sha256:
        raise ValueError(
            f"--from: {origin.file} has unexpected values for {name} "
            f"(sha256 {digest(x, y)}, expected {origin.sha256})"
        )
    return x, y


def main(_: list[str]) -> None:
    library, out = (pathlib.Path(flag.value).expanduser() for flag in (FROM, OUT))
    try:
        sets = {name: checked(name, read(library, origin)) for name, origin in ORIGINS.items()}
    except (ValueError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in sets.items():
        np.savez(out / f"{name}.npz", x=x, y=y)
        print(f"{out / name}.npz: {len(y)} x {x.shape[1]}")


if __name__ == "__main__":
    FROM = flags.DEFINE_string("from", "/usr/lib/R/site-library", "R's library of packages.")
    OUT = flags.DEFINE_string("out", "~/uci_datasets", "Folder for the npz files.")
    app.run(main)
