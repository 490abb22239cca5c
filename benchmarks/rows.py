"""What `results/` says, as rows of one kind: a time of reference over ours, above 1 ours is faster.

Benchmarks write what they measure in the way that suits them; here their records become rows in one
direction. It needs the standard library alone.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

RESULTS = pathlib.Path(__file__).parent / "results"
NAMES = {"batch_ensemble": "BatchEnsemble"}
CLOCKS = ("wall", "wall_median", "cpu")
SECTIONS = {  # beginning of a file's name -> section, in order
    "mlp": "Ensembles against PyTorch",
    "lenet5": "Ensembles against PyTorch",
    "resnet": "Ensembles against PyTorch",
    "vit": "Ensembles against PyTorch",
    "single_network": "One network",
    "loop_overhead": "Train loop",
    "executors": "Executors",
    "efficient_ensembles": "Members in one network",
    "svgd_steps": "SVGD and SGLD",
    "svgd": "SVGD and SGLD",
    "gp_heads": "Gaussian process heads",
    "vmoe": "Experts",
    "moe": "Experts",
    "e3": "Experts",
    "epinet": "Epinets and the testbed",
    "metrics": "Metrics",
    "contrastive": "Self-supervision",
    "tpu": "TPU, cycles by its compiler",
}
GPU, ABSOLUTE, GROWTH = "GPU", ("startup", "images"), "growth"


class Row(NamedTuple):
    """A time of reference over ours, by the fastest block, the median and CPU time."""

    section: str
    job: str
    ours: str
    reference: str
    ratios: tuple[float | None, float | None, float | None]
    floor: float | None  # of the work: no ratio above it is possible
    goal: float | None
    date: str
    machine: str

    def verdict(self) -> str:
        """Whether the goal is met, by the fastest block and by the median."""
        if self.goal is None:
            return ""
        known = [ratio >= self.goal for ratio in self.ratios[:2] if ratio is not None]
        if all(known):
            return "met"
        if not any(known):
            return "missed"
        return "met by the fastest block" if known[0] else "met by the median"


class Value(NamedTuple):
    """A measurement that is compared with nothing but its goal."""

    job: str
    value: str
    goal: str
    date: str
    machine: str


class Failed(NamedTuple):
    """A row that could not be measured."""

    section: str
    job: str
    reason: str


class Found(NamedTuple):
    rows: list[Row]
    values: list[Value]
    failed: list[Failed]
    growth: dict[str, Any] | None
    newest: dict[str, Any]  # the newest record: where and with which versions


Ratios = Mapping[str, float]
Making = Iterator[tuple[str, str, str, Ratios, float | None, float | None]]


def read(folder: pathlib.Path = RESULTS) -> Found:
    """All results of a folder and of its folders.

    Raises:
      ValueError: a file that is not a result of a benchmark.
    """
    found = Found([], [], [], None, {})
    for path in sorted(folder.rglob("*.json"), key=lambda p: (_order(p.stem), p.name)):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            date, machine = where(record)
            if date > found.newest.get("date", ""):
                found = found._replace(newest=_versions(record) | dict(date=date))
            if path.stem == GROWTH:
                found = found._replace(growth=record)
            elif path.stem in ABSOLUTE:
                found.values.extend(Value(*v, date, machine) for v in _absolute(record))
            elif "part" in record:
                _device(record, found, date, machine)
            else:
                prefix = next(p for p in SECTIONS if path.stem.startswith(p))
                for job, ours, reference, ratios, floor, goal in MAKE[prefix](record):
                    three = tuple(ratios.get(clock) for clock in CLOCKS)
                    section = SECTIONS[prefix]
                    row = Row(section, job, ours, reference, three, floor, goal, date, machine)  # type: ignore[arg-type]
                    found.rows.append(row)
                for job, reason in _errors(record):
                    found.failed.append(Failed(SECTIONS[prefix], job, reason))
        except (KeyError, StopIteration, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{path}: not a result of a benchmark ({error!r})") from error
    found.rows.sort(key=lambda row: [*SECTIONS.values(), GPU].index(row.section))
    return found


def _order(stem: str) -> int:
    return next((i for i, prefix in enumerate(SECTIONS) if stem.startswith(prefix)), len(SECTIONS))


def where(record: Mapping[str, Any]) -> tuple[str, str]:
    """Day and machine."""
    about = record.get("where") or record.get("hardware") or record
    if isinstance(about, str):
        return record["date"][:10], about
    if "topology" in record:
        return record["date"][:10], f"{record['topology']}, compiled"
    if record.get("where") is not None:
        return about.get("date", "")[:10], about.get("device", "")
    name = about.get("cpu") or about.get("processor") or ""
    return about["date"][:10], f"{name}, {about['cores']} core{'s' * (about['cores'] > 1)}"


def _versions(record: Mapping[str, Any]) -> dict[str, Any]:
    about = record.get("where") or record.get("hardware") or record
    about = about if isinstance(about, Mapping) else {}
    names = ("cores", "python", "jax", "flax", "optax", "numpy")
    processor = next((about[k] for k in ("cpu", "processor", "device") if about.get(k)), "")
    return dict(processor=processor) | {name: about[name] for name in names if name in about}


def _inverse(ratios: Ratios) -> Ratios:
    return {clock: 1 / value for clock, value in ratios.items()}


def _ensembles(record: Mapping[str, Any]) -> Making:
    """The default executor, and the fastest if that is another, against PyTorch's best."""
    ms, ratios = record["ms_per_member_and_step"], record["ratios"]
    theirs = min((s for s in ms if s.startswith("PyTorch")), key=lambda s: ms[s]["wall"])
    fastest = max(ratios, key=lambda s: ratios[s]["wall"])
    job = f"{record['job']}, {record['members']} members, batch {record['batch']}"
    for executor in dict.fromkeys(("auto", fastest)):
        if executor in ratios:
            yield job, executor, theirs, ratios[executor], None, record["target"]


