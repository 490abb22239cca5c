"""Which method detects which uncertainty: noisy rings and an OOD blob."""

from typing import Any

ROWS = {
    "Deterministic": "method=deterministic",
    "HET": "method=het",
    "SNGP": "method=sngp",
    "HetSNGP": "method=hetsngp",
    "HetSNGP ensemble (4)": "method=hetsngp,size=4",
}


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; HetSNGP's paper shows this as a figure without numbers."""
    return dict(
        title="Noisy rings and a blob elsewhere (H: entropy in nats, true H in brackets)",
        seeds=(0, 1, 2, 3, 4),
        rows=[
            dict(label=label, config=f"configs/toys/rings.py:{options}")
            for label, options in ROWS.items()
        ],
        columns=[
            dict(
                key="classification/accuracy",
                header="Accuracy",
                unit="%",
                better="higher",
                digits=1,
            ),
            dict(key="classification/nll", header="NLL", better="lower", digits=3),
            dict(key="calibration/ece", header="ECE", better="lower", digits=3),
            dict(key="map/inner/entropy", header="H inner (.950)", digits=3),
            dict(key="map/middle/entropy", header="H middle (.639)", digits=3),
            dict(key="map/outer/entropy", header="H outer (0)", digits=3),
            dict(key="map/blob/entropy", header="H blob", better="higher", digits=3),
            dict(
                key="map/inner/auroc_entropy",
                header="AUROC inner from outer, by H",
                better="higher",
                digits=3,
            ),
            dict(
                key="ood/blob/auroc_entropy",
                header="AUROC blob from rings, by H",
                better="higher",
                digits=3,
            ),
            dict(
                key="ood/blob/auroc_epistemic_variance",
                header="by variance",
                better="higher",
                digits=3,
            ),
            dict(key="cost/train_seconds", header="Training", unit="s", digits=0),
        ],
    )
