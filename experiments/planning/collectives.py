"""Collectives and loops of a compiled program, read from its optimised HLO text."""

import collections
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter",
         "ragged-all-to-all", "collective-broadcast")  # fmt: skip
BITS = dict(pred=8, bf16=16, u1=1, s2=2, u2=2, s4=4, u4=4)  # others end in their bits
UNKNOWN = "?"


class Collective(NamedTuple):
    """One collective of a program on one device."""

    kind: str
    bytes: int  # of the result on a device, each time it runs
    size: int  # devices of a group
    axes: tuple[str, ...]  # of the mesh; ('?',) if they are not those of the mesh
    times: int  # that it runs; loops of unknown length count once
    name: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends for it, in all its runs, by a ring."""
        n = self.size
        share = {
            "all-reduce": 2 * (n - 1) / n,
            "all-gather": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "ragged-all-to-all": (n - 1) / n,
            "reduce-scatter": n - 1,  # its result is 1 / n of what goes in
        }.get(self.kind, 1.0)
        return self.times * self.bytes * share


class Loop(NamedTuple):
    """A loop of a program."""

    body: str
    rounds: int | None  # None: unknown


INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+)[ ]*\(.*\{\s*$")
CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)


class Instruction(NamedTuple):
    name: str
    type: str
    operation: str
    rest: str


def computations(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The name of the entry, and the instructions of every computation of a module's text."""
    entry, found, current = "", {}, None
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            current.append(Instruction(*match.groups()))
    return entry, found


def called_by(instruction: Instruction) -> list[str]:
    """The names of the computations that an instruction calls."""
    names = []
    for called in CALLED.finditer(instruction.rest):
        names += [called[1]] if called[1] else re.findall(r"[\w.-]+", called[2])
    return names


def size_of(type_text: str) -> int:
    """Bytes of a type such as `(f32[2,3]{1,0}, u32[])`."""
    total = 0
    for kind, shape in re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", type_text):
        bits = BITS.get(kind) or int(re.search(r"\d+", kind)[0])
        total += math.prod(map(int, filter(None, shape.split(",")))) * bits // 8
    return total


def result_type(each: Instruction) -> str:
    """The type of the result; the start of an asynchronous operation has its operand there too."""
    parts = top_level(each.type[1:-1]) if each.type.startswith("(") else []
    if not each.operation.endswith("-start") or len(parts) < 2:
        return each.type
    if each.operation == "all-reduce-start":
        return each.type
    return parts[0] if each.operation == "copy-start" else parts[1]


def top_level(text: str) -> list[str]:
    """The parts of a tuple's text, which commas separate."""
    parts, depth, part = [], 0, ""
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    return [*parts, part]


def rounds_of(while_: Instruction, found: Mapping[str, list[Instruction]]) -> int | None:
    """How often a loop runs: as XLA notes it, or the constant that its counter is compared with."""
    if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', while_.rest):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.-]+)", while_.rest)
    return limit_of(found.get(condition[1], []), found) if condition else None


def limit_of(
    condition: Sequence[Instruction], found: Mapping[str, list[Instruction]]
) -> int | None:
    """The constant n of a condition `counter < n`, where there is one, for a counter from 0."""
    considered = list(condition)
    for each in condition:  # where the comparison was fused
        if each.operation in ("fusion", "call") and (called := CALLED.search(each.rest)):
            considered += found.get(called[1] or "", [])
    compares = [each for each in considered if each.operation == "compare"]
    constants = {
        each.name: int(value[1])
        for each in considered
        if each.operation == "constant" and (value := re.match(r"(\d+)\)", each.rest))
    }
    if len(compares) != 1 or "direction=LT" not in compares[0].rest or len(constants) != 1:
        return None
    return next(iter(constants.values()))