def _of_times(
    record: Mapping[str, Any], reference: str, floors: Mapping[str, float] | None = None
) -> Making:
    """Times over that of a side, in the record; goals and floors of such times."""
    for side, ratios in record["ratios"].items():
        goal, floor = record["targets"].get(side), (floors or {}).get(side)
        yield (record["job"], side, reference, _inverse(ratios),
               1 / floor if floor else None, 1 / goal if goal else None)  # fmt: skip


def _loop(record: Mapping[str, Any]) -> Making:
    for row in record["rows"]:
        ratios = dict(wall=row["ratio_min"], wall_median=row["ratio_median"])
        ratios = _inverse(ratios | dict(cpu=row["cpu_ratio_min"]))
        goal = None if row["job"].startswith("loop alone") else 1 / record["target"]
        yield row["job"], "train loop", "bare step", ratios, 1.0, goal


def _executors(record: Mapping[str, Any]) -> Making:
    for row in record["rows"]:
        ms, cpu = row["member_ms"], row["member_cpu_ms"]
        others = [name for name in ms if name not in ("single", "auto")]
        best = min(others, key=lambda name: ms[name])
        ratios = dict(wall=ms[best] / ms["auto"], cpu=min(map(cpu.get, others)) / cpu["auto"])
        job = f"{row['model']}, {row['size']} particles, batch {row['batch_size']}"
        yield job, "auto", f"the best, {best}", ratios, ms["single"] / ms["auto"], None


def _efficient(record: Mapping[str, Any]) -> Making:
    floors = {"batch_ensemble": 1.0}
    if "LeNet5" in record["job"]:
        floors["packed"] = 0.26 if "SAME" in record["job"] else 0.32
    for name, ratios in record["ratios"].items():
        kind, _, reference = name.removeprefix("ours: ").partition(" / ")
        theirs = "PyTorch" if kind == "networks" else "torch-uncertainty"
        floor = 1 / floors[kind] if kind in floors and reference != "torch" else None
        goal = record["targets"].get(name)
        yield (record["job"], NAMES.get(kind, kind),
               theirs if reference == "torch" else f"our {reference}",
               _inverse(ratios), floor, 1 / goal if goal else None)  # fmt: skip


def _svgd_steps(record: Mapping[str, Any]) -> Making:
    for P, floors in record["floors"].items():
        side = f"P = {P}: SVGD"
        yield (f"{record['job']}, P = {P}", "SVGD", "deep ensemble",
               _inverse(record["ratios"][side]), 1 / floors["ratio_of_times"]["wall"],
               1 / record["targets"][side])  # fmt: skip


