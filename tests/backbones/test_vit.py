"""The transformer and its layers against loops in NumPy and against Flax's own attention."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty.backbones.vit import ViT
from uncertainty.layers.attention import Attention
from uncertainty.layers.feed_forward import FeedForward


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def attention(x, params, heads):  # [T, D]
    q, k, v = (dense(x, params[name]) for name in ("query", "key", "value"))
    T, D = x.shape
    d = D // heads
    y = np.zeros((T, D))
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        for t in range(T):
            scores = np.array([q[t, part] @ k[s, part] for s in range(T)]) / np.sqrt(d)
            weights = np.exp(scores - scores.max())
            y[t, part] = (weights / weights.sum()) @ v[:, part]
    return dense(y, params["out"])


def feed_forward(x, params):
    a = dense(x, params["dense0"])
    gelu = a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    return dense(gelu, params["dense1"])


def norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def test_attention_is_a_loop_over_heads_and_tokens(random_variables):
    module, x = Attention(num_heads=3), normal(2, 2, 5, 6)
    variables = random_variables(module, x)
    params = jax.tree.map(np.asarray, variables["params"])
    expected = [[attention(tokens, params, 3) for tokens in member] for member in x]
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_attention_equals_flax_with_reshaped_kernels(random_variables):
    """The layout that published Flax checkpoints have: [D, heads, d] and [heads, d, D]."""
    D, heads = 6, 3
    module, x = Attention(num_heads=heads), normal(1, 2, 5, D)
    variables = random_variables(module, x)
    theirs = {
        name: {
            "kernel": p["kernel"].reshape(*((heads, -1, D) if name == "out" else (D, heads, -1))),
            "bias": p["bias"] if name == "out" else p["bias"].reshape(heads, -1),
        }
        for name, p in variables["params"].items()
    }
    flax = nn.MultiHeadDotProductAttention(num_heads=heads)
    np.testing.assert_allclose(
        module.apply(variables, x), flax.apply({"params": theirs}, x, x), rtol=1e-4, atol=1e-5
    )


def test_feed_forward_uses_the_tanh_gelu(random_variables):
    module, x = FeedForward(mlp_dim=7), normal(2, 2, 3, 4)
    variables = random_variables(module, x, train=False)
    y = module.apply(variables, x, train=False)
    np.testing.assert_allclose(y, feed_forward(x, variables["params"]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "hidden"), [("token", None), ("gap", None), ("token", 3)])
def test_whole_network(pooling, hidden, random_variables):
    sizes = dict(patch_size=2, width=8, mlp_dim=5, num_heads=4)
    module = ViT("tiny", pooling=pooling, representation=hidden, **sizes)
    x = normal(1, 2, 4, 6, 3)
    variables = random_variables(module, x, train=False)
    params = jax.tree.map(np.asarray, variables["params"])
    expected = []
    for image in x[0]:
        patches = [image[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2, 4)]
        kernel = params["embedding"]["kernel"]
        tokens = np.stack([np.einsum("hwc,hwcd->d", p, kernel) for p in patches])
        tokens = tokens + params["embedding"]["bias"]
        if pooling == "token":
            tokens = np.concatenate([params["class_token"][0], tokens])
        tokens = tokens + params["position_embedding"][0]
        for name in ("block00", "block01"):
            p = params[name]
            tokens = tokens + attention(norm(tokens, p["norm0"]), p["attention"], 4)
            tokens = tokens + feed_forward(norm(tokens, p["norm1"]), p["feed_forward"])
        tokens = norm(tokens, params["norm"])
        features = tokens[0] if pooling == "token" else tokens.mean(0)
        expected.append(np.tanh(dense(features, params["pre_logits"])) if hidden else features)
    features = jax.jit(functools.partial(module.apply, train=False))(variables, x)
    np.testing.assert_allclose(features[0], expected, rtol=1e-3, atol=1e-4)


class Doubler(nn.Module):
    """A feed-forward with one parameter, which makes as many members as it is told."""

    members: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        factor = self.param("factor", nn.initializers.constant(2.0), (self.members, 1, 1, 1))
        return x * factor * (1 + jnp.arange(self.members).reshape(-1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, "1"])
def test_swaps_replace_a_feed_forward(block, random_variables):
    x = normal(1, 2, 8, 8, 2)
    swapped = ViT("tiny", swaps={block: functools.partial(Doubler, members=3)})
    shapes = jax.eval_shape(functools.partial(swapped.init, train=False), jax.random.key(0), x)
    feed_forwards = {b: set(shapes["params"][b]["feed_forward"]) for b in ("block00", "block01")}
    assert feed_forwards == {"block00": {"dense0", "dense1"}, "block01": {"factor"}}
    variables = random_variables(swapped, x, train=False)
    features = jax.jit(functools.partial(swapped.apply, train=False))(variables, x)
    assert features.shape == (3, 2, 32)
    assert len(np.unique(np.round(features[:, 0, 0], 5))) == 3
    assert hash(swapped) is not None


@pytest.mark.slow
def test_remat_changes_neither_values_nor_gradients(random_variables):
    x = normal(1, 2, 8, 8, 2)
    fields = dict(width=8, mlp_dim=6, depth=1)
    plain, remat = (ViT("tiny", remat=r, **fields) for r in (False, True))
    variables = random_variables(plain, x, train=False)
    assert jax.tree.structure(variables) == jax.tree.structure(
        random_variables(remat, x, train=False)
    )
    (value, gradient), (same_value, same_gradient) = (
        jax.jit(jax.value_and_grad(lambda v, m=m: (m.apply(v, x, train=True) ** 2).sum()))(
            variables
        )
        for m in (plain, remat)
    )
    np.testing.assert_allclose(value, same_value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, same_gradient
    )
    programs = [
        str(jax.make_jaxpr(jax.grad(lambda v, m=m: m.apply(v, x, train=True).sum()))(variables))
        for m in (plain, remat)
    ]
    assert "remat" not in programs[0] and "remat" in programs[1]


@pytest.mark.slow
def test_starts_as_published(initial_params):
    """Xavier uniform projections, N(0, 0.02^2) positions, zero class token and biases."""
    module = ViT("tiny", width=64, depth=1, num_heads=4, mlp_dim=128)
    params = initial_params(module, (1, 1, 32, 32, 3))
    for name in ("query", "key", "value", "out"):
        kernel = np.abs(params["block00"]["attention"][name]["kernel"])
        assert 0.99 * np.sqrt(6 / 128) < kernel.max() <= np.sqrt(6 / 128)
        np.testing.assert_allclose(kernel.mean(), np.sqrt(6 / 128) / 2, rtol=0.05)
    np.testing.assert_allclose(params["position_embedding"].std(), 0.02, rtol=0.05)
    assert not params["class_token"].any()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert not any(a.any() for path, a in leaves if path[-1].key == "bias")


def test_heads_must_divide_features():
    with pytest.raises(ValueError, match="num_heads: 4 does not divide the 6 features"):
        jax.eval_shape(Attention(4).init, jax.random.key(0), jnp.ones((1, 1, 2, 6)))
