"""Checkpoints give back the same bits, or the checkpoint before, or a clear error."""

import json
import logging
import os
import random
import shutil
import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.runtime import workdir as lib
from experiments.runtime.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    check_step,
    checksum,
    step_of,
    verify,
)
from experiments.runtime.workdir import read_json
from uncertainty.types import State

P = 8


def make_state(seed=0, features=12, devices=1):
    """P particles with float32, bfloat16, integer, key and scalar leaves, sharded over P."""
    key = jax.random.key(seed)
    params = {
        "dense": {
            "kernel": jax.random.normal(key, (P, 6, features)),
            "bias": jnp.full((P, features), 0.1, jnp.bfloat16),
        }
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = State(
        step=jnp.int32(seed),
        key=jax.random.split(key, P),
        params=params,
        collections={},
        opt_state=jax.vmap(optimiser.init)(params),
    )
    mesh = Mesh(jax.devices()[:devices], ("particle",))
    spec = lambda a: PartitionSpec("particle") if a.ndim else PartitionSpec()  # noqa: E731
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, spec(a))), state)


def abstract(state):
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert bits(x) == bits(y)


def save_two(workdir):
    """Saves make_state(1) at step 10 and make_state(2) at step 20."""
    checkpoints = Checkpoints(workdir)
    checkpoints.save(10, make_state(1))
    checkpoints.save(20, make_state(2))
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return save_two(tmp_path_factory.mktemp("two"))


def copy(workdir, tmp_path):
    return shutil.copytree(workdir, tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(1, 1), (8, 1), (1, 8), (8, 4)])
def test_gives_back_the_same_bits_on_any_number_of_devices(tmp_path, before, after):
    state = make_state(3, devices=before)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    target = make_state(0, devices=after)
    restored, step = checkpoints.restore(abstract(target))
    assert step == 1
    assert_same(restored, state)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    assert_same(checkpoints.restore(target)[0], state)  # a concrete target does as well
    checkpoints.close()


