"""Which features members use where a simple and a complex one tell the class."""

from typing import Any

CONFIG = "configs/toys/shortcuts.py:small,files=runs/data"
SETS = dict(
    slabs="Linear and slabs",
    noisy="Noisy linear",
    mnist="MNIST over Fashion-MNIST",
    dominoes="MNIST over CIFAR-10",
)
# Strong repulsion is what was best for complex features in table shortcut_strength.
STRONG = "points=unlabelled,compared=probabilities,strength=100000"
ROWS = {
    "Single network": "method=single",
    "Deep ensemble (4)": "method=ensemble",
    "BatchEnsemble (4)": "method=batch_ensemble",
    "ViT ensemble (4)": "method=vit",
    "E3 (4)": "method=e3",
    "SVGD, weights (4)": "method=svgd",
    "SVGD, functions (4)": "method=f_svgd",
    "SVGD, hybrid (4)": "method=hybrid",
    "SVGD, functions, strong (4)": f"method=f_svgd,{STRONG}",
    "SVGD, hybrid, strong (4)": f"method=hybrid,{STRONG}",
    "WGD, functions, strong (4)": f"method=f_wgd,{STRONG}",
    "DivDis (4 heads)": "method=divdis",
    "D-BAT (4)": "method=d_bat",
    "Multi-symmetry (2 + 2)": "method=multi_symmetry",
    "Control: complex feature alone": "method=control",
}
OF_IMAGES = ("method=vit", "method=e3", "method=multi_symmetry")


def get_table() -> dict[str, Any]:
    """Rows of each set, columns and seeds; nothing is published for these small networks."""
    rows = [
        dict(group=title, label=label, config=f"{CONFIG},data={data},{options}")
        for data, title in SETS.items()
        for label, options in ROWS.items()
        if data in ("mnist", "dominoes") or options not in OF_IMAGES
    ]
    return dict(
        title="Which of two features members use, where both tell the class: small networks",
        seeds=(0, 1, 2, 3, 4),
        rows=rows,
        columns=columns(),
    )


def columns() -> list[dict[str, Any]]:
    """Accuracies where features are exchanged, and shares of members."""
    of = "simplicity"
    percent = dict(unit="%", digits=1)
    return [
        dict(key=f"{of}/standard/accuracy", header="Accuracy", **percent),
        dict(
            key=f"{of}/simple_randomised/accuracy",
            header="S-randomised",
            **percent,
        ),
        dict(key=f"{of}/simple_randomised/auc", header="its AUC", digits=3),
        dict(key=f"{of}/simple_randomised/member_accuracy", header="its members", **percent),
        dict(key=f"{of}/simple_randomised/best_member", header="its best member", **percent),
        dict(key=f"{of}/complex_randomised/accuracy", header="Sᶜ-randomised", **percent),
        dict(key=f"{of}/complex_randomised/auc", header="its AUC (Sᶜ)", digits=3),
        dict(key=f"{of}/simple_share", header="Members that use simple", **percent),
        dict(key=f"{of}/complex_share", header="Members that use complex", **percent),
        dict(key="cues/complex/share", header="Members that follow complex", **percent),
        dict(key="disambiguation/16/accuracy", header="Chosen by 16 labels", **percent),
        dict(key="disambiguation/disagreement", header="Disagreement", **percent),
    ]
