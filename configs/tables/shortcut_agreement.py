"""DivDis and D-BAT over the correlation of the features in the unlabelled data."""

from typing import Any

from configs.tables.shortcuts import CONFIG, SETS, columns

METHODS = {"DivDis": "method=divdis,size=2", "D-BAT": "method=d_bat,size=2"}
AGREEMENT = dict(slabs=(0.0, 0.25, 0.5, 0.75, 1.0), mnist=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0))


def get_table() -> dict[str, Any]:
    """Rows of each method, columns and seeds; two functions, as in the papers."""
    rows = [
        dict(
            group=f"{SETS[data]}, {label}",
            label=f"{agreement:g}",
            config=f"{CONFIG},data={data},{options},agreement={agreement}",
        )
        for data, places in AGREEMENT.items()
        for label, options in METHODS.items()
        for agreement in places
    ]
    return dict(
        title="P(features agree) in the unlabelled data",
        seeds=(0, 1, 2, 3, 4),
        rows=rows,
        columns=columns(),
    )
