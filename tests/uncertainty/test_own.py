"""One's own Flax module: its numbers are those of `apply`, members those of a loop."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.batch_ensemble import batch_ensemble
from uncertainty.ensembles.mc_dropout import mc_dropout
from uncertainty.ensembles.mimo import mimo
from uncertainty.ensembles.multi_head import multi_head
from uncertainty.ensembles.packed import packed
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.heads.laplace import Laplace
from uncertainty.heads.sngp import Sngp
from uncertainty.in_memory import fit, in_order, predict, run_stage, shuffled, start_from
from uncertainty.inference.executors import mapping
from uncertainty.inference.particles import particles
from uncertainty.likelihoods import gaussian, sigmoid, softmax
from uncertainty.model import from_network
from uncertainty.own import OwnBackbone, call_of, from_module, last_layer
from uncertainty.stages.laplace import laplace
from uncertainty.stages.swag import swag
from uncertainty.types import Latent

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 5, 5, 2)).astype(np.float32)
X = RNG.normal(size=(40, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 40)


class Net(nn.Module):
    """Of every kind of layer, with a flag, batch statistics and dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(3, (3, 3), strides=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x).reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(6)(x))
        x = x + nn.Dense(6, use_bias=False, name="residual")(x)
        return nn.Dense(3)(nn.Dropout(0.4, deterministic=not train)(x))


class Small(nn.Module):
    def setup(self):
        self.inner, self.outer = nn.Dense(5), nn.Dense(3)

    def features(self, x):
        return nn.tanh(self.inner(x))

    def __call__(self, x):
        return self.outer(self.features(x))


def forward(model, params, collections, x, train=False):
    """One program in place of one for each operation."""
    run = functools.partial(model.forward, key=KEY, train=train)
    return jax.jit(lambda p, c, x: run(p, c, x))(params, collections, x)


def made(model, x):
    return jax.jit(model.init)(KEY, x)


@pytest.mark.slow
def test_one_member_is_the_module():
    model = from_module(Net(), softmax())
    params, collections = made(model, IMAGES)
    own = dict(params=params["backbone"], batch_stats=collections["batch_stats"]["backbone"])
    mean = forward(model, params, collections, IMAGES, train=False)[0].mean
    apply = jax.jit(Net().apply, static_argnames=("train", "mutable"))
    np.testing.assert_array_equal(mean, apply(own, IMAGES, train=False)[None])
    latent, after, _ = forward(model, params, collections, IMAGES, train=True)
    key = jax.random.split(KEY)[0]  # of the stream dropout
    _, theirs = apply(own, IMAGES, train=True, rngs={"dropout": key}, mutable=("batch_stats",))
    jax.tree.map(
        np.testing.assert_array_equal, after["batch_stats"]["backbone"], theirs["batch_stats"]
    )
    assert not np.allclose(latent.mean, mean)  # dropout


@pytest.mark.slow
@pytest.mark.parametrize("where", ["", "residual|Dense_1"])
def test_members_are_the_module_with_kernels_of_their_own(where):
    """BatchEnsemble: member m is the module with W * (r_m s_m^T) and a bias of its own."""
    ensemble = functools.partial(batch_ensemble, size=3, where=where)
    model = from_module(Net(), softmax(), ensemble=ensemble)
    params, collections = made(model, IMAGES)
    assert all(a.std() > 0 for p, a in jax.tree.leaves_with_path(params) if "fast" in str(p))
    mean = forward(model, params, collections, IMAGES, train=False)[0].mean
    stats = collections["batch_stats"]["backbone"]

    def member(layer, m):
        if "fast_input" not in layer:
            return layer
        bias = {"bias": layer["bias"][m]} if "bias" in layer else {}
        scale = layer["fast_input"][m][:, None] * layer["fast_output"][m]
        return dict(kernel=layer["kernel"] * scale, **bias)

    layers = params["backbone"]
    assert ("fast_input" in layers["Conv_0"]) == (not where) and "fast_input" in layers["residual"]
    apply = jax.jit(functools.partial(Net().apply, train=False))
    for m in range(3):
        own = {name: member(layer, m) for name, layer in layers.items()}
        theirs = apply(dict(params=own, batch_stats=stats), IMAGES)
        np.testing.assert_allclose(mean[m], theirs, rtol=1e-4, atol=1e-5)
    # In training, statistics are those of all members together.
    after = forward(model, params, collections, IMAGES, train=True)[1]
    assert after["batch_stats"]["backbone"]["BatchNorm_0"]["mean"].shape == (3,)


