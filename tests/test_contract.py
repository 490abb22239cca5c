"""What every backbone, ensemble, head and inference promises.

To add a method, add its line: what goes with what is in `test_composition.py`.
"""

import functools
import pkgutil
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

import uncertainty.backbones
import uncertainty.ensembles
import uncertainty.heads
import uncertainty.inference.directions
import uncertainty.objectives
from uncertainty import build, types
from uncertainty.model import from_network

B, K = 8, 3
IMAGE = (8, 8, 1)
sooner = functools.partial(jax.random.key, impl="unsafe_rbg")  # keys whose draws compile sooner

BACKBONES = {
    "mlp": dict(name="mlp.MLP", widths=(16,), activation="silu"),  # no unit of which is ever dead
    "lenet": dict(name="lenet.LeNet5", padding="SAME"),
    "conv_net": dict(name="conv_net.ConvNet", channels=(4, 6), kernel_sizes=3),
    "resnet": dict(name="resnet.ResNet", depth=8, width=4),
    "wide_resnet": dict(name="wide_resnet.WideResNet", depth=10, width_multiplier=1),
    "vit": dict(name="vit.ViT", variant="tiny", width=16, mlp_dim=32, depth=1),
    "vmoe": dict(
        name="vit.ViT", variant="tiny", width=16, mlp_dim=32, depth=1, expert_blocks=(0,),
        experts=dict(name="experts.MoE", num_experts=4, router=dict(name="routers.TopK")),
    ),
}  # fmt: skip
ENSEMBLES = {
    "single": dict(name="single"),
    "multi_head": dict(name="multi_head", size=2),
    "mc_dropout": dict(name="mc_dropout", size=3, rate=0.1),
    "e3": dict(name="e3", size=2),
    "batch_ensemble": dict(name="batch_ensemble", size=2),
    "mimo": dict(name="mimo", size=2),
    "masksembles": dict(name="masksembles", size=3, scale=1.5),
    "packed": dict(name="packed", size=2, alpha=1.5),
    "epinet": dict(name="epinet", size=2, training_size=2, index=4, widths=(5,),
                   additive=dict(name="mlp.MLP", widths=(3,))),
    "hypermodel": dict(name="hypermodel", size=2, training_size=2, index=3, prior_scale=0.5,
                       prior=dict(name="mlp.MLP", widths=(3,))),
    "randomised_prior": dict(name="randomised_prior", scale=1.5,
                             prior=dict(name="mlp.MLP", widths=(3,))),
    "rank1": dict(name="rank1", size=2, num_examples=64, prior_scale=1.0),
}  # fmt: skip
HEADS = {  # with the likelihood that it is for
    "dense": (dict(name="dense.Dense", outputs=K), dict(name="softmax")),
    "mean_variance": (
        dict(name="mean_variance.MeanVariance", outputs=K),
        dict(name="gaussian", noise_std=0.0),
    ),
    "sngp": (
        dict(name="sngp.Sngp", outputs=K, features=16),
        dict(name="softmax", mean_field=1.0),
    ),
    "laplace": (dict(name="laplace.Laplace", outputs=K), dict(name="softmax", samples=8)),
    "heteroscedastic": (
        dict(name="heteroscedastic.Heteroscedastic", outputs=K, rank=2),
        dict(name="softmax", samples=8),
    ),
    "hetsngp": (
        dict(
            name="heteroscedastic.Heteroscedastic",
            outputs=K,
            rank=2,
            mean=dict(name="sngp.Sngp", features=16, momentum=0.9, num_examples=64),
        ),
        dict(name="softmax", samples=8),
    ),
    "heteroscedastic_xl": (
        dict(name="heteroscedastic.HeteroscedasticXL", outputs=K, rank=2),
        dict(name="softmax", samples=8),
    ),
}
OBJECTIVES = {
    "likelihood": dict(name="likelihood"),
    "label_smoothing": dict(name="label_smoothing", rate=0.2),
    "mean_teacher": dict(name="mean_teacher", weight=2.0, ramp_steps=10),
    "dare": dict(name="dare", threshold=2.0),
    "divdis": dict(name="divdis", stream=None),
    "d_bat": dict(name="d_bat", stream=None),
    "disagreement": dict(name="disagreement", weight=0.1, stream=None),
    "negative_correlation": dict(name="negative_correlation"),
    "contrastive": dict(
        name="contrastive", views=[["flip"], []], invariance=0.5, symmetry="flip",
        projector=dict(name="projector.Projector", widths=(4,)),
    ),
}  # fmt: skip
PRIOR = dict(name="gaussian", scale=2.0)


