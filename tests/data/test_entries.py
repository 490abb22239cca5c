"""What examples have beside x and y travels with them, and labels may be missing."""

import itertools
import zlib

import numpy as np
import pytest

from experiments.data.examples import Source, check
from experiments.data.loader import batches, epoch
from experiments.data.pipeline import pipeline
from experiments.data.source import load
from uncertainty.build import ConfigError

rng = np.random.default_rng(0)
N = 24
PLACE = np.arange(N)
TYPES = {
    "group": np.int64,
    "weight": np.float64,
    "kept": np.bool_,
    "code": np.uint8,
    "id": np.int16,
}
CARRIED = {
    "group": np.int32,
    "weight": np.float32,
    "kept": np.bool_,
    "code": np.uint8,
    "id": np.int16,
}


def stored(path, **arrays):
    np.savez(path / "set.npz", **arrays)
    return dict(name="npz", path=str(path / "set.npz"))


@pytest.fixture
def spec(tmp_path):
    """x, y and every other entry of example i tell what i is."""
    halves = {"train": PLACE, "test": PLACE + N}
    arrays = {}
    for split, i in halves.items():
        arrays |= {f"x_{split}": i[:, None].astype(np.float32), f"y_{split}": i % 3}
        arrays |= {f"{key}_{split}": (i % 100).astype(kind) for key, kind in TYPES.items()}
        arrays[f"mask2_{split}"] = np.broadcast_to(i[:, None, None], (N, 2, 2))
    return stored(tmp_path, **arrays) | dict(entries=[*TYPES, "mask2"])


def assert_belong(batch):
    """Entries of an example are its own."""
    place = batch["x"][..., 0]
    for key, kind in CARRIED.items():
        assert batch[key].dtype == kind
        np.testing.assert_array_equal(batch[key], place.astype(kind))
    np.testing.assert_array_equal(
        batch["mask2"], np.broadcast_to(place[..., None, None], batch["mask2"].shape)
    )


def test_entries_travel_with_their_examples(spec):
    for fields in (
        {},
        dict(split="train[:10]+test[50%:]"),
        dict(split="all"),
        dict(split="test", classes=[2, 0]),
        dict(seed=4),
    ):
        source = load(spec | fields)
        assert source.names == ("x", "y", *CARRIED, "mask2")
        assert_belong(source.gather(np.arange(len(source))))
        for batch in epoch(source, 7):
            assert_belong(batch)
        for _, batch in itertools.islice(batches(source, seed=0, batch_size=10), 4):
            assert_belong(batch)
    assert set(load(spec | dict(split="test", classes=[2, 0])).entries["group"] % 3) == {0, 2}
    of_seed = load(spec | dict(seed=4)).entries["group"]
    assert not np.array_equal(of_seed, PLACE) and set(of_seed) == set(PLACE)


def test_other_data_may_lack_them(spec):
    train = load(spec)
    fields = {k: v for k, v in spec.items() if k != "entries"}
    assert load(fields | dict(split="test"), like=train, labels="alike").names == ("x", "y")
    assert load(spec, like=train, labels="unused").names == ("x", *CARRIED, "mask2")


def test_normalisation_and_noise_leave_them_alone(spec):
    noise = dict(transition=np.full((3, 3), 1 / 3).tolist())
    source = load(spec | dict(standardise=True, label_noise=noise))
    batch = source.gather(PLACE)
    assert abs(batch["x"].mean()) < 1e-6
    np.testing.assert_array_equal(batch["weight"], PLACE)
    np.testing.assert_array_equal(batch["group"], PLACE)
    assert not np.array_equal(batch["y"], PLACE % 3)


X2 = np.zeros((5, 2))


