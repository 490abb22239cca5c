"""Checkpoints in a bucket give back the same bits, or the one before, whatever happens."""

import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.runtime import processes, program, shards, storage, workdir
from experiments.runtime.checkpoint import Checkpoints, DamagedCheckpointError
from tests.cloud.conftest import Killed
from tests.experiments.test_checkpoint import abstract, assert_same, make_state


class Answer(Exception):
    """Of a server, with its status."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


def save(folder, step, state=None, **options):
    checkpoints = Checkpoints(folder, **options)
    checkpoints.save(step, make_state(step) if state is None else state)
    checkpoints.close()
    return checkpoints


@pytest.mark.parametrize("before, after", [(1, 1), (8, 1), (1, 8), (8, 4)])
def test_gives_back_the_same_bits_on_any_number_of_devices(memory, monkeypatch, before, after):
    monkeypatch.setattr(shards, "PART", 100)  # so that shards are in several objects
    folder, state = storage.path("gs://test/folder"), make_state(3, devices=before)
    checkpoints = save(folder, 1, state)
    parts = [n for n in storage.find(folder) if n.endswith(".bin")]
    assert len(parts) > 20
    target = make_state(0, devices=after)
    restored, step = checkpoints.restore(abstract(target))
    assert step == 1
    assert_same(restored, state)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    without, _ = checkpoints.restore(target.replace(opt_state=()))
    assert_same(without, state.replace(opt_state=()))


def test_arrays_of_all_kinds_and_shardings_come_back(memory, monkeypatch):
    """Between meshes of two axes, transposed; with scalars, empty arrays and other keys."""
    monkeypatch.setattr(shards, "PART", 64)
    one = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("a", "b"))
    two = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("a", "b"))
    x = np.arange(16 * 8 * 3, dtype=np.float32).reshape(16, 8, 3)

    def put(values, *spec):
        return jax.device_put(values, NamedSharding(one, PartitionSpec(*spec)))

    tree = {
        "x": put(x, "b", "a"),
        "half": put(x.astype(jnp.bfloat16), None, "b"),
        "flag": put(x[:, 0, 0] > 9, ("a", "b")),
        "none": jnp.zeros((0, 4), jnp.int8),
        "scalar": jnp.float32(7),
        "host": np.arange(5, dtype=np.uint16),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 8),
    }
    folder = storage.path("gs://test/folder")
    copies = shards.snapshot(tree)
    assert sum(c.values.size for c in copies if c.name == "half") == x.size  # replicas once
    shards.write(folder, copies, "0")
    specs = {"x": ("a", "b"), "half": (("a", "b"),), "flag": ("a",)}

    def placed(name, leaf):
        spec = PartitionSpec(*specs.get(name, ()))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(two, spec))

    target = {name: placed(name, leaf) for name, leaf in tree.items()}
    index = shards.index_in(folder, ["arrays/0.json"])
    made = shards.read(folder, index, target)
    assert_same(made, {**tree, "host": jnp.asarray(tree["host"])})
    assert made["x"].sharding.is_equivalent_to(target["x"].sharding, 3)
    index["x"].pop()
    with pytest.raises(DamagedCheckpointError, match="x lacks a part"):
        shards.read(folder, index, target)


def test_replicated_arrays_are_shared_out(memory):
    """Of eight devices, each would write some of the arrays that all of them have."""
    mesh = Mesh(jax.devices(), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())
    tree = [jax.device_put(jnp.ones(3) * i, whole) for i in range(16)]
    turns = [shards.snapshot([leaf])[0] for leaf in tree]
    assert len(shards.snapshot(tree)) == len(turns) == 16


def test_keeps_the_newest_and_saves_a_step_once(folder):
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.restore(make_state()) is None and checkpoints.latest_step() is None
    for step in (5, 10, 15, 17):
        checkpoints.save(step, make_state(step))
    checkpoints.save(17, make_state(1))  # saved already
    checkpoints.close()
    assert checkpoints.steps() == [15, 17] and checkpoints.latest_step() == 17
    assert {name.split("/")[1] for name in storage.find(folder)} == {"15", "17"}
    again = Checkpoints(folder, read_only=True)
    assert_same(again.restore(make_state())[0], make_state(17))
    assert again.restore(make_state(), step=15)[1] == 15
    with pytest.raises(ValueError, match=r"step 16 .*\[15, 17\]"):
        again.restore(make_state(), step=16)
    with pytest.raises(ValueError, match="holds another model"):
        again.restore(make_state(features=5))
    with pytest.raises(RuntimeError, match="read only"):
        again.save(20, make_state())


def test_the_state_may_be_donated_while_it_is_being_written(folder):
    state = make_state(0, features=4_000, devices=8)
    expected = np.asarray(state.params["dense"]["kernel"]).copy()
    overwrite = jax.jit(lambda s: s.replace(params=jax.tree.map(jnp.zeros_like, s.params)),
                        donate_argnums=0)  # fmt: skip
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state)
    for _ in range(3):
        state = overwrite(state)
    restored, _ = checkpoints.restore(abstract(state))
    checkpoints.close()
    np.testing.assert_array_equal(restored.params["dense"]["kernel"], expected)


def test_a_kill_at_any_request_leaves_the_old_or_the_new(memory, monkeypatch):
    monkeypatch.setattr(shards, "PART", 2000)
    folder = storage.path("gs://test/folder")
    states = {step: make_state(step) for step in (10, 20, 30)}
    left, seen = 0, set()
    while True:
        storage.remove(folder)
        save(folder, 10, states[10], keep=1)
        memory.dies(left)
        checkpoints = Checkpoints(folder, keep=1)
        try:
            checkpoints.save(20, states[20])
            checkpoints.close()
            break
        except Killed:
            memory.dies(None)
        state, step = Checkpoints(folder, read_only=True).restore(make_state())
        assert_same(state, states[step])
        seen.add(step)
        save(folder, 30, states[30], keep=1)  # and nothing is left over
        assert {name.split("/")[1] for name in storage.find(folder)} == {"30"}
        assert_same(Checkpoints(folder).restore(make_state())[0], states[30])
        left += 1
    assert seen == {10, 20} and left > 8


def flipped(place):
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    storage.write(place, bytes(data))


DAMAGE = {
    "deleted": lambda place: place.unlink(),
    "truncated": lambda place: storage.write(place, place.read_bytes()[:-1]),
    "flipped bit": flipped,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("ending", [".bin", "arrays/*.json", "leaves.json", "run.json"])
def test_a_damaged_one_is_passed_over_and_set_aside(memory, caplog, damage, ending):
    folder = storage.path("gs://test/folder")
    for step in (10, 20):
        save(folder, step, keep=3)
    place = folder / "checkpoints" / "20"
    (victim,) = (
        place.glob(ending if "/" in ending else f"arrays/*{ending}")
        if ending in (".bin", "arrays/*.json")
        else [place / ending]
    )
    DAMAGE[damage](victim)
    with caplog.at_level(logging.WARNING):
        state, step = Checkpoints(folder, read_only=True).restore(make_state())
        assert step == 10 and "step 20 is damaged" in caplog.text
        assert_same(state, make_state(10))
        checkpoints = Checkpoints(folder, keep=3)
        assert checkpoints.restore(make_state())[1] == 10
    assert "moved to gs://test/folder/damaged_checkpoints/20" in caplog.text
    assert checkpoints.steps() == [10]
    checkpoints.save(20, make_state(20))
    checkpoints.close()
    assert checkpoints.restore(make_state())[1] == 20


def test_a_server_that_does_not_answer_is_no_damage(memory, monkeypatch):
    folder = storage.path("gs://test/folder")
    for step in (10, 20):
        save(folder, step)

    def fails(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(memory, "cat_ranges", fails)
    with pytest.raises(OSError, match="no connection to the server") as error:
        Checkpoints(folder).restore(make_state())
    assert not isinstance(error.value, DamagedCheckpointError)
    assert Checkpoints(folder).steps() == [10, 20]


def test_a_failed_save_says_what_is_safe(memory, monkeypatch):
    folder = storage.path("gs://test/folder")
    save(folder, 10)
    checkpoints = Checkpoints(folder)
    monkeypatch.setattr(memory, "pipe", lambda *_: 1 / 0)
    checkpoints.save(20, make_state())
    with pytest.raises(OSError, match=r"could not save step 20 in .*; step 10 is still safe: .*di"):
        checkpoints.close()
    checkpoints.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionRefusedError("no route"), os.EX_TEMPFAIL),
        (Answer("Service Unavailable", 503), os.EX_TEMPFAIL),
        (Answer("Too Many Requests", "429"), os.EX_TEMPFAIL),
        (Answer("Forbidden", 403), 2),
        (ValueError("no answer"), 2),
    ],
    ids=str,
)
def test_the_exit_status_says_whether_a_restart_may_help(memory, monkeypatch, error, code):
    """For the loop around the command: 2 ends it."""

    def fails(*_, **__):
        raise error

    folder = storage.path("gs://test/folder")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")  # needs no credentials
    for name in ("pipe", "pipe_file"):  # of arrays, of the list of files
        with monkeypatch.context() as patch:
            patch.setattr(memory, name, fails)
            checkpoints = Checkpoints(folder)
            checkpoints.save(20, make_state())
            with pytest.raises(OSError, match="could not save step 20") as raised:
                checkpoints.close()
        assert program.code_of(raised.value) == code
    with monkeypatch.context() as patch:
        patch.setattr(memory, "pipe_file", fails)
        with pytest.raises(OSError, match=r"workdir .* cannot be written") as raised:
            workdir.require_writable(folder)
    assert program.code_of(raised.value) == code


def test_two_runs_cannot_both_complete_a_step(memory):
    folder = storage.path("gs://test/folder")
    one, two = Checkpoints(folder), Checkpoints(folder)
    monkey = one._uploads._complete
    one._uploads._complete = lambda *args: (save(folder, 10, make_state(2)), monkey(*args))
    one.save(10, make_state(1))
    with pytest.raises(OSError, match="exists already"):
        one.close()
    assert_same(two.restore(make_state())[0], make_state(2))


def test_what_any_process_finds_damaged_is_damaged_for_all(memory, monkeypatch):
    """Each reads other bytes; here the second process of two tells of its own."""
    folder = storage.path("gs://test/folder")
    for step in (10, 20):
        save(folder, step)
    damaged = iter([None, "x has the wrong checksum", None, None])

    def exchange(name, value):
        return [value, next(damaged)] if name.startswith("damage") else [value]

    monkeypatch.setattr(processes, "exchange", exchange)
    assert Checkpoints(folder, read_only=True).restore(make_state())[1] == 10


def test_a_run_may_move_between_a_disk_and_a_bucket(folder, tmp_path):
    local = tmp_path / "run"
    for place, step in ((local, 5), (folder, 7)):
        save(place, step)
    uploaded, downloaded = folder.with_name("uploaded"), tmp_path / "downloaded"
    storage.upload(local, uploaded)
    with storage.local_copy(folder) as copy:
        copy.rename(downloaded)
    for place, step in ((uploaded, 5), (downloaded, 7)):
        state, found = Checkpoints(place, read_only=True).restore(make_state())
        assert found == step
        assert_same(state, make_state(step))
        save(place, 9)
        assert_same(Checkpoints(place).restore(make_state())[0], make_state(9))
    flipped(next(p for p in uploaded.glob("checkpoints/9/arrays/*") if p.name.endswith(".bin")))
    assert Checkpoints(uploaded, read_only=True).restore(make_state())[1] == 5
