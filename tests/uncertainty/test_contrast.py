"""Contrastive losses against loops over pairs in NumPy, and what leaves them as they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uncertainty import contrast

V, B, D, TAU = 3, 5, 4, 0.3
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(V, B, D))
Y = np.array([0, 1, 0, 2, 1])
MASK = np.array([True, True, False, True, True])
ALL = np.ones(B, bool)

info_nce = jax.jit(contrast.info_nce, static_argnames="compared")
nt_xent, supervised = jax.jit(contrast.nt_xent), jax.jit(contrast.supervised)


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def of_anchor(anchor, positives, candidates):
    """Loss, mean cosine and whether the nearest is a positive; lists of embeddings."""
    rest = np.log(sum(np.exp(cosine(anchor, z) / TAU) for z in candidates))
    to = [cosine(anchor, z) for z in positives]
    nearest = max(candidates, key=lambda z: cosine(anchor, z))
    return (np.mean([rest - s / TAU for s in to]), np.mean(to),
            float(any(nearest is z for z in positives)))  # fmt: skip


def loop_info_nce(z, mask, compared):
    rows = []
    for a in range(len(z)):
        for b in range(len(z)):
            if a == b or min(a, b) >= compared:
                continue
            candidates = [z[b][j] for j in range(B) if mask[j]]
            kept = [j for j in range(B) if mask[j]]
            for i in kept:
                positive = candidates[kept.index(i)]
                rows.append(of_anchor(z[a][i], [positive], candidates))
    return np.mean(rows, axis=0)


def loop_of_classes(z, y, mask):
    rows = []
    every = [(v, i, z[v][i]) for v in range(len(z)) for i in range(B) if mask[i]]
    for v, i, anchor in every:
        others = [(j, other) for w, j, other in every if (w, j) != (v, i)]
        positives = [other for j, other in others if y[j] == y[i]]
        if positives:
            rows.append(of_anchor(anchor, positives, [other for _, other in others]))
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("mask", [ALL, MASK], ids=["all", "masked"])
def test_losses_are_loops_over_pairs(mask):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    for compared in (1, 2):
        got = info_nce(Z, TAU, mask, compared=compared)
        close(got, loop_info_nce(Z, mask, compared))
    close(nt_xent(Z, TAU, mask), loop_of_classes(Z, range(B), mask))
    close(supervised(Z, Y, TAU, mask), loop_of_classes(Z, Y, mask))


def test_two_views_are_the_published_forms():
    """Means of two cross-entropies with the diagonal as labels; and SimCLR's 2B - 1 candidates."""
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in Z[:2])
    S = a @ b.T / TAU
    of = [np.mean(np.log(np.exp(s).sum(1)) - np.diag(s)) for s in (S, S.T)]
    np.testing.assert_allclose(info_nce(Z[:2], TAU).loss, np.mean(of), rtol=1e-5)
    both = np.concatenate([a, b])
    S = np.exp(both @ both.T / TAU)
    each = [-np.log(S[i, (i + B) % (2 * B)] / (S[i].sum() - S[i, i])) for i in range(2 * B)]
    np.testing.assert_allclose(nt_xent(Z[:2], TAU).loss, np.mean(each), rtol=1e-5)


SEEDS = st.integers(0, 2**16)


def embeddings(seed):
    return np.random.default_rng(seed).normal(size=(2, B, D)).astype(np.float32)


@settings(max_examples=25)
@given(SEEDS, st.permutations(range(B)))
def test_what_leaves_the_losses_as_they_are(seed, order):
    """The order of examples and views, lengths, and rotations of the space of embeddings."""
    z, rng = embeddings(seed), np.random.default_rng(seed + 1)
    rotation = np.linalg.qr(rng.normal(size=(D, D)))[0].astype(np.float32)
    lengths = rng.uniform(0.5, 2, (2, B, 1)).astype(np.float32)
    for other in (z[:, order], z[::-1], lengths * z, z @ rotation):
        for loss in (info_nce, nt_xent):
            np.testing.assert_allclose(loss(other, TAU).loss, loss(z, TAU).loss, atol=2e-4)
    moved = supervised(z[:, order], Y[np.asarray(order)], TAU).loss
    np.testing.assert_allclose(moved, supervised(z, Y, TAU).loss, atol=2e-4)


