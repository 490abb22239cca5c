"""One layer or another at the same path."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn


class Choice(nn.Module):
    """The layer of `special` if `where` matches this layer's path, otherwise that of `plain`.

    This module does not change the paths of parameters.
    """

    plain: Callable[[], nn.Module]
    special: Callable[[], nn.Module]
    where: str

    def setup(self):
        matches = re.search(self.where, "/".join(self.path))
        self.layer = (self.special if matches else self.plain)()
        nn.share_scope(self, self.layer)

    def __call__(self, *args, **options) -> Any:
        return self.layer(*args, **options)