def walked(text: str) -> Iterator[tuple[Instruction, int]]:
    """(instruction, times it runs) of all that is reached from the entry."""
    entry, found = computations(text)
    times: dict[str, int] = collections.defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for each in found.get(name, ()):
            rounds = (rounds_of(each, found) or 1) if each.operation == "while" else 1
            for inner in called_by(each):
                if inner in found and each.operation not in ("reduce", "sort", "scatter"):
                    visit(inner, count * rounds)

    visit(entry, 1)
    for name, instructions in found.items():
        if times[name]:
            yield from ((each, times[name]) for each in instructions)


def loops(text: str) -> list[Loop]:
    """The loops of a program."""
    _, found = computations(text)
    whiles = (i for each in found.values() for i in each if i.operation == "while")
    return [
        Loop(re.search(r"body=%?([\w.-]+)", each.rest)[1], rounds_of(each, found))
        for each in whiles
    ]


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program.

    Args:
      text: the optimised HLO of one device's program.
      mesh: axis -> devices, in the order in which the program numbers its devices.
    """
    total = math.prod(mesh.values())
    result = []
    for each, times in walked(text):
        kind = each.operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        groups = groups_of(each.rest, total)
        size = len(groups[0]) if groups else total
        if kind == "collective-permute":
            size = 2
        if groups and size == 1:  # of a device with itself: nothing moves
            continue
        axes = axes_of(groups, mesh)
        result.append(Collective(kind, size_of(result_type(each)), size, axes, times, each.name))
    return result


def groups_of(rest: str, total: int) -> list[tuple[int, ...]]:
    """The groups of devices of a collective, or its pairs; empty if they cannot be read."""
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest):
        both = (tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
        return [pair for pair in both if pair[0] != pair[1]]
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", rest):
        groups = [tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1])]
        return groups or [tuple(range(total))]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape, sides = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
        return list(map(tuple, numbered(sides, iota[3]).reshape(shape).tolist()))
    named = re.search(
        r"replica_groups=@?mesh\w*\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
        r"\s*\{([^}]*)\}",
        rest,
    )
    if named:
        axes = {n: int(size) for n, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        over = re.findall(r"'([^']+)'(:\(\d+\)\d+)?", named[4])
        if any(part for _, part in over) or any(name not in axes for name, _ in over):
            return []  # a part of an axis
        ids = np.arange(total) if named[2] is None else numbered(
            [int(n) for n in named[2].split(",")], named[3]
        )  # fmt: skip
        array = ids.reshape(list(axes.values()))
        places = [list(axes).index(name) for name, _ in over]
        others = [i for i in range(array.ndim) if i not in places]
        size = math.prod(axes[name] for name, _ in over)
        return list(map(tuple, array.transpose(*others, *places).reshape(-1, size).tolist()))
    return []


def numbered(sides: Sequence[int], order: str | None) -> np.ndarray:
    """0, 1, ... in an array of these sides, transposed by `order`, such as '1,0'."""
    array = np.arange(math.prod(sides)).reshape(sides)
    return array.transpose([int(n) for n in order.split(",")]) if order else array


def axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of each group differ."""
    if not groups:
        return (UNKNOWN,)
    sides = list(mesh.values())
    places = [np.array(np.unravel_index(np.asarray(group), sides)) for group in groups]
    varying = [i for i in range(len(sides)) if any(len(set(p[i].tolist())) > 1 for p in places)]
    return tuple(list(mesh)[i] for i in varying)


def summary(found: Sequence[Collective]) -> list[dict]:
    """An entry for each kind and axes: operations, runs, bytes of the results and bytes sent."""
    groups: dict[tuple, list[Collective]] = {}
    for each in found:
        groups.setdefault((each.kind, each.axes), []).append(each)
    return [
        dict(
            kind=kind,
            axes=list(axes),
            count=len(group),
            runs=sum(each.times for each in group),
            bytes=sum(each.bytes * each.times for each in group),
            sent=sum(each.sent for each in group),
        )
        for (kind, axes), group in sorted(groups.items())
    ]
