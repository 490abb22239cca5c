"""Post-hoc calibration: maps of predictive probabilities, fitted on held-out labelled examples.

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
"""

from uncertainty.posthoc._ensemble import of_ensemble

__all__ = ["of_ensemble"]
