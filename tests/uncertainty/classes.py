"""A linear model of classes as plain functions: little to compile, easy to write out by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from uncertainty import likelihoods
from uncertainty.types import Latent, Model

B, D, K = 6, 4, 3


def linear(likelihood=None, noise=0.0):
    """u = x W, M = 1; with `noise` in training, that of a layer that has its own in each pass."""

    def init(key, x):
        return {"layer": {"kernel": jax.random.normal(key, (D, K))}}, {}

    def forward(params, collections, x, key, *, train, mutable=(), mask=None):
        assert set(params) == {"layer"}  # and nothing of an objective's
        u = (x @ params["layer"]["kernel"])[None]
        if train and noise:
            u = u + noise * jax.random.normal(key, u.shape)
        return Latent(u), collections, jnp.zeros(())

    return Model(init, forward, likelihood or likelihoods.softmax())


def batch(seed=0, P=None):
    """x [B, D] and y [B], or both [P, ...]."""
    rng, lead = np.random.default_rng(seed), () if P is None else (P,)
    x = rng.normal(size=(*lead, B, D)).astype(np.float32)
    return dict(x=jnp.asarray(x), y=jnp.asarray(rng.integers(0, K, (*lead, B))))


def kernel(tree):
    """[P, D, K] or [D, K] of parameters, or of a state."""
    return np.asarray(getattr(tree, "params", tree)["layer"]["kernel"], np.float64)


def softmax(u):
    e = np.exp(u - u.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def one(tree, p):
    return jax.tree.map(lambda a: a[p], tree)
