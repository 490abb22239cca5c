"""Measures this project on one GPU against PyTorch, in at most 8 minutes.

    python -m benchmarks.device --make-subset cifar-10-batches-bin --data cifar10.npz   # anywhere
    python -m benchmarks.device --data cifar10.npz                                     # on the GPU
    python -m benchmarks.device --show                                                 # anywhere

With `--out benchmarks/results/device` the records are on the page of `benchmarks.page`.

Each part runs in a process of its own, and writes one JSON file into --out, whole: an interruption,
a crash or a lack of memory loses one part, and the same command runs those that are not done yet.
A part whose last steps were cut off keeps what it had measured.

  mlp, resnet, lenet  deep ensembles (784-200-200-10, ResNet-20, LeNet5; P = 10, batch 128) by vmap,
                      scan and unroll, against PyTorch: a loop over members, torch.func.vmap,
                      each also as a CUDA graph and by torch.compile
  svgd                P = 20, 79,510 parameters, against PyTorch by hand
  training            a ResNet-20 ensemble (P = 4) on the file --data: NLL, accuracy and ECE of
                      ensemble and members, images per second, model FLOP utilisation
  experts             a V-MoE layer (sort and einsum, E = 8 and 32) against a dense one
  batch_ensemble      BatchEnsemble of 4 against four networks (MLP, ResNet-20)
  metrics             NLL, accuracy, ECE and entropies of 50,000 x 1,000 x 10 against PyTorch
  dropout             prediction with 30 masks against 30 forward passes in PyTorch
  precision           a step with float32, TF32 and bfloat16

Sides of a job take turns in one run, compiled and warmed up, on the same batches, from the same
parameters, until the device is done; each has its median and its fastest block, the seconds of its
first call (in PyTorch the building of the side too) and its peak memory. A side whose first losses
differ from the others' is left out, with the reason, and so is one that fails. Products are in TF32
on both sides except where a part says otherwise (XLA's default on a GPU, and `high` in PyTorch).
The ResNets of PyTorch keep no running averages in training, so do slightly less work than ours.

It needs jax, flax, optax, numpy and this checkout; PyTorch runs in a process of its own, by default
with the same Python (--opponents PY for another, `none` for none). For a machine without network,
fetch the wheels of jax with its CUDA plugin, libraries of NVIDIA and all that these import (scipy,
ml_dtypes, opt_einsum, etils, msgpack, rich, PyYAML, absl-py, ...) elsewhere:

    pip download 'jax[cuda12]' flax optax numpy torch --dest wheels --only-binary=:all: \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \\
        --platform manylinux2014_x86_64 --python-version 3.12
    pip install --no-index --find-links wheels 'jax[cuda12]' flax optax numpy torch

`jax[cuda12]` is jax, jaxlib, jax-cuda12-plugin, jax-cuda12-pjrt and the wheels nvidia-*-cu12
(cublas, cuda-cupti, cuda-nvcc, cuda-runtime, cudnn, cufft, cusolver, cusparse, nccl, nvjitlink,
nvshmem, cuda-nvrtc); `jax[cuda13]` the same for drivers of CUDA 13. Where these libraries and
PyTorch are there already, what is missing is usually flax and optax alone.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.device import records

# Seconds of each part on a GPU, in order of importance.
LIMITS = dict(mlp=55, resnet=110, svgd=35, training=80, experts=45, batch_ensemble=60, metrics=45,
              dropout=45, lenet=60, precision=70)  # fmt: skip
NAMES = tuple(LIMITS)
START, LEAST = 20, 15  # seconds to start a part's process; fewer than LEAST are no use
CUT = "cut off"  # the reason of a record that its part went on to write
ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}  # PyTorch shares the device


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(NAMES), help="names, separated by commas")
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder of the records; default runs/device"
    )
    parser.add_argument("--data", help="the file of --make-subset, for the part `training`")
    parser.add_argument("--minutes", type=float, default=8.0,
                        help="for all parts together; with --small, ten times as many")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it on a CPU")
    parser.add_argument("--fresh", action="store_true", help="also parts that are done")
    parser.add_argument("--opponents", default=sys.executable, help="Python with torch, or `none`")
    parser.add_argument("--show", action="store_true", help="only print the table of --out")
    parser.add_argument("--make-subset", type=pathlib.Path, metavar="FOLDER",
                        help="write --data from the binary form of CIFAR-10, and end")  # fmt: skip
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)  # one part, and its seconds
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parse = parser()
    options = parse.parse_args(arguments)
    chosen = [name for name in options.parts.split(",") if name]
    for name in chosen:
        if name not in NAMES:
            parse.error(f"--parts: {name!r}; allowed {', '.join(NAMES)}")
    if not options.minutes > 0:
        parse.error(f"--minutes: {options.minutes}; a positive number")
    options.out = options.out or pathlib.Path("runs", "device-small" if options.small else "device")
    if options.opponents == "none":
        options.opponents = None
    elif shutil.which(options.opponents) is None:
        parse.error(f"--opponents: {options.opponents}; a Python, or `none`")
    try:
        if options.make_subset:
            from benchmarks.device import subset

            if not options.data:
                parse.error("--data: missing, the file to be written")
            size = subset.make(options.make_subset, pathlib.Path(options.data))
            print(f"{options.data}: {size / 1e6:.1f} MB")
            return 0
        if options.show:
            print(records.table(options.out, chosen), end="")
            return 0
        if options.work:
            work(options)
            return 0
        unfinished = measure(options, chosen)
        print(records.table(options.out, NAMES), end="")
    except ValueError as error:
        parse.error(str(error))
    if unfinished:
        print(f"not done: {', '.join(unfinished)}; the same command runs these again")
    return 1 if unfinished else 0


def measure(options: argparse.Namespace, chosen: Sequence[str]) -> list[str]:
    """Runs the chosen parts that are not done; returns those that still are not.

    Raises:
      ValueError: the folder has records of other settings.
    """
    slower = 10 if options.small else 1  # a CPU that others use too
    settings, until = dict(small=options.small), time.monotonic() + 60 * slower * options.minutes
    for name in NAMES:
        record = records.read(options.out, name)
        if record and record["settings"] != settings:
            raise ValueError(
                f"--out: {options.out / name}.json is of {record['settings']}, not {settings}"
            )
    unfinished = []
    for name in chosen:
        record = records.read(options.out, name)
        if record and record["status"] == "done" and not options.fresh:
            print(f"{name}: done", flush=True)
            continue
        left = until - time.monotonic()
        if left < LEAST + START / 2:
            print(f"{name}: not begun, the time is over", flush=True)
            unfinished.append(name)
            continue
        began = time.time()
        print(f"{name}: ...", flush=True)
        limit = slower * (LIMITS[name] + START)
        why = supervise([name, f"{min(left, limit) - START / 2:.0f}"], options, min(left, limit))
        close(options.out, name, settings, began, why)
        record = records.read(options.out, name)
        assert record is not None
        done = why is None and record["status"] == "done"
        print(f"{name}: {'done' if done else record.get('reason') or why}", flush=True)
        if not done:
            unfinished.append(name)
    return unfinished


def supervise(
    work: Sequence[str], options: argparse.Namespace, seconds: float, program: Sequence[str] = ()
) -> str | None:
    """Runs a part in a process group of its own; why it ended, or None if it ended well."""
    command = list(program) or [sys.executable, "-m", "benchmarks.device"]
    command += ["--work", *work, "--out", str(options.out)]
    command += ["--opponents", options.opponents or "none"]
    command += ["--data", options.data] if options.data else []
    command += ["--small"] if options.small else []
    process = subprocess.Popen(command, env=ENVIRONMENT | os.environ, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with PyTorch's process and its compilers
        process.wait()
    if code == 0:
        return None
    return f"ended by signal {-code}" if code < 0 else f"ended with {code}"


def close(
    out: pathlib.Path, name: str, settings: dict[str, Any], began: float, why: str | None
) -> None:
    """Says in the record why a part did not end well; measurements in it are kept."""
    record = records.read(out, name)
    if why is None or (record and record["began"] >= began and record["reason"] != CUT):
        return  # it says more itself
    if record and record["began"] >= began:
        records.write(out, record | dict(reason=why))
    elif not (record and record["jobs"]):
        failed = dict(part=name, status="failed", reason=why, settings=settings, where={}, jobs=[])
        records.write(out, failed | dict(began=began))


def work(options: argparse.Namespace) -> None:
    """One part, in a process that ends when its parent does.

    Raises:
      SystemExit: the part failed; its record says why, unless it has older measurements.
    """
    name, seconds = options.work
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)

    if os.getpgid(0) == os.getpid():
        threading.Thread(target=watch, daemon=True).start()
    record: dict[str, Any] = dict(
        part=name,
        status="failed",
        reason=CUT,
        settings=dict(small=options.small),
        where={},
        jobs=[],
    )
    record["began"] = time.time()
    try:
        # JAX starts here, and not in the process that supervises
        from benchmarks.device import measure, parts

        run = measure.Run(options.small, float(seconds), options.opponents, options.data)
        try:
            about = measure.where()
            record["where"] = about
            for jobs in parts.PARTS[name](run):
                seconds = time.time() - record["began"]
                record |= dict(jobs=jobs, where=about | run.torch_about, seconds=seconds)
                if any(job["sides"] or job["values"] for job in jobs):
                    record["status"] = "partial"
                    records.write(options.out, record)
            if record["status"] == "failed":
                missing = {k: v for job in record["jobs"] for k, v in job["missing"].items()}
                raise RuntimeError(f"nothing was measured: {json.dumps(missing)}")
            record |= dict(status="done", reason=None, seconds=time.time() - record["began"])
            records.write(options.out, record)
        finally:
            shutil.rmtree(run.folder, ignore_errors=True)
    except Exception as error:
        record["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        older = records.read(options.out, name)
        if record["status"] != "failed" or not (older and older["jobs"]):
            records.write(options.out, record)
        raise SystemExit(f"{name}: {record['reason']}") from error


if __name__ == "__main__":
    sys.exit(main())
