"""Contrastive losses of embeddings: InfoNCE, NT-Xent and the supervised loss.

Embeddings are z [V, B, D]: V views of B examples. They are divided by their norms, so a product is
a cosine. With `mask` [B], bool, examples where it is False are no anchors and no candidates.

Each loss is a mean over anchors of -mean_{p in P} log(exp(s_p) / sum_{a in A} exp(s_a)), with s the
cosines over the temperature, P an anchor's positives and A its candidates. A batch that is sharded
over devices is one batch: products are of all embeddings, and their gradients reach all devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Contrast(NamedTuple):
    """A loss of embeddings, and two numbers that say what it has come to."""

    loss: jax.Array  # []
    positive: jax.Array  # [], mean cosine of an anchor and its positives
    retrieval: jax.Array  # [], share of anchors whose nearest candidate is a positive


def info_nce(
    z: jax.Array, temperature: float, mask: jax.Array | None = None, compared: int = 2
) -> Contrast:
    """The positive of z_ai is z_bi, its candidates are z_b1, ..., z_bB: those of the other view.

    For two views this is (CE(S) + CE(S^T)) / 2 with S = z_1 z_2^T / temperature and the diagonal as
    labels, as in the code of multi-symmetry ensembles (Loh et al. 2023); after van den Oord et al.
    2018, "Representation learning with contrastive predictive coding". Of more views (multi-crop,
    Caron et al. 2020) it is the mean over all pairs of which one is among the first `compared`.

    Args:
      z: [V, B, D].
      temperature: of the cosines.
      mask: [B].
      compared: how many views are compared with all others.
    """
    z = normalise(z)
    V, B, _ = z.shape
    pairs = [(a, b) for a in range(V) for b in range(V) if a != b and min(a, b) < compared]
    a, b = (jnp.asarray(side) for side in zip(*pairs, strict=True))
    cosines = jnp.einsum("nid,njd->nij", z[a], z[b])
    valid = jnp.ones(B, bool) if mask is None else mask
    same = jnp.eye(B, dtype=bool) & valid[:, None]
    return _mean(cosines, temperature, same[None], valid[None, None])


def nt_xent(z: jax.Array, temperature: float, mask: jax.Array | None = None) -> Contrast:
    """The positives of z_vi are its other views, its candidates all embeddings but itself.

    Source: Chen et al. 2020, "A simple framework for contrastive learning", eq. 1, for two views.

    Args:
      z: [V, B, D].
      temperature: of the cosines.
      mask: [B].
    """
    return supervised(z, jnp.arange(z.shape[1]), temperature, mask)


def supervised(
    z: jax.Array, y: jax.Array, temperature: float, mask: jax.Array | None = None
) -> Contrast:
    """The positives of z_vi are all other embeddings of its class, its candidates all but itself.

    Source: Khosla et al. 2020, "Supervised contrastive learning", eq. 2 (the sum over positives is
    outside of the logarithm), without the factor temperature / base temperature of their code.

    Args:
      z: [V, B, D].
      y: classes [B].
      temperature: of the cosines.
      mask: [B].
    """
    V, B, D = z.shape
    z = normalise(z).reshape(V * B, D)
    y, valid = jnp.tile(y, V), jnp.tile(jnp.ones(B, bool) if mask is None else mask, V)
    candidates = valid & ~jnp.eye(V * B, dtype=bool)
    same = (y[:, None] == y) & candidates & valid[:, None]
    return _mean(z @ z.T, temperature, same, candidates)


def normalise(z: jax.Array) -> jax.Array:
    """z / |z| of the last axis, with a finite gradient at 0."""
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z**2, axis=-1, keepdims=True), 1e-24))


def _mean(
    cosines: jax.Array, temperature: float, positives: jax.Array, candidates: jax.Array
) -> Contrast:
    """The mean over anchors that have a positive; arrays [..., anchors, candidates]."""
    lowest = jnp.finfo(cosines.dtype).min
    logits = cosines / temperature
    rest = jax.nn.logsumexp(jnp.where(candidates, logits, lowest), axis=-1)
    positives = jnp.broadcast_to(positives, cosines.shape)
    count = jnp.sum(positives, axis=-1)
    has = count > 0

    def of_positives(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(positives, values, 0), axis=-1) / jnp.maximum(count, 1)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(has, values, 0)) / jnp.maximum(jnp.sum(has), 1)

    nearest = jnp.argmax(jnp.where(candidates, cosines, lowest), axis=-1)
    hit = jnp.take_along_axis(positives, nearest[..., None], axis=-1)[..., 0]
    loss = mean(rest - of_positives(logits))
    return Contrast(loss, mean(of_positives(cosines)), mean(hit.astype(cosines.dtype)))
