"""Images per second of one core: reading, decoding and augmenting JPEGs as the ImageNet configs do.

    python -m benchmarks.images [--images 256] [--save]

The images are 500 x 375 with a spectrum like that of photographs (amplitude 1 / frequency), JPEG of
quality 90, some 110 kB each: ImageNet's mean size and bytes. They are read from array_record files
by `experiments.data`, like `imagenet2012` itself. CPU seconds of all threads, so that a host with N
free cores makes N times as many images per second; batches of 64, after one that warms up. What the
configs do includes the reading.
"""

import argparse
import io
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from experiments.data.loader import batches
from experiments.data.source import load
from experiments.experiment import config as config_lib

CONFIGS = {
    "ResNet-50: crop, flip": "configs/imagenet/resnet50.py",
    "V-MoE: crop, flip, RandAugment, mixup": "configs/imagenet/vmoe.py",
}
BATCH = 64


class Photos(tfds.core.GeneratorBasedBuilder):
    """Synthetic photographs."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent
    count = 256

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=1000),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        rng = np.random.default_rng(0)
        for i in range(self.count):
            yield i, {"image": jpeg(rng), "label": i % 1000}


def jpeg(rng: np.random.Generator, height: int = 375, width: int = 500) -> bytes:
    """A JPEG of noise whose amplitudes fall with the frequency."""
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    f[0, 0] = np.inf
    waves = np.fft.rfft2(rng.normal(size=(3, height, width))) / f
    values = np.moveaxis(np.fft.irfft2(waves, (height, width)), 0, -1)
    values = 128 + 50 * (values - values.mean()) / values.std()
    file = io.BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def cpu_ms(run: Callable[[int], Any], images: int) -> float:
    """CPU milliseconds for each image, of run(number of a batch)."""
    run(0)
    began, count = time.process_time(), images // BATCH
    for i in range(1, count + 1):
        run(i)
    return 1e3 * (time.process_time() - began) / (count * BATCH)


def measure(images: int) -> dict[str, Any]:
    Photos.count = images + BATCH
    milliseconds = {}
    with tempfile.TemporaryDirectory() as folder:
        Photos(data_dir=folder, file_format="array_record").download_and_prepare()
        stored = sum(f.stat().st_size for f in pathlib.Path(folder).rglob("*array_record*"))
        spec = dict(
            name="photos",
            data_dir=folder,
            keys=("image", "label"),
            resize=256,
            size=224,
            in_memory=0,  # as ImageNet, which is read at random from disk
        )
        source = load(spec)
        everything = np.arange(len(source))
        milliseconds["read, decode, resize, cut out 224 x 224"] = cpu_ms(
            lambda i: source.gather(np.roll(everything, -BATCH * i)[:BATCH]), images
        )
        for name, file in CONFIGS.items():
            config = config_lib.plain(config_lib.load(file))
            stream = batches(
                load(spec | _read_as(config)),
                seed=0,
                batch_size=BATCH,
                augment=config["data"]["augment"],
            )
            milliseconds[name] = cpu_ms(lambda _, stream=stream: next(stream), images)
    return dict(
        job="images per second of a core",
        kilobytes=stored / (images + BATCH) / 1e3,
        cpu_ms=milliseconds,
        images_per_second={name: 1e3 / value for name, value in milliseconds.items()},
    )


def _read_as(config: dict[str, Any]) -> dict[str, Any]:
    """How a config reads its images: size and normalisation."""
    spec = config["data"]["train"]
    return {key: spec[key] for key in ("resize", "size", "mean", "std") if key in spec}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--save", action="store_true", help="to benchmarks/results")
    args = parser.parse_args()
    record = measure(args.images)
    table = Table(title=f"images of {record['kilobytes']:.0f} kB, one core")
    for title in ("", "CPU ms / image", "images / s"):
        table.add_column(title, justify="right" if title else "left")
    for name, value in record["cpu_ms"].items():
        table.add_row(name, f"{value:.2f}", f"{1e3 / value:,.0f}")
    Console().print(table)
    if args.save:
        print(f"written: {timing.save('images', dict(**record, **timing.where()))}")


if __name__ == "__main__":
    main()
