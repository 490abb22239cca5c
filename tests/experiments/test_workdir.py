"""A run's directory belongs to one config and one process, and its files are whole."""

import glob
import json
import math
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.runtime import storage
from experiments.runtime import workdir as lib
from experiments.runtime.workdir import locked, open_workdir, read_config, read_json, write_json

CONFIG = {
    "seed": 0,
    "optimiser": {"name": "adam", "learning_rate": 0.1, "clip": math.inf},
    "logging": {"every": 50},
    "mesh": {},
    "sizes": (200, 200),
}


def changed(**changes):
    config = json.loads(json.dumps(CONFIG))
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return config


def test_makes_the_directory_and_writes_the_config(tmp_path):
    directory = open_workdir(tmp_path / "a" / "b", CONFIG)
    assert directory == tmp_path / "a" / "b"
    assert read_config(directory) == {**CONFIG, "sizes": [200, 200]}
    json.loads((directory / "config.json").read_text(), parse_constant=pytest.fail)
    assert [p.name for p in directory.iterdir()] == ["config.json"]
    assert open_workdir(directory, CONFIG) == directory  # going on with the same config


def test_refuses_another_config_and_shows_the_difference(tmp_path):
    open_workdir(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    new = changed(seed=1, optimiser__learning_rate=0.2, optimiser__decay=1e-4, sizes=[200])
    new["optimiser"].pop("name")
    with pytest.raises(ValueError) as error:
        open_workdir(tmp_path, new)
    lines = str(error.value).splitlines()
    assert str(tmp_path) in lines[0]
    assert lines[1:-1] == [
        "  optimiser.decay: (absent) -> 0.0001",
        "  optimiser.learning_rate: 0.1 -> 0.2",
        '  optimiser.name: "adam" -> (absent)',
        "  seed: 0 -> 1",
        "  sizes: [200, 200] -> [200]",
    ]
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_may_change_may_change(tmp_path):
    open_workdir(tmp_path, CONFIG)
    ignore = ("logging.*", "mesh.*")
    new = changed(logging__every=10, mesh__data=4)
    open_workdir(tmp_path, new, ignore=ignore)
    assert read_config(tmp_path)["mesh"] == {"data": 4}
    new["seed"] = 1
    with pytest.raises(ValueError, match=r"(?s)\n  seed: 0 -> 1\n(?!.*logging)"):
        open_workdir(tmp_path, {**new, "logging": {"every": 5}}, ignore=ignore)


def test_a_workdir_without_a_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a run's workdir: it has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="checkpoints of an unknown run: no config"):
        open_workdir(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match="not valid JSON"):
        open_workdir(tmp_path, CONFIG)


def test_renamed_fields_are_read_under_their_present_names(tmp_path, monkeypatch):
    open_workdir(tmp_path, CONFIG)
    monkeypatch.setattr(
        lib,
        "RENAMED",
        {"optimiser.clip": "optimiser.clip_norm", "logging": "run.logging", "none.such": "x"},
    )
    new = {**CONFIG, "optimiser": {"name": "adam", "learning_rate": 0.1, "clip_norm": math.inf}}
    new["run"] = {"logging": new.pop("logging")}
    assert read_config(tmp_path) == {**new, "sizes": [200, 200]}
    assert lib.difference(CONFIG, new) == {}
    open_workdir(tmp_path, new)
    new["optimiser"]["clip_norm"] = 1.0
    with pytest.raises(ValueError, match=r"\n  optimiser.clip_norm: Infinity -> 1.0\n"):
        open_workdir(tmp_path, new)


FORM = {"name": str, "shape": [int], "classes": (int, None), "rate": float}
FITS = {"name": "a", "shape": [8, 8], "classes": None, "rate": 1, "more": {}}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        ("[]", r"is damaged: it is \[\], not a dict"),
        ({**FITS, "name": 5}, "name is 5, not text"),
        ({**FITS, "shape": [8, "x"]}, r"shape\[1\] is 'x', not a whole number"),
        ({**FITS, "shape": [True]}, r"shape\[0\] is True, not a whole number"),
        ({**FITS, "classes": "ten"}, "classes is 'ten', not a whole number or null"),
        ({**FITS, "rate": None}, "rate is None, not a number"),
        ({"name": "a"}, "it has no 'shape'"),
    ],
)
def test_a_damaged_json_file_is_named_with_what_it_should_hold(tmp_path, content, message):
    path = tmp_path / "a.json"
    write_json(path, FITS)
    assert read_json(path, FORM) == FITS
    content = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_json(path, FORM)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    for name in ("a.json", "b.json", "."):
        with pytest.raises(ValueError, match="is not a file"):
            read_json(tmp_path / name)


