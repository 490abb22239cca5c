"""What a compiled program means for a slice: does it fit, how fast can it be, what to change."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.planning.programs import MEMORY, PREDICT, TRAIN
from experiments.planning.slices import GIB, Topology

Result = Mapping[str, Any]
RESERVED = 0.25 * GIB  # of the HBM of a chip; of a v5e the compiler leaves 15.75 GiB to programs


class Roofline(NamedTuple):
    """Seconds of a step at the published peaks, by what limits it."""

    compute: float  # matrix products
    memory: float  # traffic with HBM
    links: float  # bytes of collectives over all links of a chip
    at_least: bool  # loops of unknown length count once

    @property
    def times(self) -> dict[str, float]:
        return dict(compute=self.compute, memory=self.memory, links=self.links)

    @property
    def seconds(self) -> float:
        return max(self.times.values())

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.times, key=self.times.__getitem__)


def compiles(result: Result) -> bool:
    return not result.get("failed")


def needed(result: Result) -> float | None:
    """Bytes on a device; of a program that does not fit, those that the compiler names."""
    if compiles(result):
        return result["memory"]["peak"]
    if result["failed"] != MEMORY:
        return None
    units = dict(K=2**10, M=2**20, G=2**30, T=2**40)
    reason = result["reason"]
    for pattern in (r"Used ([\d.]+)([KMGT]) of", r"HLO temporaries \(([\d.]+)([KMGT])\)",
                    r"required[^(]*\(([\d.]+)([KMGT])\)"):  # fmt: skip
        if found := re.search(pattern, reason):
            return float(found[1]) * units[found[2]]
    return None


def fits(result: Result, topology: Topology) -> bool | None:
    """Whether it fits on a chip; None if it did not compile for another reason, or on CPU."""
    if result.get("failed") == MEMORY:
        return False
    if topology.chip is None or not compiles(result):
        return None
    return result["memory"]["peak"] <= topology.chip.hbm - RESERVED


def roofline(result: Result, topology: Topology) -> Roofline | None:
    """Of a step; None for CPU, or without a program."""
    if topology.chip is None or not compiles(result):
        return None
    chip, calls = topology.chip, result["calls"]
    devices = math.prod(result["mesh"].values())
    return Roofline(
        compute=result["flops"] / devices / chip.flops,
        memory=calls * result["traffic"]["main"] / chip.bandwidth,
        links=sent(result) / chip.links,
        at_least=None in result["loops"] or result["unknown_loops"] > 0,
    )


def sent(result: Result) -> float:
    """Bytes that a device sends in a step."""
    return result["calls"] * sum(each["sent"] for each in result["collectives"])


def compiler_seconds(result: Result) -> float | None:
    """The compiler's own estimate of a step, where it is positive."""
    seconds = result.get("compiler", {}).get("seconds")
    return seconds * result["calls"] if seconds and seconds > 0 else None


def advice(result: Result, config: Mapping[str, Any], topology: Topology) -> list[str]:
    """What to change so that a program fits, with estimates of the bytes; empty if it does.

    Estimates divide what the compiler needs now: activations by the number of parts of a batch,
    the state by the devices that share it. A training step also holds the new parameters and
    optimiser state until it is known that they are finite. `--search` compiles each change.
    """
    if fits(result, topology) is not False:
        return []
    limit, mesh = topology.chip.hbm - RESERVED, result["mesh"]
    kinds, total = result["memory"], needed(result)
    state = sum(kinds[kind] for kind in ("parameters", "optimiser", "other"))
    if total is None:
        return [f"the state takes {gib(state)} a chip of {gib(limit)}; try --search"]
    if compiles(result):
        temporaries = kinds["temporaries"] + kinds["outputs"]
    else:
        temporaries = max(total - state - kinds["batch"], 0.0)
    if total < state:  # the compiler named the temporaries alone
        temporaries, total = total, total + state + kinds["batch"]
    lines = [
        f"needs {gib(total)} of {gib(limit)} a chip: {gib(total - temporaries)} for the state and "
        f"the batch, {gib(temporaries)} for activations and other temporaries"
    ]
    copies = 1
    if result.get("program", TRAIN) == TRAIN:
        copies = 2
        temporaries = max(temporaries - kinds["parameters"] - kinds["optimiser"], 0.0)
    fixed = total - temporaries
    sharing = mesh["data"] * mesh["expert"]

    def verdict(estimate: float) -> str:
        return f"about {gib(estimate)}{', which fits' if estimate <= limit else ''}"

    inference, P = config["inference"], result["particles"]
    if result.get("program") == PREDICT:
        size = config["evaluation"]["batch_size"]
        lines.append(f"evaluation.batch_size={size // 2}: {verdict(fixed + temporaries / 2)}")
    elif result.get("program", TRAIN) == TRAIN:
        now, batch = inference.get("accumulate", 1), config["batch_size"]
        parts = [k for k in range(now + 1, batch // sharing + 1) if batch % (k * sharing) == 0]
        estimates = {k: fixed + temporaries * now / k for k in parts}
        enough = next((k for k in parts if estimates[k] <= 0.9 * limit), None)
        if parts:
            k = enough or parts[-1]
            lines.append(f"inference.accumulate={k}: {verdict(estimates[k])}")
        if not config["backbone"].get("remat", False):
            lines.append("backbone.remat=True, if the backbone has it: keeps the inputs of blocks "
                         "and computes their activations again, a third more FLOPs")  # fmt: skip
    here = P // mesh["particle"]
    if here > 1 and inference.get("executor", "auto") in ("auto", "vmap"):
        lines.append(
            f"inference.executor='scan' (one particle after the other): "
            f"{verdict(fixed + temporaries / here)}"
        )
    dividing = [d for d in range(mesh["particle"] + 1, P + 1)
                if P % d == 0 and topology.size % d == 0]  # fmt: skip
    if dividing:
        lines.append(f"mesh.particle={dividing[-1]}: a chip has {P // dividing[-1]} of the {P} "
                     f"particles, now {here}")  # fmt: skip
    if mesh["data"] > 1 and not config.get("sharding"):
        saved = copies * (kinds["parameters"] + kinds["optimiser"]) * (1 - 1 / mesh["data"])
        lines.append(
            "sharding=[['.*', 'data']] (parameters and optimiser state sharded over data): "
            f"{verdict(total - saved)}"
        )
    if config.get("sharding") or fixed >= limit:  # more chips alone share the batch, not the state
        with_ = "" if config.get("sharding") else "sharding=[['.*', 'data']] and "
        chips = math.ceil(total / limit)
    else:
        with_, chips = "", math.ceil(temporaries / (limit - fixed))
    lines.append(f"{with_}a slice of {chips} times as many chips, if the batch is divisible")
    return lines


def gib(size: float) -> str:
    """Bytes as text."""
    for unit, scale in (("GiB", GIB), ("MiB", 2**20)):
        if size >= 0.1 * scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 2**10:.1f} KiB" if size else "0"
