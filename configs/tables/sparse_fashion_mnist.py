"""Sparse experts and efficient ensembles of tiny ViTs on Fashion-MNIST, by quality and cost."""

from typing import Any

CONFIG = "configs/small_images/vit.py"
ROWS = {  # label -> options of the config
    "ViT": "method=vit",
    "MC dropout (2)": "method=mc_dropout",
    "MIMO (2)": "method=mimo",
    "BatchEnsemble (2)": "method=batch_ensemble",
    "V-MoE, K = 1": "method=vmoe,k=1",
    "V-MoE, K = 2": "method=vmoe,k=2",
    "V-MoE, K = 4": "method=vmoe,k=4",
    "Only tiling, K = 1, M = 2": "method=only_tiling",
    "Only partitioning, K = 1, M = 2": "method=only_partitioning",
    "E3, K = 1, M = 2": "method=e3",
    "E3, K = 2, M = 2": "method=e3,k=2",
    "E3, K = 1, M = 4": "method=e3,members=4",
    "ViT ensemble (2)": "method=vit,size=2",
    "ViT ensemble (4)": "method=vit,size=4",
    "V-MoE ensemble (2), K = 1": "method=vmoe,size=2",
    "V-MoE ensemble (4), K = 1": "method=vmoe,size=4",
}


def columns(**elsewhere: str) -> list[dict[str, Any]]:
    """The columns; OOD sets and their titles."""
    ood = [
        dict(key=f"ood/{name}/auroc_entropy", header=f"AUROC {title}", better="higher", digits=3)
        for name, title in elsewhere.items()
    ]
    return [
        dict(key="classification/accuracy", header="Accuracy", unit="%", better="higher"),
        dict(key="classification/nll", header="NLL", better="lower", digits=3),
        dict(key="calibration/ece", header="ECE", better="lower", digits=3),
        dict(key="corruption/nll", header="Corrupted NLL", better="lower", digits=3),
        *ood,
        dict(
            key="few_shot/10_shot_error", header="10-shot error", unit="%", better="lower", digits=1
        ),
        dict(key="few_shot/error", header="Few-shot error", unit="%", better="lower", digits=1),
        dict(key="uncertainty/pairwise_kl", header="Member KL", digits=4),
        dict(key="uncertainty/disagreement", header="Disagreement", unit="%"),
        dict(key="cost/parameters", header="Parameters", unit="K", digits=0),
        dict(key="cost/train_flops_per_example", header="Training FLOPs", unit="M", digits=1),
        dict(key="cost/predict_flops_per_example", header="Prediction FLOPs", unit="M", digits=2),
        dict(key="cost/train_ms_per_example", header="Train", unit="ms/example", digits=3),
        dict(key="cost/predict_ms_per_example", header="Predict", unit="ms/example", digits=3),
    ]


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; nothing is published for these data."""
    return dict(
        title="Tiny ViTs on Fashion-MNIST: sparse experts and efficient ensembles",
        seeds=(0, 1, 2, 3, 4),
        rows=[dict(label=label, config=f"{CONFIG}:{options}") for label, options in ROWS.items()],
        columns=columns(mnist="MNIST", kmnist="KMNIST"),
    )
