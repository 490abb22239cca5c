"""uncertainty-baselines' CIFAR-10 table: WideResNet-28-10 with the methods of this library, then
ViT, V-MoE and E3, fine-tuned from released checkpoints.

HetSNGP, and on CIFAR-10 HET too, have scripts in the source but no published row. Nothing is
published for our corruptions, which are not those of CIFAR-10-C.
"""

from typing import Any

from configs.published import PUBLISHED

ROWS = {
    "Deterministic": "",
    "MC dropout (1)": ",masks=1",
    "MC dropout (30)": ",masks=30",
    "Heteroscedastic": ",method=het",
    "SNGP": ",method=sngp",
    "SNGP, MC dropout (10)": ",method=sngp,masks=10",
    "HetSNGP": ",method=hetsngp",
    "Ensemble (4)": ",size=4",
    "Heteroscedastic ensemble (4)": ",method=het,size=4",
    "SNGP ensemble (4)": ",method=sngp,size=4",
    "HetSNGP ensemble (4)": ",method=hetsngp,size=4",
    "BatchEnsemble (4)": ",ensemble=batch_ensemble",
    "MIMO (3)": ",ensemble=mimo",
}
VITS = {
    "ViT-B/32, ImageNet-21k": "",
    "BatchEnsemble ViT-B/32 (4), ImageNet-21k": ",ensemble=batch_ensemble",
    "Ensemble of ViT-B/32 (4), ImageNet-21k": ",size=4",
}
EXPERTS = {
    "E3-S/32 (1, 2), ImageNet": ",model=e3-S/32",
    "V-MoE-S/32, ImageNet": ",model=vmoe-S/32",
    "V-MoE-B/16, ImageNet-21k": ",model=vmoe-B/16",
}


def get_table(dataset: str = "cifar10", title: str = "CIFAR-10", near: str = "cifar100") -> dict:
    """Rows, columns and seeds; `near` is the other CIFAR, as out-of-distribution data."""
    rows: list[dict[str, Any]] = [
        dict(
            label=label,
            config=f"configs/cifar/{file}.py:dataset={dataset}{options}",
            published=PUBLISHED[dataset].get(label, {}),
        )
        for file, methods in dict(wide_resnet=ROWS, vit=VITS, vmoe=EXPERTS).items()
        for label, options in methods.items()
    ]
    return dict(
        title=f"{title}: WideResNet-28-10, and fine-tuned ViT and V-MoE",
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
            dict(key=f"ood/{near}/auroc_entropy", header="AUROC near", better="higher", digits=3),
            dict(key="ood/svhn/auroc_entropy", header="AUROC SVHN", better="higher", digits=3),
            dict(key="cost/parameters", header="Parameters", unit="M", digits=1),
            dict(key="cost/train_seconds", header="Training", unit="s", digits=0),
        ],
    )
