"""Epinets against a loop over index samples, in NumPy and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import initialise
from experiments.experiment.readers import Checkpoint
from uncertainty import build, rules
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.epinet import IndexedMLP, epinet
from uncertainty.heads.dense import Dense
from uncertainty.heads.sngp import Sngp
from uncertainty.likelihoods import softmax
from uncertainty.model import count_parameters, from_network

B, D, K, Z = 6, 4, 3, 5
key = functools.partial(jax.random.key, impl="unsafe_rbg")  # sooner compiled
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, D)), "float32")
ADDITIVE = functools.partial(MLP, widths=(2,))
CONFIG = dict(
    backbone=dict(name="mlp.MLP", widths=(7,)),
    ensemble=dict(name="epinet", size=4, training_size=3, index=Z, widths=(6, 5), inputs=True,
                  prior_scale=2.0, additive=dict(name="mlp.MLP", widths=(2,)), additive_scale=0.5),
    head=dict(name="dense.Dense", outputs=K),
    likelihood=dict(name="softmax"),
    optimiser=dict(name="adam", learning_rate=0.1, l2=(("kernel", 0.1),)),
    inference=dict(name="particles", size=2, executor="vmap"),
    steps=3,
)  # fmt: skip


def config(**ensemble):
    return CONFIG | dict(ensemble=CONFIG["ensemble"] | ensemble)


def as_double(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def affine(h, layer):
    return h @ layer["kernel"] + layer["bias"]


def one_index(variables, phi, z):
    """(K, Z) outputs of a network of (z, phi), times z: [B, K], for one z [Z]."""
    h = np.concatenate([np.broadcast_to(z, (len(phi), len(z))), phi], axis=1)
    for i in range(len(variables) - 1):
        h = np.maximum(affine(h, variables[f"dense{i}"]), 0)
    return affine(h, variables["logits"]).reshape(len(phi), -1, len(z)) @ z


def indices(network, variables, x, rng, size):
    """The z [size, Z] that a call draws, observed where the epinet gets them."""
    import flax.linen as nn

    seen = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, IndexedMLP):
            seen.append(args[1])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        network.apply(variables, x, train=size == network.training_size, rngs=rng)
    assert all(np.array_equal(z, seen[0]) for z in seen) and seen[0].shape == (size, Z)
    return np.asarray(seen[0], np.float64)


def drawn(tree, seed=1):
    """The tree's shapes with random numbers, biases too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_members_are_a_loop_over_indices(train):
    network = build.network(CONFIG)
    shapes = jax.eval_shape(functools.partial(network.init, train=False), key(0), X)
    variables = drawn(shapes)
    size, rng = 3 if train else 4, dict(noise=key(2))
    u = network.apply(variables, X, train=train, rngs=rng).mean
    zs = indices(network, variables, X, rng, size)

    params, prior, x = as_double(variables["params"]), as_double(variables["prior"]), as_double(X)
    phi = np.maximum(affine(x, params["backbone"]["dense0"]), 0)
    mu = affine(phi, params["head"]["logits"])
    h = np.concatenate([x, phi], axis=1)
    functions = prior["additive"]["variables"]["params"]
    for m, z in enumerate(zs):
        expected = mu + one_index(params["epinet"], h, z)
        expected += 2.0 * one_index(prior["matched"]["variables"]["params"], h, z)
        for d in range(Z):
            body, logits = (
                jax.tree.map(lambda a, d=d: a[d], functions[name]) for name in ("body", "logits")
            )
            expected += 0.5 * z[d] * affine(np.maximum(affine(x, body["dense0"]), 0), logits)
        np.testing.assert_allclose(u[m], expected, rtol=1e-4, atol=1e-4)
    assert u.shape == (size, B, K)


def test_without_index_and_priors_the_members_are_the_base():
    """s(phi, 0) = 0, and learned part and priors of no scale leave mu alone."""
    module = IndexedMLP(K, (6,))
    variables = drawn(jax.eval_shape(module.init, key(0), X, jnp.zeros((2, Z))))
    np.testing.assert_array_equal(module.apply(variables, X, jnp.zeros((2, Z))), 0)
    network = epinet(MLP((7,)), Dense(K), 4, prior_scale=0.0, additive=ADDITIVE, additive_scale=0.0)
    shapes = jax.eval_shape(functools.partial(network.init, train=False), key(0), X)
    assert "prior" not in shapes


