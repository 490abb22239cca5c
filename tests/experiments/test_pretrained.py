"""Runs that begin from a file: of each layout, written here as its library writes it."""

import contextlib
import functools
import io
import itertools
import json
import logging
import pathlib
import shutil
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax.serialization import msgpack, msgpack_serialize
from fsspec.implementations.memory import MemoryFileSystem

from experiments import stage, train
from experiments.data.description import write_description
from experiments.data.examples import Source
from experiments.experiment import config as config_lib
from experiments.experiment import initialise as pretrained
from experiments.experiment import readers
from experiments.experiment.build import setup
from experiments.experiment.check import check_pretrained
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import write_json
from uncertainty import build
from uncertainty.build import ConfigError
from uncertainty.rules import path_of

GOLDEN = pathlib.Path(__file__).parent / "transformers_vit.npz"
RNG = np.random.default_rng(0)


def random(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def write_release(prefix, tree, shards, split=2):
    """Writes what google-research/vmoe's `save_checkpoint` writes: arrays whose path has 'Mlp' in
    `split` slices of their first axis, slices in turn in `shards` files, in parts of 7 numbers."""

    def ext(code, value):
        return msgpack.ExtType(code, value)

    def packed(value):
        return msgpack.packb(value, use_bin_type=True)

    def where(slices):
        return packed(tuple(packed((s.start, s.stop, s.step)) for s in slices))

    files = [{"__msgpack_array_chunk_a87ca2__": True} for _ in range(shards)]
    index, turn = {}, 0
    for number, path in enumerate(sorted(tree, key=lambda name: name.split("/"))):
        array, of = np.atleast_1d(tree[path]), []
        edges = np.linspace(0, len(array), split + 1 if "/Mlp/" in path else 2).astype(int)
        for a, b in itertools.pairwise(edges):
            slices = (slice(int(a), int(b)), *(slice(0, n) for n in array.shape[1:]))
            slices = slices[: tree[path].ndim]
            flat, shard = array[a:b].ravel(), turn % shards
            parts = [flat[i : i + 7] for i in range(0, len(flat), 7)]
            files[shard].setdefault(str(number), []).append([parts, ext(6, where(slices))])
            of.append((where(slices), shard))
            turn += 1
        shape = packed((tree[path].shape, array.dtype.name, False, {}))
        *parents, last = path.split("/")
        node = index
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = ext(8, packed((shape, tuple(w for w, _ in of), tuple(s for _, s in of))))
    for i, file in enumerate(files):
        path = f"{prefix}.data-{i:05d}-of-{shards:05d}"
        pathlib.Path(path).write_bytes(msgpack_serialize(file))
    content = msgpack_serialize({"shard_count": shards, "index": index})
    pathlib.Path(f"{prefix}.index").write_bytes(content)


def test_a_released_checkpoint_is_read_back(tmp_path):
    tree = {f"Encoder/encoderblock_{i}/Moe/Mlp/Dense_0/kernel": random(4, 3, 5) for i in range(12)}
    tree |= {"cls": random(1, 1, 3), "head/bias": random(9, dtype=jnp.bfloat16)}
    write_release(tmp_path / "release", tree, shards=5)
    for name in ("release", "release.index"):
        checkpoint = readers.released_vmoe(epath.Path(tmp_path / name))
        assert checkpoint.shapes == {name: array.shape for name, array in tree.items()}
        found = checkpoint.read(set(tree))
        for path, array in tree.items():
            assert found[path].dtype == array.dtype
            np.testing.assert_array_equal(found[path], array)


def test_a_release_with_a_file_missing_or_without_its_numbers(tmp_path):
    tree = {"a/Mlp/kernel": random(4, 3), "b": random(3)}
    write_release(tmp_path / "release", tree, shards=2)
    checkpoint = readers.released_vmoe(epath.Path(tmp_path / "release"))
    empty = msgpack_serialize({"__msgpack_array_chunk_a87ca2__": True})
    (tmp_path / "release.data-00001-of-00002").write_bytes(empty)
    with pytest.raises(ConfigError, match="6 values of a/Mlp/kernel are in no file"):
        checkpoint.read({"a/Mlp/kernel"})
    (tmp_path / "release.data-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match="data-00001-of-00002"):
        checkpoint.read({"a/Mlp/kernel"})
    (tmp_path / "release.index").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="is not a valid index of V-MoE"):
        readers.released_vmoe(epath.Path(tmp_path / "release"))


@pytest.mark.slow
def test_a_whole_state_of_a_training_is_its_parameters(tmp_path, caplog):
    """Of V-MoE's own TrainState: step, parameters, optimiser and keys, and nothing else."""
    moe = dict(SMALL, depth=1, experts=dict(name="experts.MoE", num_experts=8), expert_blocks=(0,))
    size = build.network(config(backbone=moe)).backbone.size
    params = {k: random(*v) for k, v in release_shapes(size, (0,), 0, False, 17, classes=5).items()}
    tree = {f"params/{name}": array for name, array in params.items()}
    tree |= {f"opt_state/0/trace/{name}": random(*a.shape) for name, a in params.items()}
    tree |= {
        "opt_state/1/0/count": np.int32(7),
        "step": np.int32(7),
        "rngs/gating": np.arange(2, dtype=np.uint32),
    }
    write_release(tmp_path / "ckpt_7", tree, shards=3)
    write_release(tmp_path / "params", params, shards=3)
    small = config(backbone=moe, inference=dict(config()["inference"], size=1))
    experiment, states = setup(small), []
    state = experiment.init()
    for name in ("ckpt_7", "params"):
        spec = dict(path=str(tmp_path / name), layout="vmoe")
        states.append(load(spec, experiment, state))
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    kernel = states[0].params["backbone"]["block00"]["feed_forward"]["experts"]["dense0"]["kernel"]
    np.testing.assert_array_equal(
        kernel[1], params["Encoder/encoderblock_0/Moe/Mlp/Dense_0/kernel"]
    )
    write_release(tmp_path / "more", tree | {"ema/cls": random(1, 1, 3)}, shards=1)
    spec["path"] = str(tmp_path / "more")
    with pytest.raises(ConfigError, match=r"ema/cls .* no rule matches it"):
        check_pretrained(spec, experiment.network, experiment.source.shape, experiment.shapes)


def test_an_archive_is_read_back(tmp_path):
    tree = {"a/b/kernel": random(2, 3), "c": random(4, dtype=jnp.bfloat16), "d": np.float64(3)}
    np.savez(tmp_path / "x.npz", **tree)
    checkpoint = readers.npz(epath.Path(tmp_path / "x.npz"))
    assert checkpoint.shapes == {"a/b/kernel": (2, 3), "c": (4,), "d": ()}
    found = checkpoint.read(["a/b/kernel", "c"])
    assert found["c"].dtype == jnp.bfloat16
    for path in found:
        np.testing.assert_array_equal(found[path], tree[path])
    (tmp_path / "x.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ConfigError, match=r"x.npz is not a valid \.npz file"):
        readers.npz(epath.Path(tmp_path / "x.npz"))


def archive(path, header=None, name="a.npy", flags=0, method=zipfile.ZIP_STORED):
    """An .npz file of one array whose header, flags or compression are odd."""
    with zipfile.ZipFile(path, "w") as file:
        content = io.BytesIO()
        np.save(content, np.ones(3, np.float32))
        content = content.getvalue()
        if header is not None:
            content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        file.writestr(name, content)
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        where = data.rindex(mark) + at
        data[where : where + 4] = flags.to_bytes(2, "little") + method.to_bytes(2, "little")
    path.write_bytes(data)


ODD = {
    "encrypted": dict(flags=1),
    "compressed in a way that nobody knows": dict(method=77),
    "no array": dict(header=b"{"),
    "deep": dict(header=b"(" * 5_000),
    "deep minus": dict(header=b"-" * 9_000 + b"1"),
    "not text": dict(header=b"\xff" * 99),
    "of objects": dict(header=b"{'descr': '|O', 'fortran_order': False, 'shape': (3,)}"),
    "larger than memory": dict(
        header=b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,)}"
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_archive_is_named_in_one_line(tmp_path, odd):
    path = tmp_path / "x.npz"
    archive(path)
    assert readers.npz(epath.Path(path)).read(["a"])["a"].sum() == 3
    archive(path, **ODD[odd])
    with pytest.raises(
        ConfigError, match=r"^pretrained.path: \S*x.npz is not a valid \.npz file: [^\n]*$"
    ):
        readers.npz(epath.Path(path)).read(["a"])


INDICES = [
    {},
    {"index": 5, "shard_count": 1},
    {"index": {"a": 5}, "shard_count": 1},
    {"index": {"a": {"b": b"x"}}, "shard_count": "x"},
    [],
]


@pytest.mark.parametrize("index", INDICES, ids=range(len(INDICES)))
def test_an_odd_index_is_named_in_one_line(tmp_path, index):
    (tmp_path / "release.index").write_bytes(msgpack.packb(index, use_bin_type=True))
    with pytest.raises(ConfigError, match=r"release.index is not a valid index of V-MoE: [^\n]*$"):
        readers.released_vmoe(epath.Path(tmp_path / "release"))


def test_any_byte_of_a_release_may_be_damaged(tmp_path):
    """It is read, or refused with the file's name: nothing else."""
    write_release(tmp_path / "release", {"a/Mlp/kernel": random(4, 3), "b": random(3)}, shards=2)
    rng = np.random.default_rng(0)
    for file in ("release.index", "release.data-00000-of-00002"):
        sound = (tmp_path / file).read_bytes()
        for at in rng.permutation(len(sound))[:150]:
            damaged = bytearray(sound)
            damaged[at] ^= int(rng.integers(1, 256))
            (tmp_path / file).write_bytes(damaged)
            try:
                checkpoint = readers.released_vmoe(epath.Path(tmp_path / "release"))
                checkpoint.read(checkpoint.shapes)
            except (ConfigError, FileNotFoundError) as error:
                assert "release" in str(error)
        (tmp_path / file).write_bytes(sound)


@pytest.mark.parametrize(
    "leaves",
    [
        "{",
        "[]",
        '{"key": 5}',
        '{"key": "float32"}',
        '{"key": "u[]"}',
        '{"params/a": "float32[1]"}',
        "[" * 100_000,
    ],
)
def test_odd_leaves_of_a_run_are_named_in_one_line(tmp_path, leaves):
    directory = tmp_path / "checkpoints" / "3"
    directory.mkdir(parents=True)
    (tmp_path / "checkpoints" / "²").mkdir()
    (directory / "leaves.json").write_text(leaves)
    with pytest.raises(ValueError, match=r"checkpoints/3/leaves.json is [^\n]*$"):
        readers.own(epath.Path(tmp_path))


SMALL = dict(name="vit.ViT", variant="tiny", patch_size=4, depth=2, num_heads=4)


def config(**changes):
    small = config_lib.load("configs/digits/mlp.py:runlocal,size=2")
    small.mesh = dict(data=1)
    small.evaluators = {}
    small.data.train = dict(name="stand_in", shape=(16, 16, 3), num_classes=5)
    del small.data.validation
    small.evaluation.every = 0
    small.data.augment = ()
    small.backbone = SMALL
    small.optimiser = dict(name="sgd", learning_rate=0.1)
    small.head = dict(name="dense.Dense", outputs=5)
    for section, value in changes.items():
        small[section] = value
    return config_lib.plain(small)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A ViT of the transformers library as a user saves it, with what it sees and says."""
    with np.load(GOLDEN) as golden:
        state = {k.removeprefix("state/"): golden[k] for k in golden if k.startswith("state/")}
        x, logits = golden["images"].transpose(0, 2, 3, 1), golden["logits"]
    path = tmp_path_factory.mktemp("vit") / "vit.npz"
    np.savez(path, **state)
    return str(path), x, logits


@pytest.mark.slow
def test_a_vit_of_the_transformers_library_says_the_same(vit):
    """See benchmarks/transformers_vit.py for how its file was made."""
    path, x, logits = vit
    experiment = setup(config(pretrained=dict(path=path, layout="transformers")))
    state = experiment.init()
    found = np.asarray(jax.jit(experiment.inference.predict)(state, x).mean)
    assert found.shape == (2, *logits.shape) and np.abs(logits).max() > 1
    for particle in found:
        np.testing.assert_allclose(particle, logits, atol=1e-4)


@pytest.fixture(scope="module")
def plain():
    return setup(config(optimiser=dict(name="adam", learning_rate=1e-3)))


def load(spec, experiment, state):
    shape = experiment.source.shape
    return pretrained.load(spec, experiment.network, shape, state, experiment.optimiser)


@pytest.mark.slow
def test_what_is_kept_differs_between_particles_and_the_optimiser_starts_anew(vit, plain, caplog):
    spec, initial = dict(path=vit[0], layout="transformers", keep=("head/",)), plain.init()
    with caplog.at_level(logging.INFO):
        state = load(spec, plain, initial)
    assert "as initialised: head/logits/bias, head/logits/kernel" in caplog.text
    np.testing.assert_array_equal(
        state.params["head"]["logits"]["kernel"], initial.params["head"]["logits"]["kernel"]
    )
    first, second = state.params["head"]["logits"]["kernel"]
    assert not np.array_equal(first, second)
    leaves = jax.tree_util.tree_leaves_with_path(state.params["backbone"])
    for key, leaf in leaves:
        np.testing.assert_array_equal(leaf[0], leaf[1], err_msg=path_of(key))
    same = jax.tree.map(np.array_equal, state.opt_state, initial.opt_state)
    assert all(jax.tree.leaves(same))


def digits(**changes):
    small = config_lib.load("configs/digits/mlp.py:runlocal,size=2")
    small.mesh, small.steps, small.evaluators = dict(data=1), 2, {}
    small.backbone.widths, small.optimiser = (8,), dict(name="sgd", learning_rate=0.1)
    small.evaluation.every = 0
    for section, value in changes.items():
        small[section] = value
    return config_lib.plain(small)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two particles on the digits, and its last state."""
    workdir = tmp_path_factory.mktemp("digits")
    experiment = train.train(digits(), workdir)
    return workdir, Checkpoints(workdir, read_only=True).restore(experiment.shapes)[0]


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_need_the_file(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    spec = dict(path=str(copy), layout="own", particle=1, keep=("head/",))
    whole = digits(pretrained=spec, steps=4, checkpoint=dict(every=2, keep=2))
    straight = train.train(whole, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "4")  # as if it had been stopped before
    shutil.rmtree(copy)
    train.train(whole, tmp_path / "broken")
    states = [
        Checkpoints(tmp_path / name, read_only=True).restore(straight.shapes, 4)[0]
        for name in ("straight", "broken")
    ]
    same = jax.tree.map(np.array_equal, *(s.params for s in states))
    assert all(jax.tree.leaves(same))
    with pytest.raises(ConfigError, match=r"pretrained\.path: .* has no checkpoint"):
        train.train(whole, tmp_path / "new")


def saved(workdir, experiment, state):
    """As the first step of a run."""
    write_json(workdir / "config.json", experiment.config)
    write_description(workdir, experiment.source)
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(1, state)
    return state


@pytest.mark.slow
def test_a_deterministic_run_becomes_a_batch_ensemble(tmp_path):
    """Batch statistics come too; members differ by fast weights, and with ones they are the run."""
    resnet = dict(name="resnet.ResNet", depth=8, width=4)
    inference = dict(config()["inference"], size=1)
    alone = dict(backbone=resnet, inference=inference)
    source = setup(config(**alone))
    trained = source.init()
    statistics = jax.tree.map(lambda a: a + np.float32(0.5), trained.collections)
    trained = saved(tmp_path, source, trained.replace(collections=statistics))
    spec = dict(path=str(tmp_path), layout="own", keep=("/fast_",))
    ensemble = dict(name="batch_ensemble", size=3)
    experiment = setup(config(**{**alone, "ensemble": ensemble, "pretrained": spec}))
    state = experiment.init()
    ones = jax.tree_util.tree_map_with_path(
        lambda k, a: jnp.ones_like(a) if "fast_" in path_of(k) else a, state.params
    )
    x = random(4, 16, 16, 3)
    assert "batch_stats" in state.collections
    expected = jax.jit(source.inference.predict)(trained, x).mean
    found = jax.jit(experiment.inference.predict)(state.replace(params=ones), x).mean
    assert found.shape[0] == 3
    for member in found:
        np.testing.assert_allclose(member, expected[0], atol=1e-4)


@pytest.mark.slow
def test_one_of_several_particles(trained, caplog):
    workdir, state = trained
    kernel = np.asarray(state.params["head"]["logits"]["kernel"])

    def begin(**spec):
        spec = dict(path=str(workdir), layout="own", **spec)
        return setup(digits(pretrained=spec)).init().params["head"]["logits"]["kernel"]

    for p in (0, 1):
        for particle in begin(particle=p):
            np.testing.assert_array_equal(particle, kernel[p])
    warning = "2 particles start from the same parameters"
    assert warning in caplog.text
    caplog.clear()
    begin(particle=0, keep=("head/",))
    assert warning not in caplog.text
    with pytest.raises(ConfigError, match=r"pretrained\.particle: .* has 2 particles"):
        begin()
    with pytest.raises(ConfigError, match=r"pretrained\.particle: 2; .* has 2"):
        begin(particle=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(layout="vitt"), "pretrained.layout: 'vitt'; did you mean 'vit'"),
        (dict(kep=()), "pretrained.kep: no such field .*did you mean 'keep'"),
        (dict(particle=1), "pretrained.particle: 1; for layout 'own'"),
        (dict(keep=("hed/",)), "keep: 'hed/' matches no parameter's path"),
        (dict(rules=(("vit.layernorm.bias", None),)), "backbone/norm/bias .*nothing in the"),
    ],
)
def test_mistakes_are_told_in_setup(vit, plain, changes, message):
    spec = {"path": vit[0], "layout": "transformers", **changes}
    with pytest.raises(ConfigError, match=message):
        check_pretrained(spec, plain.network, plain.source.shape, plain.shapes)
    if "layout" in changes:  # setup asks it
        with pytest.raises(ConfigError, match=message):
            setup(config(pretrained=spec))


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_refused(vit, plain, tmp_path):
    with np.load(vit[0]) as archive:
        arrays = dict(archive)
    arrays["vit.layernorm.bias"][3] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    spec = dict(path=str(tmp_path / "bad.npz"), layout="transformers")
    with pytest.raises(ConfigError, match=r"vit\.layernorm\.bias of .* is not finite"):
        load(spec, plain, plain.shapes)


@pytest.fixture(scope="module")
def oblong(tmp_path_factory):
    """A run on images of 2 x 4 patches, as it is initialised, and its positions."""
    workdir = tmp_path_factory.mktemp("oblong")
    experiment = images_of(8, 16)
    state = saved(workdir, experiment, experiment.init())
    return workdir, np.asarray(state.params["backbone"]["position_embedding"][1, 0])


@functools.cache
def images_of(height, width, frozen=False):
    small = config(backbone=dict(SMALL, depth=1))
    if frozen:
        small["ensemble"] = dict(name="single", frozen=True)
    small["data"]["train"] = dict(name="stand_in", shape=(height, width, 3), num_classes=5)
    return setup(small)


def begun(workdir, height, width, **spec):
    experiment = images_of(height, width)
    spec = dict(path=str(workdir), layout="own", particle=1, **spec)
    check_pretrained(spec, experiment.network, experiment.source.shape, experiment.shapes)
    params = load(spec, experiment, experiment.shapes).params  # nothing stays as initialised
    return params["backbone"]["position_embedding"][0, 0]


@pytest.mark.slow
def test_positions_of_a_run_keep_their_places_on_other_images(oblong):
    """As many patches do not make the same grid, and 9 positions are no 3 x 3 patches."""
    workdir, x = oblong
    np.testing.assert_array_equal(begun(workdir, 8, 16), x)
    for rows, columns in ((4, 2), (3, 3)):
        found = begun(workdir, 4 * rows, 4 * columns)
        np.testing.assert_array_equal(found[0], x[0])
        grid = x[1:].reshape(2, 4, -1)
        at = np.linspace(0, 1, rows)[:, None, None], np.linspace(0, 3, columns)
        low = np.minimum(at[1].astype(int), 2)
        part = (at[1] - low)[:, None]
        lines = grid[:, low] * (1 - part) + grid[:, low + 1] * part
        expected = lines[0] * (1 - at[0]) + lines[1] * at[0]
        np.testing.assert_allclose(found[1:].reshape(rows, columns, -1), expected, atol=1e-5)


@pytest.mark.slow
def test_positions_of_a_frozen_run_keep_their_places_too(tmp_path):
    experiment = images_of(8, 16, frozen=True)
    state = saved(tmp_path, experiment, experiment.init())
    x = np.asarray(state.collections["frozen"]["backbone"]["position_embedding"][1, 0])
    np.testing.assert_array_equal(begun(tmp_path, 8, 16), x)
    found = begun(tmp_path, 16, 8)
    corners = np.ix_((0, -1), (0, -1))
    np.testing.assert_allclose(
        found[1:].reshape(4, 2, -1)[corners], x[1:].reshape(2, 4, -1)[corners], atol=1e-6
    )
    np.testing.assert_array_equal(found[0], x[0])


@pytest.mark.slow
def test_positions_of_a_grid_that_nobody_tells_are_refused(oblong, tmp_path):
    workdir, x = oblong
    with pytest.raises(
        ConfigError, match=r"pretrained.grid: \(4, 2\), but .* has \(2, 4\) patches"
    ):
        begun(workdir, 8, 16, grid=(4, 2))
    with pytest.raises(ConfigError, match=r"pretrained.grid: \(4, 0\); \(rows, columns\)"):
        begun(workdir, 8, 16, grid=(4, 0))
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(ConfigError, match=r"9 positions do not determine .* set `grid`"):
        begun(tmp_path / "run", 8, 16)
    np.testing.assert_array_equal(begun(tmp_path / "run", 8, 16, grid=(2, 4)), x)
    changes = {"data.train.shape": (16, 8, 3)}
    with pytest.raises(ConfigError, match="start: position embeddings of 2 x 4 patches, of which"):
        stage.begin_from(workdir, tmp_path / "new", changes)


class Bucket(MemoryFileSystem):
    """A file system of fsspec that stands where gcsfs does."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")


def test_buckets_are_read_through_fsspec(vit, monkeypatch):
    monkeypatch.setattr(sys.modules["etils.epath.gpath"], "_is_tf_installed", lambda: False)
    for protocol in ("gs", "gcs"):
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, protocol, Bucket)
    Bucket().pipe_file("gs://bucket/vit.npz", pathlib.Path(vit[0]).read_bytes())
    here = readers.npz(epath.Path(vit[0]))
    there = readers.npz(epath.Path("gs://bucket/vit.npz"))
    assert there.shapes == here.shapes
    names = set(here.shapes)
    for name, array in there.read(names).items():
        np.testing.assert_array_equal(array, here.read([name])[name])


AUGREG = {
    "Encoder/": "Transformer/",
    "SelfAttention/": "MultiHeadDotProductAttention_1/",
    "LayerNorm_1/": "LayerNorm_2/",
    "Mlp/": "MlpBlock_3/",
}


def augreg(name):
    """What vision_transformer calls the array of a ViT that V-MoE calls `name`."""
    for ours, theirs in AUGREG.items():
        name = name.replace(ours, theirs)
    return name


@pytest.mark.slow
def test_full_size_checkpoints_fit_their_configs(caplog):
    """The released names and shapes (google-research/vmoe, nn/vit_moe.py; google-research/
    vision_transformer, models_vit.py) fill the full models."""
    for file, hidden, pixels in (
        ("vmoe.py:model=e3-S/32", True, 128),
        ("vmoe.py:model=vmoe-B/16,dataset=cifar10", False, 128),
        ("vit.py:", False, 384),
    ):
        full = config_lib.plain(config_lib.load(f"configs/cifar/{file}"))
        config_lib.check(full)
        network = build.network(full)
        size, members = network.backbone.size, full["ensemble"].get("size", 0)
        sparse = network.backbone._with_experts() if "experts" in full["backbone"] else ()
        shapes = release_shapes(size, sparse, members, hidden)
        if not sparse:
            shapes = {augreg(name): shape for name, shape in shapes.items()}
        x = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
        inference = build.inference(full, num_examples=1)
        state = jax.eval_shape(inference.init, jax.eval_shape(jax.random.key, 0), x)
        checkpoint = readers.Checkpoint(shapes, lambda names: {})
        moves = pretrained.plan_of(
            full["pretrained"], network, x.shape[1:], checkpoint, pretrained._tree(state)
        )
        paths = {path_of(k) for k, _ in jax.tree_util.tree_leaves_with_path(state.params)}
        assert paths - moves.keys() == {"head/logits/kernel", "head/logits/bias"}
        json.dumps(full["pretrained"])  # as a workdir keeps it


def release_shapes(size, experts, members, hidden, tokens=None, classes=1000):
    patch, D, depth, H, F = size
    tokens = tokens or (224 // patch) ** 2 + 1
    found = {
        "cls": (1, 1, D),
        "embedding/kernel": (patch, patch, 3, D),
        "embedding/bias": (D,),
        "Encoder/posembed_input/pos_embedding": (1, tokens, D),
        "head/kernel": (D, classes),
        "head/bias": (classes,),
    }
    if hidden:
        found |= {"pre_logits/kernel": (D, D), "pre_logits/bias": (D,)}
    norms = ["Encoder/encoder_norm"]
    for i in range(depth):
        block = f"Encoder/encoderblock_{i}/"
        norms += [block + "LayerNorm_0", block + "LayerNorm_1"]
        for name in ("query", "key", "value"):
            found[f"{block}SelfAttention/{name}/kernel"] = (D, H, D // H)
            found[f"{block}SelfAttention/{name}/bias"] = (H, D // H)
        found[block + "SelfAttention/out/kernel"] = (H, D // H, D)
        found[block + "SelfAttention/out/bias"] = (D,)
        lead, mlp = ((8,), "Moe/Mlp") if i in experts else ((), "Mlp")
        for j, (a, b) in enumerate(((D, F), (F, D))):
            found[f"{block}{mlp}/Dense_{j}/kernel"] = (*lead, a, b)
            found[f"{block}{mlp}/Dense_{j}/bias"] = (*lead, b)
        if i in experts:
            router = (D, members, 8 // members) if members else (D, 8)
            found[block + "Moe/Router/dense/kernel"] = router
    return found | {f"{n}/{p}": (D,) for n in norms for p in ("scale", "bias")}


@pytest.mark.slow
def test_particles_of_particles_and_of_several_runs(trained, tmp_path):
    """Particle p of particle p, of a chosen one, or of a run of its own."""
    workdir, state = trained
    kernel = np.asarray(state.params["head"]["logits"]["kernel"])
    single = setup(digits(inference=dict(name="particles", size=1), seed=5))
    other = saved(tmp_path, single, single.init()).params["head"]["logits"]["kernel"]

    def begin(**spec):
        spec = dict(path=str(workdir), layout="own") | spec
        return setup(digits(pretrained=spec)).init().params["head"]["logits"]["kernel"]

    np.testing.assert_array_equal(begin(particle="each"), kernel)
    np.testing.assert_array_equal(begin(particle=[1, 0]), kernel[::-1])
    both = begin(path=[str(workdir), str(tmp_path)], particle=[1, 0])
    np.testing.assert_array_equal(both, np.stack([kernel[1], other[0]]))
    seeded = begin(path=str(tmp_path.parent / (tmp_path.name[:-1] + "{seed}")))
    np.testing.assert_array_equal(seeded, np.stack([other[0]] * 2))
    for spec, message in (
        (dict(particle=[0]), r"pretrained\.particle: \[0\]; one for each of the 2 particles"),
        (dict(path=[str(workdir)] * 3), r"pretrained\.path: .*one for each of the 2 particles"),
        (dict(particle="all"), r"pretrained\.particle: 'all'; a number, a list .* or 'each'"),
        (dict(particle=[0, 2]), r"pretrained\.particle: 2; .* has 2 particles"),
        (dict(path=[]), r"pretrained\.path: \[\]; a path, or a list"),
    ):
        with pytest.raises(ConfigError, match=message):
            begin(**spec)


@pytest.mark.slow
def test_a_probe_of_a_run_trains_its_head_alone(trained, tmp_path):
    """The backbone stays that of the run, and what the head gets are its features at prediction."""
    workdir, state = trained
    spec = dict(path=str(workdir), layout="own", particle="each", keep=("head/",))
    probe = digits(pretrained=spec, ensemble=dict(name="single", frozen=True), seed=3)
    begun = setup(probe).init().params
    experiment = train.train(probe, tmp_path / "probe")
    after, _ = Checkpoints(tmp_path / "probe", read_only=True).restore(experiment.shapes)
    assert set(after.params) == {"head"}
    frozen = after.collections["frozen"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, frozen, state.params["backbone"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), begun["head"], after.params["head"])
    assert min(jax.tree.leaves(moved)) > 0
    x = random(3, *experiment.source.shape)
    source = setup(digits())
    for p in range(2):
        one = jax.tree.map(lambda a, p=p: a[p], (after.params, after.collections, after.key))
        of_run = jax.tree.map(lambda a, p=p: a[p], (state.params, state.collections, state.key))
        np.testing.assert_allclose(
            experiment.model.features(*one[:2], x, one[2]),
            source.model.features(*of_run[:2], x, of_run[2]),
            atol=1e-6,
        )
    # The same with a whole network: frozen in place of one that may move.
    assert_equal = functools.partial(np.testing.assert_allclose, atol=1e-6)
    whole = setup(digits(pretrained={**spec, "path": str(tmp_path / "probe"), "keep": ()}))
    jax.tree.map(assert_equal, whole.init().params["backbone"], state.params["backbone"])


def test_parameters_of_an_objective_stay_behind_unless_the_run_has_such():
    """Those of pre-training, such as a projector; where both have them they are restored."""
    parts = dict(backbone="mlp.MLP", ensemble="single", head=dict(name="dense.Dense", outputs=3))
    network, spec = build.network(parts), dict(path="run", layout="own")
    tree = dict(backbone=dict(dense0=dict(kernel=np.zeros((1, 4, 5)))))
    shapes = {"backbone/dense0/kernel": (4, 5), "objective/projector/dense0/kernel": (5, 2)}
    checkpoint = readers.Checkpoint(shapes, lambda names: {})
    plan = lambda tree: pretrained.plan_of(spec, network, (4,), checkpoint, tree)  # noqa: E731
    assert set(plan(tree)) == {"backbone/dense0/kernel"}
    spec["rules"] = (("objective/.*", None),)  # as it is
    assert set(plan(tree)) == {"backbone/dense0/kernel"}
    del spec["rules"]
    projector = dict(projector=dict(dense0=dict(kernel=np.zeros((1, 5, 2)))))
    assert set(plan(tree | dict(objective=projector))) == set(shapes)
    other = dict(projector=dict(dense0=dict(kernel=np.zeros((1, 5, 3)))))
    with pytest.raises(ConfigError, match="objective/projector/dense0/kernel"):
        plan(tree | dict(objective=other))


def test_other_inputs_and_averages_are_warned_of(tmp_path, caplog):
    def run(name, config, **normalisation):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", config)
        given = dict(shape=(2, 2, 3), mean=None, std=None) | normalisation
        write_json(tmp_path / name / "data.json", given)
        return str(tmp_path / name)

    def warnings(mean, std, *paths):
        x, y = np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, np.int32)
        arrays = dict(x=x, y=y)
        full = [
            None if v is None else np.broadcast_to(np.float32(v), (2, 2, 3)) for v in (mean, std)
        ]
        source = Source("a", arrays, 2, 2, *full)
        caplog.clear()
        spec = dict(path=list(paths) if len(paths) > 1 else paths[0], layout="own")
        pretrained.warn(spec, len(paths), source)
        return [record.getMessage() for record in caplog.records]

    plain = run("plain", dict(stages=[], inference=dict(name="particles")))
    channels = run("channels", {}, mean=[0.1, 0.2, 0.3], std=[0.5] * 3)
    pixels = run("pixels", {}, mean=np.zeros((4, 4, 3)).tolist())
    averaged = run(
        "averaged", dict(stages=[dict(name="swag")], inference=dict(collect=dict(name="moving")))
    )
    assert warnings(None, None, plain) == warnings(0.0, 1.0, plain) == []
    assert warnings([0.1, 0.2, 0.3], 0.5, channels, plain, channels)[0].startswith(
        f"pretrained.path: {plain} was trained on inputs with mean None, std None, and data.train "
        "has mean [0.1"
    )
    (text,) = warnings([0.1, 0.2, 0.3], 0.6, channels)
    assert "with std [0.5, 0.5, 0.5], and data.train has std [0.6" in text
    assert len(warnings(np.arange(12).reshape(2, 2, 3), None, pixels)) == 1
    (text,) = warnings(None, None, averaged)
    assert "not those of its stages and inference.collect" in text
    assert warnings(0.3, None, str(tmp_path / "nothing")) == []
