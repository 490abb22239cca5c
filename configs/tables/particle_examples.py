"""Deep ensembles with shared batches, against those whose members have their own batches."""

from typing import Any

ROWS = {
    "Shared batches": "shared",
    "An order of its own": "shuffled",
    "A bootstrap sample of its own": "bootstrap",
}
CONFIG = "configs/small_images/lenet5.py:size=4,padding=VALID,steps=2000,corruption=false"


def get_table() -> dict[str, Any]:
    """Rows and columns; rows with the same seed are paired, as they start from the same weights."""
    return dict(
        title="Ensembles of four LeNet5 (61,706 parameters) on Fashion-MNIST, 2,000 steps",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(label=label, config=f"{CONFIG},particles={particles}")
            for label, particles in ROWS.items()
        ],
        columns=[
            dict(key="classification/nll", header="NLL", better="lower", digits=4),
            dict(
                key="classification/accuracy",
                header="Accuracy",
                unit="%",
                better="higher",
                digits=2,
            ),
            dict(key="calibration/ece", header="ECE", better="lower", digits=4),
            dict(key="classification/member_nll", header="Member NLL", better="lower", digits=4),
            dict(key="uncertainty/disagreement", header="Disagreement", unit="%", digits=2),
            dict(key="uncertainty/pairwise_kl", header="Member KL", digits=4),
            dict(key="ood/mnist/auroc_entropy", header="AUROC MNIST", better="higher", digits=3),
            dict(key="ood/kmnist/auroc_entropy", header="AUROC KMNIST", better="higher", digits=3),
        ],
    )