def posterior(direction, size=3, **fields):
    return dict(name="particles", size=size, direction=direction, prior=PRIOR, **fields)


def space(name, method="svgd", **fields):
    return posterior(dict(name=method, space=name, **fields))


ALONE = dict(name="independent")
INFERENCE = {
    "particles": dict(name="particles", size=2, direction=ALONE),
    "accumulated": dict(name="particles", size=1, accumulate=2, direction=ALONE),
    "prior": posterior(ALONE, 1, temperature=0.5),
    "svgd": space("weights", per_layer=True, annealing=dict(name="linear", steps=30)),
    "svgd_functions": space("functions", kernel=dict(name="imq")),
    "svgd_kernel": space("functional_kernel"),
    "svgd_repulsion": space("functional_repulsion", context=dict(name="perturbed")),
    "svgd_probabilities": space("functions", values="probabilities",
                                kernel=dict(name="probability_product")),
    "kde": space("weights", "wgd", estimator="kde"),
    "sge": space("weights", "wgd", estimator="sge", kernel=dict(name="linear")),
    "ssge": space("functions", "wgd", estimator="ssge", function_prior=4),
    "together": dict(name="particles", size=2, direction=dict(name="together")),
    "sgld": posterior(ALONE, 2),
    "psgld": posterior(ALONE, 2),
    "sghmc": posterior(ALONE, 2, accumulate=2),
    "stochastic_svgd": space("weights"),
    "hyper": posterior(ALONE, 2, hyper=dict(prior_scale=(0.5, 1.0),
                                            learning_rate=dict(low=0.5, high=1.0))),
    "collect": dict(name="particles", size=2, direction=ALONE,
                    collect=dict(name="after_burn_in", size=2, burn_in=0.5)),
    "moving_average": dict(name="particles", size=2, direction=ALONE,
                           collect=dict(name="moving_average", decay=0.6)),
}  # fmt: skip
WITH = {"together": OBJECTIVES["disagreement"]}  # those that want an objective
SAMPLERS = {  # those that want one in the place of an optimiser
    "sgld": dict(name="sgld", learning_rate=0.1),
    "psgld": dict(name="psgld", learning_rate=3e-3),
    "sghmc": dict(name="sghmc", learning_rate=0.01),
    "stochastic_svgd": dict(name="sgld", learning_rate=0.1),
}

# What is in the folders and is not a method by itself.
HELPERS = {"inputs", "interacting", "replace", "spectral"}


def config_of(backbone, ensemble, head, inference, **changes):
    head, likelihood = HEADS[head]
    return (
        dict(
            backbone=BACKBONES[backbone],
            ensemble=ENSEMBLES[ensemble],
            head=head,
            likelihood=likelihood,
            inference=INFERENCE[inference],
            steps=60,
            optimiser=SAMPLERS.get(inference, dict(name="adam", learning_rate=1e-2)),
            objective=WITH.get(inference, "likelihood"),
        )
        | changes
    )


def batch_of(head):
    y = jnp.zeros((B, K)) if head == "mean_variance" else jnp.zeros(B, int)
    return dict(x=jnp.zeros((B, *IMAGE)), y=y)


