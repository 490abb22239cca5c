"""Paths in buckets: what a user may write, and what each operation promises."""

import pathlib
import sys
import threading

import numpy as np
import pytest

from experiments import evaluate, quickstart, report, stage, train
from experiments.data import files
from experiments.reports.html import write_report
from experiments.reports.runs import load_run
from experiments.reports.study import Study
from experiments.runtime import buckets, storage
from experiments.runtime.storage import BucketPath, path
from experiments.tables.cells import Cells
from uncertainty.build import ConfigError


@pytest.mark.parametrize("text", ["runs/a", "/tmp/x", "~/x", "a:b", "run:1/x", ".", "a=b"])
def test_all_else_is_local(text):
    assert path(text) == pathlib.Path(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo://x/y", "unknown scheme 'foo://'"),
        ("https://x/y", "unknown scheme 'https://'"),
        ("file:///x", "unknown scheme 'file://'"),
        ("gs:/bucket/x", "a path in a bucket is gs://BUCKET/FOLDER"),
        ("gs:///bucket/x", "a path in a bucket is"),
        ("s3:bucket/x", "a path in a bucket is"),
        ("gs//bucket/x", "a path in a bucket is"),
        ("gcs://bucket/x", "a path in a bucket is"),
        ("gs://", "it names no bucket"),
        ("gs://bucket/../x", "'..' cannot be a part"),
        ("gs://bucket/x[1]", r"'x\[1\]' cannot be a part"),
        ("s3://bucket/a*", "cannot be a part"),
        (pathlib.Path("gs://bucket/x"), "a path in a bucket is"),  # pathlib makes it gs:/
    ],
)
def test_a_typo_is_refused_and_makes_no_folder(text, message):
    with pytest.raises(ConfigError, match=message):
        path(text)


def test_paths_in_buckets_are_put_together_like_others():
    one = path("gs://bucket/a/b.npz")
    assert str(one) == "gs://bucket/a/b.npz" and repr(one) == "BucketPath('gs://bucket/a/b.npz')"
    assert (one.name, one.stem, str(one.parent)) == ("b.npz", "b", "gs://bucket/a")
    assert one.parent / "b.npz" == one == path("gs://bucket") / pathlib.PurePath("a", "b.npz")
    assert path("gs://bucket//a/") == path("gs://bucket/a") != path("s3://bucket/a")
    assert one.relative_to(path("gs://bucket")) == pathlib.PurePosixPath("a/b.npz")
    assert one.with_name("c") == path("gs://bucket/a/c")
    assert path("gs://bucket").parent == path("gs://bucket")
    assert one.absolute() is one.expanduser() is one.resolve() is one
    with pytest.raises(TypeError):
        pathlib.Path(one)  # what knows local files alone does not make a folder `gs:`
    assert storage.relative(path("gs://b/x/y"), path("gs://b/z")) == "../x/y"
    assert storage.relative(path("gs://b/x"), path("s3://b/z")) == "gs://b/x"
    assert storage.relative(path("/x/y"), path("/x/z")) == "../y"
    assert storage.relative(path("/x/y"), path("gs://b/z")) == "/x/y"


def test_what_is_written_is_there(folder):
    assert not folder.exists() and not folder.is_dir() and list(folder.iterdir()) == []
    assert storage.find(folder) == {}
    storage.write(folder / "a", "text é")
    storage.write(folder / "sub" / "b.txt", b"1234")
    storage.write_all({folder / "sub" / f"{i}": bytes(i) for i in range(3)})
    storage.write(path(f"{folder}er") / "a", b"of a folder whose name begins alike")
    assert (folder / "a").read_text() == "text é" and (folder / "sub").is_dir()
    assert (folder / "a").is_file() and not (folder / "a").is_dir()
    assert not (folder / "sub").is_file() and folder.exists() and (folder / "a").exists()
    assert [p.name for p in folder.iterdir()] == ["a", "sub"]
    assert [str(p) for p in folder.glob("*/*.txt")] == [f"{folder}/sub/b.txt"]
    assert sorted(p.name for p in folder.glob("sub/[0-9]")) == ["0", "1", "2"]
    assert storage.find(folder) == {"a": 7, "sub/0": 0, "sub/1": 1, "sub/2": 2, "sub/b.txt": 4}
    ranges = [(folder / "sub/b.txt", 1, 3), (folder / "sub/0", 0, None), (folder / "a", 0, None)]
    assert storage.read_ranges(ranges) == [b"23", b"", "text é".encode()]
    with (folder / "sub/b.txt").open() as file:
        file.seek(2)
        assert file.read() == b"34"
    storage.write(folder / "a", "anew")
    assert (folder / "a").read_text() == "anew"
    storage.remove(folder / "sub")
    assert storage.find(folder) == {"a": 4}
    storage.move(folder, folder.with_name("moved"))
    assert storage.find(folder) == {} and (folder.with_name("moved") / "a").read_text() == "anew"
    storage.remove(folder.with_name("moved"))
    storage.remove(folder.with_name("moved"))  # again
    assert list(path(f"{folder}er").iterdir())  # which was never meant


