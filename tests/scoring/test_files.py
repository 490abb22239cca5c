"""The same predictions in every kind of file, and files that are refused."""

import numpy as np
import pytest

from experiments.prediction import archive
from experiments.scoring.checks import checked
from experiments.scoring.files import read
from experiments.scoring.parts import Options
from tests.scoring.made import K, labels, probs, saved, table

Y = labels()
P = probs(0, y=Y)
GROUP = np.array([f"g{i // 5}" for i in range(60)])


def part(path, name="test", kind=None, **options):
    file = read(str(path), kind)
    test = checked(file, "test", Options(), []) if name != "test" else None
    return checked(file, name, Options(**options), [], test=test)


def rows(order=None):
    order = np.arange(60) if order is None else order
    for m in range(3):
        for b in order if m else range(60):
            yield [f"m{m}", b, Y[b], GROUP[b], *map(repr, P[m, b].tolist())]


HEAD = ["member", "example", "y", "group", *(f"p_{k}" for k in range(K))]


def in_csv(tmp_path):
    shuffled = np.random.default_rng(0).permutation(60)
    (tmp_path / "a.csv").write_text("\ufeff" + table(HEAD, rows(shuffled)))
    return tmp_path / "a.csv"


def in_csv_without_examples(tmp_path):
    head, cells = HEAD[:1] + HEAD[2:], ([row[0], *row[2:]] for row in rows())
    (tmp_path / "a.csv").write_text(table(head, cells))
    return tmp_path / "a.csv"


def in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "member": np.repeat(np.arange(3), 60),
        "y": np.tile(Y, 3),
        "group": np.tile(GROUP, 3),
        "probs": P.reshape(-1, K).tolist(),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def in_archive(tmp_path):
    return saved(tmp_path / "a.npz", log_p=np.log(P), y=Y[:, None], group=GROUP)


@pytest.mark.parametrize("make", [in_csv, in_csv_without_examples, in_parquet, in_archive])
def test_every_file_says_the_same(make, tmp_path):
    of = part(make(tmp_path))
    np.testing.assert_allclose(of.log_p, np.log(P), rtol=1e-12)
    np.testing.assert_array_equal(of.y, Y)
    np.testing.assert_array_equal(of.group, GROUP)


def test_sets_of_a_table(tmp_path):
    head = ["set", "y", "logit_0", "logit_1", "score_mine"]
    rows = [["test", i % 2, i, -i, i] for i in range(6)]
    rows += [["ood/far", "", 0.5, i, 2 * i] for i in range(4)]
    rows += [["corruption/fog/3", i % 2, -i, i, 0] for i in range(6)]
    (tmp_path / "a.csv").write_text(table(head, rows))
    file = read(str(tmp_path / "a.csv"))
    assert list(file.sets) == ["test", "ood/far", "corruption/fog/3"]
    far = part(tmp_path / "a.csv", "ood/far")
    assert far.y is None and far.scores["mine"].tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(far.logits[0], [[0.5, i] for i in range(4)])


def test_a_bare_array(tmp_path):
    np.save(tmp_path / "a.npy", P)
    file = read(str(tmp_path / "a.npy"), "probs")
    of = checked(file, "test", Options(), [], labels=dict(y=Y))
    np.testing.assert_allclose(of.log_p, np.log(P))
    with pytest.raises(ValueError, match=r"a bare array does not say what it is; give --kind"):
        read(str(tmp_path / "a.npy"))


def test_names_may_be_given(tmp_path):
    path = saved(tmp_path / "a.npz", p=P, targets=Y, ood__far__p=P)
    file = read(path, rename=dict(p="probs", targets="y"))
    assert set(file.sets["test"]) == {"probs", "y"} and set(file.sets["ood/far"]) == {"probs"}


def with_cell(column, value):
    """The table with another value in row 3."""
    head, cells = list(HEAD), list(rows())
    cells[1][head.index(column)] = value
    return table(head, cells)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a line of column names and at least one row"),
        ("y,p_0,p_1\n0,.5", "row 2 has 2 cells, but there are 3 columns"),
        ("y,p_0,p_0\n0,.5,.5", "two columns are named 'p_0'"),
        ("y,p_1,p_2\n0,.5,.5", "2 columns p_..., but p_0 is missing; classes are numbered from 0"),
        (
            "y,cat,dog\n0,.5,.5",
            "no column of predictions, p_0, .* not read: cat, dog .--rename OLD=",
        ),
        ("y\n0\n", "no column of predictions, p_0, p_1, ... .or log_p_0"),
        ("y;p_0;p_1\n0;,5;,5", "columns are separated by semicolons; commas are expected"),
        (
            "y,mean,std\n0,.5,.5",
            "`mean` and `variance` are both needed; there is std; the variance is",
        ),
        ("set,y,p_0,p_1\ntest,0,.5,.5\nood,0,.5,.5\n", "no set 'ood'; sets are test, validation"),
        ("example,y,p_0,p_1\n3,0,.5,.5\n3,0,.5,.5\n", "example 3 has 2 rows, and there is no col"),
        (with_cell("p_0", "abc"), "column p_0, row 3: 'abc' is not a number"),
        (with_cell("example", 77), "member m1 has other examples than member m0"),
        (with_cell("y", (Y[1] + 1) % K), "`y` of example 1 differs between members m0 and m1"),
        (with_cell("member", "m1"), "m1 has other examples"),
    ],
)
def test_tables_that_are_refused(text, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        part(tmp_path / "a.csv")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.txt: a file that ends in \.npz, \.npy"):
        read("a.txt")
    with pytest.raises(OSError, match=r"a\.npz: no such file"):
        read(str(tmp_path / "a.npz"))
    (tmp_path / "a.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        read(str(tmp_path / "a.npz"))
    (tmp_path / "a.csv").write_bytes("y,p_0\n0,\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv cannot be read"):
        read(str(tmp_path / "a.csv"))
    (tmp_path / "a.parquet").write_bytes(b"not a table")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        read(str(tmp_path / "a.parquet"))
    path = saved(tmp_path / "b.npz", probs=P, y=Y, outside__probs=P)
    with pytest.raises(ValueError, match=r"no set 'outside'; sets are test, .* ood/NAME"):
        read(path)
    with pytest.raises(ValueError, match=r"--kind: .* names its arrays"):
        read(saved(tmp_path / "b.npz", probs=P, y=Y), "probs")
    objects = np.array([dict()], dtype=object)
    np.savez(tmp_path / "c.npz", probs=P, y=objects)
    with pytest.raises(ValueError, match=r"c\.npz: y: Object arrays cannot be loaded"):
        part(tmp_path / "c.npz")


def test_names_of_sets():
    for name in ("test", "validation", "in_distribution", "ood/a", "ood/a/b", "corruption/fog/3"):
        assert archive.is_set(name)
        assert archive.parse(archive.joined(name, "y")) == (name, "y")
    for name in ("ood", "ood/", "corruption/fog", "train", "test/a"):
        assert not archive.is_set(name)
