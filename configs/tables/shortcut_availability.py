"""A shortcut that predicts less than the core, and is easier to find: which one is followed?"""

from typing import Any

CONFIG = "configs/toys/shortcuts.py:small,data=latents"
METHODS = {
    "Linear": "method=linear",
    "MLP": "method=single",
    "Deep ensemble (4)": "method=ensemble",
    "SVGD, functions (4)": "method=f_svgd",
}
CORE = 0.95
SHORTCUT = (0.6, 0.75, 0.9)
AMPLIFICATION = (1, 4, 16, 64)


def get_table() -> dict[str, Any]:
    """Rows of each method, columns and seeds; nothing is published for these networks."""
    rows = [
        dict(
            group=f"Shortcut {shortcut}, amplification {amplification}",
            label=method,
            config=f"{CONFIG},{options},core={CORE},shortcut={shortcut},"
            f"amplification={amplification}",
        )
        for shortcut in SHORTCUT
        for amplification in AMPLIFICATION
        for method, options in METHODS.items()
    ]
    percent = dict(unit="%", digits=1)
    columns = [
        dict(key="cues/diagonal/accuracy", header="Accuracy", better="higher", **percent),
        dict(key="cues/core/accuracy", header="By the core", **percent),
        dict(key="cues/shortcut/accuracy", header="By the shortcut", **percent),
        dict(key="cues/shortcut/member_accuracy", header="Members by the shortcut", **percent),
        dict(key="cues/shortcut/share", header="Members that follow the shortcut", **percent),
    ]
    return dict(
        title=f"A shortcut's predictivity and availability; the core's predictivity is {CORE}",
        seeds=(0, 1, 2, 3, 4),
        rows=rows,
        columns=columns,
    )
