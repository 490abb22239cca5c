"""Repulsion of any strength, from that of the posterior on: does it change the features in use?"""

from typing import Any

from configs.tables.shortcuts import CONFIG, columns

METHODS = {
    "SVGD, weights": "method=svgd",
    "SVGD, functions, training points": "method=f_svgd",
    "SVGD, functions": "method=f_svgd,points=unlabelled",
    "SVGD, functions, probabilities": "method=f_svgd,points=unlabelled,compared=probabilities",
    "SVGD, hybrid": "method=hybrid,points=unlabelled,compared=probabilities",
    "WGD, functions, training points, probabilities": "method=f_wgd,compared=probabilities",
    "WGD, functions, probabilities": "method=f_wgd,points=unlabelled,compared=probabilities",
}
STRENGTHS = (1, 1_000, 100_000)


def get_table() -> dict[str, Any]:
    """Rows of each method, columns and seeds, other than those of table shortcuts."""
    rows = [
        dict(
            group=label,
            label=f"{strength:,}",
            config=f"{CONFIG},data=slabs,{options},strength={strength}",
        )
        for label, options in METHODS.items()
        for strength in STRENGTHS
    ]
    return dict(
        title="Strength of the repulsion, linear and slabs (N = 20,000)",
        seeds=(10, 11, 12),
        rows=rows,
        columns=columns(),
    )