def test_what_is_missing_is_named(folder):
    for read in (BucketPath.read_bytes, lambda p: p.open().read(), storage.fingerprint):
        with pytest.raises(FileNotFoundError, match=f"{folder}/none"):
            read(folder / "none")
    (folder / "none").unlink(missing_ok=True)


def test_one_of_many_creates(folder):
    """And a repeated request of the same writer is no second one."""
    won, start = [], threading.Barrier(8)

    def create(i):
        start.wait()
        try:
            storage.create(folder / "x", f"writer {i}".encode())
            won.append(i)
        except FileExistsError as error:
            assert f"{folder}/x" in str(error)

    threads = [threading.Thread(target=create, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (folder / "x").read_text() == f"writer {won[0]}"
    storage.create(folder / "x", f"writer {won[0]}".encode())


def test_a_file_of_a_library_is_written_whole_or_not_at_all(folder, tmp_path):
    for place in (folder / "a" / "x.npz", tmp_path / "a" / "x.npz"):
        with pytest.raises(KeyError), storage.whole(place) as half:
            half.write_bytes(b"half")
            raise KeyError
        assert not place.exists() and list(place.parent.iterdir()) == []
        with storage.whole(place) as half, half.open("wb") as file:
            np.savez(file, x=np.arange(3))
        with place.open("rb") as file, np.load(file) as archive:
            assert archive["x"].tolist() == [0, 1, 2]
        assert [p.name for p in place.parent.iterdir()] == ["x.npz"]
        with storage.local_copy(place) as local, np.load(local) as archive:
            assert archive["x"].tolist() == [0, 1, 2]
        with storage.local_copy(place.parent) as local:
            assert [p.name for p in local.iterdir()] == ["x.npz"]
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "d").write_text("e")
    storage.upload(tmp_path / "b", folder / "b")
    assert storage.find(folder / "b") == {"c/d": 1}


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    monkeypatch.setattr(buckets, "filesystem", buckets.filesystem.__wrapped__)
    for call in (storage.require_writable, BucketPath.is_file, lambda p: storage.write(p, "")):
        with pytest.raises(ConfigError, match=r"needs gcsfs, .*: pip install '\.\[gcs\]'"):
            call(path("gs://bucket/x"))


def test_no_program_makes_a_folder_of_a_url(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in ("foo://x/y", "gs:/bucket/x"):
        for call in (
            lambda text: train.train({}, text),  # before the config is looked at
            lambda text: stage.begin_from("runs/a", text, {}),
            evaluate.open_run,
            lambda text: Cells("digits", text, "runs", {}),
            lambda text: Cells("digits", "results", text, {}),
            load_run,
            lambda text: write_report(text, [], study=Study("", [], [])),
            lambda text: files.npz(f"{text}.npz"),
            files.idx,
        ):
            with pytest.raises(ConfigError, match=f"{text}.*gs://BUCKET/FOLDER"):
                call(text)
        assert quickstart.main(["--workdir", text]) == 2
        assert report.main([text]) == report.main([f"{text}=1"]) == 1
        assert capsys.readouterr().err.count(f"error: {text}") == 3
    assert list(tmp_path.iterdir()) == []
