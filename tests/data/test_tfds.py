"""tfds' own builders, prepared here on data of the test, and read without TensorFlow."""

import gzip
import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import png
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data import overlap
from experiments.data.loader import batches, epoch
from experiments.data.records import Records
from experiments.data.source import load
from tools import prepare_fashion_mnist as fashion
from uncertainty.build import ConfigError

rng = np.random.default_rng(0)
IMAGES = {"train": rng.integers(0, 256, (50, 28, 28)), "t10k": rng.integers(0, 256, (20, 28, 28))}
LABELS = {"train": rng.integers(0, 10, 50), "t10k": rng.integers(0, 10, 20)}
PHOTOS = [
    rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 60), (50, 30), (32, 32))
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, idx_bytes):
    """The stock builder of fashion_mnist, over 70 images of noise."""
    folder, data_dir = tmp_path_factory.mktemp("idx"), tmp_path_factory.mktemp("tfds")
    for kind, arrays in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        for prefix, array in arrays.items():
            data = gzip.compress(idx_bytes(array.astype(np.uint8)))
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(data)
    builder = tfds.builder("fashion_mnist", data_dir=data_dir, file_format="array_record")
    fashion.prepare(builder, folder)
    return data_dir


def spec(data_dir, **fields):
    return dict(name="fashion_mnist", data_dir=str(data_dir), **fields)


def pairs(x, y):
    return sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))


def test_a_prepared_set_holds_the_files_examples(data_dir):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = load(spec(data_dir, split=split))
        assert source.shape == (28, 28, 1)
        assert source.classes == 10
        expected = pairs(IMAGES[prefix].astype(np.uint8)[..., None], LABELS[prefix])
        assert pairs(source.x, source.y) == expected
    batch = source.gather(np.array([4]))
    np.testing.assert_array_equal(batch["x"], source.x[[4]].astype(np.float32) / np.float32(255))


def test_order_and_splits_are_those_of_tfds(data_dir):
    for split in ("train", "train[10:20]", "train[80%:]+test", "test[-3:]", "all", "test[:12.5%]"):
        source = load(spec(data_dir, split=split))
        theirs = tfds.data_source("fashion_mnist", split=split, data_dir=data_dir, download=False)
        np.testing.assert_array_equal(source.x, [example["image"] for example in theirs])
        np.testing.assert_array_equal(source.y, [example["label"] for example in theirs])


