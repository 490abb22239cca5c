"""Particle methods against the true posterior of a small network, on a regression with a gap."""

from typing import Any

from configs.toys.particles import get_config
from experiments.experiment.base import derived, floor_of

ROWS = {
    "Deep ensemble": "ensemble",
    "SVGD": "svgd",
    "SVGD, functions": "svgd_functions",
    "SVGD, functional kernel": "svgd_functional_kernel",
    "SVGD, functional repulsion": "svgd_functional_repulsion",
    "Stochastic SVGD": "stochastic_svgd",
    "WGD KDE": "wgd_kde",
    "WGD SGE": "wgd_sge",
    "WGD SSGE": "wgd_ssge",
    "WGD KDE, functions": "fwgd_kde",
    "WGD SGE, functions": "fwgd_sge",
    "WGD SSGE, functions": "fwgd_ssge",
    "SGLD": "sgld",
    "pSGLD": "psgld",
    "SGHMC": "sghmc",
}
DISTANCES = (
    ("w1", "W1"),
    ("inside/w1", "W1 by the data"),
    ("outside/w1", "W1 elsewhere"),
    ("mean_error", "Error of the mean"),
    ("std_error", "of the s.d."),
)


def distances(task: str) -> list[dict[str, Any]]:
    """Columns of distances; in brackets, the distance of other draws of the reference."""
    spec = derived(get_config(f"task={task}").to_dict())["evaluators"]["posterior"]
    fields = {key: spec[key] for key in ("reference", "train", "near")}
    floors = floor_of(**fields)
    return [
        dict(
            key=f"posterior/{key}",
            header=f"{header} ({floors[key]:.3f})" if key in floors else header,
            better="lower",
            digits=3,
        )
        for key, header in DISTANCES
    ] + [dict(key="posterior/std_ratio", header="Mean s.d. / true", digits=2)]


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; the papers show this as a figure without numbers."""
    return dict(
        title="1-D regression, 100 particles: distance to the true posterior of f (in brackets: "
        "100 draws of other chains)",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(label=label, config=f"configs/toys/particles.py:task=regression,method={method}")
            for label, method in ROWS.items()
        ],
        columns=[
            *distances("regression"),
            dict(key="regression/rmse", header="Test RMSE", better="lower", digits=3),
            dict(key="cost/train_seconds", header="Training", unit="s", digits=0),
        ],
    )