def _libraries(record: Mapping[str, Any]) -> Making:
    """Each library, at the best of its numbers of threads for each clock."""
    best: dict[tuple[str, str], dict[str, float]] = {}
    goals = {}
    for side, ratios in record["ratios"].items():
        P, library = side.partition(", threads")[0].split(": ")
        own = best.setdefault((P, library), dict(ratios))
        own.update({clock: min(own[clock], value) for clock, value in ratios.items()})
        goals[P, library] = record["targets"].get(side)
    for (P, library), ratios in best.items():
        ours = record["job"].split(",")[0]
        yield f"{record['job']}, {P}", ours, library, ratios, None, goals[P, library]


def _heads(record: Mapping[str, Any]) -> Making:
    job = record["job"]
    if job.startswith("training step"):
        batch = int(job.split()[-1])
        floor = 1 + 4 / (3 * batch)  # power iterations
        yield from _of_times(
            record, "dense head, no bounds", dict.fromkeys(record["ratios"], floor)
        )
    elif job.startswith("log-probabilities"):
        floors = {"Laplace": 1.64, "SNGP, projection to 128": 1.90, "SNGP": 2.67}
        yield from _of_times(record, "dense head", floors)
    elif "forward epoch" in record["seconds"]:
        yield from _of_times(record, "forward epoch", {"exact pass": 1.003})
    elif job.startswith("variance"):
        for side, ratios in record["ratios"].items():
            examples, other = side.split(": ")
            yield f"{job}, {examples} examples", "factor in 4 blocks", other, ratios, None, None
    else:
        library = job.split(" and ours")[0]
        for side, ratios in record["ratios"].items():
            step, _, ours = side.partition(": ")
            goal, ours = record["targets"].get(side), ours.replace("ours", "SNGP")
            yield step, ours, library, ratios, None, goal


def _experts(record: Mapping[str, Any]) -> Making:
    floors = {("K = 1", "8,000"): 1.23, ("K = 2", "8,000"): 1.18}  # at E = 32
    for each in record["jobs"].values():
        ratios = each["ratios"]
        for side in ratios:
            dispatch, E = side.split(", ")
            if dispatch == "einsum":
                quotient = {k: v / ratios[f"sort, {E}"][k] for k, v in ratios[side].items()}
                yield f"{each['job']}, {E}", "sort", "einsum", quotient, None, None
                continue
            floor = next((f for (K, T), f in floors.items() if K in each["job"]
                          and f", {T} tokens" in each["job"] and E == "E = 32"), None)  # fmt: skip
            goal = each["targets"].get(side)
            yield (f"{each['job']}, {E}", "sort", "dense, as many tokens", _inverse(ratios[side]),
                   1 / floor if floor else None, 1 / goal if goal else None)  # fmt: skip


def _vmoe(record: Mapping[str, Any]) -> Making:
    for kind, ours, _, ratios, _, goal in (
        (*side.split(": "), *rest) for _, side, *rest in _of_times(record, "")
    ):
        yield f"{kind}: {record['job']}", ours, "google-research/vmoe", ratios, None, goal


def _contrastive(record: Mapping[str, Any]) -> Making:
    """Times per FLOP; and those of views."""
    for side, ratios in record["ratios"].items():
        job = f"step per FLOP: {record['job']}, {record['flops'][side]:.2f} times the FLOPs"
        yield job, side, "supervised", _inverse(ratios), None, 1 / record["targets"][side]
    for each in record["views"]:
        job = f"BYOL's view of {each['side']} x {each['side']}"
        yield job, "views", "loop of Pillow", each["ratios"]["Pillow"], None, None


def _metrics(record: Mapping[str, Any]) -> Making:
    size = f"{record['examples']:,} x {record['classes']}"
    for row in record["rows"]:
        metric, library = row["row"].split(" | ")
        ratio = row["ratio"]
        ratios = dict(wall=ratio["min"], wall_median=ratio["median"], cpu=ratio["cpu"])
        title = f"{metric.replace('_', ' ')}, {size}"
        yield title, "uncertainty.metrics", library, ratios, None, 1.0


