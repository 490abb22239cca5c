"""Bytes that a compiled program reads from and writes to a device's main memory, by its HLO text.

The compiler's own count (`cost_analysis`) has what stays in on-chip memory too, and a loop's body
once.
"""

import re
from collections.abc import Mapping, Sequence

from experiments.planning.collectives import (
    Instruction,
    called_by,
    computations,
    result_type,
    rounds_of,
    size_of,
)

# Without traffic of their own: what they name is counted where it is used.
FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
     "partition-id", "replica-id", "opt-barrier", "optimization-barrier")
)  # fmt: skip
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


def traffic(text: str) -> tuple[int, int]:
    """(bytes of main memory, bytes of on-chip memory) of all operands and results.

    Each instruction that is not fused reads its operands and writes its result; of what it slices,
    or updates in place, the slice counts. A loop's body counts once for each round, of unknown
    number once; of branches all.
    """
    entry, found = computations(text)

    def of(name: str) -> tuple[int, int]:
        main = chip = 0
        instructions = found.get(name, ())
        types = {each.name: each.type for each in instructions}
        for each in instructions:
            if each.operation in ("while", "conditional", "call"):
                rounds = (rounds_of(each, found) or 1) if each.operation == "while" else 1
                inner = [of(name) for name in called_by(each) if name in found]
                main += rounds * sum(part[0] for part in inner)
                chip += rounds * sum(part[1] for part in inner)
            elif each.operation not in FREE and not each.operation.endswith(("-done", "-update")):
                for part in moved(each, types, found):
                    main, chip = main + part[0], chip + part[1]
        return main, chip

    return of(entry)


def moved(
    each: Instruction, types: Mapping[str, str], found: Mapping[str, Sequence[Instruction]]
) -> list[tuple[int, int]]:
    """The same for the operands and the result of one instruction."""
    operands = [types.get(name, "") for name in operands_of(each)]
    if each.operation == "fusion":
        return fused(each, operands, found.get(called_by(each)[0], ()))
    return sliced(each.operation.removesuffix("-start"), operands, result_type(each))


def sliced(operation: str, operands: Sequence[str], result: str) -> list[tuple[int, int]]:
    """Of an operation, of which some read or write a part of an array."""
    if operation in ("dynamic-slice", "slice", "gather"):
        return [in_space_of(operands[0], sum(memory_of(result))), memory_of(result)]
    if operation == "dynamic-update-slice":
        return [memory_of(operands[1]), in_space_of(result, sum(memory_of(operands[1])))]
    return [memory_of(each) for each in (*operands, result)]


def fused(
    each: Instruction, operands: Sequence[str], inner: Sequence[Instruction]
) -> list[tuple[int, int]]:
    """Of a fusion: its operands, of those that it only slices the slices, and its result."""
    parameters = {}
    for i in inner:
        if i.operation == "parameter":
            parameters[int(i.rest.split(")")[0])] = i.name
    types = {i.name: i.type for i in inner}
    root = inner[-1] if inner else each
    parts = []
    for index, operand in enumerate(operands):
        name = parameters.get(index)
        users = [i for i in inner if name in operands_of(i)]
        if users and all(
            i.operation in ("dynamic-slice", "slice", "gather") and operands_of(i)[0] == name
            for i in users
        ):
            parts += [in_space_of(operand, sum(sum(memory_of(i.type)) for i in users))]
        elif (
            root.operation == "dynamic-update-slice"
            and users == [root]
            and (operands_of(root)[0] == name)
        ):  # updated in place
            continue
        else:
            parts.append(memory_of(operand))
    if root.operation == "dynamic-update-slice":
        update = sum(memory_of(types.get(operands_of(root)[1], "")))
        return [*parts, in_space_of(each.type, update)]
    return [*parts, memory_of(each.type)]


def operands_of(each: Instruction) -> list[str]:
    """The names of the operands."""
    return re.findall(r"%([\w.-]+)", each.rest.split(")")[0])


def in_space_of(type_text: str, size: int) -> tuple[int, int]:
    """A size, in the memory that a type is in."""
    return (0, size) if "S(" in type_text else (size, 0)


def memory_of(type_text: str) -> tuple[int, int]:
    """(bytes of main memory, bytes of on-chip memory) of a type, padded to its layout's tiles.

    A layout is `{minor to major:T(tile)S(space)}`; space 0, the default, is main memory.
    """
    main = chip = 0
    for kind, shape, layout in ARRAY.findall(type_text):
        sides = [int(side) for side in shape.split(",") if side]
        order = [int(i) for i in re.findall(r"\d+", layout.split(":")[0])]
        tile = re.search(r"T\(([\d,]+)\)", layout)
        if tile and len(order) == len(sides) and sides:
            tiles = [int(n) for n in tile[1].split(",")]
            for place, size in zip(order, reversed(tiles), strict=False):
                sides[place] = -(-sides[place] // size) * size
        size = size_of(f"{kind}[{','.join(map(str, sides))}]") if sides else size_of(f"{kind}[]")
        space = re.search(r"S\((\d+)\)", layout)
        if space and space[1] != "0":
            chip += size
        else:
            main += size
    return main, chip
