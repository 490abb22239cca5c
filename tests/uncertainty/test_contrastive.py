"""The objective `contrastive` against NumPy, other objectives, and particles of their own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uncertainty import build, symmetries, views
from uncertainty.ensembles.mimo import mimo
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference.particles import particles
from uncertainty.layers.norm import BatchNorm
from uncertainty.layers.projector import Projector
from uncertainty.likelihoods import softmax
from uncertainty.model import from_network
from uncertainty.objectives import contrastive as module
from uncertainty.objectives.contrastive import contrastive
from uncertainty.objectives.likelihood import likelihood
from uncertainty.optimisers.optimiser import optimiser, sgd
from uncertainty.own import from_module
from uncertainty.types import Backbone

B, SIDE, K = 8, 6, 3
RNG = np.random.default_rng(0)
BATCH = dict(
    x=RNG.normal(size=(B, SIDE, SIDE, 1)).astype(np.float32),
    x2=RNG.normal(size=(B, SIDE, SIDE, 1)).astype(np.float32),
    y=np.arange(B) % K,
)
UNLABELLED = {name: BATCH[name] for name in ("x", "x2")}
AS_THEY_ARE = dict(views=(), entries=("x", "x2"))
PLAIN = functools.partial(Projector, widths=(4,), norm=None)  # one affine map


class Pooled(Backbone):
    """Images of any size: statistics of rows and columns, an affine map, a norm."""

    @nn.compact
    def __call__(self, x, *, train):
        rows = jnp.stack([x.mean((-3, -2)), x.var((-3, -2)), x[..., 0, :, :].mean(-2),
                          x[..., 0, :].mean(-2), x.max((-3, -2))], axis=-1)  # fmt: skip
        phi = nn.Dense(5, name="dense0")(rows.reshape(*rows.shape[:-2], -1))
        return nn.tanh(BatchNorm(name="norm0")(phi, train=train))


def model(ensemble=single, pixels=None):
    made = from_network(ensemble(Pooled(), Dense(K)), softmax())
    return made._replace(pixels=pixels)


def start(objective, size=1, network=None, executor="vmap", **fields):
    made = particles(
        network or model(),
        optimiser(sgd(), 1.0),
        size=size,
        objective=objective,
        executor=executor,
        **fields,
    )
    return made, made.init(jax.random.key(0), BATCH["x"][:1])


def step(objective, batch=BATCH, **fields):
    """The state before and after one step of gradient descent with rate 1, and the metrics."""
    made, state = start(objective, **fields)
    after, metrics = jax.jit(made.update)(state, batch)
    return state, after, metrics


def moved(state, after):
    return jax.tree.map(lambda a, b: np.asarray(a - b), state.params, after.params)


def numpy_features(params, x):
    """Of all of x together, as in training."""
    x = np.asarray(x, np.float64)[..., 0]
    rows = [x.mean((1, 2)), x.var((1, 2)), x[:, 0].mean(1), x[:, :, 0].mean(1), x.max((1, 2))]
    layer, norm = (params["backbone"][name] for name in ("dense0", "norm0"))
    phi = np.stack(rows, 1) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    phi = (phi - phi.mean(0)) / np.sqrt(phi.var(0) + 1e-5)
    return np.tanh(phi * np.asarray(norm["scale"]) + np.asarray(norm["bias"]))


def affine(params, phi):
    return phi @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def log_softmax(u):
    return u - np.log(np.exp(u).sum(-1, keepdims=True))


def first(tree):
    return jax.tree.map(lambda a: np.asarray(a[0]), tree)


@pytest.mark.slow
def test_the_loss_is_its_terms_in_numpy():
    """InfoNCE of both entries, the nll of the first, and the turns of the first, all weighted."""
    objective = contrastive(
        **AS_THEY_ARE, temperature=0.5, contrast=0.7, equivariance=0.3, projector=PLAIN,
        predictor=PLAIN,
    )  # fmt: skip
    state, _, metrics = step(objective)
    params = first(state.params)
    both = np.stack([BATCH["x"], BATCH["x2"]], axis=1).reshape(-1, SIDE, SIDE, 1)
    phi = numpy_features(params, both)
    z = affine(params["objective"]["projector"]["dense0"], phi)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    S = z[::2] @ z[1::2].T / 0.5
    info = np.mean([-np.mean(np.diag(log_softmax(s))) for s in (S, S.T)])
    nll = -log_softmax(affine(params["head"]["logits"], phi[::2]))[np.arange(B), BATCH["y"]]
    turned = np.stack([np.rot90(BATCH["x"], k, (1, 2)) for k in range(4)], axis=1)
    hidden = params["objective"]["predictor"]
    u = affine(
        hidden["hidden"]["dense0"], numpy_features(params, turned.reshape(-1, SIDE, SIDE, 1))
    )
    log_p = log_softmax(affine(hidden["logits"], u))
    k = np.tile(np.arange(4), B)
    expected = dict(
        contrast=info,
        positive=np.mean(np.diag(S)) * 0.5,
        retrieval=np.mean([s.argmax(1) == np.arange(B) for s in (S, S.T)]),
        element_loss=-np.mean(log_p[np.arange(4 * B), k]),
        element_accuracy=np.mean(log_p.argmax(1) == k),
    )
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], [value], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(metrics["nll"][0, 0], nll, rtol=1e-4)
    total = 0.7 * info + nll.mean() + 0.3 * expected["element_loss"]
    np.testing.assert_allclose(metrics["loss"], [total], rtol=1e-4)


@pytest.mark.slow
def test_the_head_is_a_probe_of_features_that_do_not_see_labels():
    objective = contrastive(**AS_THEY_ARE, projector=PLAIN)
    made, state = start(objective)
    update = jax.jit(made.update)
    others = BATCH | dict(y=BATCH["y"][::-1].copy())
    one, two = (moved(state, update(state, batch)[0]) for batch in (BATCH, others))
    for part in ("backbone", "objective"):
        jax.tree.map(np.testing.assert_array_equal, one[part], two[part])
    assert np.abs(one["head"]["logits"]["kernel"] - two["head"]["logits"]["kernel"]).max() > 1e-3
    # Without labels it is not trained, and the rest is.
    after, metrics = jax.jit(made.update)(state, UNLABELLED)
    assert "nll" not in metrics and metrics["finite"].all()
    of_none = moved(state, after)
    assert not of_none["head"]["logits"]["kernel"].any()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), of_none["backbone"],
        one["backbone"],
    )  # fmt: skip


@pytest.mark.slow
def test_labels_alone_with_their_whole_gradient_are_the_likelihood():
    objective = contrastive(views=(), contrast=None, supervision=1.0)
    state, after, metrics = step(objective)
    plain, then, expected = step(likelihood())
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, after.params, then.params)
    jax.tree.map(close, after.collections, then.collections)
    np.testing.assert_allclose(metrics["nll"], expected["nll"], rtol=1e-5)


KINDS = dict(eq=(0.4, 0.0), inv=(0.0, 0.5))
FIELDS = dict(views=((views.flip,), (views.flip,)), projector=PLAIN, predictor=PLAIN)


@pytest.mark.slow
def test_particles_of_two_kinds_are_two_runs():
    """Parameters, batch statistics and metrics: no kind knows of the terms of another."""
    equivariance, invariance = zip(*KINDS.values(), strict=True)
    objective = contrastive(**FIELDS, equivariance=0.4, invariance=0.0)
    hyper = dict(equivariance=equivariance, invariance=invariance)
    _, together, metrics = step(objective, size=2, hyper=hyper)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    apart = []
    for p, (weight, q) in enumerate(KINDS.values()):
        own = contrastive(**FIELDS, equivariance=weight or None, invariance=q or None)
        made, all_of_them = start(own, size=2)  # particle p begins as in the program of both
        one = jax.tree.map(lambda a, p=p: a[p : p + 1], all_of_them.replace(step=None))
        after, alone = jax.jit(made.update)(one.replace(step=all_of_them.step), BATCH)
        for part in ("backbone", "head"):
            jax.tree.map(lambda a, b, p=p: close(a[p], b[0]), together.params[part],
                         after.params[part])  # fmt: skip
        jax.tree.map(lambda a, b, p=p: close(a[p], b[0]), together.collections, after.collections)
        for name in set(alone) - {"gradient_norm", "finite"}:
            close(metrics[name][p], alone[name][0], err_msg=name)
        apart.append(after.params["backbone"]["dense0"]["kernel"])
    assert not np.allclose(*apart, atol=1e-4)


def blank(x):
    return jnp.zeros_like(x)


@pytest.mark.slow
def test_what_an_invariant_particle_sees():
    """With probability 1 both views are the only other element: all embeddings are equal."""
    blanks = functools.partial(symmetries.own, (blank,), in_units=False)
    fields = dict(**AS_THEY_ARE, symmetry=blanks, projector=PLAIN)
    hyper = dict(invariance=(1.0, 0.0))
    _, _, metrics = step(contrastive(**fields, invariance=0.5), size=2, hyper=hyper)
    np.testing.assert_allclose(metrics["contrast"][0], np.log(B), rtol=1e-5)
    assert abs(metrics["contrast"][1] - np.log(B)) > 0.01
    k = np.asarray(jax.jit(lambda: module._random_elements(jax.random.key(1), 0.4, 20_000, 5))())
    np.testing.assert_allclose(
        np.bincount(k, minlength=5) / 20_000, [0.6, 0.1, 0.1, 0.1, 0.1], atol=0.015
    )


@pytest.mark.slow
def test_views_of_two_sizes_and_some_of_the_elements():
    """Multi-crop: crops of the whole image are its resized copies, which NumPy can compute."""

    def whole(size):
        return (functools.partial(views.crop, size=size, scale=(1, 1), ratio=(1, 1),
                                  method="bilinear"),)  # fmt: skip

    sizes = (SIDE, 3, SIDE)
    objective = contrastive(
        views=tuple(map(whole, sizes)), compared=1, temperature=0.5, projector=PLAIN,
        equivariance=1.0, elements=2, predictor=PLAIN,
        symmetry=functools.partial(symmetries.own, (blank,), in_units=False),
    )  # fmt: skip
    state, _, metrics = step(objective)
    params = first(state.params)
    box = np.tile(np.float32([0, 0, SIDE, SIDE]), (B, 1))
    small = np.asarray(jax.jit(lambda x: views.resample(x, box, (3, 3)))(BATCH["x"]))
    large = numpy_features(params, np.repeat(BATCH["x"], 2, axis=0))[::2]
    phi = [large, numpy_features(params, small), large]
    together = np.stack([phi[0], phi[2]], axis=1).reshape(2 * B, -1)
    layer = params["objective"]["projector"]["dense0"]
    z = [affine(layer, together)[::2], affine(layer, phi[1]), affine(layer, together)[1::2]]
    z = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in z]
    of = []
    for a, b in ((0, 1), (0, 2), (1, 0), (2, 0)):
        of.append(-np.mean(np.diag(log_softmax(z[a] @ z[b].T / 0.5))))
    np.testing.assert_allclose(metrics["contrast"], [np.mean(of)], rtol=1e-4)
    # Each image is moved by both elements, in an order of its own.
    moved = numpy_features(params, np.concatenate([BATCH["x"], np.zeros_like(BATCH["x"])]))
    hidden = params["objective"]["predictor"]
    u = affine(hidden["logits"], affine(hidden["hidden"]["dense0"], moved))
    right = log_softmax(u)[np.arange(2 * B), np.repeat([0, 1], B)]
    np.testing.assert_allclose(metrics["element_loss"], [-np.mean(right)], rtol=1e-4)


@pytest.mark.slow
def test_eight_devices_are_one():
    """The batch is sharded: views, elements, norms and negatives are of all of its examples."""
    objective = contrastive(
        "supervised", views=((views.crop,), (views.flip,)), invariance=0.5,
        projector=functools.partial(Projector, widths=(4, 4)),
    )  # fmt: skip
    made, state = start(objective, network=model(pixels=(0.1, 0.5)))
    one, metrics = jax.jit(made.update)(state, BATCH)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    eight, of_eight = jax.jit(made.update)(state, sharded)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, eight.params, one.params)
    jax.tree.map(close, eight.collections, one.collections)
    jax.tree.map(close, of_eight, metrics)


@pytest.mark.slow
def test_images_are_in_units_while_they_are_changed():
    """A solarised image is that of [0, 1], whatever its normalisation."""
    mean, std = np.float32([0.3]), np.float32([0.2])
    pixels = RNG.uniform(size=(B, SIDE, SIDE, 1)).astype(np.float32)
    batch = dict(x=(pixels - mean) / std, y=BATCH["y"])
    inverted = functools.partial(views.solarise, p=1.0, threshold=0.4)
    objective = contrastive(views=((inverted,), (views.flip,)), projector=PLAIN)
    _, _, metrics = step(objective, batch, network=model(pixels=(mean, std)))
    expected = np.where(pixels >= 0.4, 1 - pixels, pixels)
    by_hand = batch | dict(x=(expected - mean) / std, x2=batch["x"])
    plain = contrastive(views=((), (views.flip,)), entries=("x", "x2"), projector=PLAIN)
    _, _, same = step(plain, by_hand)
    np.testing.assert_allclose(metrics["contrast"], same["contrast"], rtol=1e-5)
    with pytest.raises(ValueError, match="solarise of `contrastive` need images in"):
        step(objective, batch)


def test_a_config_names_views_symmetries_and_factories():
    objective = build.make(
        "objectives",
        dict(
            name="contrastive",
            views=[[dict(name="crop", size=4), "flip"], [f"{__name__}:own_view"]],
            symmetry="half_swap",
            predicted=[dict(name="flip", p=1.0)],
            invariance=0.5,
            equivariance=0.1,
            projector=dict(name="projector.Projector", widths=[4], norm=None),
            predictor=dict(
                name="projector.Projector", widths=[4], norm=dict(name="norm.LayerNorm")
            ),
        ),
        "objective",
    )  # fmt: skip
    assert objective.reads == ("contrast", "invariance", "equivariance") and objective.whole
    network = model(pixels=(0.0, 1.0))
    made, state = start(objective, network=network)
    _, metrics = jax.eval_shape(made.update, state, BATCH)
    assert metrics["contrast"].shape == (1,)
    predictor = state.params["objective"]["predictor"]
    assert predictor["logits"]["kernel"].shape == (1, 4, 2)
    assert set(predictor["hidden"]) == {"dense0", "norm0"}


def own_view(x, key):
    return x[:, ::-1]


def trace(objective, batch=BATCH, network=None, **fields):
    made, state = start(objective, network=network, **fields)
    jax.eval_shape(made.update, state, batch)


MIMO = functools.partial(model, functools.partial(mimo, size=2))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: contrastive("simclr"), "loss: 'simclr'; one of 'info_nce'"),
        (lambda: contrastive(temperature=0.0), "temperature: 0.0"),
        (lambda: contrastive(views=((),)), "views: 1; at least 2"),
        (lambda: contrastive(views=()), "views: 1; at least 2"),
        (lambda: contrastive(views=("flip", "flip")), "views: 'flip'; a view is a list"),
        (lambda: contrastive(entries=("x", "x2", "x3")), "entries: 3 for 2 views"),
        (lambda: contrastive(entries="x"), "entries: 'x'; a list"),
        (lambda: contrastive(compared=0), "compared: 0"),
        (lambda: contrastive(contrast=-1.0), "contrast: -1.0"),
        (lambda: contrastive(invariance=1.5), "invariance: 1.5; a probability"),
        (lambda: contrastive(equivariance=-0.4), "equivariance: -0.4"),
        (lambda: contrastive(equivariance=0.4, elements=5), "elements: 5; 'rotations' has 4"),
        (lambda: contrastive(elements=1), "elements: 1, but nothing predicts"),
        (lambda: contrastive(supervision=-1.0), "supervision: -1.0"),
        (lambda: contrastive(contrast=None), "no other term trains the features"),
        (lambda: contrastive(symmetry="rotations"), "symmetry: 'rotations'; a function of"),
        (lambda: contrastive(symmetry=dict), "symmetry: {}"),
        (lambda: trace(contrastive()), "jitter, grey, solarise of `contrastive` need images"),
        (lambda: trace(contrastive(**AS_THEY_ARE), dict(x=BATCH["x"])),
         "entries: 'x2' is no entry of the batch, which has 'x'"),
        (lambda: trace(contrastive("supervised", **AS_THEY_ARE), UNLABELLED),
         "loss 'supervised' needs labels"),
        (lambda: trace(contrastive(**AS_THEY_ARE, supervision=1.0), UNLABELLED),
         "with supervision needs labels"),
        (lambda: trace(contrastive(**AS_THEY_ARE), {k: v[:1] for k, v in BATCH.items()}),
         "compares examples, but the batch has one"),
        (lambda: trace(contrastive(**AS_THEY_ARE), network=MIMO()),
         "needs features of single examples"),
        (lambda: trace(contrastive(**AS_THEY_ARE), accumulate=2),
         "accumulate: 2 parts, but objective 'contrastive' compares all"),
        (lambda: trace(contrastive(**AS_THEY_ARE), hyper=dict(invariance=[0.5])),
         "hyper.invariance: needs objective.invariance"),
        (lambda: trace(likelihood(), hyper=dict(contrast=[0.5])),
         "hyper.contrast: needs objective.name='contrastive'"),
        (lambda: trace(contrastive(**AS_THEY_ARE, invariance=0.5), hyper=dict(invariance=[1.5])),
         "hyper.invariance: .*at most 1"),
        (lambda: trace(contrastive(views=((functools.partial(views.crop, size=3),),) * 2),
                       network=model(pixels=(0, np.ones((6, 6, 1))))),
         "mean and std of the images differ between pixels"),
    ],
)  # fmt: skip
def test_what_cannot_be_says_why(make, why):
    with pytest.raises(ValueError, match=why):
        make()


def test_a_module_of_your_own_has_one_path_with_its_backbone():
    """The gradient of its features is whole, though its module shares the backbone's path."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(K)(nn.tanh(nn.Dense(5, name="inner")(x.reshape(len(x), -1))))

    network = from_module(Net(), softmax(), head=Dense(K))
    params, collections = network.init(jax.random.key(0), BATCH["x"])

    def loss(params, weight):
        phi, latent, *_ = network.embed(params, collections, BATCH["x"], jax.random.key(1), weight)
        return jnp.sum(phi**2) / 2, latent

    (value, latent), g = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, 0.0)
    inner = params["backbone"]["inner"]
    x = BATCH["x"].reshape(B, -1)
    phi = np.tanh(x @ inner["kernel"] + inner["bias"])
    np.testing.assert_allclose(value, np.sum(phi**2) / 2, rtol=1e-5)
    np.testing.assert_allclose(
        g["backbone"]["inner"]["kernel"], x.T @ (phi * (1 - phi**2)), rtol=1e-4, atol=1e-5
    )
    same = network.forward(params, collections, BATCH["x"], jax.random.key(1), train=True)[0]
    np.testing.assert_allclose(latent.mean, same.mean, rtol=1e-5)
