"""Rank-1 Bayesian layers: fast weights with a posterior (Dusenberry et al. 2020).

    y_m = s_m * W (r_m * x) + b_m,   r_m ~ q_m(r),  s_m ~ q_m(s),   prior p(r) = p(s)

where q_m and p are independent Gaussians, or Cauchy distributions, of each entry.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.layers.batch_ensemble import FastWeights

Kl = Callable[..., jax.Array]  # location, scale, prior's location, prior's scale -> nats


def kl_gaussian(mean: jax.Array, std: jax.Array, mean0: float, std0: float) -> jax.Array:
    """KL(N(mean, std^2) || N(mean0, std0^2)), of each entry in nats."""
    return jnp.log(std0 / std) + (std**2 + (mean - mean0) ** 2) / (2 * std0**2) - 0.5


def kl_cauchy(at: jax.Array, scale: jax.Array, at0: float, scale0: float) -> jax.Array:
    """KL of Cauchy distributions, of each entry in nats (Chyzak & Nielsen 2019, theorem 1)."""
    return jnp.log(((scale + scale0) ** 2 + (at - at0) ** 2) / (4 * scale * scale0))


FAMILIES = {"gaussian": (jax.random.normal, kl_gaussian), "cauchy": (jax.random.cauchy, kl_cauchy)}


class Rank1(FastWeights, kw_only=True):
    """Random fast weights: per member, one draw in a training step and S draws at prediction.

    Parameters are those of `FastWeights`, whose `fast_input` and `fast_output` are the locations,
    and `fast_input_scale` and `fast_output_scale`, whose softplus are the scales, [M, D] and [M,
    K].

    In training KL(q_m || p) / N [M], summed over entries, is sown in 'losses', so that the loss is
    the mean over members of their own -ELBO / N. Draws come from the rng stream 'noise'; the
    examples of a batch share them. At prediction members are [M S], with the draws of one member
    side by side.

    Differences from the paper: the mean over members of their KL, where its code takes the sum (M
    times as much); W and b have no prior here (use `optimiser.l2`).

    Attributes:
      num_examples: N, the size of the training set.
      family: 'gaussian' or 'cauchy'.
      prior_location, prior_scale: of p.
      initial_scale: of q at the start; the locations' start is `initial`.
      samples: S.
      anneal_steps: the KL is multiplied by t / anneal_steps in earlier steps t, which are counted
        in the collection 'annealing' (with `inference.accumulate`, each part of a batch is a step);
        0 for the full KL from the start.
      Others as in `FastWeights`.

    Raises:
      ValueError: an unknown family, a number out of range, or see `FastWeights`.
    """

    num_examples: int
    family: str = "gaussian"
    prior_location: float = 1.0
    prior_scale: float = 0.1
    initial_scale: float = 0.03
    samples: int = 1
    anneal_steps: int = 0

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"family: {self.family!r}; allowed {', '.join(map(repr, FAMILIES))}")
        for field in ("num_examples", "samples"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: {getattr(self, field)}; at least 1")
        for field in ("prior_scale", "initial_scale"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field}: {getattr(self, field)}; a positive number")
        if self.anneal_steps < 0:
            raise ValueError(f"anneal_steps: {self.anneal_steps}; at least 0")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if self.anneal_steps:
            steps = self.variable("annealing", "steps", jnp.zeros, ())
            if self._training():
                steps.value += 1
        return y

    @nn.nowrap
    def fast(self, name: str, features: int) -> jax.Array:
        """r or s of this pass, [M, features] in training and [M S, features] at prediction."""
        location = super().fast(name, features)
        start = jnp.log(jnp.expm1(self.initial_scale))  # the inverse of softplus
        constant = nn.initializers.constant(start)
        scale = self.param(f"{name}_scale", constant, location.shape, jnp.float32)
        scale = nn.softplus(scale)
        draw, kl = FAMILIES[self.family]
        samples = 1 if self._training() else self.samples
        if self._training():
            divergence = kl(location, scale, self.prior_location, self.prior_scale)
            weight = self._annealing() / self.num_examples
            self.sow("losses", f"{name}_kl", weight * jnp.sum(divergence, axis=-1))
        location, scale = (jnp.repeat(a, samples, axis=0) for a in (location, scale))
        return location + scale * draw(self.make_rng("noise"), location.shape)

    @nn.nowrap
    def _training(self) -> bool:
        return self.is_mutable_collection("losses") and not self.is_initializing()

    @nn.nowrap
    def _annealing(self) -> jax.Array | float:
        if not self.anneal_steps:
            return 1.0
        return jnp.minimum(self.get_variable("annealing", "steps") / self.anneal_steps, 1.0)
