"""Rank-1 Bayesian neural networks: BatchEnsemble with a posterior (Dusenberry et al. 2020)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from uncertainty.ensembles.replace import check, members
from uncertainty.layers.batch_ensemble import around, random_sign
from uncertainty.layers.rank1 import Rank1
from uncertainty.types import Backbone, Head, Network


def rank1(
    backbone: Backbone,
    head: Head,
    size: int,
    num_examples: int,
    family: str = "gaussian",
    prior_location: float = 1.0,
    prior_scale: float = 0.1,
    fast_weights: Callable[..., jax.Array] = random_sign,
    initial_scale: float = 0.03,
    samples: int = 1,
    anneal_steps: int = 0,
    where: str = "",
) -> Network:
    """`size` members whose fast weights are drawn from their own posteriors; see `Rank1`.

    Fast weights have the places and names of those of `batch_ensemble`, so trained parameters of
    one can start the other. Training uses the mean of the members' -ELBO / N, with the KL in closed
    form; predictions have `size` x `samples` members. Other posteriors over the same parameters are
    refused by `build.inference`: a prior of `inference`, samplers, and particles that interact.

    Args:
      size: M, components of the posterior's mixture.
      num_examples: N, the size of the training set.
      family, prior_location, prior_scale, initial_scale, samples, anneal_steps: see `Rank1`.
      fast_weights: initialiser of the locations, as in `batch_ensemble`.
      where: as in `batch_ensemble`.

    Raises:
      ValueError: see `batch_ensemble` and `Rank1`.
    """
    check(size, where)
    fields: dict[str, Any] = dict(
        num_examples=num_examples,
        family=family,
        prior_location=prior_location,
        prior_scale=prior_scale,
        initial_scale=initial_scale,
        samples=samples,
        anneal_steps=anneal_steps,
    )
    # Checked here, before anything is traced.
    Rank1(functools.partial(nn.Dense, 1), size, **fields, parent=None)
    wrap = functools.partial(around, size=size, kind=Rank1, initial=fast_weights, **fields)
    return members(backbone, head, size, wrap, where, samples=samples, variational=True)
