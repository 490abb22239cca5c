"""A killed and resumed run leaves the same records as one that was not."""

import importlib.util
import json
import logging
import math
import platform
import re
import resource
import signal
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime import writers
from experiments.runtime.writers import Profile, Writer, read_metrics, without_timing
from uncertainty.build import ConfigError


def test_records_are_one_json_object_a_line(tmp_path):
    writer = Writer(tmp_path)
    writer.write(1, {"loss": jnp.float32(0.1), "members": np.array([0.5, np.nan]), "seconds": 2.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before it is closed
    assert json.loads(lines[0], parse_constant=pytest.fail)["step"] == 1
    writer.write(np.int64(2), {"loss": -math.inf})
    writer.close()
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["loss"] == float(np.float32(0.1)) and math.isnan(first["members"][1])
    assert second == {"step": 2, "loss": -math.inf}
    assert without_timing([{"step": 1, "seconds": 2.5, "validation/seconds": 1, "loss": 1}]) == [
        {"step": 1, "loss": 1}
    ]
    with pytest.raises(TypeError, match="loss = <object"):
        Writer(tmp_path).write(1, {"loss": object()})


RUN = """
import sys
from experiments.runtime.writers import Writer

workdir, start, steps = sys.argv[1], *map(int, sys.argv[2:])
writer = Writer(workdir, start)
for step in range(start + 1, steps + 1):
    writer.write(step, {"loss": 1 / step, "seconds": writer.seconds + 1})
    print(step, flush=True)
    if step == steps:
        sys.stdin.readline()  # until it is killed
"""


def run_and_kill(workdir, start, steps):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(workdir), str(start), str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline() != f"{steps}\n":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_killed_and_resumed_run_leaves_the_same_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run_and_kill(tmp_path, 0, 7)
    with open(path, "a") as file:
        file.write('{"step": 8, "lo')  # what a kill in the middle of a write leaves
    assert [record["step"] for record in read_metrics(path)] == [*range(1, 8)]
    run_and_kill(tmp_path, 5, 9)  # its newest checkpoint is that of step 5
    expected = [{"step": step, "loss": 1 / step} for step in range(1, 10)]
    assert without_timing(read_metrics(path)) == expected
    assert read_metrics(path)[-1]["seconds"] == 2.0  # the clock went on from step 5's
    Writer(tmp_path, 9).close()
    assert path.read_text() == "".join(f"{json.dumps(record)}\n" for record in read_metrics(path))
    Writer(tmp_path, 0).close()  # from the beginning
    assert path.read_text() == ""


DAMAGED = [
    '{"loss": 1}',
    "[1]",
    '{"step": "2"}',
    '{"step": 2, "seconds": {}}',
    "\x00" * 9,
    "[" * 10_000,
    '{"step": true}',
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    for read in (lambda: Writer(tmp_path, 2), lambda: read_metrics(path)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is not a record"):
            read()
    # A run that resumes from step 1 writes all after it again.
    Writer(tmp_path, 1).close()
    assert path.read_text() == '{"step": 1}\n'


def test_what_is_not_there_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_full_disk_is_a_clear_error(tmp_path):
    writer = Writer(tmp_path)
    writer.write(1, {"loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=f"could not write step 2 to {writer.path}: File too"):
            writer.write(2, {"loss": [0.1] * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(writer.path) == [{"step": 1, "loss": 1.0}]


def level_db_records(log):
    """The records of W&B's file: a header of 7 bytes, then LevelDB's log format."""
    place, block, data = 7, 1 << 15, b""
    while place + 7 <= len(log):
        if block - place % block < 7:  # no header fits into what is left of a block
            place += block - place % block
            continue
        size, kind = struct.unpack("<HB", log[place + 4 : place + 7])
        data += log[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield data
            data = b""


def test_wandb_has_the_records_of_a_run_and_of_its_continuation(tmp_path, monkeypatch):
    if not importlib.util.find_spec("wandb"):
        with pytest.raises(
            ConfigError, match=r"wandb: True needs wandb.*pip install '\.\[wandb\]'"
        ):
            Writer(tmp_path, wandb=True)
        return
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "config.json").write_text(json.dumps({"seed": 3}))
    fields = dict(mode="offline", project="p", tags=["t"])
    for start in (0, 2):
        writer = Writer(tmp_path, start, wandb=fields)
        writer.write(start + 1, {"loss": np.float32(0.5), "members": np.array([1.0, 2.0])})
        writer.write(start + 2, {"loss": 1 / (start + 2), "note": "text"})
        writer.close()
    runs, steps = [], {}
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for data in level_db_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                runs.append(record.run)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                steps[record.history.step.num] = values
    assert {run.run_id for run in runs} == {json.loads((tmp_path / "wandb.json").read_text())["id"]}
    assert runs[0].project == "p" and list(runs[0].tags) == ["t"]
    assert '"3"' in str(runs[0].config) or "3" in [u.value_json for u in runs[0].config.update]
    assert sorted(steps) == [1, 2, 3, 4] and steps[4]["loss"] == 0.25 and "note" not in steps[4]
    assert (steps[3]["members/0"], steps[3]["members/1"]) == (1.0, 2.0)


def test_tensorboard_files_or_how_to_get_them(tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(ConfigError, match=r"tensorboard: .*pip install '\.\[tensorflow\]'"):
            Writer(tmp_path, tensorboard=True)
        return
    writer = Writer(tmp_path, tensorboard=True)
    writer.write(3, {"loss": 0.5, "members": np.array([0.25, 0.75]), "name": "a"})
    writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    values = {tag: events.Tensors(tag)[0] for tag in ("loss", "members/0", "members/1")}
    assert {value.step for value in values.values()} == {3}
    assert [make_ndarray(v.tensor_proto) for v in values.values()] == [0.5, 0.25, 0.75]


@pytest.mark.slow
def test_tensorflow_is_not_imported_unless_asked_for():
    script = (
        "import sys\nimport experiments.runtime.writers\nassert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_parameters_are_logged_with_shapes_and_total(caplog):
    params = {"dense": {"kernel": jnp.zeros((10, 3, 4)), "bias": jnp.zeros((10, 4), jnp.bfloat16)}}
    with caplog.at_level(logging.INFO):
        writers.log_parameters(params)
    assert re.search(r"dense/kernel +\| +\(10, 3, 4\) +\| +float32 +\| +120", caplog.text)
    assert re.search(r"dense/bias +\| +\(10, 4\) +\| +bfloat16 +\| +40", caplog.text)
    assert "Total: 160" in caplog.text


@pytest.mark.slow
def test_a_profile_covers_the_steps_asked_for(tmp_path):
    update = jax.jit(lambda x: x @ x)
    x = jnp.eye(8)
    profile = Profile(tmp_path, (2, 3))
    traces = []
    for step in range(5):
        with profile(step):
            x = update(x)
        traces.append(len(list(tmp_path.rglob("*.xplane.pb"))))
    assert traces == [0, 0, 0, 1, 1]
    early = Profile(tmp_path / "early", [0, 100])
    with early(0):
        update(x)
    early.close()
    early.close()  # a second time does nothing
    assert len(list((tmp_path / "early").rglob("*.xplane.pb"))) == 1
    nothing = Profile(tmp_path / "nothing", ())
    with nothing(0):
        update(x)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("steps", [(3, 2), (1,), (-1, 2)])
def test_an_impossible_profile_is_refused(tmp_path, steps):
    with pytest.raises(ValueError, match=r"logging\.profile = "):
        Profile(tmp_path, steps)


def test_hardware_names_no_machine():
    facts = writers.hardware()
    assert facts["devices"] == f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    assert facts["jax"] == jax.__version__
    assert facts["cores"] >= 1 and facts["processor"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])
    assert platform.node() not in facts.values()