def test_members_are_functions_and_fresh_in_training():
    """At prediction an index is that of all batches, so that predictions are joint ones."""
    model = build.model(config(size=3))
    params, collections = drawn(jax.eval_shape(model.init, key(0), X))
    forward = functools.partial(model.forward, params, collections)
    whole = forward(X, key(1), train=False)[0].mean
    parts = [forward(x, key(1), train=False)[0].mean for x in (X[:2], X[2:])]
    np.testing.assert_allclose(whole, np.concatenate(parts, axis=1), rtol=1e-4, atol=1e-4)
    first, second = (forward(X, key(i), train=True)[0].mean for i in (1, 2))
    assert first.shape == whole.shape and not np.allclose(first, second, atol=1e-2)


def updated(spec, steps=2, **optimiser):
    spec = spec | dict(optimiser=spec["optimiser"] | optimiser)
    made = build.inference(spec, num_examples=B)
    state = made.init(key(0), X)
    batch, update, after = dict(x=X, y=jnp.arange(B) % K), jax.jit(made.update), state
    for _ in range(steps):
        after, metrics = update(after, batch)
    assert np.asarray(metrics["finite"]).all() and metrics["nll"].shape == (2, 3, B)
    return state, after


def changed(before, after):
    """The paths of the arrays that are no longer the same."""
    old, new = (jax.tree_util.tree_leaves_with_path(t) for t in (before, after))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), (_, b) in zip(old, new, strict=True)
        if not np.array_equal(a, b)
    }


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_training_moves_what_is_learned_and_no_prior(frozen):
    before, after = updated(config(frozen=frozen))
    moved = {path.split("/")[0] for path in changed(before.params, after.params)}
    assert moved == ({"epinet"} if frozen else {"backbone", "head", "epinet"})
    assert not changed(before.collections, after.collections)
    assert set(before.collections) == ({"prior", "frozen"} if frozen else {"prior"})
    # No optimiser, prior or kernel of weights has a number of them, and particles draw their own.
    shapes = {a.shape for a in jax.tree.leaves(before.opt_state)}
    assert (2, Z, D, 2) not in shapes and ((2, D, 7) in shapes) != frozen
    assert all(
        not np.array_equal(a[0], a[1]) or not a.any() for a in jax.tree.leaves(before.collections)
    )
    all_of_them = sum(a.size for a in jax.tree.leaves((before.params, before.collections)))
    assert count_parameters(before) == all_of_them


@pytest.mark.slow
def test_the_base_learns_from_mu_alone():
    """Its gradient is that of sum u if the epinet's part were a constant; the epinet's is not."""
    network = build.network(CONFIG)
    model = from_network(network, softmax())
    params, collections = drawn(jax.eval_shape(model.init, key(0), X))

    def total(params):
        return model.forward(params, collections, X, key(1), train=True)[0].mean.sum()

    gradient = jax.grad(total)(params)

    def total_of_base(params):  # of three members
        phi = jax.nn.relu(affine(X, params["backbone"]["dense0"]))
        return 3 * affine(phi, params["head"]["logits"]).sum()

    expected = jax.grad(total_of_base)({k: params[k] for k in ("backbone", "head")})
    for part, of in expected.items():
        for a, b in zip(jax.tree.leaves(gradient[part]), jax.tree.leaves(of), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(gradient["epinet"]))


def test_a_frozen_base_predicts_in_training_too():
    """Its dropout is off, and its batch statistics and the state of its norms do not move."""
    dropped = MLP(
        (7,), dropout=functools.partial(build.resolve("layers", "dropout.Dropout", ""), 0.9)
    )
    head = Sngp(K, features=8, normalise=False, momentum=0.5, num_examples=B)
    trains, predicts = (
        from_network(epinet(dropped, head, size=3, training_size=3, frozen=frozen), softmax())
        for frozen in (False, True)
    )
    params, collections = jax.jit(predicts.init)(key(0), X)
    assert set(params) == {"epinet"} and set(collections["frozen"]) == {"backbone", "head"}
    before, after, auxiliary = predicts.forward(params, collections, X, key(1), train=True)
    expected = predicts.forward(params, collections, X, key(1), train=False)[0]
    np.testing.assert_allclose(before.mean, expected.mean, rtol=1e-5)
    assert not changed(collections, after) and auxiliary == 0
    assert before.variance.shape == (3, B, 1)  # SNGP's, of each member
    # The same network with a base that is trained: the parameters are those, in one tree.
    joint = params | collections.pop("frozen")
    u = trains.forward(joint, collections, X, key(1), train=False)[0]
    np.testing.assert_allclose(u.mean, expected.mean, rtol=1e-5)
    assert changed(collections, trains.forward(joint, collections, X, key(1), train=True)[1])


