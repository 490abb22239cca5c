"""Images of which some classes are turned, against a definition of turning."""

import numpy as np
import pytest

from experiments.data.source import load


@pytest.fixture
def numbered(tmp_path):
    """Images [6, 6] of three classes, whose pixels are all different."""
    y = np.arange(60) % 3
    x = (np.arange(36).reshape(6, 6) * 5 + (np.arange(60) % 50)[:, None, None]).astype(np.uint8)
    arrays = {"x_train": x[:40, ..., None], "y_train": y[:40]}
    arrays |= {"x_test": x[40:, ..., None], "y_test": y[40:]}
    np.savez(tmp_path / "images.npz", **arrays)
    return dict(name="turned", images=dict(name="npz", path=str(tmp_path / "images.npz"))), arrays


def test_some_classes_are_turned(numbered):
    spec, arrays = numbered
    for split in ("train", "test"):
        source = load(dict(spec, turned_classes=(0, 2), split=split))
        turns = source.entries["turns"]
        assert (turns[source.y == 1] == 0).all() and set(turns) == {0, 1, 2, 3}
        for x, before, n in zip(source.x, arrays[f"x_{split}"], turns, strict=True):
            for _ in range(n):  # by the definition: row i becomes a column, from the right
                before = np.stack([before[:, 5 - i] for i in range(6)])
            np.testing.assert_array_equal(x, before)
        part = load(dict(spec, turned_classes=(0, 2), split=f"{split}[5:9]"))
        np.testing.assert_array_equal(part.x, source.x[5:9])
    other = load(dict(spec, turned_classes=(0, 2), seed=1))
    assert not np.array_equal(other.x, load(dict(spec, turned_classes=(0, 2))).x)
    plain = load(dict(spec, turned_classes=()))
    np.testing.assert_array_equal(plain.x, arrays["x_train"])
    small = load(dict(spec, turned_classes=(), reduce=3)).x
    assert small.shape == (40, 2, 2, 1) and small.dtype == np.uint8
    np.testing.assert_array_equal(
        small[7, 1, 0, 0], np.rint(arrays["x_train"][7, 3:, :3].mean(dtype=np.float64))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(turned_classes=(5,)), "turned_classes: 5 has no images in 'train'"),
        (dict(turned_classes=(), reduce=4), "reduce: blocks of 4 pixels do not divide 6"),
        (dict(turned_classes=(), reduce=0), "reduce: 0; at least 1"),
        (dict(turned_classes=(), images=dict(name="iris")), "images: images with labels"),
        (dict(turned_classes=(), split="validation"), "split: 'validation' does not exist"),
    ],
)
def test_turned_images_refuse(numbered, change, message):
    with pytest.raises(ValueError, match=message):
        load({**numbered[0], **change})
