"""Runs every benchmark, each in a process of its own, and writes the page of all results.

    python -m benchmarks.all --opponents PY [PY] [--vmoe DIR DIR] [--only mlp svgd] [--again]

What was measured with this code, these versions and on this machine already is not measured again,
so the same command resumes after an interruption; --again measures it anew. A benchmark that fails,
takes too long or lacks something does not end the others: the reason is printed, its output is in
runs/benchmarks/NAME.log, and the exit status is 1 for a failure. What was measured before stays on
the page with its date. Nothing else should run on the machine.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import page, rows, timing
from benchmarks.device.__main__ import NAMES

ROOT = pathlib.Path(__file__).parent.parent
LOGS = ROOT / "runs" / "benchmarks"
CODE = ("uncertainty", "experiments", "configs", "studies")  # beside the benchmark's own files
TORCH, METRICS = ("torch",), ("torch", "torchmetrics", "torch_uncertainty", "pytorch_ood")
NOT_MEASURED = {"all", "page", "rows"}  # modules of benchmarks
PARTS = tuple(f"device/{part}" for part in NAMES)
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


class Job(NamedTuple):
    """A command `python -m benchmarks.<command>`, and the results that it writes."""

    command: str
    results: tuple[str, ...]
    minutes: float  # on two cores, about
    opponents: tuple[str, ...] = ()  # modules that the other Python must have
    flag: str = "--opponents"
    needs: str = ""  # 'libtpu', 'gpu' or 'vmoe'
    environment: Mapping[str, str] = {}
    partial: bool = False  # whether it resumes by itself


def cores(*names: str) -> tuple[str, ...]:
    """Files of one core and of all."""
    ends = ("_1_core",) if len(os.sched_getaffinity(0)) == 1 else ("", "_1_core")
    return tuple(f"{name}{end}" for name in names for end in ends)


JOBS = {
    "mlp": Job("mlp_ensemble --save", cores("mlp_784_200_200_10_128"), 2, TORCH),
    "lenet": Job("lenet_ensemble --save", cores("lenet5_valid_128", "lenet5_same_128"), 15, TORCH),
    "resnet": Job("resnet_ensemble --save", cores("resnet_20_64"), 5, TORCH),
    "vit": Job("vit_ensemble --save", cores("vit_4_x_64_64"), 4, TORCH),
    "single_network": Job(
        "single_network --save", cores("single_network_mlp_128", "single_network_lenet_128"), 2
    ),
    "loop_overhead": Job("loop_overhead", ("loop_overhead",), 2),
    "startup": Job("startup", ("startup",), 2, TORCH),
    "executors": Job("executors", ("executors_cpu",), 25),
    "efficient_ensembles": Job(
        "efficient_ensembles --save",
        ("efficient_ensembles_lenet5_valid_128", "efficient_ensembles_lenet5_same_128"),
        4,
        ("torch", "torch_uncertainty", "lightning"),
    ),
    "efficient_resnet": Job(
        "efficient_ensembles --backbone resnet --batch 32 --save",
        ("efficient_ensembles_resnet_8_32",),
        6,
    ),
    "svgd_steps": Job("svgd steps --save", ("svgd_steps",), 1),
    "gp_training": Job(
        "gp_heads training --depth 16 --width 4 --batch 32 --save",
        ("gp_heads_training_wrn_16_4_32",),
        4,
        environment=ONE_THREAD,
    ),
    "gp_prediction": Job(
        "gp_heads prediction --save", ("gp_heads_prediction",), 1, environment=ONE_THREAD
    ),
    "gp_exact_pass": Job(
        "gp_heads exact_pass --depth 16 --width 4 --batch 128 --batches 4 --save",
        ("gp_heads_exact_pass_wrn_16_4_128",),
        4,
        environment=ONE_THREAD,
    ),
    "gp_factor": Job("gp_heads factor --save", ("gp_heads_factor",), 1, environment=ONE_THREAD),
    "moe": Job("moe --choices 1 --save", ("moe_128",), 8),
    "moe_k2": Job("moe --choices 2 --save", ("moe_128_k2",), 8),
    "e3": Job("e3 --save", ("e3_128_32_1_05",), 1),
    "epinet_training": Job("epinet training --save", ("epinet_training_resnet_20_32",), 2),
    "epinet_prediction": Job("epinet prediction --save", ("epinet_prediction_resnet_20_128",), 2),
    "testbed": Job("epinet testbed --save", ("epinet_testbed",), 3, TORCH),
    "vmoe": Job("vmoe --save", ("vmoe_128_32",), 8, needs="vmoe"),
    "metrics": Job("metrics", ("metrics",), 6, METRICS),
    "contrastive": Job("contrastive --save", ("contrastive_64",), 2),
    "images": Job("images --save", ("images",), 1),
    "growth": Job("growth", ("growth",), 30, partial=True),
    "tpu_moe": Job("tpu moe", ("tpu_moe",), 20, needs="libtpu", partial=True),
    "tpu_executors": Job("tpu executors", ("tpu_executors",), 60, needs="libtpu", partial=True),
    "device": Job(
        f"device --out {rows.RESULTS / 'device'}", PARTS, 8, TORCH, needs="gpu", partial=True
    ),
}
for _library, _module in (("probly", "probly"), ("lightning-uq-box", "lightning_uq_box")):
    JOBS[f"gp_{_module}"] = Job(
        f"gp_libraries --library {_library} --save", (f"gp_heads_{_module}",), 2,
        ("torch", _module), environment=ONE_THREAD,
    )  # fmt: skip
for _features in (784, 13):
    JOBS[f"svgd_libraries_{_features}"] = Job(
        f"svgd libraries --features {_features} --save", (f"svgd_libraries_{_features}",), 5,
        ("torch", "blackjax", "numpyro"), "--torch --stein",
    )  # fmt: skip
    JOBS[f"svgd_sgld_{_features}"] = Job(
        f"svgd sgld --features {_features} --save", (f"svgd_sgld_{_features}",), 1,
        ("blackjax",), "--stein",
    )  # fmt: skip


def sources(module: str) -> set[pathlib.Path]:
    """The files of benchmarks that a module names, in imports or as programs, and so on."""
    files = {path.stem: path for path in pathlib.Path(__file__).parent.rglob("*.py")}
    package = files["all"].parent / module
    waiting = sorted(package.glob("*.py")) if package.is_dir() else [files[module]]
    found: set[pathlib.Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            text = path.read_text(encoding="utf-8")
            named = re.findall(r"benchmarks(?:\.device)?(?: import |\.)([\w, ]+)", text)
            named = [*re.split(r"\W+", " ".join(named)), *re.findall(r"(\w+)\.py\b", text)]
            waiting += [files[name] for name in named if name in files.keys() - NOT_MEASURED]
    return found


def here(job: Job) -> dict[str, Any]:
    """What a result is kept for: the code that is measured, versions and machine."""
    paths = {path for package in CODE for path in (ROOT / package).rglob("*.py")}
    paths = {path for path in paths if "reports" not in path.parts}
    code = hashlib.sha256(job.command.encode())
    for path in sorted(paths | sources(job.command.split()[0])):
        code.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    kept = {k: v for k, v in timing.where().items() if k not in ("date", "load")}
    return dict(code=code.hexdigest()[:16], **kept)


def done(job: Job, folder: pathlib.Path) -> bool:
    """Whether all results of a job are of this code and machine."""
    now = here(job)
    return all(stamp(folder / f"{name}.json") == now for name in job.results)


def stamp(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text()).get("measured")
    except (OSError, ValueError):
        return None


def have(python: str, modules: Sequence[str]) -> set[str]:
    """Those modules that a Python finds."""
    code = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m)])"
    answer = subprocess.run(
        [python, "-c", code, *modules], capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split())


def opponent(job: Job, found: Mapping[str, set[str]]) -> str | None:
    """The first Python that has what a job needs, or None."""
    return next((py for py, modules in found.items() if modules.issuperset(job.opponents)), None)


def lacking(
    job: Job, arguments: argparse.Namespace, found: Mapping[str, set[str]], gpu: bool
) -> str:
    """Why a job cannot run here, or ''."""
    if job.needs == "vmoe" and not arguments.vmoe:
        return "needs --vmoe: checkouts of google-research/vmoe and vision_transformer"
    if job.needs == "libtpu" and not have(sys.executable, ["libtpu"]):
        return "needs libtpu"
    if job.needs == "gpu" and not gpu:
        return "needs a GPU"
    if not job.opponents or opponent(job, found):
        return ""
    names = ", ".join(job.opponents)
    return f"needs --opponents: a Python with {names}"


def command(job: Job, arguments: argparse.Namespace, found: Mapping[str, set[str]]) -> list[str]:
    name, *rest = job.command.split(" ")
    line = [sys.executable, "-m", f"benchmarks.{name}", *rest]
    if job.opponents:
        line += [part for flag in job.flag.split() for part in (flag, opponent(job, found) or "")]
    if job.needs == "vmoe":
        line += ["--vmoe", *arguments.vmoe]
    return line


def run(
    line: Sequence[str], log: pathlib.Path, environment: Mapping[str, str], timeout: float
) -> str:
    """Runs a command with its output in a file; why it failed, or ''."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            line, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | dict(environment), start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"not done after {timeout / 60:g} min"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
    if code == 0:
        return ""
    lines = [text for text in log.read_text(errors="replace").splitlines() if text.strip()]
    return f"exit status {code}: {lines[-1].strip()[:200] if lines else 'no output'}"


