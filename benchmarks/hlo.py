"""What the optimised program of a TPU moves, read from its text.

`cost_analysis()["bytes accessed"]` counts every operand of every instruction: those in the chip's
own memory (VMEM; `S(1)` in the text) like those in HBM, the start and the end of each copy between
the two, and the body of a loop once. Here, bytes are of HBM alone, a copy counts where it reads or
writes HBM, a gather reads as much as it writes, and loops count as often as they run. `cycles` are
the compiler's own estimates of fusions; it has none for gathers, scatters, sorts, copies and
kernels (custom calls), so these are counted as instructions.
"""

import re
from collections import Counter
from typing import Any, NamedTuple

BYTES = dict(pred=1, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8)
COUNTED = ("gather", "scatter", "sort", "copy", "while", "custom-call", "fusion")

_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\](?:\{{([^{{}}]*)\}})?")
# They move nothing: names, views, constants, and the ends of copies that are counted where they
# start. Loops and calls are followed.
_FREE = {
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "after-all",
    "opt-barrier",
    "partition-id",
    "copy-done",
    "slice-done",
    "dynamic-slice-done",
    "async-done",
    "while",
    "call",
    "conditional",
}
_STARTS = ("copy-start", "slice-start", "dynamic-slice-start", "async-start")


class Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    inside: str  # the parentheses: names of operands, or a constant
    rest: str  # attributes, metadata and the backend's configuration


def costs(text: str) -> dict[str, Any]:
    """hbm_bytes, cycles, of which `product_cycles`, and how often each of COUNTED runs.

    Raises:
      ValueError: a text without an entry computation.
    """
    computations = parse(text)
    if "ENTRY" not in computations:
        raise ValueError("text: has no entry computation; optimised HLO is needed")
    totals: Counter = Counter()
    _add(computations, "ENTRY", 1, totals)
    return dict(
        hbm_bytes=totals["hbm"],
        cycles=totals["cycles"],
        product_cycles=totals["product_cycles"],
        counts={name: totals[name] for name in COUNTED if totals[name]},
    )


def parse(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation; that of the entry is there as 'ENTRY' too."""
    computations: dict[str, list[Instruction]] = {}
    current = None
    for line in text.splitlines():
        if line[:1].strip() and line.rstrip().endswith("{"):
            entry, name = re.match(r"(ENTRY )?%?([\w.\-]*)", line).groups()  # type: ignore[union-attr]
            current = computations["ENTRY" if entry else name] = []
            continue
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
        if current is None or not match:
            continue
        rest = line[match.end() :]
        end = _close(rest) + 1 if rest.startswith("(") else rest.index(" ")
        shape, rest = rest[:end], rest[end:].lstrip()
        start = rest.index("(")
        end = start + _close(rest[start:])
        inside, op = rest[start + 1 : end], rest[:start]
        current.append(Instruction(match.group(1), shape, op, inside, rest[end + 1 :]))
    return computations


def _add(computations: dict, name: str, times: int, totals: Counter) -> None:
    shapes: dict[str, list[tuple[int, bool]]] = {}
    for i in computations[name]:
        shapes[i.name] = results = _arrays(i.shape)
        if i.op == "while":
            totals["while"] += times
            trips = _trips(computations[_called("condition", i)[0]])
            _add(computations, _called("body", i)[0], times * trips, totals)
        elif i.op in ("call", "conditional"):
            for called in _called("to_apply|branch_computations|called_computations", i):
                _add(computations, called, times, totals)
        if i.op in _FREE or "ConcatBitcast" in i.rest:
            continue
        names = re.findall(r"%([\w.\-]+)", i.inside)
        operands = [array for name in names for array in shapes.get(name, [])]
        totals["hbm"] += times * _hbm(i, results, operands, computations)
        inner = _inner(i, computations)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
        if cycles:
            totals["cycles"] += times * int(cycles.group(1))
            if inner & {"dot", "convolution"}:
                totals["product_cycles"] += times * int(cycles.group(1))
        special = inner & {"gather", "scatter", "sort"}
        for counted in special or {i.op} & set(COUNTED):
            totals[counted] += times


def _hbm(i: Instruction, results: list, operands: list, computations: dict) -> int:
    if i.op in _STARTS:  # the result has both ends, and flags after them
        ends = results[:2]
        return min((b for b, _ in ends), default=0) * sum(far for _, far in ends)
    most = sum(b for b, _ in results)
    part = _inner(i, computations) & {"gather", "dynamic-slice"}
    read = sum(min(b, most) if part else b for b, far in operands if far)
    return read + sum(b for b, far in results if far)


def _trips(condition: list[Instruction]) -> int:
    """How often a loop runs whose counter, from 0, is compared with a constant; else 1."""
    bounds = [i.inside for i in condition if i.op == "constant"]
    return max((int(bound) for bound in bounds if bound.isdigit()), default=1)


def _inner(i: Instruction, computations: dict[str, list[Instruction]]) -> set[str]:
    """The operations of an instruction and of what is fused into it."""
    fused = [x for name in _called("calls", i) for x in computations.get(name, [])]
    return {i.op}.union(*(_inner(x, computations) for x in fused))


def _called(attribute: str, i: Instruction) -> list[str]:
    found = re.search(rf"\b(?:{attribute})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", i.rest)
    return re.findall(r"[\w.\-]+", found.group(1) or found.group(2)) if found else []


def _arrays(shape: str) -> list[tuple[int, bool]]:
    """Bytes of each array, and whether it is in HBM: in no other memory space."""
    arrays = []
    for kind, dimensions, layout in _ARRAY.findall(shape):
        size = BYTES[kind]
        for n in dimensions.split(","):
            size *= int(n or 1)
        arrays.append((size, not re.search(r"S\([1-9]\)", layout)))
    return arrays


def _close(text: str) -> int:
    """The index of the parenthesis that closes the first."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if not depth:
            return at
    raise ValueError(f"text: {text[:60]!r} has no end")