@pytest.mark.parametrize(
    ("arrays", "entries", "message"),
    [
        (dict(group=np.zeros(4)), ["group"], "x has 5 inputs but 4 group"),
        (dict(group=np.array(list("abcde"))), ["group"], r"npz\[train\]: group is <U1.*np.unique"),
        (dict(group=np.zeros(5, complex)), ["group"], "group is complex128"),
        (dict(group=np.full(5, 2**40)), ["group"], "group has integers from 1099511627776 to"),
        (dict(group=np.full(5, np.nan)), ["group"], "group of example 0 is nan"),
        (dict(group=np.float64(3)), ["group"], "but no group"),
        (dict(grp=np.zeros(5)), ["group"], "data.entries: .*set.npz has no array 'group' beside"),
        ({}, ["y"], "data.entries: 'y'; a name"),
        ({}, ["mask"], "data.entries: 'mask'; a name"),
        ({}, "group", "data.entries: 'group'; a list"),
        (dict(group=np.zeros(5)), ["group", "group"], "distinct"),
    ],
)
def test_what_no_batch_carries_is_refused_by_name(tmp_path, arrays, entries, message):
    spec = stored(tmp_path, x=X2, y=np.arange(5) % 2, **arrays)
    with pytest.raises(ValueError, match=message):
        load(spec | dict(entries=entries))


def test_entries_of_a_folder(tmp_path):
    np.savez(tmp_path / "train-imgs.npz", X2)
    with pytest.raises(ConfigError, match=r"data.entries: .*a folder has files of images"):
        load(dict(name="npz", path=str(tmp_path), entries=["group"]))


def test_labels_may_be_missing(tmp_path):
    spec = stored(tmp_path, x=X2, group=np.arange(5)) | dict(entries=["group"])
    with pytest.raises(ValueError, match="there are no labels"):
        load(spec)
    source = load(spec, labels="optional")
    assert (source.task, source.names, source.outputs) == ("unlabelled", ("x", "group"), 0)
    assert {*source.gather(np.arange(2))} == {"x", "group"}
    check(source)
    validation = load(spec | dict(split="train[:2]"), like=source, labels="alike")
    assert validation.task == "unlabelled"
    labelled = load(dict(name="iris"), labels="optional")
    assert labelled.digest() == load(dict(name="iris")).digest()
    for name in ("mixup", "label_noise"):
        with pytest.raises(ConfigError, match=r"augment\[0\]"):
            batches(source, seed=0, batch_size=4, augment=[dict(name=name)])


def test_the_digest_of_x_and_y_is_that_of_before(spec):
    """CRC-32 of shape, type and classes, inputs and labels; further entries join it."""
    pair = load({k: v for k, v in spec.items() if k != "entries"})
    crc = zlib.crc32(repr((pair.x.shape, pair.x.dtype, 3)).encode())
    crc = zlib.crc32(pair.y.tobytes(), zlib.crc32(pair.x.tobytes(), crc))
    assert pair.digest() == f"{crc:08x}"
    unlabelled = load({k: v for k, v in spec.items() if k != "entries"}, like=pair, labels="unused")
    crc = zlib.crc32(repr((pair.x.shape, pair.x.dtype, 3)).encode())
    crc = zlib.crc32(np.zeros(N, np.int32).tobytes(), zlib.crc32(pair.x.tobytes(), crc))
    assert unlabelled.digest() == f"{crc:08x}"
    entries = dict(pair.entries)
    digests = {pair.digest()}
    for group in (PLACE, PLACE + 1, PLACE.astype(np.int16), PLACE.reshape(N, 1)):
        digests.add(pair.with_entries(**entries, group=group).digest())
        digests.add(pair.with_entries(**entries, other=group).digest())
    assert len(digests) == 9


def images(**entries):
    x = (rng.integers(0, 256, (N, 5, 5, 3)) / 255).astype(np.float32)
    arrays = dict(x=x, y=(PLACE % 3).astype(np.int32), **entries)
    mean = np.full((5, 5, 3), 0.3, np.float32)
    return Source("images", arrays, 3, 3, mean, 2 * mean)


PLAIN = [dict(name="flip"), dict(name="crop", pad=1), dict(name="mixup")]


def test_keys_share_the_draws_of_an_augmentation():
    """An image and what belongs to its pixels move alike, whatever their types."""
    source = images()
    segments = np.arange(N * 25, dtype=np.int32).reshape(N, 5, 5, 1)
    both = source.with_entries(**source.entries, segments=segments)
    keys = ["x", "segments"]
    augment = [dict(name="flip", keys=keys), dict(name="crop", pad=1, keys=keys)]
    _, batch = next(batches(both, seed=1, batch_size=N, augment=augment))
    _, alone = next(batches(source, seed=1, batch_size=N, augment=PLAIN[:2]))
    np.testing.assert_array_equal(batch["x"], alone["x"])
    colours = source.x.reshape(-1, 3)[batch["segments"][..., 0]]
    moved = batch["x"] * np.float32(0.6) + np.float32(0.3)
    inside = moved.sum(-1) > 1e-5  # crop fills up with zeros
    np.testing.assert_allclose(moved[inside], colours[inside], atol=1e-6)
    assert batch["segments"].dtype == np.int32


