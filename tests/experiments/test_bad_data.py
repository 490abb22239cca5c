"""Data that cannot be trained on: one line that names it, before the workdir is made."""

import pathlib

import numpy as np
import pytest

RUN = {
    "data.validation": None,
    "evaluation.every": 0,
    "evaluators": {},
    "head.outputs": 3,
    "steps": 20,
    "optimiser.schedule.warmup_steps": 0,
}


def write(path: pathlib.Path, **changes: np.ndarray) -> pathlib.Path:
    rng = np.random.default_rng(0)
    arrays = dict(x=rng.normal(size=(64, 5)).astype(np.float32), y=np.arange(64) % 3)
    np.savez(path, **arrays | changes)
    return path


def train(programs, path, workdir, **fields):
    spec = dict(name="npz", path=str(path)) | fields
    flags = [f"--config.{name}={value}" for name, value in (RUN | {"data.train": spec}).items()]
    return programs("train", "--config", "configs/digits/mlp.py", "--workdir", workdir, *flags)


def with_value(value, at, shape=(64, 5)):
    x = np.zeros(shape, np.float32)
    x[at] = value
    return x


def cut_short(path):
    path.write_bytes(path.read_bytes()[:700])
    return path


BAD = {
    "missing": (lambda p: p, {}, "data.train.path: there is no file {path}"),
    "no folder": (lambda p: p / "folder", {"name": "idx"}, "data.train.path: there is no folder"),
    "label": (
        lambda p: write(p, y=np.full(64, 5)),
        dict(num_classes=3),
        "data.train: npz[train]: label 5 of example 0 is not in [0, 3)",
    ),
    "negative label": (
        lambda p: write(p, y=np.where(np.arange(64) == 9, -1, 0)),
        {},
        "data.train: npz[train]: label -1 of example 9, but classes are counted from 0; targets",
    ),
    "more classes": (
        lambda p: write(p, y=np.arange(64) % 4),
        {},
        "head.outputs: 3, but npz[train] has 4 classes",
    ),
    "NaN": (
        lambda p: write(p, x=with_value(np.nan, (7, 2))),
        {},
        "data.train: npz[train]: x of example 7 is nan (position (2,))",
    ),
    "infinite": (
        lambda p: write(p, x=with_value(-np.inf, (63, 0))),
        {},
        "data.train: npz[train]: x of example 63 is -inf (position (0,))",
    ),
    "too few labels": (
        lambda p: write(p, y=np.zeros(63, int)),
        {},
        "data.train: {path}: x has 64 inputs but 63 labels",
    ),
    "no labels": (
        lambda p: (np.savez(p, x=np.zeros((64, 5))), p)[1],
        {},
        "data.train: npz[train] has no entry 'y'",
    ),
    "names": (
        lambda p: write(p, group=np.full(64, "a")),
        dict(entries=["group"]),
        "data.train: npz[train]: group is <U1; booleans, integers or real numbers",
    ),
    "empty": (lambda p: write(p, x=np.zeros((0, 5)), y=np.zeros(0, int)), {}, "data.train: npz"),
    "cut short": (lambda p: cut_short(write(p)), {}, "data.train: {path}: not a readable npz file"),
    "another file": (lambda p: (p.write_text("x"), p)[1], {}, "data.train: {path}: not a readable"),
    "other arrays": (lambda p: (np.savez(p, a=1), p)[1], {}, "data.train.path: {path} has the"),
    "split": (write, dict(split="test"), "data.train.split: 'test' does not exist"),
    "real labels": (lambda p: write(p, y=np.zeros(64)), {}, "head.outputs: 3, but npz[train] has"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_line_and_no_workdir(programs, tmp_path, case):
    make, fields, message = BAD[case]
    path = make(tmp_path / "data.npz")
    result = train(programs, path, tmp_path / "run", **fields)
    assert result.code == 2, result.output
    assert result.output.startswith("error: " + message.format(path=path)), result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_program_with_sound_data(programs, tmp_path):
    result = train(programs, write(tmp_path / "data.npz"), tmp_path / "run")
    assert result.code == 0, result.output


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_unwritable_workdir(programs, tmp_path, place):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / place
    result = train(programs, write(tmp_path / "data.npz"), workdir)
    assert result.code == 2
    (line,) = result.output.splitlines()
    assert line.startswith(f"error: workdir {workdir} cannot be written: ")


def test_a_disk_that_is_full_from_the_start(programs, tmp_path):
    data = write(tmp_path / "data.npz")
    flags = [f"--config.{name}={value}" for name, value in RUN.items()]
    arguments = ["--config", "configs/digits/mlp.py", "--workdir", tmp_path / "run", *flags]
    arguments.append(f"--config.data.train={dict(name='npz', path=str(data))}")
    result = programs("train", *arguments, largest_file=1_000)
    assert result.code == 2
    (line,) = result.output.splitlines()
    assert line == f"error: workdir {tmp_path / 'run'} cannot be written: File too large"
