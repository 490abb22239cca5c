"""The GPU benchmark: equal work, honest ratios, records that survive; the parts themselves need
PyTorch and time, and check their losses when they run."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks.device import __main__ as program
from benchmarks.device import common, evaluation, measure, parts, records, subset, training

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run():
    made = measure.Run(small=True, seconds=60, opponents=None)
    yield made
    made.folder.rmdir()


def written(folder, part="mlp", status="done", **fields):
    record = dict(part=part, status=status, reason=None, settings=dict(small=False))
    record |= dict(began=time.time(), where=dict(device="GPU X", jax="1"), jobs=[]) | fields
    records.write(folder, record)
    return record


@pytest.mark.slow
def test_losses_are_those_of_a_numpy_network():
    """From the arrays that PyTorch's side gets, by the names that it reads."""
    data, P = common.batches((5,), 6), 2
    sections = common.config(dict(name="mlp.MLP", widths=(4, 3)), P, executor="vmap")
    side, p = common.updates(sections, data, "float32")
    assert side.losses.shape == (common.COMPARED, P)
    for member in range(P):
        x = data["x"][0]
        for layer in ("backbone/dense0", "backbone/dense1"):
            x = np.maximum(x @ p[f"{layer}/kernel"][member] + p[f"{layer}/bias"][member], 0)
        u = x @ p["head/logits/kernel"][member] + p["head/logits/bias"][member]
        nll = np.log(np.exp(u).sum(1)) - u[np.arange(6), data["y"][0]]
        np.testing.assert_allclose(side.losses[0, member], nll.mean(), rtol=1e-5)
    assert side.about["parameters"] == P * (5 * 4 + 4 + 4 * 3 + 3 + 3 * 10 + 10)