def test_an_mlp_of_ones_own_is_ours():
    """The same members, bit for bit, at the same parameters."""

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Dense(7, name="dense0")(x))

    ensemble = functools.partial(batch_ensemble, size=3)
    theirs = from_network(ensemble(MLP(widths=(7,)), Dense(2)), softmax())
    ours = from_network(ensemble(OwnBackbone(Own()), Dense(2)), softmax())
    params, none = made(theirs, X)
    shapes = jax.eval_shape(ours.init, KEY, X)[0]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    for train in (False, True):
        a, b = (forward(m, params, none, X, train)[0].mean for m in (ours, theirs))
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_mc_dropout_has_the_moments_of_its_masks():
    """u = sum_j w_j z_j h_j / (1 - rate) with z ~ Bernoulli(1 - rate), after the last dropout."""
    S, rate = 2000, 0.3
    ensemble = functools.partial(mc_dropout, size=S, rate=rate)
    model = from_module(Net(), softmax(), ensemble=ensemble)
    params, collections = made(model, IMAGES[:2])
    mean = forward(model, params, collections, IMAGES[:2], train=False)[0].mean
    features = jax.jit(model.features)(params, collections, IMAGES[:2], KEY)  # after dropout
    kept = np.asarray(features).reshape(S, -1) != 0
    own = dict(params=params["backbone"], batch_stats=collections["batch_stats"]["backbone"])
    exact = Net().apply(own, IMAGES[:2], train=False)
    live = kept.any(0)  # where h is not 0
    assert abs(kept[:, live].mean() - (1 - rate)) < 0.02
    h = np.abs(np.asarray(features)).max(0) * (1 - rate)
    variance = (h**2 @ np.asarray(params["backbone"]["Dense_1"]["kernel"]) ** 2) * rate / (1 - rate)
    error = np.sqrt(variance / S)
    assert (np.abs(mean.mean(0) - exact) < 5 * error).all()
    np.testing.assert_allclose(np.var(mean, 0), variance, rtol=0.25)
    assert forward(model, params, collections, IMAGES, train=True)[0].mean.shape[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("split", [{}, {"last": "outer"}, {"features": "features"}])
def test_laplace_of_a_trained_module_is_its_closed_form(split):
    own = Small().init(KEY, X)
    model = from_module(Small(), softmax(), head=Laplace(3, prior_precision=2.0), **split)
    inference = particles(model, optax.sgd(0.1), executor="vmap")
    state = start_from(inference, own, X)
    logits = np.asarray(Small().apply(own, X))
    state = run_stage(laplace(model, mapping("vmap")), state, dict(x=X, y=Y), batch_size=16)
    latent = inference.predict(state, X)
    np.testing.assert_allclose(latent.mean[0], logits, rtol=1e-5, atol=1e-6)
    phi = np.asarray(Small().apply(own, X, method="features"))
    phi = np.c_[phi, np.ones(len(X))]
    p = np.asarray(jax.nn.softmax(logits))
    for k in range(3):
        precision = 2 * np.eye(6) + (phi * (p[:, k] * (1 - p[:, k]))[:, None]).T @ phi
        exact = np.einsum("bi,ij,bj->b", phi, np.linalg.inv(precision), phi)
        np.testing.assert_allclose(latent.variance[0, :, k], exact, rtol=1e-4)


@pytest.mark.slow
def test_fit_is_a_loop_of_optax_for_each_particle():
    model = from_module(Small(), softmax())
    inference = particles(model, optax.adam(1e-2), size=2, executor="vmap")
    data = dict(x=X, y=Y)
    first = inference.init(KEY, X[:1])
    state = fit(inference, data, steps=7, batch_size=16, seed=3, state=first)
    assert int(state.step) == 7
    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(params, opt_state, x, y):
        def loss(params):
            u = Small().apply({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(u, y).mean()

        updates, opt_state = optimiser.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    for p in range(2):
        params = jax.tree.map(lambda a, p=p: a[p], first.params["backbone"])
        opt_state, seen = optimiser.init(params), []
        for _, batch in zip(range(7), shuffled(data, 16, 3), strict=False):
            params, opt_state = step(params, opt_state, batch["x"], batch["y"])
            seen.append(batch["x"])
        theirs = jax.tree.map(lambda a, p=p: a[p], state.params["backbone"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), theirs, params)
        assert len(np.unique(np.concatenate(seen[:2]), axis=0)) == 32  # of one epoch
    predicted = predict(model, inference, state, X, batch_size=16)
    whole = jax.nn.log_softmax(inference.predict(state, X).mean)
    np.testing.assert_allclose(predicted.log_p, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(predicted.probs, np.exp(whole).mean(0), rtol=1e-5)
    np.testing.assert_allclose(predicted.mixture, np.log(predicted.probs), rtol=1e-6)


@pytest.mark.slow
def test_swag_is_the_mean_of_the_path():
    model = from_module(Small(), softmax())
    inference = particles(model, optax.adam(1e-2))
    data = dict(x=X, y=Y)
    state = fit(inference, data, steps=3, batch_size=8)
    stage = swag(lambda o: particles(model, o), optax.sgd(0.1), steps=4, every=2, samples=0)
    after = run_stage(stage, state, data, batch_size=8)
    step, path = jax.jit(particles(model, optax.sgd(0.1)).update), []
    walk = state.replace(opt_state=jax.vmap(optax.sgd(0.1).init)(state.params))
    for i, batch in zip(range(4), shuffled(data, 8, 1), strict=False):
        walk, _ = step(walk, batch)
        path += [walk.params] if i % 2 else []
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, mean)


def test_passes_see_every_example_once():
    batches = list(in_order(dict(x=X, y=Y), 16))
    assert [len(batch["x"]) for batch in batches] == [16, 16, 8]
    np.testing.assert_array_equal(np.concatenate([batch["y"] for batch in batches]), Y)


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.inner, self.outer = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def features(self, x):
        return self.dropout(nnx.relu(self.norm(self.inner(x))))

    def __call__(self, x):
        return self.outer(self.features(x))


def test_a_module_of_nnx_has_its_modes():
    """Without an argument for it, by `train()` and `eval()`."""
    model = from_module(nnx.bridge.ToLinen(OfNnx), softmax())
    params, collections = made(model, X)
    latent, after, _ = forward(model, params, collections, X, train=True)
    mean = forward(model, params, after, X, train=False)[0].mean
    own = OfNnx(nnx.Rngs(0))
    nnx.update(own, params["backbone"])
    own.eval()
    nnx.update(own, after["batch_stats"]["backbone"])
    np.testing.assert_allclose(mean[0], own(X), rtol=1e-5, atol=1e-6)
    z = X @ params["backbone"]["inner"]["kernel"]
    np.testing.assert_allclose(
        after["batch_stats"]["backbone"]["norm"]["mean"], 0.01 * z.mean(0), rtol=1e-3, atol=1e-6
    )
    assert not np.allclose(latent.mean, mean)
    head = from_module(nnx.bridge.ToLinen(OfNnx), softmax(), head=Dense(3), features="features")
    params, collections = made(head, X)
    assert params["head"]["logits"]["kernel"].shape == (5, 3)


def test_a_head_of_ones_own():
    model = from_module(Small(), softmax(), head=nn.Dense(2), features="features")
    params, none = made(model, X)
    phi = np.tanh(X @ params["backbone"]["inner"]["kernel"])
    mean = forward(model, params, none, X, train=False)[0].mean
    np.testing.assert_allclose(mean[0], phi @ params["head"]["kernel"], rtol=1e-4, atol=1e-5)


class Flags(nn.Module):
    def __call__(self, x, *, deterministic=True, training=False):
        return x

    def masked(self, x, mask):
        return x

    def nothing(self):
        return 0


class WithArgs(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jax.nn.softmax(nn.Dense(3)(x))


class Vector(WithArgs):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)[:, 0]


class Several(WithArgs):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x), x


class OfLatent(WithArgs):
    @nn.compact
    def __call__(self, x):
        return Latent(nn.Dense(3)(x)[None])


def test_how_a_module_is_called_is_said():
    call = call_of(Flags())
    assert str(call) == "Flags.__call__(x, deterministic=not train, training=train)"
    assert call.arguments(True) == dict(deterministic=False, training=True)
    assert str(call_of(Net())) == "Net.__call__(x, train=train)"
    assert str(call_of(nn.Sequential([]))) == "Sequential.__call__(x)"
    assert last_layer(Small(), X) == "outer"


def traced(module, **options):
    model = from_module(module, softmax(), **options)
    return jax.eval_shape(model.init, KEY, X)


REFUSED = {
    "mask": (lambda: call_of(Flags(), "masked"), "needs mask besides x"),
    "no x": (lambda: call_of(Flags(), "nothing"), "takes no x"),
    "method": (lambda: call_of(Flags(), "foo"), "Flags has no method 'foo'"),
    "nnx": (lambda: from_module(OfNnx(nnx.Rngs(0)), softmax()), "flax.nnx.bridge.ToLinen"),
    "last": (lambda: from_module(Small(), softmax(), last="outer"), "last: needs a head"),
    "both": (
        lambda: from_module(Small(), softmax(), head=Dense(3), last="outer", features="features"),
        "give one of them",
    ),
    "vector": (lambda: traced(Vector()), r"shape \(40,\) .* \[B, K\] is needed; for one"),
    "tuple": (lambda: traced(Several()), "returns a tuple; one array"),
    "latent": (lambda: traced(OfLatent()), "use `from_network`"),
    "no dense": (lambda: traced(WithArgs(), head=Dense(3)), r"is not .* \(called: 'Dense_0'\)"),
    "no such": (lambda: traced(Small(), head=Dense(3), last="nix"), "'nix' is the path of no nn"),
    "no dropout": (
        lambda: jax.eval_shape(
            from_module(
                Small(), softmax(), ensemble=functools.partial(mc_dropout, size=3, rate=0.1)
            ).init,
            KEY,
            X,
        ),
        "it has no layers that make members",
    ),
    "where": (
        lambda: traced(Small(), ensemble=functools.partial(batch_ensemble, size=2, where="x")),
        "where: 'x' matches the path of no layer .*backbone/inner",
    ),
    "packed": (
        lambda: traced(Small(), ensemble=functools.partial(packed, size=2)),
        "OwnBackbone",
    ),
    "heads": (
        lambda: traced(Small(), ensemble=functools.partial(multi_head, size=2)),
        r"head: Logits has no parameters, so the 2 members of multi_head .* head=Dense\(3\)",
    ),
    "mimo": (
        lambda: traced(Small(), ensemble=functools.partial(mimo, size=3)),
        "head: Logits has no parameters, so the 3 members of mimo",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_heads_of_a_module_of_ones_own_differ():
    for ensemble in (multi_head, mimo):
        model = from_module(
            Small(), softmax(), head=Dense(3), ensemble=functools.partial(ensemble, size=3)
        )
        mean = forward(model, *made(model, X), X)[0].mean
        assert (mean.std(0) > 0).all()


def inference_of(module, likelihood=None):
    return particles(from_module(module, likelihood or softmax()), optax.sgd(0.1))


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (Small(), dict(x=X, y=Y[1:]), "data.y: 39 entries for 40 examples"),
        (Small(), dict(x=X, y=Y + 1), "from 1 to 3; the model has 3 outputs, so from 0 to 2"),
        (Small(), dict(x=X, y=np.eye(3, dtype=int)[Y]), "are \\[N\\], not one-hot"),
        (Small(), dict(x=np.where(X > 2, np.nan, X), y=Y), "x: of example .* is nan"),
        (Small(), dict(y=Y), "x is missing"),
        (Small(), dict(x=X[:0], y=Y[:0]), "at least one example"),
        (Small(), dict(x=X, y=X[:, :2]), r"targets \[N, 3\] are needed"),
        (WithArgs(), dict(x=X, y=Y), "leave the softmax out"),
        (WithArgs(), dict(x=X, y=np.eye(3)[Y]), "leave the softmax out"),
        (
            Small(),
            dict(x=X, y=10 * X[:, :3]),
            "of example 0; floats are probabilities of the classes",
        ),
    ],
)
def test_data_that_would_give_wrong_numbers_are_refused(module, data, message):
    with pytest.raises(ValueError, match=message):
        fit(inference_of(module), data, steps=1)


def test_a_step_that_is_not_finite_is_reported():
    inference = particles(from_module(nn.Dense(1), gaussian()), optax.sgd(1e30))
    with pytest.raises(FloatingPointError, match="of particle 0 is not finite"):
        fit(inference, dict(x=X, y=X[:, :1]), steps=5)


def test_variables_that_do_not_fit_are_named():
    own = Small().init(KEY, X)["params"]
    inference = inference_of(Small())
    for variables, message in (
        ({"params": {**own, "more": own["inner"]}}, "the model has no more/bias, more/kernel"),
        ({"params": {"inner": own["inner"]}}, "outer/bias is missing"),
        ({"params": {**own, "outer": own["inner"]}}, r"outer/bias has shape \(5,\)"),
        ({"params": own, "batch_stats": {}}, "variables.batch_stats: the model has no such"),
        ([{"params": own}] * 2, "2 sets for 1 particles"),
    ):
        with pytest.raises(ValueError, match=message):
            start_from(inference, variables, X)


def test_a_last_layer_is_not_that_of_random_features():
    """Of shape [5, 3] both, so that the shape does not tell."""
    own = Small().init(KEY, X)
    sngp, dense = (
        particles(from_module(Small(), softmax(), head=head), optax.sgd(0.1))
        for head in (Sngp(3, features=5), Dense(3))
    )
    with pytest.raises(ValueError, match="outer/bias, outer/kernel are of the module's features"):
        start_from(sngp, own, X)
    inner = {"params": {"inner": own["params"]["inner"]}}
    state = start_from(sngp, inner, X)
    for taken in (state, start_from(dense, own, X)):
        np.testing.assert_array_equal(
            taken.params["backbone"]["inner"]["kernel"][0], own["params"]["inner"]["kernel"]
        )
    np.testing.assert_array_equal(
        state.params["head"]["logits"]["kernel"],
        sngp.init(jax.random.key(0), X[:1]).params["head"]["logits"]["kernel"],
    )


def test_single_is_what_from_module_makes_by_default():
    network = single(OwnBackbone(Small(), last="outer"), Dense(3))
    ours = from_network(network, softmax()).init(KEY, X)
    theirs = from_module(Small(), softmax(), head=Dense(3)).init(KEY, X)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_labels_that_are_no_targets_are_refused():
    inference = inference_of(Small(), gaussian())
    with pytest.raises(
        ValueError, match=r"data.y: int64; targets of regression are floats, \[N, 3\]"
    ):
        fit(inference, dict(x=X, y=Y), steps=1)
    soft = np.full((len(X), 3), 1 / 3)
    assert fit(inference_of(Small()), dict(x=X, y=soft), steps=0).step == 0


@pytest.mark.parametrize(
    ("likelihood", "head", "why"),
    [
        (gaussian(0.1), Laplace(1), "head.curvature: 'softmax'; real-valued targets need 'gauss"),
        (gaussian(0.1), Laplace(1, curvature="gaussian"), r"head.noise: 1.0, but .*std\^2 is 0.01"),
        (sigmoid(), Laplace(3), "head.curvature: 'softmax', but the likelihood is 'sigmoid'"),
        (softmax(), Laplace(3, curvature="sigmoid"), "'sigmoid', but the likelihood is 'softmax'"),
    ],
)
def test_a_posterior_of_another_likelihood_is_refused(likelihood, head, why):
    with pytest.raises(ValueError, match=why):
        from_module(Small(), likelihood, head=head)


def test_a_moving_precision_beside_a_frozen_backbone_is_that_of_its_features():
    head = functools.partial(Sngp, 3, features=16, momentum=0.5, num_examples=len(X))
    plain, frozen = (
        from_module(Small(), softmax(), head=head(), ensemble=functools.partial(single, frozen=f))
        for f in (False, True)
    )
    (params, others), (rest, kept) = (m.init(KEY, jnp.asarray(X[:1])) for m in (plain, frozen))
    for _ in range(2):
        others = plain.forward(params, others, X, KEY, train=True)[1]
        kept = frozen.forward(rest, kept, X, KEY, train=True)[1]
    for a, b in zip(
        jax.tree.leaves(others["precision"]), jax.tree.leaves(kept["precision"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    at = plain.forward(params, others, X, KEY, train=False)[0].epistemic
    np.testing.assert_allclose(
        frozen.forward(rest, kept, X, KEY, train=False)[0].epistemic, at, rtol=1e-6
    )
    far = plain.forward(params, others, X + 100, KEY, train=False)[0].epistemic
    assert at.mean() < 0.6 * far.mean()


def test_bools_are_labels_of_two_classes():
    """Also in batches of K, where [B] and [K] would broadcast."""
    inference = inference_of(Small())
    first = inference.init(KEY, X[:1])
    each = [
        fit(inference, dict(x=X, y=y), steps=2, batch_size=3, state=first).params
        for y in (X[:, 0] > 0, (X[:, 0] > 0).astype(int))
    ]
    jax.tree.map(np.testing.assert_array_equal, *each)
    with pytest.raises(ValueError, match="not one-hot"):
        fit(inference, dict(x=X, y=np.eye(3, dtype=bool)[Y]), steps=1)
