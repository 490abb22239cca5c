"""Conformal prediction: sets and intervals with finite-sample coverage of exchangeable examples.

    q = the ceil((n + 1)(1 - alpha))-th smallest of the n calibration scores s(x_i, y_i)
    C(x) = {y : s(x, y) <= q},    P(y in C(x)) >= 1 - alpha

over calibration and test examples together (Vovk et al. 2005; Angelopoulos & Bates 2023, "Conformal
prediction: a gentle introduction"). If n < 1 / alpha - 1 there is no such score: q is infinite, and
the set has everything. The guarantee is of the average over x; under a shift it does not hold.

`name='file'` in a config is the function `file` of `file.py` here. Classes, from the mixture's
log-probabilities:

    file(log_p [B, K], labels [B], alpha=, by=, groups=, ...) -> predictor
    predictor(log_p [B, K], u=, groups=) -> whether a class is in the set, [B, K]

    lac   least ambiguous sets: the smallest on average
    aps   adaptive sets: larger where the model is less certain
    raps  aps with a penalty of long sets
    saps  ranks in place of probabilities, but for the largest

Targets:

    split    intervals of one width, or in proportion to a predicted scale
    cqr      predicted quantiles, moved by one number
    regions  several targets at once, by directional quantiles

`by='class'` has one q for each class and `by='group'` for each group of examples (Mondrian; Vovk et
al. 2005): coverage then holds within each of them. Predictors are NamedTuples of NumPy arrays.

>>> import numpy as np
>>> y = np.arange(1.0, 20.0)[:, None]  # 19 targets, predicted as 0
>>> low, high = split(np.zeros((19, 1)), y, alpha=0.1)(np.zeros((1, 1)))
>>> float(high[0, 0])  # the 18th smallest of 19 errors, as 20 x .9 = 18
18.0
"""

from uncertainty.conformal.aps import aps
from uncertainty.conformal.cqr import cqr
from uncertainty.conformal.lac import lac
from uncertainty.conformal.raps import raps
from uncertainty.conformal.regions import areas, outline, regions, spread, volumes
from uncertainty.conformal.saps import saps
from uncertainty.conformal.split import split

__all__ = [
    "aps",
    "areas",
    "cqr",
    "lac",
    "outline",
    "raps",
    "regions",
    "saps",
    "split",
    "spread",
    "volumes",
]