def test_flipped_images_make_same_padding_symmetric():
    """PyTorch's padding=1 on flipped images, as a loop, against XLA's 'SAME' with strides of 2."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 8, 3)), rng.normal(size=(3, 3, 3, 2))
    dims = ("NHWC", "HWIO", "NHWC")

    def same(kernel):
        y = jax.lax.conv_general_dilated(x[None], kernel, (2, 2), "SAME", dimension_numbers=dims)
        return np.asarray(y)[0]

    flipped, kernel = np.pad(x[::-1, ::-1], ((1, 1), (1, 1), (0, 0))), w[::-1, ::-1]
    theirs = np.zeros((4, 4, 2))
    for i, j in np.ndindex(4, 4):
        window = flipped[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        theirs[i, j] = np.einsum("hwc,hwcf->f", window, kernel)
    np.testing.assert_allclose(theirs[::-1, ::-1], same(w), atol=1e-5)
    # and the pixels of a 1 x 1 convolution with that stride
    shortcut = x[::-1, ::-1][1::2, 1::2] @ w[0, 0]
    np.testing.assert_allclose(shortcut[::-1, ::-1], same(w[:1, :1]), atol=1e-5)


def test_no_ratio_where_losses_differ(run):
    def side(factor, seconds):
        losses = factor * np.array([[2.0, 3.0]])
        return lambda: measure.Side(lambda steps: steps * seconds, losses)

    job = measure.Job(run, "a job")
    job.add("ours", side(1.0, 2.0))
    job.add("PyTorch: same", side(1.001, 6.0))
    job.add("PyTorch: other work", side(1.1, 1.0))
    job.add("PyTorch: NaN", side(np.nan, 1.0))
    job.add("PyTorch: missing", lambda: run.torch(do="make"))
    record = job.time(0.0).record(job.against_torch())
    assert record["ratios"] == {"PyTorch's best / ours": dict(min=3.0, median=3.0)}
    assert set(record["sides"]) == {"ours", "PyTorch: same"}
    assert record["sides"]["PyTorch: same"]["difference"] == pytest.approx(1e-3)
    assert (
        "refused: losses of the first steps differ by 0.1;"
        in (record["missing"]["PyTorch: other work"])
    )
    assert "--opponents none" in record["missing"]["PyTorch: missing"]
    assert "PyTorch: NaN" in record["missing"]


def test_sides_take_turns_and_a_failing_one_is_left_out():
    order = []

    def side(name, seconds):
        def block(steps):
            order.append(name)
            if name == "fails" and len(order) > 4:
                raise MemoryError("too large")
            return steps * next(seconds)

        return block

    fast, slow = iter([0.01, 3.0, 1.0, 2.0]), iter([10.0, 9.0, 7.0, 8.0])
    sides = dict(fast=side("fast", fast), fails=side("fails", iter([1.0] * 9)),
                 slow=side("slow", slow))  # fmt: skip
    seconds, lost = measure.take_turns(sides, seconds=0.0, block=0.05)
    assert order == ["fast", "fails", "slow", "fast", "fails", *["slow", "fast"] * 2, "slow"]
    assert seconds == dict(
        fast=dict(min=1.0, median=2.0, blocks=3), slow=dict(min=7.0, median=8.0, blocks=3)
    )
    assert lost == dict(fails="MemoryError: too large")


def test_metrics_on_the_device_are_those_of_the_library():
    log_p, y = evaluation.predictions(3, 400, 7)
    host = evaluation.on_host(np.asarray(log_p), y)
    evaluation.agree(np.asarray(jax.jit(evaluation.on_device)(log_p, y)), host)
    nll = -np.mean(np.log(np.exp(np.asarray(log_p, np.float64)).mean(0))[np.arange(400), y])
    assert host[0] == pytest.approx(nll, rel=1e-9)
    assert 0.2 < host[1] < 1  # something to be measured
    with pytest.raises(ValueError, match="refused: ece"):
        evaluation.agree([*host[:2], host[2] + 0.01, *host[3:]], host)


def test_standard_errors_of_equal_and_of_different_means():
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.normal(size=(30, 5000)),
        rng.normal(size=(30, 5000)),
        rng.normal(1, size=(30, 5000)),
    )
    a, b, c = (dict(mean=s.mean(0), variance=s.var(0, ddof=1)) for s in (a, b, c))
    assert parts.standard_errors(a, b, 30) == pytest.approx(1.0, abs=0.1)
    assert parts.standard_errors(a, c, 30) > 3


def test_flops_are_those_of_the_formula():
    macs = 784 * 200 + 200 * 200 + 200 * 10
    mlp = common.forward_flops(dict(name="mlp.MLP", widths=(200, 200)), (28, 28, 1))
    assert mlp == pytest.approx(2 * macs, rel=0.01)  # biases and ReLU
    # LeNet5: the first convolution's products with padding, 12 % of the rows and columns, are not
    lenet = common.forward_flops(dict(name="lenet.LeNet5"), (28, 28, 1))
    assert 0.9 * 2 * 416_520 < lenet < 1.1 * 2 * 416_520
    assert training.utilisation(494.7e12, "NVIDIA H200") == 1
    assert training.utilisation(156e12, "NVIDIA A100-SXM4-80GB") == 1
    assert training.utilisation(1e12, "another device") is None


def test_augmented_images_are_crops_and_flips():
    x = np.arange(1.0, 1 + 32 * 6 * 6).reshape(32, 6, 6, 1)
    y = np.asarray(jax.jit(training.augment)(jax.random.key(0), x))
    padded, seen = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0))), set()
    for image, original in zip(y, padded, strict=True):
        crops = {
            (i, j, flip): original[i : i + 6, j : j + 6][:, ::flip]
            for i in range(9) for j in range(9) for flip in (1, -1)
        }  # fmt: skip
        fits = [which for which, crop in crops.items() if np.array_equal(crop, image)]
        assert fits
        seen |= set(fits) if image.any() else set()
    assert {flip for *_, flip in seen} == {1, -1} and len({i for i, *_ in seen}) > 3


def test_the_subset_has_the_same_number_of_each_class(tmp_path):
    rng = np.random.default_rng(0)
    folder, images = tmp_path / "bin", {}
    folder.mkdir()
    for split, files in subset.FILES.items():
        for name in files:
            rows = rng.integers(256, size=(50, subset.RECORD), dtype=np.uint8)
            rows[:, 0] = np.arange(50) % 10
            images.setdefault(split, []).append(rows)
            rows.tofile(folder / name)
    file = tmp_path / "subset.npz"
    assert subset.make(folder, file, train=100, test=20) == file.stat().st_size
    arrays = subset.load(str(file))
    for split, number in (("train", 100), ("test", 20)):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        assert np.bincount(y).tolist() == [number // 10] * 10
        planes = {row[1:].tobytes(): row[0] for row in np.concatenate(images[split])}
        assert len({image.tobytes() for image in x}) == number
        for image, label in zip(x, y, strict=True):
            assert planes[image.transpose(2, 0, 1).tobytes()] == label
    with pytest.raises(ValueError, match="class 0, not 40"):
        subset.make(folder, file, train=400, test=20)
    with pytest.raises(ValueError, match="at most 40000000"):
        subset.make(folder, file, train=20_000)
    (folder / "test_batch.bin").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="7 bytes"):
        subset.make(folder, file, train=100, test=20)
    assert (subset.TRAIN + subset.TEST) * subset.RECORD < subset.LIMIT
    with pytest.raises(ValueError, match="--make-subset"):
        subset.load(None)


def test_the_table_needs_the_files_alone(tmp_path):
    sides = {"ours": dict(min=1.0, median=2.0, blocks=3, compile_seconds=4.0), "theirs": dict(
        min=1500.0, median=1600.0, blocks=3, megabytes=7.0)}  # fmt: skip
    job = dict(title="a job", sides=sides, missing={"third": "no memory"}, values={"nll": 0.25},
               ratios={"theirs / ours": dict(min=1500.0, median=800.0)})  # fmt: skip
    written(tmp_path, "mlp", jobs=[job])
    written(tmp_path, "svgd", "failed", reason="no PyTorch")
    command = [sys.executable, "-S", "-m", "benchmarks.device", "--show", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in (
        "device GPU X, jax 1",
        "| ours | 1.000 | 2.000 | 4.0 |  |",
        "| theirs | 1,500.000 | 1,600.000 |  | 7 |",
        "| theirs / ours | 1500.00 | 800.00 |",
        "| nll | 0.25 |",
        "Not measured: third: no memory",
        "**failed**: no PyTorch",
    ):
        assert line in done.stdout.splitlines(), line


CUT = """
import json, pathlib, subprocess, sys, time
sys.path.insert(0, {root!r})
from benchmarks.device import records
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
record = dict(part="mlp", status="partial", reason="cut off", settings=dict(small=False),
              began=time.time(), where=dict(), jobs=[dict(child=child.pid)])
