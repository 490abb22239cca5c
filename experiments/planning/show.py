"""A compiled program in words: for the terminal, and for the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.planning import estimates
from experiments.planning.estimates import Result, compiles, gib
from experiments.planning.slices import Topology
from experiments.reports.compiled import Shown


def facts(result: Result, topology: Topology) -> dict[str, str]:
    """name -> text of the numbers of a program."""
    if not compiles(result):
        return {}
    memory, examples = result["memory"], result["examples"]
    said = {
        "parameters": count(result["parameters"]),
        "FLOPs a step": count(result["flops"], 3),
        "an example": count(result["flops"] / examples, 3),
        "traffic a chip": gib(result["calls"] * result["traffic"]["main"]),
        "memory a chip": gib(memory["peak"]),
    }
    if topology.chip is not None:
        said["of HBM"] = f"{100 * memory['peak'] / topology.chip.hbm:.0f} %"
    said["sent a chip"] = gib(estimates.sent(result))
    bound = estimates.roofline(result, topology)
    if bound is not None:
        said["roofline"] = f"{'≥ ' * bound.at_least}{1e3 * bound.seconds:.3g} ms"
        said["bound by"] = bound.bound
        said["examples/s at the peaks"] = count(examples / bound.seconds, 3)
    seconds = estimates.compiler_seconds(result)
    if topology.chip is not None:
        said["compiler's estimate"] = f"{1e3 * seconds:.3g} ms" if seconds else "none"
    return said


def lines(name: str, result: Result, topology: Topology, advice: Sequence[str]) -> list[str]:
    """What is printed of a program."""
    if not compiles(result):
        head = f"{name}: does not {'fit' if result['failed'] == 'memory' else 'compile'}: "
        return [head + short(result["reason"]), *(f"  try: {line}" for line in advice)]
    said = facts(result, topology)
    fits = estimates.fits(result, topology)
    verdict = {True: "fits", False: "compiles, but does not fit", None: "compiles"}[fits]
    memory = ", ".join(
        f"{kind} {gib(size)}"
        for kind, size in result["memory"].items()
        if kind not in ("arguments", "peak") and size >= 0.005 * result["memory"]["peak"]
    )
    said["memory a chip"] += f": {memory}"
    out = [f"{name}: {verdict} (compiled in {result['seconds']['compile']:.0f} s)"]
    out += [f"  {key:<24}{value}" for key, value in said.items()]
    out += [
        f"  {each['kind']:<24}{each['runs']} over {' x '.join(each['axes'])}, "
        f"{gib(each['bytes'])} of results, {gib(each['sent'])} sent"
        for each in result["collectives"]
    ]
    if result["unknown_loops"]:
        out.append("  loops of unknown length count once")
    return out + [f"  try: {line}" for line in advice]


def shown(label: str, result: Result, topology: Topology, advice: Sequence[str]) -> Shown:
    """A program on the page."""
    bound = estimates.roofline(result, topology)
    fits = compiles(result)
    kinds = {k: v for k, v in result["memory"].items() if k not in ("arguments", "peak")} \
        if fits else {}  # fmt: skip
    return Shown(
        label=label,
        facts=list(facts(result, topology).items()),
        memory=kinds,
        limit=topology.chip.hbm if topology.chip else None,
        times=bound.times if bound else {},
        collectives=result.get("collectives", ()),
        failed="" if fits else short(result["reason"]),
        advice=advice,
    )


def short(reason: str, most: int = 300) -> str:
    """One line of a reason."""
    line = " ".join(reason.split())
    return line if len(line) <= most else f"{line[:most]} ..."


def count(value: float, digits: int = 4) -> str:
    """A number with the prefix of its thousands: 36.48 M."""
    if not value:
        return "0"
    prefixes = ("", " K", " M", " G", " T", " P", " E")
    power = min(max(int(math.log10(abs(value)) // 3), 0), len(prefixes) - 1)
    return f"{value / 1000**power:.{digits}g}{prefixes[power]}"


def sources(topologies: Mapping[str, Topology]) -> str:
    """Where the peaks of the chips are published, as HTML."""
    chips: dict[str, Any] = {t.chip.name: t.chip for t in topologies.values() if t.chip}
    return "".join(
        f'<p class="caption">{chip.name}: {chip.hbm / 2**30:g} GiB of HBM at '
        f"{chip.bandwidth / 1e9:,.0f} GB/s, {chip.flops / 1e12:g} TFLOP/s in bfloat16, "
        f"{chip.links / 1e9:g} GB/s to its neighbours; "
        f'<a href="{chip.source}">{chip.source}</a></p>'
        for chip in chips.values()
    )
