"""Wasserstein gradient descent: repulsive ensembles by an estimate of the particles' own score."""

from collections.abc import Callable

import jax.numpy as jnp

from uncertainty.inference.directions.interacting import Transport, interacting
from uncertainty.inference.directions.spectral import score_at_samples
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.types import LIKELIHOOD, Direction, Kernel, Objective, Target

ESTIMATORS = ("kde", "sge", "ssge")


def wgd(
    over: Callable,
    target: Target,
    accumulate: int = 1,
    objective: Objective = LIKELIHOOD,
    own_examples: bool = False,
    estimator: str = "kde",
    kernel: Callable[..., Kernel] = rbf,
    space: str = "weights",
    values: str = "logits",
    per_layer: bool = False,
    ridge: float = 0.01,
    kept: float = 0.99,
    annealing: Callable | None = None,
    context: Callable | None = None,
    function_prior: int = 0,
) -> Direction:
    """phi_i = a s_i - temperature grad log q(z_i), with q the distribution of the particles.

    Source: D'Angelo & Fortuin 2021, "Repulsive deep ensembles are Bayesian". grad log q is made
    from K_ij = k(z_i, z_j) and r_i = sum_j grad_{z_j} k(z_j, z_i) by

      kde   -r_i / sum_j K_ij, the score of a kernel density
      sge   -(K + ridge I)^-1 r, the Stein gradient estimator (Li & Turner 2018)
      ssge the same without a ridge on the leading eigenvectors of K, with the share `kept` of its
      trace: the spectral estimator (Shi et al. 2018) at its samples

    Differences from the reference code: there 'ssge' keeps all eigenvectors and adds the ridge to
    K, which makes it 'sge'.

    Args:
      estimator: one of ESTIMATORS; 'kde' needs a stationary kernel.
      ridge, kept: see above.
      space: 'weights' or 'functions'. The hybrids of `interacting` differ in which scores they
        average; here each particle follows its own.
      Others are those of `interacting`; `kernel`, `annealing` and `context` are factories.

    Raises:
      ValueError: an unknown estimator or space, a kernel that is not stationary with 'kde', or a
        number out of range.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: {estimator!r}; one of {', '.join(map(repr, ESTIMATORS))}")
    if space not in ("weights", "functions"):
        raise ValueError(f"space: {space!r}; 'weights' or 'functions', as scores are not averaged")
    if not ridge > 0:
        raise ValueError(f"ridge: {ridge}; a positive number")
    if not 0 < kept <= 1:
        raise ValueError(f"kept: {kept}; above 0, at most 1")
    chosen = kernel()
    if estimator == "kde" and not chosen.stationary:
        raise ValueError("kernel: 'kde' is a density estimate and needs a stationary kernel")
    transport: dict[str, Transport] = {
        "kde": lambda K, F: (None, F / K.sum(1, keepdims=True)),
        "sge": lambda K, F: (None, jnp.linalg.solve(K + ridge * jnp.eye(len(K)), F)),
        "ssge": lambda K, F: (None, -score_at_samples(K, F, kept)),
    }
    return interacting(
        transport[estimator],
        over,
        target,
        accumulate,
        objective,
        own_examples,
        kernel=chosen,
        space=space,
        values=values,
        per_layer=per_layer,
        annealing=annealing and annealing(),
        context=context and context(),
        function_prior=function_prior,
    )
