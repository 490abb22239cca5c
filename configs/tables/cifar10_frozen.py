"""Heads on the features of a frozen ResNet-56, CIFAR-10."""

from typing import Any

ROWS = {  # label -> method of configs/cifar/frozen.py
    "Released last layer": "released",
    "Dense": "dense",
    "MLP": "mlp",
    "Deep ensemble of MLPs (5)": "ensemble",
    "SVGD of MLPs (5)": "svgd",
    "MC dropout of an MLP (10)": "dropout",
    "Last-layer Laplace": "laplace",
    "GP": "gp",
    "HET": "het",
    "HetSNGP": "hetsngp",
}
CONFIG = "configs/cifar/frozen.py"
# Of predictions for the test images; `halves` are calibrated on one half of them for the other.
PREDICTIONS = [
    dict(key="classification/accuracy", header="Accuracy", unit="%", better="higher", digits=2),
    dict(key="classification/nll", header="NLL", better="lower", digits=4),
    dict(key="calibration/ece", header="ECE", better="lower", digits=4),
    dict(key="halves/temperature", header="T", digits=2),
    dict(key="halves/nll", header="NLL at T", better="lower", digits=4),
    dict(key="halves/ece", header="ECE at T", better="lower", digits=4),
    dict(key="human/nll", header="Human NLL", better="lower", digits=4),
    dict(key="human/kl", header="Human KL", better="lower", digits=4),
    dict(key="halves/human_kl", header="Human KL at T", better="lower", digits=4),
    dict(key="human/spearman", header="Rank corr. with human H", better="higher", digits=3),
    dict(key="human/auroc", header="AUROC human doubt", better="higher", digits=3),
    dict(key="halves/lac/size", header="LAC 90 % size", better="lower", digits=3),
    dict(key="halves/lac/coverage", header="its coverage", unit="%", digits=1),
    dict(key="halves/aps/size_raw", header="APS size", better="lower", digits=3),
    dict(key="halves/aps/size", header="APS size at T", better="lower", digits=3),
]
# Of each score's sets: near CIFAR-100; far MNIST (test), DTD and GTSRB (subsets). Tiny ImageNet,
# SVHN and Places365 of OpenOOD are not among the files, so its averages are not given.
SETS = dict(cifar100="CIFAR-100", mnist="MNIST", dtd="DTD subset", gtsrb="GTSRB subset")
SCORES = dict(
    max_probability="MSP",
    entropy="entropy",
    mutual_information="MI",
    epistemic_variance="variance",
    max_logit="max logit",
    energy="energy",
    mahalanobis="Mahalanobis",
    relative_mahalanobis="relative Mahalanobis",
    layers_mahalanobis="Mahalanobis, 3 layers",
    knn="kNN",
    react="ReAct",
    dice="DICE",
    grad_norm="GradNorm",
    kl_matching="KL matching",
    residual="residual",
    vim="ViM",
    odin="ODIN",
)


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; nothing is published for these heads."""
    columns = [
        *PREDICTIONS,
        dict(
            key="corruption/accuracy", header="Corrupted acc.", unit="%", better="higher", digits=1
        ),
        dict(key="corruption/nll", header="Corrupted NLL", better="lower", digits=3),
        dict(key="corruption/ece", header="Corrupted ECE", better="lower", digits=3),
    ]
    columns += [
        dict(
            key=f"ood/{name}/auroc_{score}",
            header=f"AUROC {title}, {of_score}",
            better="higher",
            digits=3,
        )
        for score, of_score in SCORES.items()
        for name, title in SETS.items()
    ]
    return dict(
        title="CIFAR-10: heads on the features of a frozen ResNet-56",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(label=label, config=f"{CONFIG}:method={method}") for label, method in ROWS.items()
        ],
        columns=columns,
    )