def test_mixup_of_several_keys_mixes_labels_once():
    source = images()
    twice = source.with_entries(**source.entries, copy=source.x)
    augment = [dict(name="mixup", keys=["x", "copy"])]
    _, batch = next(batches(twice, seed=1, batch_size=N, augment=augment))
    _, alone = next(batches(source, seed=1, batch_size=N, augment=[dict(name="mixup")]))
    for key in ("x", "y"):
        np.testing.assert_array_equal(batch[key], alone[key])
    np.testing.assert_array_equal(source.normalise(batch["copy"].copy()), batch["x"])


def test_a_view_has_draws_of_its_own_and_is_normalised():
    """x stays as it is without the view; the view is x at that place, augmented otherwise."""
    source = images()
    view = dict(name="view", to="x2", augment=PLAIN[:2])
    for place in range(4):
        augment = [*PLAIN[:place], view, *PLAIN[place:]]
        step, batch = next(batches(source, seed=1, batch_size=N, augment=augment, start_step=3))
        assert step == 3 and {*batch} == {"x", "y", "x2"}
    _, alone = next(batches(source, seed=1, batch_size=N, augment=PLAIN, start_step=3))
    np.testing.assert_array_equal(batch["x"], alone["x"])  # where the view comes last
    np.testing.assert_array_equal(batch["y"], alone["y"])
    assert not np.array_equal(batch["x2"], batch["x"])
    same = [dict(name="view", to="x2", augment=[])]
    _, batch = next(batches(source, seed=1, batch_size=N, augment=same))
    np.testing.assert_array_equal(batch["x2"], batch["x"])
    two = [dict(name="view", to=to, augment=[dict(name="flip")]) for to in ("a", "b")]
    _, batch = next(batches(source, seed=1, batch_size=N, augment=two))
    assert not np.array_equal(batch["a"], batch["b"])
    _, plain = next(batches(source, seed=1, batch_size=N))
    for key in ("a", "b"):
        mirrored = (batch[key] != plain["x"]).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(
            batch[key], np.where(mirrored[:, None, None, None], plain["x"][:, :, ::-1], plain["x"])
        )
        assert 4 < mirrored.sum() < 20


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(name="flip", keys=["x2"]), r"augment\[0\].keys: 'x2'; .*'x'"),
        (dict(name="flip", keys="x"), r"augment\[0\].keys: 'x'; a list"),
        (dict(name="view", to="x", augment=[]), r"augment\[0\].to: 'x'; a name"),
        (dict(name="view", to="group", augment=[]), r"augment\[0\].to: 'group' is an entry"),
        (dict(name="view", augment=[]), r"augment\[0\].to: missing"),
        (dict(name="view", to="x2", of="z", augment=[]), r"augment\[0\].of: 'z'"),
        (dict(name="view", to="x2", augment="flip"), r"augment\[0\].augment: 'flip'; a list"),
        (dict(name="view", to="x2", augment=["flp"]), r"augment\[0\].augment\[0\].name: 'flp'"),
        (dict(name="view", to="x2", augment=["mixup"]), r"\.name: 'mixup' changes labels"),
        (
            dict(name="view", to="x2", augment=[dict(name="view", to="a", augment=[])]),
            "a view within a view",
        ),
    ],
)
def test_bad_keys_and_views_name_the_field(spec, message):
    with pytest.raises(ConfigError, match=message):
        pipeline([spec], 3, names=("x", "y", "group"))


def test_an_image_of_another_kind_is_named():
    source = images()
    bad = source.with_entries(**source.entries, group=PLACE)
    with pytest.raises(ConfigError, match=r"augment: images \[B, H, W, C\] are needed"):
        batches(bad, seed=0, batch_size=4, augment=[dict(name="flip", keys=["group"])])
