"""The likelihood: the objective of every config that names none."""

from uncertainty.types import Objective


def likelihood() -> Objective:
    """The mean of -log p(y | u) over examples and members."""
    return Objective()
