"""Fashion-MNIST with class-dependent label noise: heads that model noise, distance, or both."""

from typing import Any

ROWS = {
    "Deterministic": "method=deterministic",
    "MC dropout (10)": "method=deterministic,masks=10",
    "Deep ensemble (4)": "method=deterministic,size=4",
    "HET": "method=het",
    "SNGP": "method=sngp",
    "HetSNGP": "method=hetsngp",
    "HetSNGP ensemble (4)": "method=hetsngp,size=4",
}


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; nothing is published for these data."""
    columns = [
        dict(key="classification/accuracy", header="Accuracy", unit="%", better="higher", digits=1),
        dict(key="classification/nll", header="NLL", better="lower", digits=3),
        dict(key="calibration/ece", header="ECE", better="lower", digits=3),
        dict(
            key="corruption/accuracy", header="Corrupted acc.", unit="%", better="higher", digits=1
        ),
        dict(key="corruption/nll", header="Corrupted NLL", better="lower", digits=2),
    ]
    for name in ("mnist", "kmnist"):
        for metric, score, header in (
            ("auroc", "entropy", "AUROC"),
            ("aupr_out", "entropy", "AUPR"),
            ("auroc", "epistemic_variance", "AUROC by variance"),
        ):
            key = f"ood/{name}/{metric}_{score}"
            header = f"{header} {name.upper()}"
            columns.append(dict(key=key, header=header, better="higher", digits=3))
    columns += [
        dict(key="cost/parameters", header="Parameters", unit="K", digits=0),
        dict(key="cost/train_ms_per_example", header="Train", unit="ms/example", digits=3),
        dict(key="cost/predict_ms_per_example", header="Predict", unit="ms/example", digits=3),
    ]
    return dict(
        title="Fashion-MNIST with class-dependent label noise, LeNet5",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(label=label, config=f"configs/small_images/noisy_fashion_mnist.py:{options}")
            for label, options in ROWS.items()
        ],
        columns=columns,
    )
