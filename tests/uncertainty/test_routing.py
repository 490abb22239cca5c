"""Routers and their losses against loops over tokens, and dispatch by sorting against einsum."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.uncertainty.routes import fill
from uncertainty import cpu
from uncertainty.layers.moe import dispatch, routing

SIZES = [(7, 4, 2, 2), (5, 3, 1, 5), (1, 1, 1, 1)]  # S, E, k, C
few = settings(max_examples=20)

top_k = jax.jit(routing.top_k, static_argnums=(1, 2, 3))
expert_choice = jax.jit(routing.expert_choice, static_argnums=1)


def random_gates(seed, S, E, levels):
    """Gates with few different values, so that there are ties; not normalised."""
    return (np.random.default_rng(seed).integers(1, levels, (S, E)) / levels).astype("float32")


@pytest.mark.slow
@few
@given(st.sampled_from(SIZES), st.booleans(), st.integers(0, 999), st.sampled_from([3, 10**6]))
def test_top_k_fills_slots_like_a_loop(size, batch_priority, seed, levels):
    S, E, k, C = size
    gates = random_gates(seed, S, E, levels)
    routes = jax.tree.map(np.asarray, top_k(gates, k, C, batch_priority))
    full, where = fill(gates, k, C, batch_priority)
    for e in range(E):
        assert list(routes.token[e]) == full[e] + [S] * (C - len(full[e]))
        assert list(routes.gate[e]) == [gates[s, e] for s in full[e]] + [0] * (C - len(full[e]))
    for s in range(S):
        found = [None if i == E * C else divmod(i, C) for i in routes.slot[s]]
        assert found == where[s]
    lost = np.mean([place is None for row in where for place in row])
    assert routing.lost(routes, S).mean() == pytest.approx(lost)
    np.testing.assert_allclose(routing.load(routes, S), [len(f) / S for f in full], rtol=1e-6)


@pytest.mark.slow
@few
@given(st.sampled_from(SIZES), st.integers(0, 999), st.sampled_from([3, 10**6]))
def test_expert_choice_takes_the_best_tokens(size, seed, levels):
    S, E, _, C = size
    C = min(C, S)
    gates = random_gates(seed, S, E, levels)
    routes = jax.tree.map(np.asarray, expert_choice(gates, C))
    for e in range(E):
        best = sorted(range(S), key=lambda s: -gates[s, e])[:C]
        assert list(routes.token[e]) == best
        assert list(routes.gate[e]) == [gates[s, e] for s in best]
    assert routing.lost(routes, S).mean() == pytest.approx(1 - len(set(routes.token.ravel())) / S)


def test_soft_routing_is_two_softmaxes():
    logits = np.random.default_rng(0).normal(size=(5, 3, 2)).astype("float32")
    mixed = routing.soft(logits)
    total = np.exp(logits)
    np.testing.assert_allclose(mixed.inward, total / total.sum(0), rtol=1e-5)
    np.testing.assert_allclose(mixed.outward, total / total.sum((1, 2), keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
def test_losses_are_their_formulas(k):
    S, E, sigma = 6, 4, 0.3
    rng = np.random.default_rng(k)
    logits = rng.normal(size=(S, E))
    noisy = logits + sigma * rng.normal(size=(S, E))
    gates = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def variation(values):
        return (np.std(values) / np.mean(values)) ** 2

    importance = [sum(gates[s, e] for s in range(S)) for e in range(E)]
    assert routing.importance_loss(gates) == pytest.approx(variation(importance), rel=1e-5)
    reach = [
        np.mean(
            [1 - stats.norm.cdf((sorted(noisy[s])[-k] - logits[s, e]) / sigma) for s in range(S)]
        )
        for e in range(E)
    ]
    assert routing.load_loss(logits, noisy, k, sigma) == pytest.approx(variation(reach), rel=1e-5)
    first = [np.mean([gates[s].argmax() == e for s in range(S)]) for e in range(E)]
    gshard = E**2 * np.mean([f * gates[:, e].mean() for e, f in enumerate(first)])
    assert routing.gshard_loss(gates) == pytest.approx(gshard, rel=1e-5)
    assert routing.importance_loss(np.full((S, E), 1 / E)) == pytest.approx(0, abs=1e-12)


@given(
    st.integers(1, 400),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 400).map(lambda n: n / 100) | st.floats(0.1, 4),
)
@example(400, 1, 2, 1.1)  # 220.00000000000003 in floating point
@example(110, 2, 100, 1.15)  # 2.53: no tie
@example(10, 1, 4, 0.6)  # 1.5: a tie, to even
def test_capacity_is_exact_and_rounded_as_asked(S, K, E, factor):
    wanted = S * K * Fraction(str(factor)) / E
    up = math.ceil(wanted)
    assert routing.capacity(S, K, E, factor, multiple_of=1) == min(up, S)
    of_four = routing.capacity(S, K, E, factor)
    assert of_four == S or (of_four % 4 == 0 and up <= of_four < up + 4)
    assert routing.capacity(S, K, E, factor, "round", 1) == min(max(round(wanted), 1), S)


def test_a_factor_that_is_no_number_of_slots_is_refused():
    for factor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"capacity_factor: {factor}; a positive number"):
            routing.capacity(4, 1, 2, factor)


@functools.partial(jax.jit, static_argnums=(3, 4))
def both_ways(x, y, routes, method, S):
    """Slots, outputs, and the gradients of two functions of them."""

    def forward(x, y, gate):
        r = routes.replace(gate=gate)
        return dispatch.dispatch(x, r, method), dispatch.combine(y, r, S, method)

    out, back = jax.vjp(forward, x, y, routes.gate)
    weights = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), out)
    return out, back(weights)


@few
@given(
    st.sampled_from(  # A, M, G; A is 1 or M, and without a size by expert choice
        [((3, 3, 2), SIZES[0]), ((1, 2, 3), SIZES[1]), ((1, 2, 3), None)]
    ),
    st.integers(0, 999),
)
def test_sorting_and_einsum_agree_and_so_do_their_gradients(case, seed):
    (A, M, G), size = case
    S, E, k, C = size or (6, 3, 0, 4)
    rng = np.random.default_rng(seed)
    gates = rng.uniform(size=(M, G, S, E)).astype("float32")
    route = (
        functools.partial(routing.expert_choice, slots=C)
        if size is None
        else functools.partial(routing.top_k, k=k, slots=C)
    )
    routes = jax.jit(jax.vmap(jax.vmap(route)))(gates)
    x = rng.normal(size=(A, G, S, 5)).astype("float32")
    y = rng.normal(size=(M, E, G, C, 5)).astype("float32")
    expected = both_ways(x, y, routes, "einsum", S)
    for platform in ("cpu", "tpu"):  # the latter has other expressions, which run here too
        with cpu.compiling_for(platform):
            found = both_ways(x, y, routes, "sort", S)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 6))
def slopes_and_routes(gates, k, C, priority, real, room, platform, weights):
    def weighted(gates):
        with cpu.compiling_for(platform):
            routes = routing.top_k(gates, k, C, priority, real, room)
        return jnp.sum(weights * routes.gate), routes

    return jax.grad(weighted, has_aux=True)(gates)


@pytest.mark.slow
@settings(max_examples=8)
@given(st.sampled_from(SIZES), st.booleans(), st.booleans(), st.integers(0, 999))
def test_gates_have_the_slopes_of_the_gates_that_were_routed(size, priority, some, seed):
    """Each gate once for its slot, whichever platform's routes; dropped choices have none."""
    S, E, k, C = size
    gates = random_gates(seed, S, E, 10**6)
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(E, C)).astype("float32")
    real, room = (rng.random(S) < 0.7, np.int32(max(C - 1, 1))) if some else (None, None)
    args = (gates, k, C, priority, real, room)
    slopes, routes = slopes_and_routes(*args, "cpu", weights)
    expected = np.zeros((S, E), "float32")
    for e, c in np.ndindex(E, C):
        if routes.token[e, c] < S:
            expected[routes.token[e, c], e] += weights[e, c]
    np.testing.assert_array_equal(slopes, expected)
    elsewhere = slopes_and_routes(*args, "tpu", weights)
    jax.tree.map(np.testing.assert_array_equal, (slopes, routes), elsewhere)


@pytest.mark.parametrize(
    ("platform", "method", "S", "sorts"),
    [
        ("cpu", "auto", 1, True),
        ("tpu", "auto", dispatch.SMALL, False),
        ("cuda", "auto", dispatch.SMALL + 1, True),
        ("tpu", "sort", 1, True),
        ("cpu", "einsum", 10**6, False),
    ],
)
def test_small_groups_are_multiplied_on_accelerators(platform, method, S, sorts):
    with cpu.compiling_for(platform):
        assert dispatch.sorts(method, S) == sorts
        routes = jax.eval_shape(
            jax.vmap(jax.vmap(lambda g: routing.top_k(g, 1, 1))),
            jax.ShapeDtypeStruct((1, 1, S, 2), "float32"),
        )
        x = jax.ShapeDtypeStruct((1, 1, S, 4), "float32")
        traced = jax.make_jaxpr(lambda x, r: dispatch.dispatch(x, r, method))(x, routes)
    assert ("dot_general" in str(traced)) != sorts
