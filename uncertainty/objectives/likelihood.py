"""The likelihood: the default objective."""

from uncertainty.types import Objective


def likelihood() -> Objective:
    """The mean of -log p(y | u) over examples and members."""
    return Objective()
