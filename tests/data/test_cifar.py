"""CIFAR's binary files and human labels, written here as they are published."""

import numpy as np
import pytest

from experiments.data.cifar import BATCHES, cifar_binary
from experiments.data.files import npz
from experiments.data.source import load
from uncertainty.build import ConfigError

RNG = np.random.default_rng(0)


def write(folder, name, labels, images):
    """Label bytes [N, 1 or 2], then the planes of the three colours, row by row."""
    rows = [bytes(y) + x.transpose(2, 0, 1).tobytes() for y, x in zip(labels, images, strict=True)]
    (folder / name).write_bytes(b"".join(rows))


@pytest.fixture
def cifar10(tmp_path):
    y = RNG.integers(0, 10, (22, 1)).astype(np.uint8)
    x = RNG.integers(0, 256, (22, 32, 32, 3)).astype(np.uint8)
    for i, name in enumerate((*BATCHES, "test_batch.bin")):
        rows = slice(4 * i, 4 * i + 4) if i < 5 else slice(20, 22)
        write(tmp_path, name, y[rows], x[rows])
    return tmp_path, x, y[:, 0]


def people(folder, y, **changed):
    """Human labels of 20 training and 2 test images."""
    arrays = dict(counts=RNG.integers(0, 20, (2, 10)).astype(np.uint8), clean_label=y[:20])
    for i, name in enumerate(("aggre", "random", "random", "random", "worse")):
        number = f"_label{i}" if name == "random" else "_label"
        arrays[name + number] = (y[:20] + i + 1) % 10
    np.savez(folder / "human.npz", **(arrays | changed))
    return arrays, str(folder / "human.npz")


def test_cifar10_is_read_in_order(cifar10):
    folder, x, y = cifar10
    for split, rows in (("train", slice(20)), ("test", slice(20, 22)), ("train[3:5]", slice(3, 5))):
        arrays = cifar_binary(str(folder)).read(split)
        np.testing.assert_array_equal(arrays["x"], x[rows])
        np.testing.assert_array_equal(arrays["y"], y[rows])
    source = load(dict(name="cifar_binary", path=str(folder), split="test"))
    assert (source.shape, source.classes) == ((32, 32, 3), 10)


def test_cifar100_has_two_labels(tmp_path):
    y = np.stack([RNG.integers(0, 20, 6), RNG.integers(0, 100, 6)], axis=1).astype(np.uint8)
    x = RNG.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    write(tmp_path, "train.bin", y, x)
    for i, (name, classes) in enumerate((("coarse", 20), ("fine", 100))):
        of = cifar_binary(str(tmp_path), y=name)
        assert of.classes == classes
        np.testing.assert_array_equal(of.read("train")["y"], y[:, i])
        np.testing.assert_array_equal(of.read("train")["x"], x)
    with pytest.raises(ConfigError, match=r"human: .* CIFAR-10 alone has human labels"):
        cifar_binary(str(tmp_path), human="human.npz")
    with pytest.raises(ConfigError, match="split: 'test' does not exist"):
        cifar_binary(str(tmp_path)).read("test")


def test_labels_of_people(cifar10):
    folder, _, y = cifar10
    arrays, path = people(folder, y)
    test = cifar_binary(str(folder), human=path).read("test")
    np.testing.assert_array_equal(test["human"], arrays["counts"])
    np.testing.assert_array_equal(test["y"], y[20:])
    names = dict(aggregate="aggre_label", worst="worse_label", random2="random_label2")
    for name, array in names.items():
        of = cifar_binary(str(folder), y=name, human=path)
        np.testing.assert_array_equal(of.read("train")["y"], arrays[array])
        np.testing.assert_array_equal(of.read("test")["y"], y[20:])  # test labels stay


def test_what_does_not_fit_is_named(cifar10):
    folder, _, y = cifar10
    with pytest.raises(ConfigError, match=r"y: 'worst'; .*valid: fine"):
        cifar_binary(str(folder), y="worst")
    _, path = people(folder, y, clean_label=y[19::-1])
    with pytest.raises(ValueError, match="'clean_label' differs from the labels of the images"):
        cifar_binary(str(folder), y="worst", human=path).read("train")
    _, path = people(folder, y, counts=np.zeros((3, 10)))
    with pytest.raises(ValueError, match="3 rows of 'counts' for 2 images"):
        cifar_binary(str(folder), human=path).read("test")
    np.savez(folder / "human.npz", counts=np.zeros((2, 10)))
    with pytest.raises(ConfigError, match="has no array 'clean_label'"):
        cifar_binary(str(folder), human=str(folder / "human.npz"))
    (folder / "test_batch.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"test_batch.bin: 4 bytes are not .* rows of 3073"):
        cifar_binary(str(folder)).read("test")
    (folder / BATCHES[2]).unlink()
    with pytest.raises(ConfigError, match=r"there is no file .*data_batch_3.bin"):
        cifar_binary(str(folder)).read("train")
    with pytest.raises(ConfigError, match="there is no folder"):
        cifar_binary(str(folder / "nowhere"))
    with pytest.raises(ConfigError, match=r"has no files like test_batch.bin"):
        (folder / "empty").mkdir()
        cifar_binary(str(folder / "empty"))


def test_an_npz_file_may_have_several_labels(tmp_path):
    arrays = dict(
        x_train=RNG.normal(size=(4, 3)), y_train=np.arange(4), worst_train=np.arange(4)[::-1]
    )
    np.savez(tmp_path / "a.npz", **arrays)
    path = str(tmp_path / "a.npz")
    np.testing.assert_array_equal(npz(path).read("train")["y"], arrays["y_train"])
    chosen = npz(path, y="worst")
    np.testing.assert_array_equal(chosen.read("train")["y"], arrays["worst_train"])
    with pytest.raises(ConfigError, match=r"y: .* has no array 'wurst_train' beside 'x_train'"):
        npz(path, y="wurst")
    with pytest.raises(ConfigError, match="y: 'worst', but a folder has files of images and"):
        npz(str(tmp_path), y="worst")