def images(n):
    return jax.random.normal(jax.random.key(1), (n, *IMAGE))


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def shapes(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)


BOUNDED = {  # in every field of a backbone with this name
    "dense": dict(name="spectral_norm.Dense", bound=0.5),
    "conv": dict(name="spectral_norm.Conv", bound=0.5),
}


def drawn(state):
    """A state of one particle with this one's shapes, which nothing is compiled for."""
    rng = np.random.default_rng(0)

    def positive(path, a):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return np.zeros(a.shape, a.dtype)
        value = 0.1 + np.abs(rng.normal(size=a.shape))
        if path[-1].key == "v":  # a unit vector, of each expert if there are some
            over = tuple(range(2 if "experts" in jax.tree_util.keystr(path) else 1, a.ndim))
            value /= np.sqrt((value**2).sum(over, keepdims=True))
        return value.astype(a.dtype)

    return state.replace(
        step=np.zeros((), np.int32),
        key=jax.random.split(sooner(0), len(state.key)),
        params=jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(a.dtype), state.params),
        collections=jax.tree_util.tree_map_with_path(positive, state.collections),
        opt_state=jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state.opt_state),
    )


def bounded(backbone):
    """A config whose backbone has layers of bounded norm alone."""
    config = config_of(backbone, "single", "dense", "particles")
    fields = build.resolve("backbones", config["backbone"]["name"], "").__dataclass_fields__
    config["backbone"] = config["backbone"] | {f: BOUNDED[f] for f in BOUNDED if f in fields}
    config["inference"] = dict(name="particles", size=1)  # half the compilation
    config["optimiser"] = dict(name="sgd", learning_rate=0.1)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_may_have_layers_of_bounded_norm(backbone):
    key, x = sooner(0), images(B)
    plain, _ = jax.eval_shape(
        build.model(config_of(backbone, "single", "dense", "particles")).init, key, x
    )
    params, collections = jax.eval_shape(build.model(bounded(backbone)).init, key, x)
    assert shapes(params) == shapes(plain)
    kernels = [p for p in paths(params["backbone"]) if p.endswith("/kernel")]
    kernels = [p for p in kernels if "/router/" not in p]  # scores experts, maps no features
    states = paths(collections["spectral_norm"]["backbone"])
    assert {p.removesuffix("/v") for p in states} == {p.removesuffix("/kernel") for p in kernels}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["lenet", "resnet", "vmoe"])
def test_training_moves_layers_of_bounded_norm_and_their_state(backbone):
    config, x = bounded(backbone), images(B)
    model = build.model(config)
    inference = build.inference(config, model)
    state = drawn(jax.eval_shape(inference.init, sooner(0), x[:1]))
    states = paths(state.collections["spectral_norm"]["backbone"])

    after, metrics = jax.jit(inference.update)(state, dict(x=x, y=jnp.zeros(B, int)))
    assert np.asarray(metrics["finite"]).all()
    for name, v in paths(after.collections["spectral_norm"]["backbone"]).items():
        each = v.reshape(-1, *v.shape[2:]) if "/experts/" in name else v
        np.testing.assert_allclose([np.linalg.norm(one) for one in each], 1, rtol=1e-5)
        assert v.dtype == jnp.float32 and not np.allclose(v, states[name], atol=1e-3), name
    for name, kernel in paths(after.params).items():
        assert name.endswith("bias") or not np.array_equal(kernel, paths(state.params)[name]), name

    params, collections = jax.tree.map(lambda a: a[0], (after.params, after.collections))
    predict = lambda c: model.forward(params, c, x, sooner(0), train=False)[1]  # noqa: E731
    program = jax.make_jaxpr(predict)(collections).jaxpr
    assert program.outvars == program.invars  # what comes out is what was given


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_bfloat16_is_confined_to_the_backbone(backbone):
    names = (backbone, "multi_head", "dense", "particles")
    config = config_of(*names)
    config["backbone"] = config["backbone"] | dict(dtype="bfloat16")
    model, x, key = build.model(config), jnp.zeros((B, *IMAGE)), sooner(0)
    variables = jax.eval_shape(model.init, key, x)
    train = functools.partial(model.forward, train=True)
    program, made = jax.make_jaxpr(train, return_shape=True)(*variables, x, key)
    for tree in (variables, made):
        assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(tree))
    assert "bf16" in str(program)  # and it is used