def _tpu(record: Mapping[str, Any]) -> Making:
    """Cycles that the compiler estimates: P steps of one, or the dense layer, over the program."""
    rows = [row for row in record["rows"] if "error" not in row]
    for row in rows:
        if row["program"] == "update" and row["P"] > 1:
            one = next((r for r in rows if r["P"] == 1 and r["model"] == row["model"]), None)
            job, reference = f"{row['model']}, {row['P']} particles", f"{row['P']} single steps"
            ours, times = row["executor"], row["P"]
        elif row["program"] == "layer" and row["method"] != "dense":
            one = next((r for r in rows if r.get("method") == "dense" and r["size"] == row["size"]
                        and r["program"] == "layer"), None)  # fmt: skip
            job, reference = f"layer {row['size']}, E = {row['E']}, K = {row['K']}", "dense"
            ours, times = row["method"], 1
        elif row["program"] == "products" and row["method"] == "batch":
            for other in rows:
                same = all(other.get(k) == row[k] for k in ("program", "size", "E"))
                if same and other["method"] != "batch":
                    job = f"products of {row['size']}, E = {row['E']}"
                    cycles = dict(wall=other["cycles"] / row["cycles"])
                    yield job, "batch", other["method"], cycles, None, None
            continue
        else:
            continue
        if one:
            yield job, ours, reference, dict(wall=times * one["cycles"] / row["cycles"]), None, None


def _errors(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for row in record.get("rows", ()):
        if "error" in row:
            names = [str(v) for k, v in row.items() if k not in ("error", "program")]
            yield ", ".join(names), row["error"]


def _absolute(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, number in record.get("images_per_second", {}).items():
        yield f"images per second of a core: {name}", f"{number:,.0f}", ""
    for row in record.get("rows", ()):
        goal = f"{row['target_s']:g} s" if row.get("target_s") else ""
        value = f"{row['wall_s']:.1f} s" if "wall_s" in row else f"fails: {row['error']}"
        yield f"start: {row['job']}", value, goal


def _device(record: Mapping[str, Any], found: Found, date: str, machine: str) -> None:
    """A part of `benchmarks.device`; with small sizes it is no measurement, and is left out."""
    if record["settings"]["small"]:
        found.failed.append(Failed(GPU, record["part"], "small sizes: not a measurement"))
        return
    if record["status"] != "done":
        found.failed.append(Failed(GPU, record["part"], str(record.get("reason"))))
    for job in record["jobs"]:
        for name, ratio in job["ratios"].items():
            above, _, below = name.partition(" / ")
            ratios = dict(wall=ratio["min"], wall_median=ratio["median"])
            ours, reference = below.removeprefix("ours: "), above
            if not above.startswith("PyTorch"):
                ours, reference, ratios = (
                    above.removeprefix("ours: "),
                    below,
                    dict(_inverse(ratios)),
                )
            three = (ratios["wall"], ratios["wall_median"], None)
            found.rows.append(
                Row(GPU, job["title"], ours, reference, three, None, None, date, machine)
            )
        for name, why in job["missing"].items():
            found.failed.append(Failed(GPU, f"{job['title']}: {name}", why))


def _e3(record: Mapping[str, Any]) -> Making:
    yield from _of_times(record, "2 ViTs", record["flop_ratios"])


def _epinet(record: Mapping[str, Any]) -> Making:
    job, seconds = record["job"], record["seconds"]
    if "base" not in seconds:  # the testbed, against the better of PyTorch's numbers of threads
        for agent in dict.fromkeys(side.partition(": ")[0] for side in seconds):
            theirs = [r for s, r in record["ratios"].items() if s.startswith(f"{agent}: ")]
            best = {clock: min(r[clock] for r in theirs) for clock in CLOCKS}
            yield f"{job}, {agent}", "one program", "PyTorch, one by one", best, None, None
        return
    yield from _of_times(record, "base", record["flop_ratios"])
    for many in (side for side in seconds if side.endswith(" networks")):
        for side in (side for side in seconds if side.startswith("epinet")):
            ratios = {clock: seconds[many][clock] / seconds[side][clock] for clock in CLOCKS}
            yield job, side, many, ratios, None, None


MAKE: dict[str, Callable[[Mapping[str, Any]], Making]] = {
    "mlp": _ensembles,
    "lenet5": _ensembles,
    "resnet": _ensembles,
    "vit": _ensembles,
    "single_network": lambda record: _of_times(record, "flax and optax"),
    "loop_overhead": _loop,
    "executors": _executors,
    "efficient_ensembles": _efficient,
    "svgd_steps": _svgd_steps,
    "svgd": _libraries,
    "gp_heads": _heads,
    "vmoe": _vmoe,
    "moe": _experts,
    "e3": _e3,
    "epinet": _epinet,
    "metrics": _metrics,
    "contrastive": _contrastive,
    "tpu": _tpu,
}