def test_random_access_gives_what_memory_gives(data_dir):
    memory = load(spec(data_dir, mean=0.5))
    disk = load(spec(data_dir, mean=0.5, in_memory=0))
    assert isinstance(disk.x, Records)
    assert len(disk) == 50
    rows = np.array([49, 3, 3, 17])
    for key, value in memory.gather(rows).items():
        np.testing.assert_array_equal(disk.gather(rows)[key], value)
        assert disk.gather(rows)[key].dtype == value.dtype
    for one, other in zip(epoch(memory, 16), epoch(disk, 16), strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
    _, batch = next(batches(disk, seed=0, batch_size=8, start_step=9))
    np.testing.assert_array_equal(
        batch["x"], next(batches(memory, seed=0, batch_size=8, start_step=9))[1]["x"]
    )


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """Three colour images of different sizes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "kind": np.float32}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i, photo in enumerate(PHOTOS):
            encoded = io.BytesIO()
            Image.fromarray(photo).save(encoded, "PNG")
            yield i, {"image": encoded.getvalue(), "kind": float(i)}


def test_images_of_different_sizes_are_resized_and_cut(tmp_path):
    TinyPhotos(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    given = dict(name="tiny_photos", data_dir=str(tmp_path), split="test", keys=["image", "kind"])
    with pytest.raises(ConfigError, match=r"data\.size: needed"):
        load(given)
    source = load(given | dict(resize=24, size=16))
    assert source.shape == (16, 16, 3)
    assert source.task == "regression"
    for x, y in zip(source.x, source.y, strict=True):
        image = Image.fromarray(PHOTOS[int(y[0])])
        scale = 24 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.BILINEAR)
        left, top = (image.width - 16) // 2, (image.height - 16) // 2
        # Pillow rounds the edges of a box, so a few values differ by one level of 256.
        want = np.asarray(image)[top : top + 16, left : left + 16]
        np.testing.assert_allclose(x, want, rtol=0, atol=1)


def test_an_image_smaller_than_what_is_cut_out_of_it_is_refused(tmp_path):
    TinyPhotos(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    given = dict(name="tiny_photos", data_dir=str(tmp_path), split="test", keys=["image", "kind"])
    with pytest.raises(
        ValueError, match=r"size: an image of (50 x 30|30 x 50) has no part of 32 x 32"
    ):
        load(given | dict(size=32))


DEEP = rng.integers(0, 65536, (3, 6, 6, 3), dtype=np.uint16)


class DeepPhotos(tfds.core.GeneratorBasedBuilder):
    """Colour and grey images of 16 bits, the grey ones of a feature of bytes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "colour": tfds.features.Image(shape=(6, 6, 3), dtype=np.uint16),
            "grey": tfds.features.Image(shape=(6, 6, 1), dtype=np.uint8),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i, photo in enumerate(DEEP):
            colour, grey = io.BytesIO(), io.BytesIO()
            writer = png.Writer(6, 6, greyscale=False, bitdepth=16)
            writer.write(colour, photo.reshape(6, 18).tolist())
            Image.fromarray(photo[..., 0]).save(grey, "PNG")
            yield i, {"colour": colour.getvalue(), "grey": grey.getvalue()}


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_images_of_16_bits_keep_their_depth(tmp_path, in_memory):
    DeepPhotos(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    given = dict(name="deep_photos", data_dir=str(tmp_path), split="test", in_memory=in_memory)

    def found(key):
        x = load(given | dict(keys=[key]), labels="unused").gather(np.arange(3))["x"]
        return x[np.lexsort(x.reshape(3, -1).T)]

    scaled = DEEP / 65535
    expected = scaled[np.lexsort(scaled.reshape(3, -1).T)]
    np.testing.assert_allclose(found("colour"), expected, atol=1e-7)
    grey = np.rint(DEEP[..., :1] / 257) / 255
    expected = grey[np.lexsort(grey.reshape(3, -1).T)]
    np.testing.assert_allclose(found("grey"), expected, atol=1e-7)


class Table(tfds.core.GeneratorBasedBuilder):
    """300 rows, the last of them without a class and with NaN in one of two columns of inputs."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        row = tfds.features.Tensor(shape=(2,), dtype=np.float32)
        features = {"x": row, "z": row, "y": tfds.features.ClassLabel(names=["cat", "dog"])}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(300):
            last = i == 299
            x = np.array([i, np.nan if last else 0], np.float32)
            yield i, {"x": x, "z": np.array([i, 0], np.float32), "y": -1 if last else i % 2}


def test_every_batch_of_a_set_on_disk_is_checked(tmp_path):
    Table(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    given = dict(name="table", data_dir=str(tmp_path), in_memory=0)
    at = 299  # not among the first 256, which are looked at in any case
    for key, message in (("z", "label -1"), ("x", "x of example")):
        source = load(given | dict(keys=[key, "y"]))
        assert source.class_names == ("cat", "dog")
        source.gather(np.arange(256))
        with pytest.raises(ValueError, match=message) as error:
            list(epoch(source, 100))
        assert f"example {at}" in str(error.value)
    batch = load(given | dict(keys=["z", "y"]), labels="unused").gather(np.array([at]))
    assert "y" not in batch


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_features_that_are_further_entries(tmp_path, in_memory):
    Table(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    given = dict(name="table", data_dir=str(tmp_path), in_memory=in_memory, split="train[:290]")
    source = load(given | dict(keys=dict(x="z", label="y", row="x", y="y")))
    assert source.names == ("x", "label", "row", "y") and source.in_memory == bool(in_memory)
    batch = source.gather(np.array([7, 250, 4]))
    np.testing.assert_array_equal(batch["row"], [[7, 0], [250, 0], [4, 0]])
    np.testing.assert_array_equal(batch["label"], batch["y"])
    assert {k: (a.shape[1:], a.dtype) for k, a in batch.items()} == source.forms()
    _, batch = next(batches(source, seed=0, batch_size=8))
    np.testing.assert_array_equal(batch["row"], batch["x"])
    unlabelled = load(given | dict(keys=["z"]), labels="optional")
    assert unlabelled.task == "unlabelled" and {*unlabelled.gather(np.arange(2))} == {"x"}
    for keys, message in (
        (dict(y="y"), r"data.keys: .*x needs the name"),
        (dict(x="z", mask="x"), "data.keys: 'mask'; a name"),
        (dict(x="z", group="w"), "data.keys: table has no 'w'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(given | dict(keys=keys))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(split="trian"), r"data\.split: 'trian' .* 'train'"),
        (dict(split="train[:51]"), r"data\.split: 'train\[:51\]'"),
        (dict(split="train[5:5]"), "the split is empty"),
        (dict(keys=["image", "lable"]), r"data\.keys: .* 'label'"),
        (dict(sice=3), r"data\.sice: .* 'size'"),
        (dict(in_memory=0, classes=[1]), "fits in memory"),
        (dict(in_memory=0, standardise=True), "fits in memory"),
    ],
)
def test_bad_specs_name_the_field(data_dir, fields, message):
    with pytest.raises(ValueError, match=message):
        load(spec(data_dir, **fields))


def test_what_needs_tensorflow_says_so(data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"prepared in .*kmnist.* pip install '.\[tensorflow\]'"):
        load(dict(name="kmnist", data_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"prepare_fashion_mnist prepares it from local files"):
        load(spec(tmp_path))
    old = tmp_path / "fashion_mnist" / "3.0.1"
    old.mkdir(parents=True)
    for file in (data_dir / "fashion_mnist" / "3.0.1").iterdir():
        name = file.name.replace("array_record", "tfrecord")
        (old / name).write_bytes(file.read_bytes())
    info = json.loads((old / "dataset_info.json").read_text())
    (old / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ConfigError, match=r"stored as tfrecord.*pip install '.\[tensorflow\]'"):
        load(spec(tmp_path))
    for fields in (dict(resize=40), dict(resize=40, size=28), dict(resize=28, size=20)):
        with pytest.raises(
            ConfigError, match=r"data\.resize: \d\d, but .*file_format='array_record'"
        ):
            load(spec(tmp_path, **fields))
    # Images of 28 x 28 are read as they are, which these fields do not change.
    with pytest.raises(ConfigError, match="reading that needs TensorFlow"):
        load(spec(tmp_path, resize=28, size=28))


@pytest.mark.slow
def test_a_prepared_set_is_read_without_tensorflow(data_dir):
    program = f"""
import sys
from experiments.data.source import load
print(len(load({spec(data_dir, split="train+test")!r})), "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "70 False", done.stderr


def test_the_authors_gzip_headers_come_back(idx_bytes):
    """A stripped file becomes the one that gzip itself writes with name and time."""
    content = idx_bytes(rng.integers(0, 256, 999, dtype=np.uint8))
    for prefix, mtime in (("train", 1504176606), ("t10k", 1504176627)):
        name = f"{prefix}-labels-idx1-ubyte.gz"
        original = io.BytesIO()
        with gzip.GzipFile(name.removesuffix(".gz"), "wb", fileobj=original, mtime=mtime) as file:
            file.write(content)
        original = original.getvalue()
        stem_end = original.index(b"\0", 10) + 1
        stripped = original[:3] + b"\0" + b"\1\2\3\4" + original[8:10] + original[stem_end:]
        assert gzip.decompress(stripped) == content
        assert fashion.restore_header(name, stripped) == original
        assert fashion.restore_header(name, original) == original


def test_other_files_are_refused_and_nothing_is_written(tmp_path):
    source, target = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    data = gzip.compress(b"something")
    (source / "train-labels-idx1-ubyte.gz").write_bytes(data)
    restored = fashion.restore_header("train-labels-idx1-ubyte.gz", data)
    good = hashlib.sha256(restored).hexdigest()
    known = {"train-labels-idx1-ubyte.gz": good}
    with pytest.raises(ValueError, match=r"there is no .*t10k-labels.*dataset-fashion-mnist"):
        fashion.restore_files(source, target, known | {"t10k-labels-idx1-ubyte.gz": good})
    with pytest.raises(ValueError, match=r"sha256 is .*, tfds expects"):
        fashion.restore_files(source, target, {"train-labels-idx1-ubyte.gz": "0" * 64})
    assert not target.exists()
    fashion.restore_files(source, target, known)
    assert gzip.decompress((target / "train-labels-idx1-ubyte.gz").read_bytes()) == b"something"


def test_overlap_with_sets_on_disk_is_judged_by_a_sample(data_dir, monkeypatch):
    monkeypatch.setattr(overlap, "SAMPLE", 25)
    disk = {s: load(spec(data_dir, split=s, in_memory=0)) for s in ("train", "test")}
    memory = {s: load(spec(data_dir, split=s)) for s in ("train", "test")}
    share = overlap.share
    assert share(memory["test"], disk["train"]) == share(disk["train"], memory["test"]) == 0
    assert share(disk["test"], memory["test"]) == share(memory["test"], disk["test"]) == 1
    # Half of 100 images are training images, 25 of which are read: half of them, times 50 / 100.
    x = np.concatenate([memory["train"].x, 255 - memory["train"].x])
    mixed = memory["train"].with_entries(x=x, y=np.zeros(100, np.int32))
    assert share(mixed, disk["train"]) == 0.5
    assert abs(share(disk["train"], mixed.with_entries(x=x[:25], y=np.zeros(25))) - 0.5) < 0.3
    with pytest.raises(ValueError, match=r"fit: about 100% of the 20 examples of .* the test data"):
        overlap.require_apart("fit", disk["test"], memory["test"], "the test data")
    # Two sets on disk: equal ones by their name or digest, and no guess otherwise.
    assert share(disk["train"], load(spec(data_dir, split="train", in_memory=0))) == 1
    assert share(disk["train"], disk["test"]) is None
    overlap.require_apart("fit", disk["test"], disk["train"], "the training data")