if {writes}:
    records.write(out, record)
{ends}
"""


def ended(pid, seconds=20):
    """Whether a process that was killed ends; a zombie may wait for its parent."""
    stat, until = pathlib.Path(f"/proc/{pid}/stat"), time.monotonic() + seconds
    while time.monotonic() < until:
        if not stat.exists() or stat.read_text().split(")")[-1].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writes", "ends", "status", "reason"),
    [
        (True, "time.sleep(600)", "partial", "stopped after 2 s"),
        (True, "import os; os.kill(os.getpid(), 9)", "partial", "ended by signal 9"),
        (False, "sys.exit(3)", "failed", "ended with 3"),
    ],
)
def test_what_a_part_wrote_before_its_end_is_kept(tmp_path, writes, ends, status, reason):
    """A part that hangs, is killed or crashes; no process of it is left."""
    code = CUT.format(root=str(ROOT), writes=writes, ends=ends)
    options = argparse.Namespace(out=tmp_path, opponents=None, data=None, small=False)
    began = time.time()
    why = program.supervise(["mlp", "1"], options, 2.0, [sys.executable, "-S", "-c", code])
    program.close(tmp_path, "mlp", dict(small=False), began, why)
    record = records.read(tmp_path, "mlp")
    assert (record["status"], record["reason"]) == (status, reason)
    if writes:
        (job,) = record["jobs"]
        assert ended(job["child"])


def test_a_rerun_takes_what_is_not_done(tmp_path, capsys):
    written(tmp_path)
    options = program.parser().parse_args(["--out", str(tmp_path), "--minutes", "0.1"])
    assert program.measure(options, ["mlp", "svgd"]) == ["svgd"]  # for which there is no time
    assert capsys.readouterr().out == "mlp: done\nsvgd: not begun, the time is over\n"
    options.small = True
    with pytest.raises(ValueError, match=r"mlp.json is of {'small': False}, not {'small': True}"):
        program.measure(options, ["svgd"])
    (tmp_path / "svgd.json").write_text('{"part": "sv')
    with pytest.raises(ValueError, match="not JSON"):
        records.read(tmp_path, "svgd")
    # A failed rerun does not take the place of measurements
    old = written(tmp_path, "mlp", began=1.0, jobs=[dict(title="a job")])
    program.close(tmp_path, "mlp", old["settings"], time.time(), "ended with 1")
    assert records.read(tmp_path, "mlp") == json.loads(json.dumps(old))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "mlp,nlp"], "--parts: 'nlp'; allowed mlp, resnet"),
        (["--minutes", "0"], "--minutes: 0.0; a positive number"),
        (["--opponents", "/no/python"], "--opponents: /no/python"),
        (["--make-subset", "/nowhere"], "--data: missing"),
        (["--make-subset", "/nowhere", "--data", "x.npz"], "data_batch_1.bin: missing"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        program.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_it_imports_only_what_a_bare_machine_has():
    """Beside jax, flax, optax and numpy with what these import themselves."""
    absent = ("ml_collections", "orbax", "tensorstore", "tensorflow_datasets", "sklearn", "clu",
              "matplotlib", "torch", "grain", "tensorflow", "PIL")  # fmt: skip
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))  # importing these raises
from benchmarks.device import __main__, parts
assert tuple(parts.PARTS) == __main__.NAMES
from uncertainty import build
for name in ("mlp.MLP", "lenet.LeNet5", "resnet.ResNet"):
    build.network(dict(backbone=dict(name=name), ensemble="single", head=dict(
        name="dense.Dense", outputs=10)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
