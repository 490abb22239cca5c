"""Columns that several tables show."""

from typing import Any


def joint(tau: int = 10, halves: bool = False) -> list[dict[str, Any]]:
    """Joint predictions of `tau` labels, of the evaluator `joint` with this `tau`.

    Args:
      tau: for the headers.
      halves: columns of members at one temperature, which the evaluator's `halves` gives.
    """
    where, at = ("joint/halves", " at T") if halves else ("joint", "")
    name = f"Joint NLL ({tau}){at}"
    return [
        dict(key=f"{where}/dyadic_nll", header=name, better="lower", digits=3),
        dict(key=f"{where}/dyadic_gain", header=f"Joint gain{at}", digits=3),
    ]