def test_what_a_killed_write_left_is_removed(tmp_path):
    script = (
        "import os, pathlib, sys\nfrom experiments.runtime import storage\n"
        "for file in map(pathlib.Path, sys.argv[1:]):\n"
        "    storage.whole(file).__enter__().write_text('half')\n"
        "os._exit(0)\n"
    )
    files = [tmp_path / name for name in ("data.json", "table[1].md", "x.json")]
    subprocess.run([sys.executable, "-c", script, *map(str, files)], check=True)
    left = [next(tmp_path.glob(f".{glob.escape(file.name)}.*.tmp")) for file in files]
    with storage.whole(files[0]) as alive:  # of this process
        alive.write_text("half")
        write_json(files[0], 1)
        storage.write(files[1], "")
        assert [path.exists() for path in (*left, alive)] == [False, False, True, True]
        open_workdir(tmp_path, CONFIG)
        assert not left[-1].exists() and alive.exists()


def test_what_another_machine_writes_is_left_for_a_day(tmp_path):
    """Its processes may have the numbers of ones that are dead here."""
    with storage.whole(tmp_path / "a.json") as half:
        half.write_text("half")
        machine, process, _ = half.name.split(".")[-2].split("-")
        assert process == str(os.getpid())
        dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
        dead.wait()
        names = [f".a.json.{'0' * len(machine)}-{dead.pid}-12345678.tmp", f".a.json.{dead.pid}.tmp"]
        others = [tmp_path / name for name in names]  # the last as by former versions
        for path in others:
            path.write_text("half")
        write_json(tmp_path / "a.json", 1)
        assert [path.exists() for path in others] == [True, True]
        for path in (*others, half):
            os.utime(path, (time.time() - 2 * 86_400,) * 2)
        write_json(tmp_path / "a.json", 1)
        assert [path.exists() for path in (*others, half)] == [False, False, True]


def test_two_writers_of_one_file_do_not_share_what_they_write(tmp_path):
    """Even with one process number, as first processes of containers have."""
    with storage.whole(tmp_path / "a.json") as one:
        one.write_text("a long content")
        with storage.whole(tmp_path / "a.json") as other:
            other.write_text("short")
        assert (tmp_path / "a.json").read_text() == "short"
    assert (tmp_path / "a.json").read_text() == "a long content"
    assert os.listdir(tmp_path) == ["a.json"]


def test_unwritable_and_full_are_found_early(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=f"workdir {path} cannot be written"):
            open_workdir(path, CONFIG)
    with pytest.raises(OSError, match="cannot be written"):
        open_workdir("/proc/run", CONFIG)
    with pytest.raises(OSError, match=r"\d+ MiB free; the run needs 1099511627776"):
        open_workdir(tmp_path / "run", CONFIG, free_bytes=2**60)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, [1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            write_json(file, list(range(10_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(TypeError, match=r"a\.b\[1\] = <object"):
        write_json(file, {"a": {"b": [0, object()]}})
    assert read_json(file) == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_json_takes_arrays_paths_and_non_finite_numbers(tmp_path):
    value = {
        "a": np.float32(0.5),
        "b": jnp.arange(3, dtype=jnp.bfloat16),
        "c": [float("nan"), -math.inf, np.array([1.0, np.inf])],
        "d": pathlib.PurePath("x/y"),
        "e": (True, np.bool_(False), None, np.int64(3)),
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # no NaN or Infinity outside strings
    back = read_json(tmp_path / "a.json")
    assert math.isnan(back["c"][0]) and back["c"][1:] == [-math.inf, [1.0, math.inf]]
    assert back["a"] == 0.5 and back["b"] == [0.0, 1.0, 2.0] and back["d"] == "x/y"
    assert back["e"] == [True, False, None, 3]
    assert back["e"][0] is True and back["e"][1] is False


text = st.text().filter(lambda t: t not in lib.NON_FINITE)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | text
plain = st.recursive(
    leaves, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s, max_size=3)
)


@given(plain)
def test_json_round_trip(value):
    back = lib.from_jsonable(json.loads(json.dumps(lib.jsonable(value), allow_nan=False)))
    assert repr(back) == repr(value)  # repr: NaN and -0.0 too


@pytest.mark.slow
@given(st.dictionaries(st.text("ab", min_size=1), plain))
def test_a_config_does_not_differ_from_itself(config):
    assert lib.difference(config, lib.from_jsonable(lib.jsonable(config))) == {}


def test_a_run_that_is_refused_leaves_the_config_of_the_one_that_runs(tmp_path):
    new = changed(logging__every=10)
    with lib.opened(tmp_path / "run", CONFIG, ignore=("logging.*",)) as directory:
        assert directory == tmp_path / "run"
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()};"):
            lib.opened(directory, new, ignore=("logging.*",)).__enter__()
        assert read_config(directory)["logging"] == {"every": 50}
    with lib.opened(directory, new, ignore=("logging.*",)):
        assert read_config(directory)["logging"] == {"every": 10}


def test_the_lock_is_for_one_process_and_ends_with_it(tmp_path):
    script = (
        "import sys, time\nfrom experiments.runtime.workdir import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"in use by process {holder.pid};"):
            locked(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(tmp_path), pytest.raises(BlockingIOError, match=str(os.getpid())):
            locked(tmp_path).__enter__()
        with locked(tmp_path):  # released when the block ends
            pass
    finally:
        holder.kill()
        holder.communicate()
