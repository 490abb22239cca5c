"""Heads on the features of a frozen ResNet-56, trained with the noisy labels of CIFAR-10N."""

from typing import Any

from configs.tables.cifar10_frozen import CONFIG, PREDICTIONS, ROWS

HEADS = ("dense", "ensemble", "gp", "het", "hetsngp")
LABELS = {
    "Aggregate (9 % wrong)": "aggregate",
    "Random (17 %)": "random1",
    "Worst (40 %)": "worst",
}


def get_table() -> dict[str, Any]:
    """Rows by labels and method, columns and seeds; evaluated on clean test labels and votes."""
    return dict(
        title="CIFAR-10N: heads on the features of a frozen ResNet-56",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(group=group, label=label, config=f"{CONFIG}:method={method},labels={labels}")
            for group, labels in LABELS.items()
            for label, method in ROWS.items()
            if method in HEADS
        ],
        columns=PREDICTIONS,
    )
