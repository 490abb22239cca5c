"""A file that is damaged is named in one line, whatever is wrong with it, and the others go on."""

import io
import json
import zipfile

import numpy as np
import pytest

from experiments import report
from experiments.reports.runs import load_run
from tests.reports.made import write_run

HERE = "evaluation/test/"


def npz(**members):
    """An archive of the given bytes or arrays."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            if not isinstance(content, bytes):
                array, content = content, io.BytesIO()
                np.save(content, array, allow_pickle=True)
                content = content.getvalue()
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def header(text):
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


def flagged(content, bit):
    """The archive with a flag set for its members: 1 is for encryption."""
    data = bytearray(content)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(signature)
        data[start + at] |= bit
    return bytes(data)


def method(content, number):
    """The archive with members said to be compressed by another method."""
    data = bytearray(content)
    for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.find(signature) + at] = number
    return bytes(data)


ONE = npz(a=np.ones(3))
DEEP = b"[" * 100_000 + b"]" * 100_000
DAMAGED = {
    "config.json": [
        b"",
        b"{",
        b"[]",
        b"3",
        DEEP,
        b"\xff\xfe",
        b'{"seed": {"a": 1}}',
        b'{"seed": 1',
    ],
    HERE + "metrics.json": [
        b"",
        b"[1]",
        b'{"a/b": "text"}',
        b'{"a/b": {"c": 1}}',
        DEEP,
        b"\xff",
        b'{"a/b": [1, 2]}',
        b'{"a/b": true}',
    ],
    HERE + "sets.json": [
        b"",
        b"[]",
        b'{"test": 3}',
        b'{"test": {"name": "a"}}',
        DEEP,
        b'{"test": {"name": 3, "examples": 4, "digest": "f"}}',
    ],
    HERE + "scores.npz": [
        b"",
        b"garbage",
        ONE[:-30],
        ONE[: len(ONE) // 2],
        flagged(ONE, 1),
        method(ONE, 99),
        npz(a=b""),
        npz(a=b"not an array"),
        npz(a=np.array([{}, None])),
        npz(a=np.array(["x"])),
        npz(a=header(b"(" * 5_000 + b")" * 5_000 + b"\n")),
        npz(a=header(b"{'descr': 3}\n")),
        npz(a=header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,)}\n" % 10**16)),
        npz(**{"test/confidence": np.ones((2, 2))}),
        npz(**{"test/label": np.array(1)}),
        npz(**{"test/confidence": np.ones(3), "test/label": np.ones(4)}),
        npz(**{"ood/a%2Fb/entropy": np.ones(3), "ood/a%2Fb/confidence": np.ones(4)}),
        npz(**{"test/entropy": np.ones(3, complex)}),
    ],
    "metrics.jsonl": [
        b"{\n{}\n",
        b'{"loss": 1}\n{"step": 2}\n',
        b'{"step": 1e999}\n{"step": 2}\n',
        DEEP + b'\n{"step": 2}\n',
        b"\xff\n\xfe\n",
        b"[]\n[]\n",
    ],
}
CASES = [(file, i) for file, contents in DAMAGED.items() for i in range(len(contents))]
NEEDED = ("config.json", HERE + "metrics.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "damaged")


@pytest.mark.parametrize(("file", "i"), CASES)
def test_one_line_names_the_file(run, file, i):
    path = run / file
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(DAMAGED[file][i])
    try:
        if file in NEEDED:
            with pytest.raises(ValueError) as error:
                load_run(run)
            message = str(error.value)
        else:
            (message,) = load_run(run).damaged
    finally:
        path.write_bytes(before) if before is not None else path.unlink()
    assert str(path) in message and "\n" not in message and len(message) < 400 + len(str(path))
    assert not load_run(run).damaged


@pytest.mark.slow
def test_arrays_that_do_not_fit_spoil_their_own_figures_alone(tmp_path, capsys):
    good, odd = (write_run(tmp_path / name, members=1) for name in ("good", "odd"))
    with np.load(odd / HERE / "scores.npz") as file:
        scores = {key: value for key, value in file.items() if not key.startswith("ood/")}
    np.savez(good / HERE / "scores.npz", **scores)
    np.savez(odd / HERE / "scores.npz", **{**scores, "map/p": np.ones(3)})
    broken = write_run(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    page = tmp_path / "page.html"
    arguments = [str(p) for p in (good, odd, broken, tmp_path / "none")]
    assert report.main([*arguments, "--output", str(page)]) == 1
    output = capsys.readouterr()
    errors = output.err.splitlines()
    assert [line.partition(":")[0] for line in errors] == ["error"] * 3
    assert str(broken / "config.json") in errors[0] and "no such directory" in errors[1]
    assert "figures of map are left out" in errors[2] and "2 runs" in output.out
    names = {p.stem for p in (tmp_path / "page_figures").iterdir()}
    assert "map" not in names and {"reliability", "training", "corruption"} <= names
    text = page.read_text()
    assert ">good<" in text and ">odd<" in text and str(broken / "config.json") in text


def test_what_is_no_number_in_the_history_is_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    lines = [{"step": 1, "loss": "x", "a": {"b": 1}, "c": [1, "y"]}, {"step": 2, "loss": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_run(run).history == [{"step": 1, "c/0": 1}, {"step": 2, "loss": 0.5}]