@pytest.mark.slow
def test_the_state_may_be_donated_while_it_is_being_written(tmp_path):
    state = make_state(0, features=40_000, devices=8)
    expected = np.asarray(state.params["dense"]["kernel"]).copy()
    overwrite = jax.jit(
        lambda s: s.replace(params=jax.tree.map(jnp.zeros_like, s.params)), donate_argnums=0
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    for _ in range(5):
        state = overwrite(state)
    restored, _ = checkpoints.restore(abstract(state))
    checkpoints.close()
    np.testing.assert_array_equal(restored.params["dense"]["kernel"], expected)


def test_keeps_the_newest_and_saves_a_step_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(make_state()) is None and checkpoints.latest_step() is None
    for step in (5, 10, 15, 17):
        checkpoints.save(step, make_state(step))
    checkpoints.save(17, make_state(1))  # saved already
    checkpoints.close()
    assert checkpoints.steps() == [15, 17] and checkpoints.latest_step() == 17
    again = Checkpoints(tmp_path)
    assert_same(again.restore(make_state())[0], make_state(17))
    assert again.restore(make_state(), step=15)[1] == 15
    with pytest.raises(ValueError, match=r"step 16 .*\[15, 17\]"):
        again.restore(make_state(), step=16)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped bit": flip,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_any_file_falls_back_or_does_no_harm(two, tmp_path, how, caplog):
    files = [p.relative_to(two) for p in (two / "checkpoints" / "20").rglob("*") if p.is_file()]
    assert len(files) >= 5
    fallen_back = 0
    for i, file in enumerate(files):
        workdir = shutil.copytree(two, tmp_path / str(i))
        DAMAGE[how](workdir / file)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="experiments.runtime.checkpoint"):
            state, step = Checkpoints(workdir).restore(make_state())
        assert_same(state, make_state(step // 10))
        if step == 10:
            fallen_back += 1
            assert "checkpoint of step 20 is damaged" in caplog.text
            assert "step 10 restored" in caplog.text
            assert (workdir / "damaged_checkpoints" / "20").is_dir()
            assert Checkpoints(workdir).steps() == [10]
        else:  # orbax's notes beside the arrays; nothing is read from them
            assert len(file.parts) == 3 and not caplog.records
    assert fallen_back >= len(files) - 2


def test_an_empty_or_missing_array_directory_is_damage(two, tmp_path):
    workdir = copy(two, tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "20" / "default")
    assert Checkpoints(workdir).restore(make_state())[1] == 10


def test_a_step_that_was_damaged_can_be_saved_again(two, tmp_path):
    workdir = copy(two, tmp_path)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(30, make_state(3))
    checkpoints.wait()
    (workdir / "checkpoints" / "30" / "leaves.json").unlink()
    assert checkpoints.restore(make_state())[1] == 20
    checkpoints.save(30, make_state(4))
    state, step = checkpoints.restore(make_state())
    checkpoints.close()
    assert step == 30
    assert_same(state, make_state(4))


def test_when_all_are_damaged_it_says_so_and_moves_nothing(two, tmp_path):
    workdir = copy(two, tmp_path)
    for step in (10, 20):
        (workdir / "checkpoints" / str(step) / "checksums.json").write_text("{")
    with pytest.raises(DamagedCheckpointError, match=r"(?s)no readable .*step 20: .*step 10: "):
        Checkpoints(workdir).restore(make_state())
    assert Checkpoints(workdir).steps() == [10, 20]


def test_a_renamed_directory_is_not_the_step_that_it_is_called(two, tmp_path, caplog):
    workdir = copy(two, tmp_path)
    os.rename(workdir / "checkpoints" / "20", workdir / "checkpoints" / "58")
    with caplog.at_level(logging.WARNING, logger="experiments.runtime.checkpoint"):
        assert Checkpoints(workdir).restore(make_state())[1] == 10
    assert "step 58 is damaged (it belongs to step 20)" in caplog.text
    os.rename(workdir / "checkpoints" / "10", workdir / "checkpoints" / "58")
    with pytest.raises(DamagedCheckpointError, match="step 58: it belongs to step 10"):
        Checkpoints(workdir).restore(make_state())


def test_a_checkpoint_belongs_to_its_config(tmp_path, monkeypatch):
    config = {"seed": 0, "rate": 0.1, "logging": {"every": 5}}
    checkpoints = Checkpoints(tmp_path, config=config, execution={"mesh": {"data": 8}})
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    may = Checkpoints(
        tmp_path, config={**config, "logging": {"every": 7}}, execution={"mesh": {"data": 1}}
    )
    assert may.restore(make_state())[1] == 1
    assert may.executed_otherwise(1) == ["mesh.data: 8 -> 1"]
    other = Checkpoints(tmp_path, config={**config, "rate": 0.2})
    with pytest.raises(
        DamagedCheckpointError, match=r"belongs to another config: rate: 0\.1 -> 0\.2"
    ):
        other.restore(make_state())
    monkeypatch.setattr(lib, "RENAMED", {"rate": "optimiser.rate"})
    renamed = {"seed": 0, "optimiser": {"rate": 0.1}, "logging": {"every": 5}}
    assert Checkpoints(tmp_path, config=renamed).restore(make_state())[1] == 1


def test_a_checkpoint_of_before_is_read(two, tmp_path):
    """One that does not say of which step and config it is."""
    workdir = copy(two, tmp_path)
    directory = workdir / "checkpoints" / "20"
    (directory / "run.json").unlink()
    sums = read_json(directory / "checksums.json")
    del sums["run.json"]
    (directory / "checksums.json").write_text(json.dumps(sums))
    checkpoints = Checkpoints(workdir, config={"seed": 1})
    state, step = checkpoints.restore(make_state())
    assert step == 20 and checkpoints.executed_otherwise(20) == []
    check_step(state, 2)  # as `make_state(2)` has it
    with pytest.raises(DamagedCheckpointError, match="named 20 belongs to step 2;"):
        check_step(state, step)


NO_STEPS = ["²", "٣", "1٣", "007", "-1", "x", ""]


def test_other_names_are_no_steps(two, tmp_path):
    assert [step_of(name) for name in [*NO_STEPS, "0", "120"]] == [None] * 7 + [0, 120]
    workdir = copy(two, tmp_path)
    for name in filter(None, NO_STEPS):
        (workdir / "checkpoints" / name).mkdir()
    checkpoints = Checkpoints(workdir, keep=1)
    assert checkpoints.restore(make_state())[1] == 20
    checkpoints.save(30, make_state(3))
    checkpoints.close()
    assert checkpoints.steps() == [30]


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "../../10/leaves.json", "link", "pipe", "default", "linked/leaves.json", "a\0b"],
)
def test_checksums_are_of_regular_files_below(two, tmp_path, name):
    workdir = copy(two, tmp_path)
    directory = workdir / "checkpoints" / "20"
    (directory / "link").symlink_to(directory / "leaves.json")
    (directory / "linked").symlink_to(workdir / "checkpoints" / "10")
    os.mkfifo(directory / "pipe")
    sums = read_json(directory / "checksums.json")
    (directory / "checksums.json").write_text(json.dumps({**sums, name: sums["leaves.json"]}))
    with pytest.raises(DamagedCheckpointError):
        verify(directory)
    assert Checkpoints(workdir, read_only=True).restore(make_state())[1] == 10


