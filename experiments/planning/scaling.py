"""One program on slices of several sizes: what was compiled, and arithmetic for the sizes between.

State and FLOPs of every size come from the traced program (`programs.SHAPES`). Traffic and bytes
exchanged of a size that was not compiled follow from two that were, as a / chips + b: activations
and tokens are in proportion to the examples of a chip, weights are not. Bytes reduced do not: a
compiler reduces gradients of a batch in parts in another type than those of a whole one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.planning import show, slices
from experiments.planning.estimates import compiles
from experiments.planning.programs import MEMORY, SHAPES, TRAIN
from experiments.planning.slices import GIB

KINDS = {"all-reduce": "reduced", "reduce-scatter": "reduced", "all-gather": "gathered",
         "all-to-all": "exchanged", "collective-permute": "exchanged"}  # fmt: skip
COLUMNS = (
    dict(key="state", header="State (GiB)", digits=2),
    dict(key="temporaries", header="Temporaries (GiB)", digits=2),
    dict(key="peak", header="All (GiB)", digits=2),
    dict(key="reduced", header="Reduced (MiB)", digits=0),
    dict(key="gathered", header="Gathered (MiB)", digits=0),
    dict(key="exchanged", header="Exchanged (MiB)", digits=0),
    dict(key="compute", header="Products (ms)", digits=0),
    dict(key="traffic", header="HBM (ms)", digits=0),
    dict(key="links", header="Links (ms)", digits=1),
    dict(key="images", header="Images/s a host", digits=0),
    dict(key="checkpoint", header="Checkpoint a host (GiB)", digits=2),
)


class Size(NamedTuple):
    """A program on one slice."""

    label: str
    topology: str
    chips: int
    compiled: bool
    values: Mapping[str, float]  # of COLUMNS, in bytes and seconds
    axes: str  # of the collectives
    failed: str = ""

    @property
    def times(self) -> dict[str, float]:
        """Lower bounds in seconds: `compute`, and `memory` and `links` where they are known."""
        names = dict(compute="compute", memory="traffic", links="links")
        return {k: self.values[name] for k, name in names.items() if name in self.values}


def sizes(rows: Sequence[tuple[Any, Mapping[str, Mapping[str, Any]]]]) -> Iterator[Size]:
    """Of the rows with their results; those without `SHAPES` are left out."""
    known: dict[str, dict[int, dict[str, float]]] = {}
    for row, results in rows:
        if compiles(results.get(TRAIN, {"failed": True})):
            chips = slices.parse(row.topology, installed=False).size
            known.setdefault(row.label, {})[chips] = measured(results[TRAIN])
    for row, results in rows:
        if SHAPES not in results:
            continue
        topology = slices.parse(row.topology, installed=False)
        chip, chips, shapes = topology.chip, topology.size, results[SHAPES]
        others = known.get(row.label, {})
        values = dict(others.get(chips) or between(others, chips))
        state = sum(shapes["memory"][kind] for kind in ("parameters", "optimiser", "other"))
        values |= dict(
            state=state,
            compute=shapes["flops"] / chips / chip.flops,
            checkpoint=shapes["state"] / shapes["hosts"],
        )
        if "bytes" in values:
            values["traffic"] = values.pop("bytes") / chip.bandwidth
        if "reduced" in values:
            values["links"] = sum(values[kind] for kind in set(KINDS.values())) / chip.links
        train = results.get(TRAIN, {})
        found = Size(row.label, row.topology, chips, chips in others, values, axes_of(train),
                     failure(train))  # fmt: skip
        if "memory" in found.times:
            seconds = max(found.times.values())
            values["images"] = shapes["examples"] / shapes["shares"] / seconds
        yield found


def measured(train: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of a compiled step on a chip."""
    values = dict(
        temporaries=train["memory"]["temporaries"],
        peak=train["memory"]["peak"],
        bytes=train["calls"] * train["traffic"]["main"],
        **dict.fromkeys(KINDS.values(), 0.0),
    )
    for each in train["collectives"]:
        values[KINDS[each["kind"]]] += train["calls"] * each["sent"]
    return values


def between(known: Mapping[int, Mapping[str, float]], chips: int) -> dict[str, float]:
    """Bytes of a step on a chip as a / chips + b, of the two nearest sizes around `chips`; empty
    without them."""
    below, above = [c for c in known if c < chips], [c for c in known if c > chips]
    if not below or not above:
        return {}
    first, last = max(below), min(above)
    weight = (1 / chips - 1 / last) / (1 / first - 1 / last)
    names = ("bytes", "gathered", "exchanged")
    return {k: weight * known[first][k] + (1 - weight) * known[last][k] for k in names}


def axes_of(train: Mapping[str, Any]) -> str:
    """'all-reduce over data, ...' of the collectives of at least 1 MiB."""
    large = [each for each in train.get("collectives", ()) if each["sent"] >= 2**20]
    return ", ".join(f"{each['kind']} over {' x '.join(each['axes'])}" for each in large)


def failure(train: Mapping[str, Any]) -> str:
    """Why a step is not compiled; empty if it is, or was not tried."""
    if not train.get("failed"):
        return ""
    what = "Does not fit" if train["failed"] == MEMORY else "Not compiled"
    return f"{what}: {show.short(train['reason'], 160)}."


def table_rows(found: Sequence[Size]) -> list[dict[str, Any]]:
    """For a study with COLUMNS."""
    gib, ms = ("state", "temporaries", "peak", "checkpoint"), ("compute", "traffic", "links")
    units = dict.fromkeys(gib, GIB) | dict.fromkeys(KINDS.values(), 2**20) | dict.fromkeys(ms, 1e-3)
    made = []
    for size in found:
        values = {k: v / units.get(k, 1) for k, v in size.values.items()}
        how = "" if size.compiled else ", arithmetic"
        row = dict(label=f"{size.label}, {size.topology}{how}", group=size.label, results=[values])
        if size.failed:
            row["note"] = size.failed
        elif size.axes:
            row["note"] = f"{size.axes[0].upper()}{size.axes[1:]}."
        made.append(row)
    return made
