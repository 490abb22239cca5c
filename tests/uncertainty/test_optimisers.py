"""Optimisers against their updates written by hand in NumPy."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from uncertainty.optimisers import optimiser as optimisers
from uncertainty.optimisers import samplers

STEPS = 6


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "backbone": {"kernel": scale * rng.normal(size=(3, 2)), "bias": scale * rng.normal(size=2)},
        "head": {"kernel": scale * rng.normal(size=(2, 2))},
    }


def float32(values):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), values)


def gradients(i):
    return tree(100 + i, scale=2.0)


def run(optimiser, params=None, grads=gradients, steps=STEPS):
    params = float32(tree(0) if params is None else params)
    state = optimiser.init(params)
    update = jax.jit(optimiser.update)
    for i in range(steps):
        updates, state = update(float32(grads(i)), state, params)
        params = optax.apply_updates(params, updates)
    return params


def by_hand(step, rate, *, clip=None, l2=None, decay=None, multiplier=None, schedule=None):
    """theta <- theta - c rate schedule(t) (step(g + l2 theta) + decay theta), leaf by leaf.

    `step(g, memory)` changes the dict `memory` of its leaf; the others map paths to numbers.
    """
    l2, decay, multiplier = l2 or {}, decay or {}, multiplier or {}
    theta = {path: np.asarray(a) for path, a in flat(tree(0)).items()}
    memory = {path: {} for path in theta}
    for i in range(STEPS):
        g = flat(gradients(i))
        if clip is not None:
            norm = np.sqrt(sum(np.sum(a**2) for a in g.values()))
            g = {path: a * min(1, clip / norm) for path, a in g.items()}
        for path in theta:
            d = step(g[path] + l2.get(path, 0) * theta[path], memory[path])
            d = d + decay.get(path, 0) * theta[path]
            factor = rate * (schedule(i) if schedule else 1) * multiplier.get(path, 1)
            theta[path] = theta[path] - factor * d
    return theta


def flat(values):
    leaves = jax.tree_util.tree_leaves_with_path(values)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def close(params, expected):
    got = flat(params)
    assert got.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(got[path], expected[path], rtol=2e-5, atol=2e-6)


def plain(g, memory):
    return g


def heavy_ball(g, memory, momentum=0.9):
    memory["m"] = g + momentum * memory.get("m", 0)
    return memory["m"]


def nesterov(g, memory, momentum=0.9):
    return g + momentum * heavy_ball(g, memory, momentum)


def adam(g, memory, b1=0.8, b2=0.99, eps=1e-3):
    t = memory["t"] = memory.get("t", 0) + 1
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
    return memory["m"] / (1 - b1**t) / (np.sqrt(memory["v"] / (1 - b2**t)) + eps)


def lion(g, memory, b1=0.9, b2=0.99):
    m = memory.get("m", 0)
    memory["m"] = b2 * m + (1 - b2) * g
    return np.sign(b1 * m + (1 - b1) * g)


def rmsprop(g, memory, decay=0.8, eps=1e-3):
    memory["v"] = decay * memory.get("v", 0) + (1 - decay) * g**2
    return g / np.sqrt(memory["v"] + eps)


@pytest.mark.parametrize(
    ("direction", "step"),
    [
        (optimisers.sgd(), plain),
        (optimisers.sgd(momentum=0.9), heavy_ball),
        (optimisers.sgd(momentum=0.9, nesterov=True), nesterov),
        (optimisers.adam(b1=0.8, b2=0.99, eps=1e-3), adam),
        (optimisers.lion(), lion),
        (optimisers.rmsprop(decay=0.8, eps=1e-3), rmsprop),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "lion", "rmsprop"],
)
def test_directions(direction, step):
    close(run(optimisers.optimiser(direction, 0.03)), by_hand(step, 0.03))


BOUNDED = {
    "sgd": optimisers.sgd(),
    "momentum": optimisers.sgd(momentum=0.999, nesterov=True),
    "adam": optimisers.adam(b1=0.99, b2=0.9999),
    "rmsprop": optimisers.rmsprop(eps=1e-12),
    "lion": optimisers.lion(),
    "sgld": samplers.sgld(),
    "psgld": samplers.psgld(eps=1e-12),
    "sghmc": samplers.sghmc(),
}


@pytest.mark.parametrize("name", BOUNDED)
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(
    exponents=st.lists(st.lists(st.integers(-45, 18), min_size=4, max_size=4), max_size=6),
    signs=st.integers(0, 15),
    decay=st.booleans(),
)
def test_bounded_optimisers_are_finite_for_gradients_whose_norm_is(name, exponents, signs, decay):
    direction = BOUNDED[name]
    sampler = isinstance(direction, samplers.Sampler)
    decay = decay and not sampler
    rules = [(".*", 1.0)] if decay else ()
    made = optimisers.optimiser(direction, 1.0 if decay else 1e6, weight_decay=rules)
    assert made.bounded
    params = dict(a=np.float32([3e38, -3e38, 0, 1]))
    state = made.init(params)
    sign = 1 - 2 * np.array([signs >> i & 1 for i in range(4)])
    extra = dict(noise=dict(a=np.float32([5, -5, 0, 1]))) if sampler else {}
    for each in exponents:
        gradient = dict(a=(sign * 10.0 ** np.array(each)).astype("float32"))
        updates, state = made.update(gradient, state, params, **extra)
        assert np.isfinite(updates["a"]).all()


@pytest.mark.parametrize(
    "other",
    [
        optimisers.optimiser(optimisers.sgd(), 1e7),
        optimisers.optimiser(optimisers.sgd(), 1e3, multipliers=[("a", 1e4)]),
        optimisers.optimiser(optimisers.sgd(), 0.1, weight_decay=[("a", 1.1)]),
        optimisers.optimiser(optimisers.sgd(), 2.0, weight_decay=[("a", 0.1)]),
        optimisers.optimiser(optimisers.sgd(), 0.1, l2=[("a", 0.1)]),
        optimisers.optimiser(optimisers.adam(eps=0.0), 0.1),
        optimisers.optimiser(optax.scale_by_adam(), 0.1),
        optimisers.optimiser(samplers.sgld(), 1e7),
    ],
)
def test_other_optimisers_are_not_taken_for_bounded(other):
    assert not other.bounded


KERNELS = {"backbone/kernel": 0.3, "head/kernel": 0.3}


def test_decoupled_decay_is_not_seen_by_the_direction_and_l2_is():
    rule = [("kernel", 0.3)]
    made = optimisers.adam(b1=0.8, b2=0.99, eps=1e-3)
    decoupled = run(optimisers.optimiser(made, 0.03, weight_decay=rule))
    coupled = run(optimisers.optimiser(made, 0.03, l2=rule))
    close(decoupled, by_hand(adam, 0.03, decay=KERNELS))
    close(coupled, by_hand(adam, 0.03, l2=KERNELS))
    assert not np.allclose(decoupled["head"]["kernel"], coupled["head"]["kernel"], rtol=1e-3)


def test_l2_is_the_gradient_of_half_the_square():
    params, c = tree(0), 0.3
    loss = lambda p: 0.5 * c * sum(jnp.sum(a**2) for a in jax.tree.leaves(p))  # noqa: E731
    penalty = jax.grad(loss)(float32(params))
    got = run(
        optimisers.optimiser(optimisers.sgd(), 0.1, l2=[(".*", c)]),
        grads=lambda i: tree(0, scale=0),
        steps=1,
    )
    close(got, flat(jax.tree.map(lambda p, g: p - 0.1 * np.asarray(g), params, penalty)))


def test_clipping_acts_on_the_global_norm_before_l2_and_momentum():
    made = optimisers.optimiser(optimisers.sgd(momentum=0.9), 0.1, clip=1.5, l2=[("kernel", 0.3)])
    close(run(made), by_hand(heavy_ball, 0.1, clip=1.5, l2=KERNELS))


def test_a_gradient_below_the_bound_is_not_clipped():
    close(run(optimisers.optimiser(optimisers.sgd(), 0.1, clip=1e3)), by_hand(plain, 0.1))


def test_the_schedule_multiplies_decay_too_and_begins_at_step_0():
    def schedule(t):
        return 1.0 / (t + 1)

    made = optimisers.optimiser(
        optimisers.sgd(), 0.1, schedule=schedule, weight_decay=[("kernel", 0.3)]
    )
    close(run(made), by_hand(plain, 0.1, schedule=schedule, decay=KERNELS))


def test_multipliers_scale_the_whole_step_and_zero_freezes():
    made = optimisers.optimiser(
        optimisers.adam(b1=0.8, b2=0.99, eps=1e-3),
        0.03,
        weight_decay=[("kernel", 0.3)],
        multipliers=[("head", 0.0), ("bias", 0.5)],
    )
    got = run(made)
    close(
        got,
        by_hand(adam, 0.03, decay=KERNELS, multiplier={"head/kernel": 0.0, "backbone/bias": 0.5}),
    )
    np.testing.assert_array_equal(got["head"]["kernel"], float32(tree(0))["head"]["kernel"])


@pytest.mark.slow
def test_particles_are_clipped_each_by_its_own_norm():
    made = optimisers.optimiser(optimisers.sgd(momentum=0.9), 0.1, clip=1.0)
    sizes = (1.0, 100.0, 0.01)

    def alone(p):
        return run(made, params=tree(p), grads=lambda i: tree(100 + i, scale=sizes[p]))

    def stack(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(float32, trees))

    params = stack([tree(p) for p in range(3)])
    state = jax.vmap(made.init)(params)
    for i in range(STEPS):
        g = stack([tree(100 + i, scale=s) for s in sizes])
        updates, state = jax.vmap(made.update)(g, state, params)
        params = optax.apply_updates(params, updates)
    for p in range(3):
        close(jax.tree.map(lambda a, p=p: a[p], params), flat(alone(p)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(learning_rate=-0.1), "learning_rate: -0.1"),
        (dict(learning_rate=float("nan")), "learning_rate: nan"),
        (dict(learning_rate=0.1, clip=0.0), "clip: 0.0"),
        (dict(learning_rate=0.1, weight_decay=[("(", 1)]), "weight_decay: .*regular"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimisers.optimiser(optimisers.sgd(), **arguments)


@pytest.mark.parametrize(
    "arguments", [dict(momentum=1.0), dict(momentum=-0.1), dict(nesterov=True)]
)
def test_momentum_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match="momentum"):
        optimisers.sgd(**arguments)


@pytest.mark.parametrize("field", ["weight_decay", "l2", "multipliers"])
def test_a_rule_that_matches_no_parameter_is_refused_at_init(field):
    made = optimisers.optimiser(optimisers.sgd(), 0.1, **{field: [("kernal", 0.1)]})
    with pytest.raises(ValueError, match=rf"{field}\[0\]: 'kernal' matches no parameter"):
        made.init(float32(tree(0)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_its_ratio_of_norms_by_hand(nesterov):
    """The rate, of a schedule, multiplies the momentum; biases are not scaled; decay is coupled."""
    memory_of, theta = {}, {path: np.asarray(a) for path, a in flat(tree(0)).items()}
    for i in range(STEPS):
        for path, g in flat(gradients(i)).items():
            kernel = path.endswith("kernel")
            g = g + (0.1 * theta[path] if kernel else 0)
            if kernel:
                g = 0.02 * np.linalg.norm(theta[path]) / (np.linalg.norm(g) + 1e-3) * g
            m = memory_of[path] = g + 0.9 * memory_of.get(path, 0)
            theta[path] = theta[path] - 0.5 / (1 + i) * (g + 0.9 * m if nesterov else m)
    lars = optimisers.lars(0.9, trust_coefficient=0.02, eps=1e-3, nesterov=nesterov)
    made = optimisers.optimiser(lars, 0.5, lambda i: 1 / (1 + i), l2=(("kernel", 0.1),))
    close(run(made), theta)


def test_lars_at_a_constant_rate_is_that_of_optax():
    kernels = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, _: "kernel" in str(path), tree
    )
    theirs = optax.lars(0.3, 0.05, kernels, trust_ratio_mask=kernels, momentum=0.8)
    ours = optimisers.optimiser(optimisers.lars(0.8), 0.3, l2=(("kernel", 0.05),))
    close(run(ours), flat(run(theirs)))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(trust_coefficient=0.0), "trust_coefficient: 0.0"),
        (dict(eps=-1.0), "eps: -1.0"),
        (dict(momentum=1.0), "momentum: 1.0"),
        (dict(exclude="("), "exclude: .* not a regular expression"),
    ],
)
def test_fields_of_lars_that_cannot_be(fields, why):
    with pytest.raises(ValueError, match=why):
        optimisers.lars(**fields)
