"""Which cues of sprites members use: colour, shape, scale and orientation all tell the class."""

from typing import Any

from configs.tables.shortcuts import CONFIG, ROWS
from configs.toys.shortcuts import CUES

CONTROL = "method=control"


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; the controls are trained where one cue alone tells the class."""
    rows = {label: options for label, options in ROWS.items() if options != CONTROL}
    rows |= {f"Control: {cue} alone": f"{CONTROL},cue={cue}" for cue in CUES}
    percent = dict(unit="%", digits=1)
    columns = [dict(key="cues/diagonal/accuracy", header="All cues", **percent)]
    for cue in CUES:
        columns += [
            dict(key=f"cues/{cue}/accuracy", header=cue.title(), **percent),
            dict(key=f"cues/{cue}/share", header=f"Members: {cue}", **percent),
        ]
    columns += [
        dict(key="cues/none/share", header="Members: none", **percent),
        dict(key="cues/used", header="Cues in use", digits=2),
        dict(key="disambiguation/best_member", header="Best for orientation", **percent),
        dict(key="disambiguation/disagreement", header="Disagreement", **percent),
    ]
    return dict(
        title="Which of four cues members use: LeNet5 on sprites of 16 x 16 pixels",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(label=label, config=f"{CONFIG},data=sprites,{options}")
            for label, options in rows.items()
        ],
        columns=columns,
    )
