"""Members that ignore or predict rotations, on Fashion-MNIST with and without turned classes."""

import itertools
from typing import Any

CONFIG = "configs/small_images/multi_symmetry.py"
KINDS = ("eq", "inv", "supervised")
COUPLES = (("eq", "inv"), ("eq", "eq"), ("inv", "inv"), ("supervised", "supervised"))
DATA = {"Turned": "turned=some", "Upright": "turned=none",
        "ResNet-8, turned": "network=resnet8,turned=some",
        "ResNet-8, upright": "network=resnet8,turned=none"}  # fmt: skip
METHODS = {"Pre-trained": "pretrain", "Fine-tuned": "fine_tune", "By labels": "labels",
           "Supervised": "supervised"}  # fmt: skip
METRICS = (
    dict(key="disagreement", header="Disagreement", unit="%", digits=2),
    dict(key="error_inconsistency", header="Error inconsistency", unit="%", digits=2),
    dict(key="accuracy_2", header="Accuracy of two", unit="%", better="higher", digits=2),
    dict(key="nll_2", header="NLL of two", better="lower", digits=4),
)


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; nothing is published for these data."""
    columns = [
        *quality("classification", "of all"),
    ]
    for kind in KINDS:
        of = f"kinds/{kind}"
        columns += [
            dict(key=f"{of}/member_accuracy", header=f"Accuracy, {kind}", unit="%",
                 better="higher", digits=2),
            dict(key=f"{of}/member_nll", header=f"NLL, {kind}", better="lower", digits=4),
            dict(key=f"{of}/classes_won", header=f"Classes won, {kind}", unit="%", digits=0),
            dict(key=f"symmetry/rotations/{kind}/probe_accuracy", header=f"Rotation probe, {kind}",
                 unit="%", digits=1),
            dict(key=f"symmetry/rotations/{kind}/cosine", header=f"Cosine of rotations, {kind}",
                 digits=3),
        ]  # fmt: skip
    for metric, (a, b) in itertools.product(METRICS, COUPLES):
        of = dict(key=f"kinds/{a}+{b}/{metric['key']}", header=f"{metric['header']}, {a}+{b}")
        columns.append({**metric, **of})
    for label in ("greedy", "winners", "gate"):
        columns += quality(f"combination/{label}", label)
        columns += [
            dict(key=f"combination/{label}/share/{kind}", header=f"{label}: {kind}", unit="%",
                 digits=0)
            for kind in KINDS[:2]
        ]  # fmt: skip
    columns += [
        dict(key=f"kinds/{kind}/class/{k}/accuracy", header=f"Class {k}, {kind}", unit="%",
             digits=1)
        for k in range(10)
        for kind in KINDS[:2]
    ]  # fmt: skip
    columns += [
        dict(key="cost/parameters", header="Parameters", unit="K", digits=0),
        dict(key="cost/train_ms_per_example", header="Train", unit="ms/example", digits=3),
    ]
    return dict(
        title="Multi-symmetry ensembles on 10,000 images of Fashion-MNIST, 14 x 14",
        seeds=(0, 1, 2),
        rows=[
            dict(group=group, label=label, config=f"{CONFIG}:method={method},{options}")
            for group, options in DATA.items()
            for label, method in METHODS.items()
        ],
        columns=columns,
    )


def quality(group: str, of: str) -> list[dict[str, Any]]:
    """The columns of accuracy and NLL of a group of metrics."""
    return [
        dict(key=f"{group}/accuracy", header=f"Accuracy, {of}", unit="%", better="higher",
             digits=2),
        dict(key=f"{group}/nll", header=f"NLL, {of}", better="lower", digits=4),
    ]  # fmt: skip