JUNK = [
    "{",
    "[]",
    '{"leaves.json": 5}',
    '{"leaves.json": [1, "x"]}',
    '{"leaves.json": [1]}',
    "[" * 10**5,
]


@pytest.mark.parametrize("file", ["checksums.json", "leaves.json", "run.json"])
@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_junk_in_its_own_files_is_damage(two, tmp_path, file, junk):
    workdir = copy(two, tmp_path)
    directory = workdir / "checkpoints" / "20"
    (directory / file).write_text(junk)
    if file != "checksums.json":  # the sums fit, so that the file is read
        sums = read_json(directory / "checksums.json")
        (directory / "checksums.json").write_text(
            json.dumps({**sums, file: checksum(directory / file)})
        )
    with pytest.raises(DamagedCheckpointError):
        verify(directory)


def test_an_asked_for_step_does_not_fall_back(two, tmp_path):
    workdir = copy(two, tmp_path)
    flip(workdir / "checkpoints" / "20" / "checksums.json")
    with pytest.raises(DamagedCheckpointError, match="step 20"):
        Checkpoints(workdir).restore(make_state(), step=20)


def test_read_only_changes_nothing_on_disk(two, tmp_path):
    workdir = copy(two, tmp_path)
    (workdir / "checkpoints" / "20" / "leaves.json").unlink()
    (workdir / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir()  # another process is writing it
    listing = sorted(workdir.rglob("*"))
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.restore(make_state())[1] == 10
    with pytest.raises(RuntimeError, match="read only"):
        checkpoints.save(30, make_state())
    assert sorted(workdir.rglob("*")) == listing


def test_another_model_is_named_leaf_by_leaf_and_is_not_damage(two):
    other = make_state(features=13)
    other = other.replace(collections={"batch_stats": {"mean": jnp.zeros((P, 2))}})
    with pytest.raises(ValueError) as error:
        Checkpoints(two).restore(other)
    message = str(error.value)
    assert "params/dense/kernel: saved float32[8,6,12], expected float32[8,6,13]" in message
    assert "collections/batch_stats/mean: saved nothing, expected float32[8,2]" in message
    assert Checkpoints(two).steps() == [10, 20]
    half = make_state()
    half = half.replace(params=jax.tree.map(lambda a: a.astype(jnp.bfloat16), half.params))
    with pytest.raises(ValueError, match=r"saved float32\[8,6,12\], expected bfloat16\[8,6,12\]"):
        Checkpoints(two).restore(half)


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(OSError, match=f"could not save step 1 in {tmp_path}; nothing was saved"):
        Checkpoints(tmp_path).save(1, make_state())


# A process of its own: its file size limit stands for the full disk.
LIMITED = """
import resource, signal, sys
import jax, jax.numpy as jnp
from experiments.runtime.checkpoint import Checkpoints
from uncertainty.types import State

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = State(jnp.int32(0), jax.random.split(jax.random.key(0), 2),
              {"w": jax.random.normal(jax.random.key(1), (2, 100_000))}, {}, ())
checkpoints = Checkpoints(sys.argv[1], keep=1)
checkpoints.save(1, state)
checkpoints.wait()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
errors = []  # printed when there is room again
for step in (2, 3):
    try:
        checkpoints.save(step, state)
        checkpoints.wait()
    except OSError as error:
        errors.append(error)
assert checkpoints.restore(state)[1] == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
checkpoints.save(4, state)
checkpoints.close()
print()  # the limit cuts what was logged
for error in errors:
    print(error)
print(checkpoints.steps(), sorted(p.name for p in checkpoints.directory.iterdir()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [50, 100_000])
def test_a_save_that_finds_no_room_is_an_error_and_loses_nothing(programs, tmp_path, limit):
    code, output = programs.script(LIMITED, tmp_path, limit).result()
    assert code == 0, output
    lines = output.splitlines()
    for line, step in zip(lines[-3:-1], (2, 3), strict=True):
        assert line.startswith(f"could not save step {step} in {tmp_path}; step 1 is still safe: ")
    assert lines[-1] == "[4] ['4']"


FOREVER = """
import itertools, sys
import jax, jax.numpy as jnp
from experiments.runtime.checkpoint import Checkpoints
from uncertainty.types import State

checkpoints = Checkpoints(sys.argv[1], keep=2)
target = State(jnp.int32(0), jax.random.split(jax.random.key(0), 2),
               {"w": jnp.zeros((2, 100_000))}, {}, ())
restored = checkpoints.restore(target)
state, start = restored or (target, 0)
for step in itertools.count(start + 1):
    checkpoints.save(step, state.replace(params={"w": jnp.full((2, 100_000), float(step))}))
    print(step, flush=True)  # `save` waited for the one before: step - 1 is on disk
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_readable_checkpoint(programs, tmp_path):
    target = State(
        jnp.int32(0), jax.random.split(jax.random.key(0), 2), {"w": jnp.zeros((2, 100_000))}, {}, ()
    )
    moments = random.Random(0)
    least = 0
    for _ in range(4):
        running, number = programs.script(FOREVER, tmp_path), moments.randrange(2, 6)
        while running.output().count("\n") < number:
            assert running.poll() is None, running.output()
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.04))  # about as long as a save takes
        running.send(signal.SIGKILL)
        lines = running.result().output.splitlines()
        least = max(least, int(lines[-1]) - 1)
        restored = Checkpoints(tmp_path, read_only=True).restore(target)
        state, step = restored if restored else (target, 0)
        assert step >= least
        np.testing.assert_array_equal(state.params["w"], np.full((2, 100_000), float(step)))
    assert least >= 4
    assert not (tmp_path / "damaged_checkpoints").exists()


