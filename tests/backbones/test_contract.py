"""What every backbone promises, whatever it is made of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty.layers.dropout import Dropout

CLOSE = dict(rtol=2e-4, atol=2e-5)  # float32 sums in another order


def fan_out(layer):
    """`layer` whose output leads with members, the m-th scaled by scales[m], where `at` says so."""

    class FanOut(layer):
        scales: tuple[float, ...] = ()
        at: str = ""

        def __call__(self, x):
            y = super().__call__(x)
            if "/".join(self.path) in self.at:
                y = y * jnp.asarray(self.scales).reshape(-1, *[1] * (y.ndim - 1))
            return y

    return FanOut


FanDense, FanConv = fan_out(nn.Dense), fan_out(nn.Conv)
key = functools.partial(jax.random.key, impl="unsafe_rbg")  # compiles ten times faster in dropout


def paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.slow
def test_members_and_examples_equal_a_loop_over_them(tiny):
    x = tiny.x(members=3)
    together = tiny.predict(tiny.variables, x)
    assert together.shape[:2] == (3, 3) and together.ndim == 3
    for m in range(3):
        for b in range(3):  # three of the same example: a program of this size there is already
            alone = tiny.predict(tiny.variables, x[m : m + 1, np.full(3, b)])
            np.testing.assert_allclose(alone, np.broadcast_to(together[m, b], alone.shape), **CLOSE)
    assert not np.allclose(together[0], together[1])


@pytest.mark.slow
@pytest.mark.parametrize("place", [0.5, 1.0])
def test_any_layer_may_make_members(one_of_each, place):
    """Where one layer turns 1 into M, each member is the network with that member's layer."""
    tiny = one_of_each
    x, scales = tiny.x(), (1.0, -0.5)
    layers = [p[len("params/") : -len("/kernel")] for p in paths(tiny.variables) if "kernel" in p]
    at = [layers[round(place * (len(layers) - 1))]]
    if at[0].endswith(("query", "key", "value")):  # the three come from one factory
        at = [at[0].rpartition("/")[0] + f"/{name}" for name in ("query", "key", "value")]
    factories = {
        field: functools.partial(layer, scales=scales, at=tuple(at))
        for field, layer in (("conv", FanConv), ("dense", FanDense))
        if field in tiny.module.__dataclass_fields__
    }
    network = tiny.make(**factories)
    together = jax.jit(functools.partial(network.apply, train=False))(tiny.variables, x)
    assert together.shape[0] == 2
    for m, scale in enumerate(scales):
        variables = jax.tree_util.tree_map_with_path(
            lambda path, a, scale=scale: a * scale if path_of(path) in at else a, tiny.variables
        )
        np.testing.assert_allclose(together[m], tiny.predict(variables, x)[0], **CLOSE)
    assert not np.allclose(together[0], together[1])


def path_of(key_path) -> str:
    """The layer that a variable belongs to."""
    return "/".join(key.key for key in key_path[1:-1])


@pytest.mark.slow
def test_bfloat16_computes_with_float32_parameters(one_of_each):
    tiny = one_of_each
    reduced = tiny.make(dtype="bfloat16")
    x = tiny.x()
    init = functools.partial(reduced.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), x)
    assert {a.dtype.name for a in jax.tree.leaves(shapes)} == {"float32"}
    features = jax.jit(functools.partial(reduced.apply, train=False))(tiny.variables, x)
    assert features.dtype == jnp.bfloat16
    exact = tiny.predict(tiny.variables, x)
    assert exact.dtype == jnp.float32
    # bfloat16 has 8 bits of mantissa; some ten layers of it stay within a few percent.
    error = np.linalg.norm(features.astype(jnp.float32) - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.05


@pytest.mark.slow
def test_training_reaches_every_parameter_and_changes_batch_statistics_only(tiny):
    x = tiny.x(batch=4)
    params, rest = tiny.variables["params"], tiny.variables.copy()
    del rest["params"]

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        features, changed = tiny.module.apply(
            {"params": params, **rest}, x, train=True, mutable=True
        )
        weights = jnp.sin(jnp.arange(features.size)).reshape(features.shape)
        return jnp.sum(features * weights), changed

    gradients, changed = gradient(params)
    for name, g in paths(gradients).items():
        if name.endswith("attention/key/bias"):  # the softmax does not see a constant
            np.testing.assert_allclose(g, 0, atol=1e-5)
        else:
            assert np.abs(g).max() > 1e-5, name
    assert set(changed) == set(tiny.variables) <= {"params", "batch_stats"}
    for name, value in paths(tiny.variables).items():
        same = bool((paths(dict(changed))[name] == value).all())
        assert same == name.startswith("params/"), name


@pytest.mark.slow
def test_dropout_is_on_in_training_and_makes_members_in_prediction_where_asked(one_of_each):
    tiny = one_of_each
    x, several = tiny.x(), tiny.x(members=3)
    dropped, members = (
        tiny.make(dropout=functools.partial(Dropout, rate=0.5, members=n)) for n in (None, 4)
    )

    def apply(module, rng, train, x=x):
        rngs = {"dropout": rng}
        return module.apply(tiny.variables, x, train=train, mutable=["batch_stats"], rngs=rngs)[0]

    programs = [
        str(jax.make_jaxpr(functools.partial(module.apply, train=False))(tiny.variables, x))
        for module in (dropped, tiny.module)
    ]
    assert programs[0] == programs[1]  # off in prediction

    both = jax.jit(lambda rng: (apply(dropped, rng, True), apply(members, rng, False)))
    (first, made), (second, _), (again, _) = both(key(0)), both(key(1)), both(key(0))
    assert first.shape[:2] == (1, 3)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)

    assert made.shape[:2] == (4, 3)
    assert len(np.unique(np.round(made.reshape(4, -1), 5), axis=0)) == 4
    assert jax.eval_shape(lambda: apply(members, key(0), True)).shape[0] == 1
    with pytest.raises(ValueError, match="members: 4 of dropout, but an earlier part makes 3"):
        jax.eval_shape(lambda: apply(members, key(0), False, several))


@pytest.mark.slow
def test_initialisation_needs_no_dropout_key_and_gives_the_same_parameters(tiny):
    module = tiny.make(dropout=functools.partial(Dropout, rate=0.5, members=2))
    shapes = [
        jax.eval_shape(functools.partial(m.init, train=train), key(0), tiny.x())
        for m in (module, tiny.module)
        for train in (False, True)
    ]
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]


def test_modules_are_hashable_and_compare_by_their_fields(tiny):
    assert hash(tiny.make()) == hash(tiny.make())
    assert tiny.make() == tiny.make() != tiny.make(dtype="bfloat16")