@settings(max_examples=25)
@given(SEEDS, st.lists(st.booleans(), min_size=B, max_size=B).filter(any))
def test_masked_examples_are_as_if_they_were_not_there(seed, mask):
    z, mask = embeddings(seed), np.array(mask)
    few = z[:, mask]
    junk = np.where(mask[:, None], z, 1e6)  # what stands there does not matter
    S = [few[i] @ few[1 - i].T for i in (0, 1)]
    norms = [np.linalg.norm(few[i], axis=1) for i in (0, 1)]
    of = []
    for i in (0, 1):
        s = S[i] / np.outer(norms[i], norms[1 - i]) / TAU
        of.append(np.mean(np.log(np.exp(s).sum(1)) - np.diag(s)))
    np.testing.assert_allclose(info_nce(junk, TAU, mask).loss, np.mean(of), atol=2e-4)


def test_limits():
    same = np.ones((2, B, D))
    assert info_nce(same, TAU).loss == pytest.approx(np.log(B), abs=1e-5)
    assert nt_xent(same, TAU).loss == pytest.approx(np.log(2 * B - 1), abs=1e-5)
    apart = np.stack([np.eye(B)] * 2)
    got = info_nce(apart, TAU)
    assert got.loss == pytest.approx(np.log(1 + (B - 1) * np.exp(-1 / TAU)), abs=1e-5)
    assert (got.positive, got.retrieval) == (pytest.approx(1), 1)
    alone = nt_xent(Z[:2], TAU)  # every example is a class of its own
    np.testing.assert_allclose(supervised(Z[:2], np.arange(B), TAU), alone, rtol=1e-6)


def test_no_example_and_zeros_have_a_finite_gradient():
    none = np.zeros(B, bool)
    for loss in (contrast.info_nce, contrast.nt_xent):
        value, g = jax.jit(jax.value_and_grad(lambda z, f=loss: f(z, TAU, none).loss))(Z)
        assert value == 0 and not np.asarray(g).any()
    g = jax.jit(jax.grad(lambda z: contrast.info_nce(z, TAU).loss))(np.zeros((2, B, D)))
    assert np.isfinite(np.asarray(g)).all()


def test_the_gradient_is_that_of_differences():
    def loss(z, name):
        more = (Y,) if name == "supervised" else ()
        return getattr(contrast, name)(z, *more, TAU, MASK).loss

    step = 1e-4 * RNG.normal(size=(2, B, D))
    for name, f in dict(
        info_nce=lambda z: loop_info_nce(z, MASK, 2)[0],
        nt_xent=lambda z: loop_of_classes(z, range(B), MASK)[0],
        supervised=lambda z: loop_of_classes(z, Y, MASK)[0],
    ).items():
        g = np.asarray(jax.jit(jax.grad(functools.partial(loss, name=name)))(Z[:2]))
        apart = f(Z[:2] + step) - f(Z[:2] - step)
        np.testing.assert_allclose(2 * np.sum(g * step), apart, rtol=1e-3, atol=1e-8)
        assert not g[:, ~MASK].any()


def test_embeddings_of_eight_devices_are_those_of_one():
    """Each device has one example; its embedding is a negative of all others, with a gradient."""
    z = RNG.normal(size=(2, 8, D)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    shards = NamedSharding(mesh, PartitionSpec(None, "data"))

    @jax.jit
    def both(z):
        losses = jax.value_and_grad(lambda z: contrast.info_nce(z, TAU).loss)(z)
        return losses, jax.value_and_grad(lambda z: contrast.nt_xent(z, TAU).loss)(z)

    many = jax.jit(both, out_shardings=((None, shards), (None, shards)))
    program = many.lower(jax.ShapeDtypeStruct(z.shape, z.dtype, sharding=shards)).compile()
    assert "all-gather" in program.as_text() or "all-reduce" in program.as_text()
    for got, expected in zip(program(jax.device_put(z, shards)), both(z), strict=True):
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
        assert len(got[1].addressable_shards) == 8
        np.testing.assert_allclose(got[1], expected[1], atol=1e-6)
    # The first example's loss alone has a gradient in those of other devices.
    alone = jax.grad(lambda z: contrast.info_nce(z, TAU, jnp.arange(8) < 2).loss)(z)
    assert np.abs(np.asarray(alone)[:, 1]).max() > 1e-3
