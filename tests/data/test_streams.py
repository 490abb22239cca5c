"""Further streams of batches: orders of their own, their fields, and that something reads them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.description import describe, read_description, write_description
from experiments.data.loader import batches
from experiments.data.order import indices
from experiments.data.source import load
from experiments.data.streams import Data, seed_of
from experiments.experiment import config as config_lib
from experiments.experiment.base import base, shrink
from experiments.experiment.load import described, load_data, traced
from experiments.runtime.workdir import RENAMED, difference, renamed
from uncertainty.build import ConfigError
from uncertainty.types import State

TEST = dict(split="test")
B = 16


def config(streams=None, **data):
    made = base()
    made.batch_size = B
    made.data.streams = streams or {}
    made.data.update(data)
    return config_lib.plain(made)


def first(data, n=3, start=0, **share):
    return [batch for _, batch in itertools.islice(data.batches(start, 2, **share), n)]


STREAMS = {
    "context": TEST,
    "wide": dict(TEST, batch_size=24, labels="alike"),
    "moved": dict(TEST, augment=[dict(name="flip", p=1.0)]),
    "noise": dict(name="noise", shape=(8, 8, 1), split="test"),
}


@pytest.fixture(scope="module")
def data():
    return load_data(config(STREAMS, augment=[dict(name="flip")]))


def test_streams_are_batches_beside_the_training_data(data):
    batch = first(data)[2]
    alone = next(
        batches(data.train, seed=0, batch_size=B, augment=[dict(name="flip")], start_step=2)
    )[1]
    test = load(dict(name="digits", split="test"))
    for key in ("x", "y"):
        np.testing.assert_array_equal(batch[key], alone[key])
    assert {*batch["wide"]} == {"x", "y"} and {*batch["context"]} == {"x"}
    assert len(batch["wide"]["x"]) == 24
    order = indices(seed_of(0, "wide"), 2, 24, len(test))
    np.testing.assert_array_equal(batch["wide"]["y"], test.y[order])
    order = indices(seed_of(0, "moved"), 2, B, len(test))
    np.testing.assert_array_equal(batch["moved"]["x"], test.x[order][:, :, ::-1])


def test_the_context_has_the_order_of_runs_before_streams_had_names(data):
    test = load(dict(name="digits", split="test"))
    order = indices(0x636F6E74, 2, B, len(test))  # of seed 0
    np.testing.assert_array_equal(first(data)[2]["context"]["x"], test.x[order])


def test_streams_are_independent_of_each_other_and_of_what_else_is_read(data):
    alone = load_data(config({"wide": STREAMS["wide"]}, augment=[dict(name="flip")]))
    for one, other in zip(first(data), first(alone), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one["wide"], other["wide"])
    names = ["context", *map(str, range(500))]
    assert len({seed_of(seed, name) for name in names for seed in range(3)}) == 3 * 501
    assert max(seed_of(2**32 - 1, name) for name in names) < 2**64


def test_streams_resume_and_are_shared_by_processes(data):
    whole = first(data, 5)
    jax.tree.map(np.testing.assert_array_equal, first(data, 2, start=3), whole[3:])
    shares = [first(data, 5, process_index=i, process_count=2) for i in range(2)]
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), *shares)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_particles_share_the_streams():
    own = load_data(config({"wide": STREAMS["wide"]}, particles="shuffled"))
    batch = first(own)[0]
    assert batch["x"].shape == (2, B, 8, 8, 1) and batch["wide"]["x"].shape == (24, 8, 8, 1)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), own.shapes(2))
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), batch)


def test_streams_are_read_as_the_training_data(tmp_path):
    rng = np.random.default_rng(0)
    for name, scale in (("a", 1), ("b", 5)):
        x = scale * rng.standard_normal((40, 3)) + 2
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(40) % 2)
    spec = dict(name="npz", path=str(tmp_path / "a.npz"), standardise=True)
    other = dict(name="npz", path=str(tmp_path / "b.npz"))
    data = load_data(config({"other": other}, train=spec))
    np.testing.assert_array_equal(data.streams["other"].source.mean, data.train.mean)
    domains = dict(name="sets", sets=[dict(split="train"), other])
    data = load_data(config(train=spec, particles=domains))
    assert [len(s) for s in data.sets] == [40, 40] and data.num_examples == 40
    np.testing.assert_array_equal(data.sets[1].mean, data.train.mean)
    assert data.sets[0].digest() == data.train.digest() != data.sets[1].digest()
    noted = describe(data.train, data.sources)["streams"]
    assert noted["particles.1"]["digest"] == data.sets[1].digest()
    grouped = dict(name="sets", sets=[dict(other, label_noise=None), dict(name="iris")])
    with pytest.raises(ValueError, match=r"data.particles.sets\[1\]: .* inputs of shape"):
        load_data(config(train=spec, particles=grouped))


def check(update, state, data):
    traced(lambda *_: jax.jit(update), state, data.shapes(2), data)


def state(size=2):
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    w = jax.ShapeDtypeStruct((size, 64), jnp.float32)
    return State(jax.ShapeDtypeStruct((), jnp.int32), key, w, {}, ())


def moved(state, x):
    return state.replace(params=jax.vmap(lambda w: w + x.reshape(len(x), -1).mean(0))(state.params))


def test_a_stream_has_to_be_read(data):
    """By whatever: what counts is that the new state or the metrics depend on it."""

    def reads(*names):
        def update(state, batch):
            for name in names:
                state = moved(state, batch[name]["x"])
            inner = jax.jit(lambda s, rest: moved(s, rest["x"]))  # which is given all
            return inner(state, batch), {"loss": jnp.zeros(())}

        return update

    one = load_data(config({"context": TEST, "noise": STREAMS["noise"]}))
    check(reads("context", "noise"), state(), one)
    for read, unread in (("context", "noise"), ("noise", "context")):
        with pytest.raises(ConfigError, match=f"data.streams.{unread}: nothing reads it"):
            check(reads(read), state(), one)
    check(reads(), state(), load_data(config()))

    def in_metrics(state, batch):
        return state, {"seen": batch["context"]["x"].sum() + batch["noise"]["x"].sum()}

    check(in_metrics, state(), one)


def test_an_entry_that_training_reads_is_named(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.zeros((5, 64)))
    data = load_data(config(train=dict(name="npz", path=str(tmp_path / "set.npz"))))
    assert data.train.task == "unlabelled"
    check(lambda s, batch: (moved(s, batch["x"]), {}), state(), data)
    with pytest.raises(ConfigError, match=r"data.train: npz\[train\] has no entry 'y', .* 'x'"):
        check(lambda s, batch: (moved(s, batch["x"] + batch["y"]), {}), state(), data)

    def refuses(state, batch):
        raise ValueError("objective: 'likelihood' needs labels")

    with pytest.raises(ConfigError, match=r"data.train: .* has no entry 'y': objective: 'likel"):
        check(refuses, state(), data)

    def broken(state, batch):
        return {}["x"]

    with pytest.raises(KeyError):
        check(broken, state(), data)


def test_what_later_evaluation_needs_is_noted(data, tmp_path):
    grouped = data.train.with_entries(**data.train.entries, group=np.zeros(1200, np.int16))
    write_description(tmp_path, grouped, data.sources)
    noted = read_description(tmp_path)
    assert noted.train.forms() == grouped.forms() and len(noted.train) == 0
    plain = config(STREAMS)
    again = described(plain, noted.train, noted.streams)
    expected = data._replace(train=grouped)
    assert again.shapes(2) == expected.shapes(2)
    write_description(tmp_path, grouped, data.sources)  # a run resumes on the same
    other = data.sources | {"noise": load(dict(STREAMS["noise"], seed=1))}
    with pytest.raises(ValueError, match=r"on other training data .*\n  streams.noise.digest: "):
        write_description(tmp_path, grouped, other)
    assert describe(data.train).keys() == describe(grouped).keys()
    # Runs of before noted no streams: one is as the training data then, x alone.
    old = described(plain, noted.train).shapes(2)
    assert old["context"] == again.shapes(2)["context"] and {*old["wide"]} == {"x"}


def test_configs_of_before_have_the_stream_in_its_place():
    assert RENAMED["data.context"] == "data.streams.context"
    old, new = config(), config({"context": TEST})
    old["data"]["context"] = new["data"]["streams"]["context"]
    assert not difference(old, new)
    assert renamed(old)["data"]["streams"] == new["data"]["streams"]
    loaded = config_lib.load("configs/digits/mlp.py", {"data.context": dict(TEST)})
    plain = config_lib.plain(loaded)
    assert "context" not in plain["data"]
    assert plain["data"]["streams"]["context"]["name"] == "digits"
    config_lib.check(plain)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(streams={"x": TEST}), "config.data.streams: 'x'; a name"),
        (dict(streams={"mask": TEST}), "config.data.streams: 'mask'; a name"),
        (dict(streams={"a": 3}), "config.data.streams.a: 3 is not a dict"),
        (dict(streams={"a": dict(TEST, labels="own")}), "data.streams.a.labels: 'own'; 'unused'"),
        (dict(streams={"a": dict(TEST, batch_size=0)}), "data.streams.a.batch_size: 0; a whole"),
        (dict(streams={"a": dict(TEST, augment=["mixup"])}), r"data.streams.a.augment\[0\].name"),
        (dict(streams={"a": dict(name="iris")}), "data.streams.a: .* inputs of shape"),
        (dict(particles="shuffle"), "config.data.particles: 'shuffle'; did you mean"),
        (dict(particles=dict(name="folds", size=5000)), "data.particles.size: 5000; a whole"),
    ],
)
def test_bad_sections_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        plain = config(**fields)
        config_lib.check(plain)
        load_data(plain)


def test_a_small_run_of_a_config_reads_no_file():
    """Where particles have sets and streams of their own, too."""
    made = base()
    made.data.train = dict(name="cifar10", split="train[:45_000]")
    made.data.streams = {"other": dict(name="svhn_cropped", batch_size=3, augment=["flip"])}
    made.data.particles = dict(name="sets", sets=[dict(split="train[45_000:]"), dict(name="mnist")])
    plain = config_lib.plain(shrink(made, shape=(8, 8, 3), num_classes=4))
    data = load_data(plain | {"batch_size": 6})
    assert [len(source) for source in data.sources.values()] == [32, 32, 32]
    assert plain["data"]["streams"]["other"]["batch_size"] == 3
    made.data.particles = dict(name="per_class", size=9)
    made.data.train = dict(name="cifar10")
    assert shrink(made, shape=(8, 8, 3), num_classes=40).data.particles == "shuffled"
    made.data.train = dict(name="digits")
    made.data.particles = dict(name="per_class", size=9)
    assert shrink(made, shape=(8, 8, 1), num_classes=10).data.particles.size == 9


def test_how_pixels_are_normalised_is_known_where_all_images_are_in_units():
    source = load(dict(name="digits", split="test"))
    mean, std = np.full((8, 8, 1), 0.3, np.float32), np.full((8, 8, 1), 0.2, np.float32)
    other = dataclasses.replace(source, mean=mean, std=std)
    of = lambda train, sets=(): Data(train, 0, 8, sets=sets).pixels  # noqa: E731
    for got, expected in ((of(source), ([0], [1])), (of(other), ([0.3], [0.2]))):
        np.testing.assert_allclose(got, expected)
    each = dataclasses.replace(source, mean=mean + np.arange(8, dtype=np.float32)[:, None, None])
    assert of(each)[0].shape == (8, 8, 1) and of(each)[1].shape == (1,)
    np.testing.assert_allclose(of(source, (other, other)), ([0.3], [0.2]))
    assert of(source, (source, other)) is None  # particles see differently
    assert of(dataclasses.replace(source, range="unbounded")) is None
    assert of(load(dict(name="breast_cancer", split="test"))) is None
