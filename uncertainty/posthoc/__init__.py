"""Post-hoc calibration: maps of predictions, fitted on held-out labelled examples.

`name='file'` in a config is the function `file` of `file.py` here,

    file(log_p [B, K], labels [B], **fields) -> calibrator
    calibrator(log_p [..., B, K]) -> log_p [..., B, K], normalised

and a calibrator is a NamedTuple of arrays, so it is saved, and passed through `jax.jit`, as any
pytree is. A fit takes NumPy or JAX arrays and is in NumPy float64; a calibrator returns float64 for
NumPy arrays, and for JAX arrays their own precision.

Of what the log-probabilities are, a member's or the mixture's, is the caller's choice: see
`of_ensemble`.

    temperature  one number for all classes, which keeps the order of the classes
    vector       a factor and an intercept for each class
    dirichlet    a matrix and intercepts, regularised
    isotonic     a rising function of each class's probability
    histogram    a step function of each class's probability

Of targets there is one, from the members' moments [M, B, K] and y [B, K]:

    variance_scale(mean, variance, y) -> calibrator
    calibrator(mean, variance) -> mean, variance

>>> import numpy as np
>>> log_p = np.log([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
>>> calibrate = temperature(log_p, np.array([0, 1, 1, 1]))  # right three times of four, not nine
>>> np.exp(calibrate(log_p))[0].round(2)
array([0.75, 0.25])
"""

from uncertainty.posthoc._ensemble import OfMembers, OfMixture, of_ensemble
from uncertainty.posthoc.dirichlet import dirichlet
from uncertainty.posthoc.histogram import histogram
from uncertainty.posthoc.isotonic import isotonic
from uncertainty.posthoc.temperature import temperature
from uncertainty.posthoc.variance_scale import variance_scale
from uncertainty.posthoc.vector import vector

__all__ = [
    "OfMembers",
    "OfMixture",
    "dirichlet",
    "histogram",
    "isotonic",
    "of_ensemble",
    "temperature",
    "variance_scale",
    "vector",
]
