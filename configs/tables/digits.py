"""The quickstart's table: one network against an ensemble of ten, on handwritten digits."""

from typing import Any


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; nothing is published for this split."""
    return dict(
        title="Handwritten digits 0 to 7 (MLP 64-128-128-8); digits 8 and 9 held out",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(label="Single network", config="configs/digits/mlp.py"),
            dict(label="Deep ensemble (10)", config="configs/digits/mlp.py:size=10"),
        ],
        columns=[
            dict(key="classification/accuracy", header="Accuracy", unit="%", better="higher"),
            dict(key="classification/nll", header="NLL", better="lower", digits=3),
            dict(key="calibration/ece", header="ECE", better="lower", digits=3),
            dict(key="corruption/accuracy", header="Corrupted acc.", unit="%", better="higher"),
            dict(key="corruption/nll", header="Corrupted NLL", better="lower", digits=3),
            dict(key="ood/held_out/auroc_entropy", header="AUROC 8, 9", better="higher", digits=3),
            dict(key="cost/parameters", header="Parameters", unit="M"),
            dict(key="cost/train_seconds", header="Training", unit="s", digits=1),
        ],
    )
