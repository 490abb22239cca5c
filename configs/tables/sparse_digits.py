"""A small `sparse_fashion_mnist`: the same methods on scikit-learn's digits, in minutes."""

from typing import Any

from configs.tables.sparse_fashion_mnist import ROWS, columns

CONFIG = "configs/digits/vit.py"


def get_table() -> dict[str, Any]:
    """Rows, columns and seeds; nothing is published for these data."""
    return dict(
        title="Tiny ViTs on the digits 0 to 7: sparse experts and efficient ensembles",
        seeds=(0, 1, 2, 3, 4),
        rows=[dict(label=label, config=f"{CONFIG}:{options}") for label, options in ROWS.items()],
        columns=columns(held_out="8, 9"),
    )
