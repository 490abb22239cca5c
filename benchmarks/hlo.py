"""What the optimised program of a TPU costs, read from its text.

`cycles` are the compiler's own estimates of fusions; it has none for gathers, scatters, sorts,
copies and kernels, of which the first four are counted. Bytes are of HBM alone, as
`experiments/planning/traffic.py` counts them. What loops run counts as often as it runs.
"""

import re
from collections import Counter
from typing import Any

from experiments.planning.collectives import Instruction, called_by, computations, walked
from experiments.planning.traffic import traffic

COUNTED = ("gather", "scatter", "sort", "copy", "while")
PRODUCTS = {"dot", "convolution"}


def costs(text: str) -> dict[str, Any]:
    """hbm_bytes, cycles, of which `product_cycles`, and how often each of COUNTED runs.

    Raises:
      ValueError: a text without an entry computation.
    """
    entry, found = computations(text)
    if not entry:
        raise ValueError("text: has no entry computation; optimised HLO is needed")

    def multiplies(each: Instruction) -> bool:
        inner = (i for name in called_by(each) for i in found.get(name, ()))
        return each.operation in PRODUCTS or any(map(multiplies, inner))

    totals: Counter = Counter()
    for each, times in walked(text):
        totals[each.operation] += times
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', each.rest):
            totals["cycles"] += times * int(cycles[1])
            totals["product_cycles"] += times * int(cycles[1]) * multiplies(each)
    return dict(
        hbm_bytes=traffic(text)[0],
        cycles=totals["cycles"],
        product_cycles=totals["product_cycles"],
        counts={name: totals[name] for name in COUNTED if totals[name]},
    )