PAIR = """
import sys
import jax, jax.numpy as jnp
import numpy as np

workdir, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, index)
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from experiments.runtime.checkpoint import Checkpoints
from uncertainty.types import State

mesh = Mesh(np.array(jax.devices()), ("particle",))

def make(value):
    def put(a, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(a.shape, sharding, lambda i: a[i])
    keys = jax.jit(lambda: jax.random.split(jax.random.key(value), 2),
                   out_shardings=NamedSharding(mesh, PartitionSpec("particle")))()
    return State(put(np.int32(value), PartitionSpec()), keys,
                 {"w": put(np.full((2, 3), value, np.float32), PartitionSpec("particle"))}, {}, ())

checkpoints = Checkpoints(workdir)
for step in (1, 2):
    checkpoints.save(step, make(step))
checkpoints.wait()
if index == 0:
    (checkpoints.directory / "2" / "leaves.json").unlink()
sync_global_devices("damaged")
state, step = checkpoints.restore(make(0))
assert step == 1, step
for shard in state.params["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, np.full((1, 3), 1.0))
sync_global_devices("restored")
checkpoints.save(2, make(5))
checkpoints.close()
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_one_state(programs, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    pair = [programs.script(PAIR, tmp_path, port, i) for i in range(2)]
    results = [process.result(100) for process in pair]
    assert [result.code for result in results] == [0, 0], results
    target = State(
        jnp.int32(0), jax.random.split(jax.random.key(0), 2), {"w": jnp.zeros((2, 3))}, {}, ()
    )
    state, step = Checkpoints(tmp_path).restore(target)  # in one process
    assert step == 2 and state.step == 5
    np.testing.assert_array_equal(state.params["w"], np.full((2, 3), 5.0))
    assert bits(state.key) == bits(jax.random.split(jax.random.key(5), 2))