@pytest.mark.parametrize(
    ("package", "lines"),
    [
        (uncertainty.backbones, [spec["name"] for spec in BACKBONES.values()]),
        (uncertainty.ensembles, [spec["name"] for spec in ENSEMBLES.values()]),
        (uncertainty.heads, [head["name"] for head, _ in HEADS.values()]),
        (
            uncertainty.inference.directions,
            [spec["direction"]["name"] for spec in INFERENCE.values() if "direction" in spec],
        ),
        (uncertainty.objectives, [spec["name"] for spec in OBJECTIVES.values()]),
    ],
    ids=["backbones", "ensembles", "heads", "directions", "objectives"],
)
def test_every_file_of_methods_has_its_line(package, lines):
    files = {module.name for module in pkgutil.iter_modules(package.__path__)} - HELPERS
    assert files == {name.split(".")[0] for name in lines}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_declares_what_its_variables_show(backbone):
    model = build.model(config_of(backbone, "single", "dense", "particles"))
    network = build.network(config_of(backbone, "single", "dense", "particles"))
    assert isinstance(network.backbone, types.Backbone)
    params, collections = jax.eval_shape(model.init, jax.random.key(0), images(B))
    layers = {path.rpartition("/")[0] for path in paths(params["backbone"])}
    assert network.backbone.input_layers and layers.issuperset(network.backbone.input_layers)
    assert network.backbone.clone(**network.backbone.sizes) is not None
    for size in jax.tree.leaves(network.backbone.sizes):
        assert size % network.backbone.width_unit == 0 and size > 0
    # Routers count where tokens share slots, and experts are what leads with E.
    assert model.batch_dependent == bool(model.monitors) == ("routing" in collections)
    assert all(set(monitor.collections) <= set(collections) for monitor in model.monitors)
    assert bool(model.sharding) == any("/experts/" in path for path in paths(params))
    for rule, _ in model.sharding:
        assert {a.shape[0] for path, a in paths(params).items() if re.search(rule, path)} == {4}
    shape = network.backbone.patches(IMAGE)
    position = params["backbone"].get("position_embedding")
    assert (shape is None) == (position is None)
    assert shape is None or position.shape[1] == shape[0] + shape[1] * shape[2]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_declares_the_posterior_that_the_stage_laplace_would_find(head):
    config = config_of("mlp", "single", head, "particles")
    model = build.model(config)
    assert isinstance(build.network(config).head, types.Head)
    params, collections = jax.eval_shape(model.init, jax.random.key(0), images(B))
    forward = functools.partial(model.forward, train=False, mutable=("moments",))
    after = jax.eval_shape(forward, params, collections, images(B), jax.random.key(0))[1]
    assert (model.posterior is not None) == ("moments" in after)
    if model.posterior is not None:
        assert model.posterior.moving == ("precision" in collections)
        of = config["head"][model.posterior.field] if model.posterior.field else config["head"]
        assert "momentum" in of or not model.posterior.moving
        (total,) = [a for path, a in paths(after["moments"]).items() if path.endswith("/sum")]
        by_class = total.ndim == 3  # of 'gaussian' all classes share one
        assert by_class == (model.posterior.curvature != "gaussian")


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_an_ensemble_is_variational_where_its_loss_has_a_divergence(ensemble):
    backbone = "vmoe" if ensemble == "e3" else "mlp"
    config = config_of(backbone, ensemble, "dense", "particles")
    network, model = build.network(config), build.model(config)
    assert isinstance(network, types.Network)
    params, collections = jax.eval_shape(model.init, jax.random.key(0), images(B))
    rngs = {name: jax.random.key(0) for name in ("dropout", "noise")}
    training = functools.partial(network.apply, train=True, rngs=rngs, mutable=True)
    _, sown = jax.eval_shape(training, {"params": params, **collections}, images(B))
    divergences = [path for path in paths(sown.get("losses", {})) if "_kl/" in path]
    assert model.variational == network.variational == bool(divergences)


