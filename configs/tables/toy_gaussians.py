"""Particle methods against the true posterior of a small network, on five Gaussians in a plane."""

from typing import Any

from configs.tables.toy_regression import ROWS, distances


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; the papers show this as a figure without numbers."""
    return dict(
        title="Five Gaussians, 100 particles: distance to the true posterior of the classes' "
        "probabilities (in brackets: 100 draws of other chains)",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(label=label, config=f"configs/toys/particles.py:task=gaussians,method={method}")
            for label, method in ROWS.items()
        ],
        columns=[
            *distances("gaussians"),
            dict(key="classification/nll", header="Test NLL", better="lower", digits=3),
            dict(
                key="ood/ring/auroc_entropy", header="AUROC ring, by H", better="higher", digits=3
            ),
            dict(key="cost/train_seconds", header="Training", unit="s", digits=0),
        ],
    )