@pytest.mark.slow
def test_on_given_features_it_is_that_on_the_frozen_network():
    """With the same parameters and index, in training and at prediction, the gradient too."""
    images = jnp.asarray(np.random.default_rng(2).normal(size=(B, 8, 8, 3)), "float32")
    fields = dict(name="epinet", size=4, training_size=3, index=Z, frozen=True)
    of_images = dict(name="resnet.ResNet", depth=8, width=2)
    whole, beside = (
        build.model(dict(CONFIG, backbone=backbone, ensemble=fields))
        for backbone in (of_images, dict(name="mlp.MLP", widths=()))
    )
    params, collections = drawn(jax.eval_shape(whole.init, key(0), images))
    collections = jax.tree.map(jnp.abs, collections)  # variances
    phi = whole.features(params, collections, images, key(1))[0]
    given = dict(prior=collections["prior"], frozen=dict(head=collections["frozen"]["head"]))
    shapes = jax.eval_shape(beside.init, key(0), phi)
    assert jax.tree.map(jnp.shape, (params, given)) == jax.tree.map(jnp.shape, shapes)

    def latents(model, collections, x, train):
        def loss(params):
            latent = model.forward(params, collections, x, key(3), train=train)[0]
            return model.likelihood.nll(latent, jnp.arange(B) % K, key(4)).mean(), latent.mean

        return jax.value_and_grad(loss, has_aux=True)(params)

    for train in (False, True):
        (loss, u), gradient = latents(whole, collections, images, train)
        expected = latents(beside, given, phi, train)
        assert u.shape == (3 if train else 4, B, K)
        for a, b in zip(
            jax.tree.leaves(((loss, u), gradient)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_base_is_computed_once():
    """Whatever M is, the program has one product of the backbone's kernel, with B rows."""
    model = build.model(config(size=100, inputs=False))
    params, collections = jax.eval_shape(model.init, key(0), X)
    forward = functools.partial(model.forward, train=False)
    products = [
        equation
        for equation in jax.make_jaxpr(forward)(params, collections, X, key(1)).jaxpr.eqns
        if equation.primitive.name == "dot_general"
    ]
    of_base = [e for e in products if tuple(e.invars[1].aval.shape) == (D, 7)]
    # One of the base and two of the epinets' first layers are of B rows, not of M B.
    assert [e.outvars[0].aval.shape for e in of_base] == [(1, B, 7)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(size=0), "size: 0; at least 1"),
        (dict(training_size=0), "training_size: 0; at least 1"),
        (dict(index=0), "index: 0; at least 1"),
        (dict(widths=()), r"widths: \(\); one hidden layer or more"),
        (dict(widths=(3, 0)), r"widths: \(3, 0\); one hidden layer"),
        (dict(prior_scale=-1.0), "prior_scale: -1.0; finite, at least 0"),
        (dict(additive_scale=float("inf")), "additive_scale: inf; finite"),
    ],
)
def test_what_cannot_be_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        epinet(**(dict(backbone=MLP(), head=Dense(2), size=2) | fields))


def test_a_prior_that_makes_members_is_refused():
    dropout = functools.partial(build.resolve("layers", "dropout.Dropout", ""), 0.5, members=4)
    network = epinet(MLP((7,)), Dense(K), 2, additive=functools.partial(MLP, (2,), dropout=dropout))
    with pytest.raises(ValueError, match="prior: its backbone makes 4 members"):
        jax.eval_shape(functools.partial(network.init, train=False), key(0), X)


@pytest.mark.parametrize("saved", ["", "frozen/"])
def test_a_frozen_base_is_restored_from_a_plain_run_or_another_frozen_one(saved):
    model = build.model(config(frozen=True))
    params, collections = jax.eval_shape(model.init, key(0), X)
    state = build.inference(config(frozen=True), model)
    state = jax.eval_shape(state.init, key(0), X)
    base = {rules.path_of(path): a.shape for path, a in
            jax.tree_util.tree_leaves_with_path(collections["frozen"])}  # fmt: skip
    checkpoint = Checkpoint({saved + path: shape for path, shape in base.items()}, dict)
    moves = initialise.plan_of(
        dict(path="run", layout="own"), build.network(CONFIG), (D,), checkpoint,
        initialise._tree(state),
    )  # fmt: skip
    assert {path: move.source for path, move in moves.items()} == {p: saved + p for p in base}
    assert set(params) == {"epinet"}  # which stays as initialised