def test_parts_that_declare_nothing_are_refused():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(K)(x.reshape(*x.shape[:2], -1))

    likelihood = build.model(config_of("mlp", "single", "dense", "particles")).likelihood
    network = build.network(config_of("mlp", "single", "dense", "particles"))
    with pytest.raises(ValueError, match=r"backbone: Plain does not derive from `types\.Backbone`"):
        from_network(network.clone(backbone=Plain()), likelihood)
    with pytest.raises(ValueError, match=r"head: Plain does not derive from `types\.Head`"):
        from_network(network.clone(head=Plain()), likelihood)
    model = from_network(Plain(), likelihood)  # a network by itself need not declare anything
    assert not (model.monitors or model.batch_dependent or model.sharding or model.variational)


# What a batch may have beside x and y: entries of the examples, and streams of other sizes.
FURTHER = dict(group=jnp.zeros(B, jnp.int32), kept=jnp.zeros(B, bool),
               unlabelled=dict(x=jnp.zeros((2 * B, *IMAGE))))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("inference", INFERENCE)
def test_what_else_a_batch_has_changes_nothing(inference):
    """Nothing depends on it, whatever the direction, microbatches included."""
    made = build.inference(config_of("mlp", "single", "dense", inference), num_examples=64)
    batch = batch_of("dense")
    state = jax.eval_shape(made.init, jax.random.key(0), batch["x"][:1])
    program = jax.make_jaxpr(made.update)(state, batch | FURTHER).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    read = jax.tree.unflatten(jax.tree.structure((state, batch | FURTHER)), used)[1]
    assert read["x"] and read["y"]
    assert not any(jax.tree.leaves({key: read[key] for key in FURTHER}))


