"""uncertainty-baselines' small-image table: LeNet5 on Fashion-MNIST and MNIST."""

from typing import Any

from configs.published import PUBLISHED


def get_table() -> dict[str, Any]:
    """Rows of both data sets and both forms of LeNet5."""
    rows = []
    for dataset, title in (("fashion_mnist", "Fashion-MNIST"), ("mnist", "MNIST")):
        for padding, parameters in (("SAME", "545,546"), ("VALID", "61,706")):
            for size, label in ((1, "Deterministic"), (10, "Ensemble (10)")):
                rows.append(
                    dict(
                        group=f"{title}, {parameters} parameters",
                        label=label,
                        config=f"configs/small_images/lenet5.py:dataset={dataset},size={size},"
                        f"padding={padding}",
                        # Published rows are compared with the network that the script builds.
                        published=PUBLISHED[dataset][label] if padding == "SAME" else {},
                    )
                )
    return dict(
        title="LeNet5 on small images (uncertainty-baselines, baselines/mnist)",
        seeds=(0, 1, 2, 3, 4),
        rows=rows,
        columns=[
            dict(key="classification/nll", header="NLL", better="lower", digits=3),
            dict(
                key="classification/accuracy",
                header="Accuracy",
                unit="%",
                better="higher",
                digits=1,
            ),
            dict(key="calibration/ece", header="ECE", better="lower", digits=3),
            dict(key="corruption/nll", header="Corrupted NLL", better="lower", digits=2),
            dict(
                key="corruption/accuracy",
                header="Corrupted acc.",
                unit="%",
                better="higher",
                digits=1,
            ),
            dict(key="ood/mnist/auroc_entropy", header="AUROC MNIST", better="higher", digits=3),
            dict(key="ood/kmnist/auroc_entropy", header="AUROC KMNIST", better="higher", digits=3),
        ],
    )
