"""Particle methods on small UCI regression sets, 20 random splits each."""

from typing import Any

ROWS = {  # label -> options of configs/tabular/uci.py, and the nearest published row
    "Single network": ("method=ensemble,size=1", "Deterministic"),
    "Deep ensemble (20)": ("method=ensemble", "Ensemble (10)"),
    "SVGD (20)": ("method=svgd", None),
    "SVGD in function space (20)": ("method=svgd_functions", None),
    "WGD (20)": ("method=wgd", None),
    "WGD in function space (20)": ("method=wgd_functions", None),
    "SGLD (20 chains)": ("method=sgld", None),
}
SOURCE = "google/uncertainty-baselines, baselines/uci/README.md"
PUBLISHED = {  # NLL; the same network and one noise level, but no prior, and 80 % training data
    "boston": {
        "Deterministic": (16.11, f"{SOURCE} (80/20 split, no prior)"),
        "Ensemble (10)": (6.11, f"{SOURCE} (80/20 split, no prior, 10 networks)"),
    },
    "concrete": {
        "Deterministic": (3.94, f"{SOURCE} (80/20 split, no prior)"),
        "Ensemble (10)": (3.20, f"{SOURCE} (80/20 split, no prior, 10 networks)"),
    },
}
TITLES = dict(boston="Boston", concrete="Concrete", diabetes="Diabetes")


def get_table() -> dict[str, Any]:
    """Rows of each set, columns and seeds; the NLL is minus the test log-likelihood."""
    rows = [
        dict(
            group=title,
            label=label,
            config=f"configs/tabular/uci.py:dataset={dataset},{options}",
            published={"regression/nll": PUBLISHED[dataset][near]}
            if near in PUBLISHED.get(dataset, {})
            else {},
        )
        for dataset, title in TITLES.items()
        for label, (options, near) in ROWS.items()
    ]
    return dict(
        title="UCI regression, one hidden layer of 50, 90/10 splits (units of the outcome)",
        seeds=tuple(range(20)),  # of the split and the networks
        rows=rows,
        columns=[
            dict(key="regression/nll", header="NLL", better="lower", digits=2),
            dict(key="regression/rmse", header="RMSE", better="lower", digits=2),
            dict(
                key="regression/coverage_0.9",
                header="Coverage of 90 % intervals",
                unit="%",
                digits=1,
            ),
            dict(key="regression/width_0.9", header="their width", digits=1),
            dict(
                key="regression/calibration", header="Calibration error", better="lower", digits=3
            ),
            dict(key="regression/crps", header="CRPS", better="lower", digits=2),
            dict(key="cost/train_seconds", header="Training", unit="s", digits=0),
        ],
    )