MADE_ALREADY = dict(name="dropout.Dropout", rate=0.5, members=4)
IMPOSSIBLE = [  # changes to a config, and why it cannot be
    (dict(backbone=dict(name="mlp.MLP", conv=dict(name="conv.Conv"))),
     "backbone.conv: no such field"),
    (dict(backbone=dict(name="mlp.MLP", norm=None)), "backbone.norm: no such field"),
    (dict(backbone=dict(name="resnet.ResNet", depth=21)), "backbone: depth: 21; allowed 8, 14"),
    (dict(backbone=dict(name="lenet.LeNet5", padding="VALID")), "8 x 8; allowed at least 25 x 25"),
    (dict(backbone=dict(name="vit.ViT", variant="tiny", patch_size=3)),
     "patch_size: 3 does not divide images of 8 x 8"),
    (dict(backbone=dict(name="vit.ViT", variant="tiny", num_heads=5)),
     "num_heads: 5 does not divide width 32"),
    (dict(ensemble=dict(name="multi_head", size=0)), "size: 0 members; at least 1"),
    (dict(ensemble=dict(name="multi_head", size=2),
          backbone=dict(name="mlp.MLP", dropout=MADE_ALREADY)),
     "multi_head makes 2 members, but the backbone already makes 4"),
    (dict(ensemble=dict(name="mc_dropout", size=2, rate=0.0)), "rate: 0.0; a dropout rate lies"),
    (dict(ensemble=dict(name="mc_dropout", size=2, rate=1.0)), "rate: 1.0; a dropout rate lies"),
    (dict(ensemble=dict(name="mc_dropout", size=2)), "ensemble.rate: missing"),
    (dict(ensemble=dict(name="mc_dropout", size=2, rate=0.1, shared=True),
          backbone=BACKBONES["vmoe"]),
     "shared: masks are shared by examples, but experts see slots"),
    (dict(ensemble=dict(name="batch_ensemble", size=2, where="conv")),
     "where: 'conv' matches the path of no layer that can make members"),
    (dict(ensemble=dict(name="batch_ensemble", size=3),
          backbone=dict(name="mlp.MLP", dropout=MADE_ALREADY)),
     "members: 4 of dropout, but an earlier part makes 3"),
    (dict(ensemble=dict(name="epinet", size=2),
          backbone=dict(name="mlp.MLP", dropout=MADE_ALREADY)),
     "epinet makes 2 members, but the backbone already makes 4"),
    (dict(ensemble=dict(name="mimo", size=2), backbone=dict(name="mlp.MLP", dropout=MADE_ALREADY)),
     "mimo makes 2 members, but the backbone already makes 4"),
    (dict(ensemble=dict(name="packed", size=2),
          backbone=dict(name="mlp.MLP", dropout=MADE_ALREADY)),
     "packed makes 2 members, but the backbone already makes 4"),
    (dict(ensemble=dict(name="masksembles", size=2, scale=0.5)), "scale: 0.5; at least 1"),
    (dict(ensemble=dict(name="rank1", size=2)), "ensemble.num_examples: missing"),
    (dict(ensemble=ENSEMBLES["mc_dropout"], backbone=dict(name="mlp.MLP", widths=())),
     "size: 3 members, but MLP with these fields makes 1: it has no layers"),
    (dict(ensemble=ENSEMBLES["masksembles"], backbone=dict(name="mlp.MLP", widths=())),
     "size: 3 members, but MLP with these fields makes 1: it has no layers"),
    (dict(ensemble=dict(name="packed", size=2, gamma=2),
          backbone=dict(name="mlp.MLP", dense=BOUNDED["dense"])),
     "backbone.dense: gamma 2 replaces it by grouped layers"),
    (dict(likelihood=dict(name="gaussian", noise_std=0.0)),
     "noise_std: 0, but the head predicts no variance in training"),
    (dict(ensemble=dict(name="mc_dropout", size=0, rate=0.1)), "size: 0 members"),
    (dict(head=dict(name="mean_variance.MeanVariance", outputs=K, dense=None)),
     "head.dense: no such field"),
    (dict(ensemble=dict(name="e3", size=2)), "e3 needs experts, but this MLP has none"),
    (dict(ensemble=dict(name="e3", size=3), backbone=BACKBONES["vmoe"]),
     "num_experts: 4 is not divisible by 3 members"),
    (dict(backbone=BACKBONES["vmoe"] | dict(expert_blocks="last 2")), "none of 1 blocks"),
    (dict(likelihood=dict(name="gaussian", noise_std=-1.0)), "noise_std: -1.0"),
    (dict(inference=dict(name="particles", size=0)), "size: 0 particles; at least 1"),
    (dict(objective=dict(name="label_smoothing", rate=1.0)), "objective: rate: 1.0; at least 0"),
    (dict(objective="likelyhood"), "objective.name: no file 'likelyhood'"),
    (dict(objective=dict(name="mean_teacher", stream="more")),
     "objective.stream: 'more' is no stream of the batch, which has none"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), IMPOSSIBLE, ids=[why[:40] for _, why in IMPOSSIBLE])
def test_what_cannot_work_says_why(changes, why):
    config = config_of("mlp", "single", "dense", "particles") | changes
    with pytest.raises(ValueError) as raised:
        inference = build.inference(config)
        batch = batch_of("dense")
        state = jax.eval_shape(inference.init, jax.random.key(0), batch["x"][:1])
        jax.eval_shape(inference.update, state, batch)
        jax.eval_shape(inference.predict, state, batch["x"])
    assert why in str(raised.value)