def measure(name: str, job: Job, line: Sequence[str], timeout: float, again: bool) -> str:
    """Runs a job and marks its results as those of this code; why it failed, or ''."""
    now = here(job)
    unfinished = now | dict(unfinished=True)
    paths = [rows.RESULTS / f"{result}.json" for result in job.results]
    for path in paths:  # points of other code must not be mixed with new ones
        if job.partial and path.exists() and (again or stamp(path) not in (now, unfinished)):
            path.replace(path.with_suffix(".old"))
    environment = dict(job.environment) | {timing.STAMP: json.dumps(unfinished)}
    before = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
    with restored(paths):
        if failed := run(line, LOGS / f"{name}.log", environment, timeout):
            return failed
        for path in paths:
            same = path.exists() and path.stat().st_mtime_ns == before.get(path)
            if not path.exists() or (same and not job.partial):
                return f"{path.name} was not written"
            timing.write(path, json.loads(path.read_text()) | dict(measured=now))
    return ""


@contextlib.contextmanager
def restored(paths: Sequence[pathlib.Path]) -> Iterator[None]:
    """Brings back the old files of a job that wrote none."""
    try:
        yield
    finally:
        for path in paths:
            old = path.with_suffix(".old")
            if old.exists():
                if path.exists():
                    old.unlink()
                else:
                    old.replace(path)


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument(
        "--opponents",
        nargs="+",
        default=[],
        help="Pythons with PyTorch and other libraries; a benchmark takes the first that has its",
    )
    parse.add_argument("--vmoe", nargs="+", help="checkouts; see `benchmarks.vmoe`")
    parse.add_argument("--only", nargs="+", default=[], help="beginnings of names; see --list")
    parse.add_argument("--again", action="store_true", help="also what is measured already")
    parse.add_argument("--list", action="store_true", help="only show what would run")
    parse.add_argument("--timeout", type=float, default=120, help="minutes of a benchmark")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    parse = parser()
    arguments = parse.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    for word in arguments.only:
        if not any(name.startswith(word) for name in JOBS):
            parse.error(f"--only: {word!r} begins no name of {', '.join(JOBS)}")
    for python in arguments.opponents:
        if shutil.which(python) is None:
            parse.error(f"--opponents: {python!r}; a Python")
    only = tuple(arguments.only)
    chosen = {n: job for n, job in JOBS.items() if not only or n.startswith(only)}
    names = sorted({m for job in JOBS.values() for m in job.opponents})
    found = {python: have(python, names) for python in arguments.opponents}
    gpu = shutil.which("nvidia-smi") is not None
    failures, waiting = {}, {}
    for name, job in chosen.items():
        if reason := lacking(job, arguments, found, gpu):
            print(f"{name}: left out, {reason}")
        elif done(job, rows.RESULTS) and not arguments.again:
            print(f"{name}: measured already")
        else:
            waiting[name] = job
    left = sum(job.minutes for job in waiting.values())
    print(f"{len(waiting)} of {len(chosen)} to run, about {left:.0f} min", flush=True)
    for i, (name, job) in enumerate(waiting.items(), 1):
        print(f"[{i}/{len(waiting)}] {name}, about {job.minutes:g} min", end=" ... ", flush=True)
        if arguments.list:
            print(" ".join(command(job, arguments, found)[1:]))
            continue
        began = time.monotonic()
        line, timeout = command(job, arguments, found), 60 * arguments.timeout
        failed = measure(name, job, line, timeout, arguments.again)
        print(f"{failed or 'done'} ({(time.monotonic() - began) / 60:.1f} min)", flush=True)
        if failed:
            failures[name] = failed
    if arguments.list:
        return 0
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}; {LOGS / f'{name}.log'}")
    page.main([])
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
