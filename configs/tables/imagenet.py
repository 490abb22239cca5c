"""uncertainty-baselines' ImageNet table: ResNet-50 with the methods of this library, then V-MoE and
E3 from scratch.

HetSNGP has a script in the source but no published row.
"""

from configs.published import PUBLISHED

ROWS = {
    "Deterministic": "",
    "MC dropout (10)": ":masks=10",
    "Heteroscedastic": ":method=het",
    "SNGP": ":method=sngp",
    "HetSNGP": ":method=hetsngp",
    "Ensemble (4)": ":size=4",
    "Heteroscedastic ensemble (4)": ":method=het,size=4",
    "SNGP ensemble (4)": ":method=sngp,size=4",
    "HetSNGP ensemble (4)": ":method=hetsngp,size=4",
}
SCRATCH = {"V-MoE-S/32": "", "E3-S/32 (1, 2)": ":members=2"}


def get_table() -> dict:
    """Rows, columns and seeds."""
    return dict(
        title="ImageNet: ResNet-50 (uncertainty-baselines) and V-MoE (google-research)",
        seeds=(0, 1, 2),
        rows=[
            dict(
                label=label,
                config=f"configs/imagenet/{file}.py{options}",
                published=PUBLISHED["imagenet"].get(label, {}),
            )
            for file, methods in dict(resnet50=ROWS, vmoe=SCRATCH).items()
            for label, options in methods.items()
        ],
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
            dict(
                key="ood/places365/auroc_entropy",
                header="AUROC Places365",
                better="higher",
                digits=3,
            ),
            dict(key="cost/parameters", header="Parameters", unit="M", digits=1),
            dict(key="cost/train_seconds", header="Training", unit="s", digits=0),
        ],
    )
