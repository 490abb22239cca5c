"""Random Fourier features of the RBF kernel."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.cpu import cosine as polynomial


class RandomFeatures(nn.Module):
    """phi(h) = a sqrt(2 / m) cos(W h / l + b), with W and b drawn once: [..., D] -> [..., m].

    Over W_ij ~ N(0, 1) and b_j ~ U(0, 2 pi) the mean of phi(h) . phi(h') is the RBF kernel

        k(h, h') = a^2 exp(-|h - h'|^2 / (2 l^2))

    (Rahimi & Recht 2007), and of phi(h) . phi(h) the prior's variance a^2. With `orthogonal` the
    rows of W, columns as it is stored, are orthogonal in blocks of D and as long as Gaussian ones
    (Yu et al. 2016): the same mean, and less variance where m is not small against D.

    W [D, m] and b [m] are in the collection 'random_features' and are never trained.

    Attributes:
      features: m.
      length_scale: l, in units of h; None means sqrt(D / 2), which suits inputs of unit variance
        and is edward2's default for JAX.
      amplitude: a. edward2's unscaled features, without sqrt(2 / m), are a = sqrt(m / 2).
      orthogonal: see above.

    Raises:
      ValueError: features below 1, or a length scale or amplitude that is not positive.
    """

    features: int = 1024
    length_scale: float | None = None
    amplitude: float = 1.0
    orthogonal: bool = True

    def __post_init__(self):
        if self.features < 1:
            raise ValueError(f"features: {self.features}; at least 1 is needed")
        for field in ("length_scale", "amplitude"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"{field}: {value}; a positive number is needed")
        super().__post_init__()

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        D, m = h.shape[-1], self.features

        def draw_kernel() -> jax.Array:
            key = self.make_rng("params")
            return orthogonal(key, D, m) if self.orthogonal else jax.random.normal(key, (D, m))

        def draw_bias() -> jax.Array:
            return jax.random.uniform(self.make_rng("params"), (m,), maxval=2 * jnp.pi)

        kernel = self.variable("random_features", "kernel", draw_kernel).value
        bias = self.variable("random_features", "bias", draw_bias).value
        length_scale = self.length_scale or math.sqrt(D / 2)
        turn = 2 * math.pi
        turns = h.astype(jnp.float32) @ (kernel / (turn * length_scale)) + bias / turn
        return self.amplitude * math.sqrt(2 / m) * cosine(turns)


def cosine(turns: jax.Array) -> jax.Array:
    """cos(2 pi turns), to 1e-6 beyond the rounding of `turns`."""
    if cpu.enabled():
        return polynomial.cosine(turns)
    return jnp.cos(2 * math.pi * (turns - jnp.round(turns)))  # accurate for large |turns| too


def orthogonal(key: jax.Array, D: int, m: int) -> jax.Array:
    """[D, m]: blocks of D orthogonal columns, each as long as a standard Gaussian vector."""
    blocks = -(-m // D)
    key_directions, key_lengths = jax.random.split(key)
    gaussian = jax.random.normal(key_directions, (blocks, D, D))
    Q, R = jnp.linalg.qr(gaussian)
    # Uniform over rotations: QR with a positive diagonal of R.
    Q = Q * jnp.sign(jnp.diagonal(R, axis1=-2, axis2=-1))[:, None, :]
    directions = jnp.moveaxis(Q, 0, 1).reshape(D, blocks * D)[:, :m]
    return directions * jnp.linalg.norm(jax.random.normal(key_lengths, (D, m)), axis=0)
