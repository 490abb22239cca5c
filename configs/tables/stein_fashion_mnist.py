"""Particle methods on Fashion-MNIST, by accuracy, uncertainty and diversity."""

from typing import Any

ROWS = {  # label -> method of configs/small_images/particles.py
    "Deep ensemble": "ensemble",
    "Hyper-deep ensemble": "hyper",
    "Hyper-deep ensemble, selected": "hyper_selected",
    "SGLD": "sgld",
    "SVGD": "svgd",
    "Stochastic SVGD": "stochastic_svgd",
    "Function SVGD": "f_svgd",
    "Hybrid SVGD, functional kernel": "functional_kernel",
    "Hybrid SVGD, functional repulsion": "functional_repulsion",
    "KDE-WGD": "kde",
    "SGE-WGD": "sge",
    "SSGE-WGD": "ssge",
    "KDE-fWGD": "f_kde",
    "SGE-fWGD": "f_sge",
    "SSGE-fWGD": "f_ssge",
}
# Takes an hour or two on two CPU cores; the config's size and steps are those of the paper.
SIZE, STEPS = 10, 3_000
CONFIG = "configs/small_images/particles.py"


def get_table() -> dict[str, Any]:
    """Rows and columns; KMNIST is added to the paper's MNIST as OOD data."""
    rows = [
        dict(label=label, config=f"{CONFIG}:method={method},size={SIZE},steps={STEPS}")
        for label, method in ROWS.items()
    ]
    columns = [
        dict(key="classification/accuracy", header="Accuracy", unit="%", better="higher", digits=1),
        dict(key="classification/nll", header="NLL", better="lower", digits=3),
        dict(key="classification/nll_of_mean", header="-log mean p", better="lower", digits=3),
        dict(key="calibration/ece", header="ECE", better="lower", digits=3),
        dict(key="uncertainty/disagreement", header="Disagreement", unit="%", digits=1),
        dict(key="uncertainty/pairwise_kl", header="Member KL", digits=3),
    ]
    for name, title in (("mnist", "MNIST"), ("kmnist", "KMNIST")):
        columns += [
            dict(
                key=f"ood/{name}/auroc_entropy",
                header=f"{title} AUROC H",
                better="higher",
                digits=3,
            ),
            dict(
                key=f"ood/{name}/auroc_probability_std",
                header=f"{title} AUROC MD",
                better="higher",
                digits=3,
            ),
            dict(
                key=f"ood/{name}/ratio_entropy", header=f"{title} Ho/Ht", better="higher", digits=2
            ),
            dict(
                key=f"ood/{name}/ratio_probability_std",
                header=f"{title} MDo/MDt",
                better="higher",
                digits=2,
            ),
        ]
    return dict(
        title=f"Particle methods on Fashion-MNIST, {SIZE} MLPs with three hidden layers of 100, "
        f"{STEPS:,} steps",
        seeds=(0, 1, 2, 3, 4),
        rows=rows,
        columns=columns,
    )
