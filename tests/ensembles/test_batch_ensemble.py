"""BatchEnsemble against a loop over members, each a plain network with its own kernels."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.conftest import TINY, draw_variables
from uncertainty import build, cpu
from uncertainty.backbones.vit import ViT
from uncertainty.ensembles.batch_ensemble import batch_ensemble
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.layers import batch_ensemble as layers
from uncertainty.layers.conv import Conv
from uncertainty.layers.moe.experts import MoE
from uncertainty.layers.moe.routers import TopK
from uncertainty.layers.spectral_norm import Dense as BoundedDense

M, B, K = 3, 4, 5
EXPERTS = functools.partial(MoE, 4, router=functools.partial(TopK, k=2))
NETWORKS = TINY | {
    "vmoe": (
        functools.partial(ViT, "tiny", width=8, mlp_dim=12, experts=EXPERTS, expert_blocks=(0,)),
        (8, 8, 2),
    )
}
CLOSE = dict(rtol=2e-4, atol=2e-5)  # float32 sums in another order


def inputs(shape, batch=B):
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, *shape)), "float32")


def leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in flat}


def of_member(m, ensemble, plain):
    """The plain network's variables with member m's kernels and biases, by the definition."""
    found = leaves(ensemble)

    def make(path, like):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layer, _, leaf = name.rpartition("/")
        a, own = found[name], np.s_[:, m] if "/experts/" in name else m  # [E, M, ...] or [M, ...]
        if f"{layer}/fast_input" in found and leaf == "kernel":
            r, s = found[f"{layer}/fast_input"][own], found[f"{layer}/fast_output"][own]
            a = a * np.einsum("...i,...o->...io", r, s)
        elif a.shape != like.shape:
            a = a[own]
        assert a.shape == like.shape, name
        return jnp.asarray(a)

    return jax.tree_util.tree_map_with_path(make, plain)


@functools.cache
def plain(name):
    """The shapes of a network without members, and its logits as a jitted function."""
    backbone, shape = NETWORKS[name]
    network = single(backbone(), Dense(K))
    apply = functools.partial(network.apply, train=False)
    init = functools.partial(network.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), inputs(shape))
    return shapes, jax.jit(lambda variables, x: apply(variables, x).mean[0])


PLACES = ["", "block|dense0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where"),
    [(n, "") for n in ("mlp", "lenet_same", "resnet", "wide_resnet", "vmoe")]
    + [(n, "block|dense0") for n in ("mlp", "resnet")]
    + [("vit_gap", f"attention/{n}") for n in ("query", "key", "value", "out")],
)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_members_are_networks_with_their_own_kernels(name, where, platform):
    backbone, shape = NETWORKS[name]
    x = inputs(shape)
    together = batch_ensemble(backbone(), Dense(K), M, where=where)
    variables = draw_variables(together, x, train=False)
    with cpu.compiling_for(platform):
        latent = jax.jit(functools.partial(together.apply, train=False))(variables, x)
    assert latent.mean.shape == (M, B, K)
    shapes, alone = plain(name)
    for m in range(M):
        expected = alone(of_member(m, variables, shapes), x)
        np.testing.assert_allclose(latent.mean[m], expected, **CLOSE)
    assert not np.allclose(latent.mean[0], latent.mean[1], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("where", PLACES)
def test_fast_weights_are_where_they_are_asked_for_and_kernels_where_they_were(name, where):
    backbone, shape = NETWORKS[name]
    init = functools.partial(batch_ensemble(backbone(), Dense(K), M, where=where).init, train=False)
    own = leaves(jax.eval_shape(init, jax.random.key(0), inputs(shape))["params"])
    given = leaves(plain(name)[0]["params"])
    layers = {n.rpartition("/")[0] for n in given if n.endswith("kernel") and "router" not in n}
    fast = {n.rpartition("/")[0] for n in own if n.endswith("fast_input")}
    assert fast == {layer for layer in layers if re.search(where, layer)}
    shared = {n: a.shape for n, a in own.items() if "fast_" not in n}
    assert set(shared) == set(given)
    for n, a in given.items():
        layer, _, leaf = n.rpartition("/")
        lead = a.shape[:1] if "/experts/" in n else ()
        bias = layer in fast and leaf == "bias"
        assert shared[n] == ((*lead, M, *a.shape[len(lead) :]) if bias else a.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet_same", "vit_gap"])
def test_all_members_are_rows_of_one_product(name):
    """As many products as the plain network has, none of them with a batch of kernels."""
    backbone, shape = TINY[name]
    x = inputs(shape)

    def products(network):
        variables = draw_variables(network, x, train=False)
        with cpu.compiling_for("tpu"):  # convolutions too
            program = jax.make_jaxpr(functools.partial(network.apply, train=False))(variables, x)
        counts = {}

        def visit(jaxpr):
            for e in jaxpr.eqns:
                kind = e.primitive.name
                if kind == "dot_general":
                    kind += "_batched" * bool(e.params["dimension_numbers"][1][0])
                counts[kind] = counts.get(kind, 0) + 1
                for value in e.params.values():
                    inner = getattr(value, "jaxpr", value)
                    if hasattr(inner, "eqns"):
                        visit(inner)

        visit(program.jaxpr)
        kinds = ("dot_general", "dot_general_batched", "conv_general_dilated")
        return {kind: counts.get(kind, 0) for kind in kinds}

    of_one = products(single(backbone(), Dense(K)))
    assert of_one["dot_general"] > 0
    assert products(batch_ensemble(backbone(), Dense(K), M)) == of_one


@pytest.mark.slow
@pytest.mark.parametrize("given", [1, M])
@pytest.mark.parametrize(
    "layer",
    [
        functools.partial(Conv, padding="VALID"),
        functools.partial(nn.Conv, strides=(2, 1)),
        functools.partial(nn.Conv, feature_group_count=2),
    ],
)
def test_convolutions_by_members_are_the_one_of_all(layer, given):
    fast = layers.around(layer, M, initial=layers.gaussian)(features=4, kernel_size=(3, 3))
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(given, B, 6, 5, 2)), "float32")
    variables = draw_variables(fast, x)

    @jax.jit
    def both(variables, x):
        results = []
        for platform in ("cpu", "tpu"):
            with cpu.compiling_for(platform):
                y, back = jax.vjp(fast.apply, variables, x)
            results.append((y, *back(jnp.sin(jnp.arange(y.size)).reshape(y.shape))))
        return results

    results = both(variables, x)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


def test_what_is_before_the_first_layer_with_fast_weights_is_computed_once():
    backbone, shape = TINY["mlp"]
    x = inputs(shape)
    network = batch_ensemble(backbone(), Dense(K), M, where="head")
    variables = draw_variables(network, x, train=False)
    _, state = network.apply(variables, x, train=False, capture_intermediates=True)
    assert state["intermediates"]["backbone"]["__call__"][0].shape[:2] == (1, B)


@pytest.mark.slow
def test_around_a_layer_of_bounded_norm():
    shared = layers.around(functools.partial(BoundedDense, bound=0.1), M)(features=4)
    x = inputs((6,))[None]
    variables = jax.jit(shared.init)(jax.random.key(0), x)
    y, changed = jax.jit(functools.partial(shared.apply, mutable="spectral_norm"))(variables, x)
    p = variables["params"]
    bounded = BoundedDense(4, use_bias=False, bound=0.1)
    one = {"params": {"kernel": p["kernel"]}, "spectral_norm": changed["spectral_norm"]}
    for m in range(M):
        expected = bounded.apply(one, x[0] * p["fast_input"][m]) * p["fast_output"][m]
        np.testing.assert_allclose(y[m], expected, **CLOSE)


def test_initial_fast_weights():
    key = jax.random.key(0)
    for probability in (0.0, 0.3, 1.0):
        signs = np.asarray(layers.random_sign(key, (100, 200), probability=probability))
        assert set(np.unique(signs)) <= {-1.0, 1.0}
        assert abs((signs == 1).mean() - probability) < 4 * np.sqrt(0.25 / signs.size)
    values = np.asarray(layers.gaussian(key, (100, 200), stddev=0.5))
    assert abs(values.mean() - 1) < 4 * 0.5 / np.sqrt(values.size)
    assert abs(values.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * values.size)


CONFIG = dict(
    backbone=dict(name="mlp.MLP", widths=(7,)),
    ensemble=dict(name="batch_ensemble", size=M),
    head=dict(name="dense.Dense", outputs=K),
)


def test_initialisers_have_names_in_configs():
    given = dict(name="batch_ensemble.gaussian", stddev=0.0)
    network = build.network(CONFIG | dict(ensemble=CONFIG["ensemble"] | dict(fast_weights=given)))
    init = jax.jit(functools.partial(network.init, train=False))
    params = init(jax.random.key(0, impl="unsafe_rbg"), inputs((6,)))["params"]
    np.testing.assert_array_equal(params["backbone"]["dense0"]["fast_input"], np.ones((M, 6)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(size=0), "size: 0 members; at least 1"),
        (dict(where="("), "where: '(' is not a regular expression"),
        (
            dict(where="conv"),
            "where: 'conv' matches the path of no layer that can make members; the "
            "paths are backbone/dense0, head/logits",
        ),
        (
            dict(fast_weights=dict(name="batch_ensemble.random_sign", probability=2.0)),
            "probability: 2.0; allowed 0 to 1",
        ),
    ],
)
def test_what_cannot_work_says_why(changes, why):
    with pytest.raises(ValueError) as raised:
        network = build.network(CONFIG | dict(ensemble=CONFIG["ensemble"] | changes))
        jax.eval_shape(
            functools.partial(network.init, train=False), jax.random.key(0), inputs((6,))
        )
    assert why in str(raised.value)
