"""Prepares tfds' Fashion-MNIST from the files of Debian's package dataset-fashion-mnist.

    apt-get install dataset-fashion-mnist
    python -m tools.prepare_fashion_mnist [--from DIR] [--data_dir DIR]

Debian strips name and time from the gzip headers. With both restored, the files have the sha256
that tfds expects; they go to DATA_DIR/downloads/manual, where tfds itself finds them too. The
authors' original files work as well.
"""

import hashlib
import io
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

from absl import app, flags

from experiments.data.files import read_idx

MTIME = {"train": 1504176606, "t10k": 1504176627}  # of the authors' files
FNAME = 8  # the flag of a gzip header with a file name


def restore_header(name: str, data: bytes) -> bytes:
    """A gzip file with its name (without .gz) and the authors' time in its header."""
    if data[:4] != b"\x1f\x8b\x08\0":
        return data  # not gzip, or the header has optional fields
    stem = name.removesuffix(".gz").encode()
    time = struct.pack("<I", MTIME[name.split("-")[0]])
    return data[:3] + bytes([FNAME]) + time + data[8:10] + stem + b"\0" + data[10:]


def restore_files(source: pathlib.Path, target: pathlib.Path, known: dict[str, str]) -> None:
    """Writes the files named in `known` to `target`, with restored headers.

    Args:
      source: folder of the files.
      target: folder to write to; created if missing.
      known: name -> sha256.

    Raises:
      ValueError: a file is missing or has another sha256; then nothing is written.
    """
    restored = {}
    for name, sha256 in known.items():
        path = source / name
        if not path.is_file():
            raise ValueError(
                f"--from: there is no {path}; Debian's package dataset-fashion-mnist has it"
            )
        restored[name] = restore_header(name, path.read_bytes())
        actual = hashlib.sha256(restored[name]).hexdigest()
        if actual != sha256:
            raise ValueError(f"{path}: sha256 is {actual}, tfds expects {sha256}")
    target.mkdir(parents=True, exist_ok=True)
    for name, data in restored.items():
        (target / name).write_bytes(data)


def prepare(builder: Any, folder: pathlib.Path) -> None:
    """Makes the builder of an MNIST-like set write its records from the IDX files in `folder`.

    Only its reader is replaced, which needs TensorFlow to unzip files and encode PNGs; names,
    order, features and shards are the builder's.
    """

    def split_generators(_: Any) -> dict[str, Iterator]:
        return {"train": _examples(folder, "train"), "test": _examples(folder, "t10k")}

    builder._split_generators = split_generators
    builder.download_and_prepare()


def _examples(folder: pathlib.Path, prefix: str) -> Iterator[tuple[int, dict[str, Any]]]:
    from PIL import Image

    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "PNG")
        yield i, {"image": encoded.getvalue(), "label": int(label)}


def main(_: list[str]) -> None:
    import tensorflow_datasets as tfds

    builder = tfds.builder("fashion_mnist", data_dir=DATA_DIR.value, file_format="array_record")
    if builder.is_prepared():
        print(f"fashion_mnist is already prepared in {builder.data_dir}")
        return
    manual = pathlib.Path(builder._data_dir_root) / "downloads" / "manual"
    known = {info.filename: info.checksum for info in builder.url_infos.values()}
    try:
        restore_files(pathlib.Path(FROM.value).expanduser(), manual, known)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(f"the four files match tfds' sha256; they are in {manual}")
    prepare(builder, manual)


if __name__ == "__main__":
    FROM = flags.DEFINE_string(
        "from", "/usr/share/datasets/fashion-mnist", "Folder with the four .gz files."
    )
    DATA_DIR = flags.DEFINE_string(
        "data_dir", None, "Where tfds keeps its sets: $TFDS_DATA_DIR or ~/tensorflow_datasets."
    )
    app.run(main)
