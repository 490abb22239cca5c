"""Which examples a particle sees is a function of (seed, p, step), and of nothing else."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import assignment
from experiments.data.assignment import bootstrap, folds, own_of, per_class
from experiments.data.examples import Source
from experiments.data.loader import batches
from experiments.data.streams import Data
from uncertainty.build import ConfigError


def numbered(n, classes=3, first=0):
    """n images whose values are their places in the set, and which set it is."""
    places = np.arange(first, first + n)
    x = np.broadcast_to(places[:, None, None, None], (n, 4, 4, 1)).astype(np.float32)
    entries = dict(x=x, y=(places % classes).astype(np.int32), place=places.astype(np.int32))
    return Source(f"set {first}", entries, classes, classes, range="unbounded")


N, B = 30, 8
TRAIN = numbered(N)
SETS = (numbered(20, first=100), numbered(20, first=200), numbered(20, first=300))
KINDS = {
    "shuffled": "shuffled",
    "bootstrap": dict(name="bootstrap"),
    "folds": dict(name="folds", size=5),
    "fold": dict(name="folds", size=5, use="fold"),
    "per_class": dict(name="per_class", size=4),
    "sets": dict(name="sets", sets=[{}, {}, {}]),
}
AUGMENT = [dict(name="flip"), dict(name="mixup"), dict(name="view", to="x2", augment=["flip"])]


def data(kind, **fields):
    sets = SETS if kind == "sets" else ()
    return Data(TRAIN, **{"seed": 3, "batch_size": B, **fields}, particles=KINDS[kind], sets=sets)


def take(made, n, start=0, size=3, **share):
    return [batch for _, batch in itertools.islice(made.batches(start, size, **share), n)]


def assert_same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment", [(), AUGMENT], ids=["plain", "augmented"])
def test_a_particle_does_not_depend_on_the_others_on_restarts_or_on_processes(kind, augment):
    made = data(kind, augment=augment)
    whole = take(made, 9, size=5)
    assert_same(take(made, 4, start=5, size=5), whole[5:])
    first = take(made, 9, size=2)
    assert_same([{k: a[:2] for k, a in batch.items()} for batch in whole], first)
    shares = [take(made, 9, size=5, process_index=i, process_count=2) for i in range(2)]
    joined = [
        {k: np.concatenate([a[k], b[k]], axis=1) for k in a} for a, b in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_of_a_particle_is_its_own_examples(kind):
    """In each epoch an order of its own, the same examples with the same multiplicity."""
    made = data(kind)
    own = own_of(KINDS[kind], SETS if kind == "sets" else (TRAIN,), 3, range(3))
    for p, one in enumerate(own):
        steps = math.ceil(2 * one.count / B)
        seen = np.concatenate([b["place"][p] for b in take(made, steps)])
        whole = one.source.entries["place"]
        expected = np.sort(whole if one.examples is None else whole[one.examples])
        epochs = seen[: one.count], seen[one.count : 2 * one.count]
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), expected)
        assert not np.array_equal(*epochs)
        if kind == "sets":
            assert (seen // 100 == p % 3 + 1).all()
    assert made.own_examples
    assert made.num_examples == {one.count for one in own}.pop()


def test_shared_batches_are_those_of_particle_0_and_of_before():
    """In order and augmentation, bit for bit."""
    shared = Data(TRAIN, 3, B, AUGMENT)
    assert not shared.own_examples and shared.num_examples == N
    alone = [
        b for _, b in itertools.islice(batches(TRAIN, seed=3, batch_size=B, augment=AUGMENT), 9)
    ]
    assert_same(take(shared, 9), alone)
    first = [
        {k: a[0] for k, a in batch.items()} for batch in take(data("shuffled", augment=AUGMENT), 9)
    ]
    assert_same(first, alone)


def test_mixup_takes_no_partner_from_another_particle():
    """A particle has an odd share of a batch, however many particles there are."""
    made = data("shuffled", augment=[dict(name="mixup")], batch_size=10)
    for size in (1, 2):
        assert len(take(made, 1, size=size)[0]["x"]) == size
        with pytest.raises(ValueError, match="pairs neighbours, but this process has 5 examples"):
            take(made, 1, size=size, process_index=0, process_count=2)


def test_particles_have_orders_and_augmentation_of_their_own():
    one = take(data("shuffled", augment=AUGMENT), 1, size=6)[0]
    assert len({tuple(places) for places in one["place"]}) == 6
    # Where all examples are the same, batches differ by the draws of augmentation alone.
    x = np.broadcast_to(np.arange(4.0, dtype=np.float32)[:, None], (N, 4, 4, 1))
    alike = TRAIN.with_entries(x=x, y=np.zeros(N, np.int32))
    made = Data(alike, 3, N, [dict(name="flip")], particles="shuffled")
    mirrored = take(made, 1, size=20)[0]["x"][:, :, 0, 0, 0] == 3
    assert len({tuple(row) for row in mirrored}) == 20
    assert scipy.stats.binomtest(int(mirrored.sum()), mirrored.size).pvalue > 1e-3


@pytest.mark.parametrize("kind", [*KINDS, "shared"])
@pytest.mark.parametrize("augment", [(), AUGMENT], ids=["plain", "augmented"])
def test_shapes_are_those_of_the_batches(kind, augment):
    made = Data(TRAIN, 3, B, augment) if kind == "shared" else data(kind, augment=augment)
    (batch,) = take(made, 1, size=4)
    assert {k: (a.shape, a.dtype) for k, a in made.shapes(4).items()} == {
        k: (a.shape, a.dtype) for k, a in batch.items()
    }


def test_every_kind_is_tested_here():
    names = {spec if isinstance(spec, str) else spec["name"] for spec in KINDS.values()}
    assert names == {*assignment.KINDS, assignment.SETS}


seeds = st.integers(0, 2**64 - 1)
particles = st.integers(0, 2**31)


@settings(deadline=None)
@given(n=st.integers(2, 60), seed=seeds, p=particles, data=st.data())
def test_folds_are_a_partition(n, seed, p, data):
    size = data.draw(st.integers(2, n))
    source = numbered(n)
    parts = [folds(source, seed, q, size=size, use="fold") for q in range(size)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    np.testing.assert_array_equal(folds(source, seed, p, size=size, use="fold"), parts[p % size])
    others = folds(source, seed, p, size=size)
    np.testing.assert_array_equal(np.setdiff1d(np.arange(n), parts[p % size]), others)
    spec = dict(name="folds", size=size)
    assert assignment.counts(spec, (source,), seed) == {n - len(part) for part in parts}


@settings(deadline=None)
@given(n=st.integers(1, 60), seed=seeds, p=particles)
def test_a_bootstrap_is_n_draws(n, seed, p):
    drawn = bootstrap(numbered(n), seed, p)
    assert drawn.shape == (n,) and drawn.min() >= 0 and drawn.max() < n
    np.testing.assert_array_equal(drawn, bootstrap(numbered(n), seed, p))


def test_bootstraps_are_multinomial():
    """Counts over particles are Poisson-like, and 1 - 1/e of the examples occur."""
    n, size = 500, 200
    source = numbered(n)
    counts = np.stack([np.bincount(bootstrap(source, 0, p), minlength=n) for p in range(size)])
    of_examples = counts.sum(0)  # Binomial(size n, 1/n) each
    assert scipy.stats.chisquare(of_examples).pvalue > 1e-3
    expected = size * n * scipy.stats.binom.pmf(np.arange(5), n, 1 / n)
    seen = np.bincount(counts.ravel(), minlength=5)[:5]
    np.testing.assert_allclose(seen, expected, rtol=0.1)
    assert abs((counts > 0).mean() - (1 - (1 - 1 / n) ** n)) < 0.005


@settings(deadline=None)
@given(n=st.integers(9, 60), classes=st.integers(1, 4), seed=seeds, p=particles, data=st.data())
def test_each_class_has_as_many(n, classes, seed, p, data):
    source = numbered(n, classes)
    size = data.draw(st.integers(1, n // classes))
    chosen = per_class(source, seed, p, size=size)
    assert len(set(chosen)) == len(chosen)
    np.testing.assert_array_equal(np.bincount(source.y[chosen]), np.full(classes, size))


def test_few_examples_differ_between_particles_and_are_uniform():
    chosen = np.stack([per_class(TRAIN, 1, p, size=2) for p in range(600)])
    counts = np.bincount(chosen.ravel(), minlength=N)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_sets_are_normalised_each_as_it_says():
    own = dataclasses.replace(SETS[1], mean=np.float32(5.0), std=np.float32(2.0))
    plain, changed = (
        take(Data(TRAIN, 3, B, particles=KINDS["sets"], sets=sets), 2, size=3)
        for sets in (SETS, (SETS[0], own, SETS[2]))
    )
    for before, after in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(after["x"][1], (before["x"][1] - 5) / 2)
        np.testing.assert_array_equal(after["x"][[0, 2]], before["x"][[0, 2]])


def test_a_prior_has_no_weight_where_particles_have_different_numbers():
    def number(particles, sets=()):
        return Data(TRAIN, 0, B, particles=particles, sets=sets).num_examples

    assert number(dict(name="folds", size=4)) is None  # 30 in folds of 8, 8, 7, 7
    assert number(dict(name="folds", size=3)) == 20
    assert number("bootstrap") == number("shuffled") == N
    assert number(dict(name="per_class", size=2)) == 6
    assert number(KINDS["sets"], SETS) == 20
    assert number(KINDS["sets"], (*SETS[:2], numbered(7))) is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shuffle", "data.particles: 'shuffle'; did you mean 'shuffled'"),
        (3, "data.particles: 3; "),
        (dict(name="bootstrap", size=3), "data.particles.size: no such field of bootstrap"),
        (dict(name="folds"), "data.particles.size: missing"),
        (dict(name="folds", size=1), "data.particles.size: 1; a whole number from 2 to 30"),
        (dict(name="folds", size=31), "data.particles.size: 31; "),
        (dict(name="folds", size=3, use="all"), "data.particles.use: 'all'; 'others'"),
        (dict(name="per_class", size=11), r"size: 11; a whole number from 1 to 10, .* of class 0"),
        (dict(name="sets"), r"data.particles: \{\}; .*'sets' has `sets`"),
        (dict(name="sets", sets="digits"), "data.particles.sets: 'digits'; a list"),
        (dict(name="shared", seed=3), "'shared' has no fields"),
    ],
)
def test_what_cannot_be_names_the_field(spec, message):
    with pytest.raises(ConfigError, match=message):
        own_of(spec, (TRAIN,), 0, range(2))


def test_few_examples_need_classes():
    with pytest.raises(ConfigError, match=r"data.particles.name: 'per_class', but lines has no"):
        lines = Source("lines", dict(x=np.zeros((4, 1)), y=np.zeros((4, 1))), None, 1)
        own_of(dict(name="per_class", size=1), (lines,), 0, range(2))
