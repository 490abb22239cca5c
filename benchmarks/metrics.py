"""Host metrics against torchmetrics, torch-uncertainty and pytorch-ood, at the same values.

    python -m benchmarks.metrics --opponents /path/to/their/bin/python

Both sides start from the same log-probabilities, which the other libraries have to exponentiate
first; their time without that is reported too. They run in a separate environment, in a process
that runs one job at a time, with one thread or one per core, whichever is faster. Jobs of both
sides alternate, so that noise affects both alike. Values are compared on float64 input; times are
for float32 input, after a warm-up of each: wall time, and CPU time summed over threads, which other
processes disturb less.

The floor for 1e6 examples x 10 classes in float32: 40 MB are read once (4 ms at 10 GB/s); 1e7
exponentials in float64 take 6.5 ms with AVX-512; binning 1e7 probabilities takes 1e7 scattered adds
each for counts and sums (15 ms); one sort of 1e6 float64 (6 ms). So about 35 ms of one core in all,
and `evaluate_classification` should stay within 3 times that. For 1e6 scores in two halves: sorting
3 ms, merging 4 ms, one pass over 8 MB for each cumulative count.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import timing
from uncertainty import metrics
from uncertainty.metrics import calibration, classification, information, selective
from uncertainty.metrics.ranking import auroc, fpr_at_tpr

BINS = 15
# Largest allowed difference. torchmetrics and torch-uncertainty keep their sums in float32.
TOLERANCE = 1e-6
# pytorch-ood interpolates precision linearly, where average precision is a step function.
INTERPOLATED = {"ranking | pytorch-ood": 1e-5}


def arrays(examples: int, classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The inputs of both sides, in float64."""
    rng = np.random.default_rng(seed)

    def log_p(members: int, examples: int) -> np.ndarray:
        x = 1.5 * rng.normal(size=(members, examples, classes))
        x += 3 * np.eye(classes)[rng.integers(classes, size=examples)]
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    one, ten = log_p(1, examples), log_p(10, examples // 10)
    # Labels come from a flatter distribution where the model is confident, else a sharper one.
    heat = np.where(one[0].max(-1, keepdims=True) > np.log(0.5), 0.5, 2.0)
    labels = (heat * one[0] + rng.gumbel(size=one[0].shape)).argmax(-1)
    is_out = np.arange(examples) >= examples // 2
    scores = rng.normal(size=examples).astype(np.float32) + is_out  # with ties
    p = np.exp(one[0])
    return {
        "log_p": one,
        "log_members": ten,
        "labels": labels,
        "confidence": p.max(-1),
        "correct": p.argmax(-1) == labels,
        "scores": scores.astype(np.float64),
        "is_out": is_out.astype(np.int64),
    }


def rows(a: dict[str, np.ndarray]) -> dict[str, Callable]:
    """Row -> a function that computes our metric from the arrays `a`."""
    log_p, members, labels = a["log_p"], a["log_members"], a["labels"]
    out = a["is_out"] == 1
    scores = a["scores"][~out], a["scores"][out]
    ends = selective.risk_coverage(a["confidence"], a["correct"])[1][[0, -1]].mean()

    def trapezoids(aurc: float) -> float:
        """torch-uncertainty's AURC: trapezoids from coverage 1 / B to 1, so the ends count half."""
        return (len(labels) * aurc - ends) / (len(labels) - 1)

    def evaluate() -> list[float]:
        v = metrics.evaluate_classification(log_p, labels, BINS)
        names = [f"classification/{name}" for name in ("accuracy", "nll", "brier")]
        names += [f"calibration/{name}" for name in ("ece", "ece_mass", "ece_classwise")]
        aurc, entropy = v["selective/aurc"], v["uncertainty/entropy"]
        return [*(v[name] for name in names), trapezoids(aurc), entropy]

    def rank() -> list[float]:
        v = metrics.ranking(*scores)
        return [v[name] for name in ("auroc", "aupr_out", "aupr_in", "fpr95")]

    return {
        "accuracy": lambda: classification.accuracy(log_p, labels),
        "nll": lambda: classification.nll(log_p, labels),
        "brier": lambda: classification.brier(log_p, labels),
        "ece": lambda: calibration.ece(log_p, labels, BINS),
        "ece_mass": lambda: calibration.ece(log_p, labels, BINS, "mass"),
        "ece_classwise": lambda: calibration.classwise_ece(log_p, labels, BINS),
        "entropy": lambda: information.entropy(log_p).mean(),
        "aurc": lambda: trapezoids(selective.aurc(*calibration.top_label(log_p, labels))),
        "aurc | pytorch-ood": lambda: selective.aurc(a["confidence"], a["correct"]),
        "evaluate": evaluate,
        "mutual_information": lambda: information.mutual_information(members).mean(),
        "disagreement": lambda: information.disagreement(members),
        "auroc": lambda: auroc(*scores),
        "aupr_out": lambda: metrics.ranking(*scores)["aupr_out"],
        "fpr95": lambda: fpr_at_tpr(*scores),
        "ranking": rank,
    }


def single(a: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays in float32."""
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in a.items()}


class Opponents:
    """The process in the separate environment."""

    def __init__(self, python: str, folder: str):
        script = pathlib.Path(__file__).with_name("metrics_opponents.py")
        self.process = subprocess.Popen(
            [python, script, folder, str(BINS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        about = self._answer()
        self.rows, self.versions = about["rows"], about["versions"]

    def __call__(self, row: str, dtype: str, threads: int) -> dict:
        job = {"run": row, "dtype": dtype, "threads": threads}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit("The opponents' process has ended; its error is above.")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def timed(function: Callable) -> dict[str, float]:
    used, began = time.process_time(), time.perf_counter()
    function()
    wall = time.perf_counter() - began
    return {"wall": wall, "cpu": time.process_time() - used, "given": wall}


def compare(python: str, examples: int, classes: int, repeats: int) -> tuple[list[dict], dict]:
    """One record per row, and the opponents' versions."""
    double = arrays(examples, classes)
    ours = rows(double), rows(single(double))
    cores = os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        shared = double | {
            "log_p": double["log_p"][0],
            "log_members": np.ascontiguousarray(double["log_members"].transpose(1, 0, 2)),
        }
        for name, array in shared.items():
            np.save(pathlib.Path(folder) / f"{name}.npy", array)
        theirs = Opponents(python, folder)
        # Pairs that share a function of ours are separate rows, each timed next to its opponent.
        pick = {row: row if row in ours[0] else row.split(" | ")[0] for row in theirs.rows}
        records = []
        for row in track(theirs.rows, "values"):
            mine, other = ours[0][pick[row]](), theirs(row, "float64", cores)["value"]
            apart = float(np.max(np.abs(np.subtract(mine, other))))
            if not apart <= INTERPOLATED.get(row, TOLERANCE):
                sys.exit(f"{row}: ours {mine}, theirs {other}: {apart:.3g} apart")
            value = [float(v) for v in np.atleast_1d(mine)]
            records.append({"row": row, "value": value, "apart": apart})
        times = {row: {"ours": [], 1: [], cores: []} for row in theirs.rows}
        for repeat in track(range(repeats + 1), "times"):
            for row, samples in times.items():
                time.sleep(0.1)  # their threads spin for a while after a job
                measured = {"ours": timed(ours[1][pick[row]])}
                measured |= {n: theirs(row, "float32", n) for n in {1, cores}}
                if repeat:  # the first is the warm-up
                    for side, times_of in measured.items():
                        samples[side].append(times_of)
        theirs.close()
    for record in records:
        samples = times[record["row"]]
        mine = summary(samples["ours"])
        each = {n: summary(samples[n]) for n in {1, cores}}
        best = min(each, key=lambda n: each[n]["min"])
        other = each[best] | {"cpu": min(e["cpu"] for e in each.values())}
        other["given"] = min(e["given"] for e in each.values())
        record |= {"ours_ms": mine, "theirs_ms": other, "threads": best}
        record["ratio"] = {kind: other[kind] / mine[kind] for kind in mine}
    return records, theirs.versions


def summary(times: list[dict]) -> dict[str, float]:
    """Milliseconds: minimum and median wall time, minimum CPU time, minimum without exp."""
    wall, cpu, without_exp = (
        1e3 * np.array([t[kind] for t in times]) for kind in ("wall", "cpu", "given")
    )
    return {
        "min": wall.min(),
        "median": np.median(wall),
        "cpu": cpu.min(),
        "given": without_exp.min(),
    }


def processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo")
    if lines.exists():
        for line in lines.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def show(records: list[dict]) -> None:
    title = "Host metrics; ms, and theirs / ours by minimum and median wall time, CPU, given p"
    table = Table(title=title)
    for name in ("metric", "opponent"):
        table.add_column(name, no_wrap=True)
    for name in ("ours", "theirs", "min", "median", "CPU", "given p"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in records:
        table.add_row(
            *r["row"].split(" | "),
            *(f"{r[side]['min']:.1f}" for side in ("ours_ms", "theirs_ms")),
            *(f"{r['ratio'][kind]:.1f}" for kind in ("min", "median", "cpu", "given")),
        )
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opponents", required=True, help="python of the opponents' environment")
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=pathlib.Path, help="JSON; benchmarks/results by default")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    records, versions = compare(args.opponents, args.examples, args.classes, args.repeats)
    show(records)
    output = args.output or pathlib.Path(__file__).parent / "results" / "metrics.json"
    about = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "load_at_start": load,
        "examples": args.examples,
        "classes": args.classes,
        "repeats": args.repeats,
        "ours": {"python": platform.python_version(), "numpy": np.__version__},
        "theirs": versions,
    }
    timing.write(output, about | {"rows": records})
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
