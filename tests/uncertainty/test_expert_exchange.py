"""Experts sharded over devices: the numbers of one device, by all-to-all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.runtime import execution
from uncertainty.layers.feed_forward import FeedForward
from uncertainty.layers.moe.experts import MoE
from uncertainty.layers.moe.mask import only
from uncertainty.layers.moe.routers import ExpertChoice, TopK

B, T, D, E = 8, 3, 4, 8
FFN = functools.partial(FeedForward, mlp_dim=6)


def mesh_of(data, expert):
    return Mesh(np.asarray(jax.devices()).reshape(data, 1, expert, 1), execution.AXES)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def parameters(moe, x):
    init = functools.partial(moe.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda a: 0.5 * normal(*a.shape, seed=a.size), shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("router", "members", "dispatch", "mesh"),
    [
        (functools.partial(TopK, k=2, capacity_factor=0.7), 1, "sort", (1, 8)),
        (functools.partial(TopK, capacity_factor=0.7), 2, "sort", (2, 4)),
        (functools.partial(ExpertChoice, capacity_factor=0.7), 2, "einsum", (4, 2)),
    ],
)
def test_eight_devices_have_the_outputs_and_gradients_of_one(router, members, dispatch, mesh):
    mesh = mesh_of(*mesh)
    router = functools.partial(router, group_size=1, multiple_of=1)
    moe = MoE(E, FFN, router, members, dispatch, split_rngs=True)
    x, weights = normal(1, B, T, D), normal(members, B, T, D, seed=1)
    params = parameters(moe, x)
    params["router"]["kernel"] *= 5  # some experts are chosen more often than others

    def loss(params, x):
        y, counts = moe.apply({"params": params}, x, train=False, mutable=["routing"])
        return jnp.sum(weights * y), (y, counts)

    step = jax.grad(loss, argnums=(0, 1), has_aux=True)
    one = jax.jit(step)(params, x)
    assert 0.02 < one[1][1]["routing"]["router"]["dropped"].mean() < 0.9

    def placed(path, a):
        own = "experts" in jax.tree_util.keystr(path)
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec("expert" if own else None)))

    spread = jax.tree_util.tree_map_with_path(placed, params)
    with jax.set_mesh(mesh):
        program = jax.jit(step).lower(spread, x).compile()
        eight = program(spread, x)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # Tokens there and back, and their gradients likewise.
    assert program.as_text().count(" all-to-all(") >= 4
    kernel = eight[0][0]["experts"]["dense0"]["kernel"]
    assert kernel.sharding.spec[0] == "expert"


@pytest.mark.slow
@pytest.mark.parametrize("router", [TopK, ExpertChoice])
def test_what_fills_up_a_batch_is_nowhere_on_eight_devices_too(router):
    """Of 16 examples in groups of 2 the last three are copies: half a group, and a whole one.

    That one device has the numbers of the real examples alone is in `test_experts.py`.
    """
    mesh, x, mask = mesh_of(2, 4), normal(1, 16, T, D), np.arange(16) < 13
    router = functools.partial(router, group_size=2, multiple_of=1, capacity_factor=0.7)
    moe = MoE(E, FFN, router, 2, split_rngs=True)
    params = parameters(moe, x)

    def run(x, mask):
        with only(mask):
            return moe.apply({"params": params}, x, train=False, mutable=["routing"])

    one = jax.jit(run)(x, mask)
    rows = NamedSharding(mesh, PartitionSpec(execution.BATCH))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, execution.BATCH)))
    with jax.set_mesh(mesh):
        program = jax.jit(run).lower(placed, jax.device_put(mask, rows)).compile()
        eight = program(placed, jax.device_put(mask, rows))
    assert program.as_text().count(" all-to-all(") >= 2
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert not np.any(one[0][:, 13:])


@pytest.mark.slow
def test_devices_that_do_not_divide_groups_say_so_in_training():
    moe, x = MoE(E, FFN), normal(1, B, T, D)
    params = parameters(moe, x)

    def run(train):
        apply = functools.partial(moe.apply, train=train, rngs={"noise": jax.random.key(1)})
        return jax.jit(apply)({"params": params}, x)

    with jax.set_mesh(mesh_of(1, 8)), pytest.raises(ValueError, match="group_size: makes 1 groups"):
        run(train=True)
    expected = run(train=False)
    with jax.set_mesh(mesh_of(1, 8)):  # the last examples of a set may be any number
        np.testing.assert_allclose(run(train=False), expected, rtol=1e-4, atol=1e-6)
