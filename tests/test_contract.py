"""The product backbones x ensembles x heads x inference: what every method promises.

To add a method, add its line. Every combination is traced, a covering few are trained, and those
that cannot work say why.
"""

import functools
import itertools
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uncertainty.backbones
import uncertainty.ensembles
import uncertainty.heads
import uncertainty.inference
from uncertainty import build, predictive

B, K = 8, 3
IMAGE = (8, 8, 1)

BACKBONES = {
    "mlp": dict(name="mlp.MLP", widths=(16,)),
    "lenet": dict(name="lenet.LeNet5", padding="SAME"),
    "resnet": dict(name="resnet.ResNet", depth=8, width=4),
    "wide_resnet": dict(name="wide_resnet.WideResNet", depth=10, width_multiplier=1),
    "vit": dict(name="vit.ViT", variant="tiny", width=16, mlp_dim=32, depth=1),
    "vmoe": dict(
        name="vit.ViT", variant="tiny", width=16, mlp_dim=32, depth=2,
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
    "rank1": dict(name="rank1", size=2, num_examples=64, prior_scale=1.0),
}
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
INFERENCE = {
    "particles": dict(name="particles", size=2, direction=dict(name="independent")),
    "accumulated": dict(name="particles", size=1, accumulate=2),
    "svgd": dict(
        name="particles",
        size=3,
        direction=dict(name="svgd", space="functions", kernel=dict(name="imq")),
        prior=dict(name="gaussian", scale=2.0),
    ),
    "wgd": dict(name="particles", size=3, direction=dict(name="wgd", estimator="kde")),
    "hyper": dict(
        name="particles",
        size=2,
        prior=dict(name="laplace", scale=2.0),
        hyper=dict(prior_scale=(0.5, 1.0), learning_rate=dict(low=0.5, high=1.0)),
        collect=dict(name="after_burn_in", size=2, burn_in=0.0),
    ),
}
LIKELIHOODS = {"softmax", "sigmoid", "gaussian"}  # each with every head in the trained few

# What is in the folders and is not a method by itself.
HELPERS = {"inputs", "executors", "exchange", "interacting", "members", "replace", "spectral"}

# Ensembles that change a backbone's layers meet every head once, all else with one head.
BY_LAYERS = {"batch_ensemble", "mimo", "masksembles", "packed", "rank1"}


def meant(backbone, ensemble, head, inference="particles"):
    """Whether a combination is meant to work, and is looked at."""
    if ensemble == "e3" and backbone != "vmoe":  # its members are blocks of experts
        return False
    if backbone == "vmoe":  # a ViT but for its feed-forward layers, and slow to trace
        return head == "dense" and ensemble in ("single", "multi_head", "e3")
    once = head == "dense" or (backbone, inference) == ("mlp", "particles")
    return once or ensemble not in BY_LAYERS


PRODUCT = list(itertools.product(BACKBONES, ENSEMBLES, HEADS, ["particles", "accumulated"]))
# Particles that interact see parameters and latents alone: each with every other part once.
PRODUCT += [
    names
    for names in itertools.product(BACKBONES, ENSEMBLES, HEADS, ["svgd", "wgd", "hyper"])
    if names[0] == "mlp" or names[1:3] in (("single", "dense"), ("e3", "dense"))
]
PRODUCT = [names for names in PRODUCT if meant(*names)]


def config_of(backbone, ensemble, head, inference, **changes):
    head, likelihood = HEADS[head]
    return dict(
        backbone=BACKBONES[backbone],
        ensemble=ENSEMBLES[ensemble],
        head=head,
        likelihood=likelihood,
        inference=INFERENCE[inference],
        steps=60,
        optimiser=dict(name="adam", learning_rate=1e-2),
        **changes,
    )


@functools.cache
def model_of(backbone, ensemble, head):
    """The model, jitted: what is traced once is not traced again for every inference."""
    model = build.model(config_of(backbone, ensemble, head, "particles"))
    return model._replace(
        init=jax.jit(model.init), forward=jax.jit(model.forward, static_argnames="train")
    )


@functools.cache
def traced(names):
    """The shapes of a state, of an update and its metrics, and of a prediction."""
    config = config_of(*names)
    # Traced once for all particles; test_particles shows that executors agree.
    config["inference"] = config["inference"] | dict(executor="vmap")
    config["optimiser"] = dict(name="sgd", learning_rate=0.1)
    inference = build.inference(config, model_of(*names[:3]), num_examples=64)
    batch = batch_of(names[2])
    state = jax.eval_shape(inference.init, jax.random.key(0), batch["x"][:1])
    update = jax.eval_shape(inference.update, state, batch)
    return config, state, update, jax.eval_shape(inference.predict, state, batch["x"])


def batch_of(head):
    y = jnp.zeros((B, K)) if head == "mean_variance" else jnp.zeros(B, int)
    return dict(x=jnp.zeros((B, *IMAGE)), y=y)


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def shapes(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_models_keep_their_shapes(backbone):
    learned = {"kernel", "bias", "scale", "position_embedding", "class_token", "shared_factors",
               "temperature", "fast_input", "fast_output", "fast_input_scale",
               "fast_output_scale"}  # fmt: skip
    for ensemble, head in itertools.product(ENSEMBLES, HEADS):
        if not meant(backbone, ensemble, head):
            continue
        model, where = model_of(backbone, ensemble, head), f"{backbone} x {ensemble} x {head}"
        batch, key = batch_of(head), jax.random.key(0)
        params, collections = jax.eval_shape(model.init, key, batch["x"][:1])
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}, where
        assert {path.split("/")[0] for path in paths(params)} == {"backbone", "head"}, where
        assert {path.split("/")[-1] for path in paths(params)} <= learned, where
        assert not {"params", "losses"} & set(collections), where
        for train in (True, False):
            M = ENSEMBLES[ensemble].get("size", 1)
            if train and ensemble in ("mc_dropout", "masksembles"):
                M = 1  # their members are masks at prediction
            forward = functools.partial(model.forward, train=train)
            u, changed, auxiliary = jax.eval_shape(forward, params, collections, batch["x"], key)
            assert u.mean.shape == (M, B, K), where
            assert u.mean.dtype == auxiliary.dtype == jnp.float32, where
            for part in (u.variance, u.factors):
                assert part is None or part.shape[:2] == (M, B), where
            assert auxiliary.shape == (), where
            assert shapes(changed) == shapes(collections), where
            nll = jax.eval_shape(model.likelihood.nll, u, batch["y"], key)
            assert (nll.shape, nll.dtype) == ((M, B), jnp.float32), where
            if model.likelihood.log_probs:
                said = jax.eval_shape(model.likelihood.log_probs, u, key)
                assert said.shape == (M, B, K), where
            else:
                said = jax.eval_shape(model.likelihood.moments, u)
                assert [a.shape for a in said] == [(M, B, K)] * 2, where


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(b, marks=[pytest.mark.slow] * (b == "vmoe" or "resnet" in b)) for b in BACKBONES],
)
def test_every_combination_keeps_its_shapes(backbone):
    for names in (n for n in PRODUCT if n[0] == backbone):
        config, state, (after, metrics), latent = traced(names)
        P, M, where = config["inference"].get("size", 1), members(config), " x ".join(names)
        assert state.key.shape == (P,) and state.step.shape == (), where
        for leaf in jax.tree.leaves(state.replace(step=None)):
            assert leaf.shape[0] == P, where
        params, collections = jax.eval_shape(
            model_of(*names[:3]).init, jax.random.key(0), batch_of(names[2])["x"][:1]
        )
        for many, one in ((state.params, params), (state.collections, collections)):
            assert {k: (v.shape[1:], v.dtype) for k, v in paths(many).items()} == {
                k: (v.shape, v.dtype) for k, v in paths(one).items()
            }, where
        assert shapes(after) == shapes(state), where
        assert metrics["loss"].shape == metrics["finite"].shape == (P,), where
        assert metrics["nll"].shape[::2] == (P, B), where
        assert latent.mean.shape == (P * samples(config) * M, B, K), where


BOUNDED = {  # in every field of a backbone with this name
    "dense": dict(name="spectral_norm.Dense", bound=0.5),
    "conv": dict(name="spectral_norm.Conv", bound=0.5),
}


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(b, marks=[pytest.mark.slow] * (b != "mlp")) for b in BACKBONES],
)
def test_every_backbone_may_have_layers_of_bounded_norm(backbone):
    config = config_of(backbone, "single", "dense", "particles")
    fields = build.resolve("backbones", config["backbone"]["name"], "").__dataclass_fields__
    config["backbone"] = config["backbone"] | {f: BOUNDED[f] for f in BOUNDED if f in fields}
    config["inference"] = dict(name="particles", size=1)  # half the compilation
    model, x = build.model(config), toy(0)[0][:B]
    inference = build.inference(config, model)
    state = inference.init(jax.random.key(0), x[:1])

    plain, _ = jax.eval_shape(model_of(backbone, "single", "dense").init, jax.random.key(0), x)
    of_one = {k: (v.shape[1:], v.dtype) for k, v in paths(state.params).items()}
    assert of_one == {k: (v.shape, v.dtype) for k, v in paths(plain).items()}
    kernels = [p for p in paths(state.params["backbone"]) if p.endswith("/kernel")]
    kernels = [p for p in kernels if "/router/" not in p]  # scores experts, maps no features
    states = paths(state.collections["spectral_norm"]["backbone"])
    assert {p.removesuffix("/v") for p in states} == {p.removesuffix("/kernel") for p in kernels}

    after, metrics = jax.jit(inference.update)(state, dict(x=x, y=jnp.zeros(B, int)))
    assert np.asarray(metrics["finite"]).all()
    for name, v in paths(after.collections["spectral_norm"]["backbone"]).items():
        each = v.reshape(-1, *v.shape[2:]) if "/experts/" in name else v
        np.testing.assert_allclose([np.linalg.norm(one) for one in each], 1, rtol=1e-5)
        assert v.dtype == jnp.float32 and not np.allclose(v, states[name], atol=1e-3), name
    for name, kernel in paths(after.params).items():
        assert name.endswith("bias") or not np.array_equal(kernel, paths(state.params)[name]), name

    one = jax.tree.map(lambda a: a[0], (after.params, after.collections))
    forward = jax.jit(model.forward, static_argnames="train")
    _, unchanged, _ = forward(*one, x, jax.random.key(0), train=False)
    jax.tree.map(np.testing.assert_array_equal, unchanged, one[1])


def members(config):
    return config["ensemble"].get("size", 1)


def samples(config):
    return config["inference"].get("collect", {}).get("size", 1)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_bfloat16_is_confined_to_the_backbone(backbone):
    names = (backbone, "multi_head", "dense", "particles")
    config = config_of(*names)
    config["backbone"] = config["backbone"] | dict(dtype="bfloat16")
    model, inference = build.model(config), build.inference(config)
    batch, key = batch_of("dense"), jax.random.key(0)
    state = jax.eval_shape(inference.init, key, batch["x"][:1])
    after, metrics = jax.eval_shape(inference.update, state, batch)
    for tree in (state, after, metrics, jax.eval_shape(inference.predict, state, batch["x"])):
        assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(tree))
    params, collections = jax.eval_shape(model.init, key, batch["x"])
    program = jax.make_jaxpr(functools.partial(model.forward, train=False))(
        params, collections, batch["x"], key
    )
    assert "bf16" in str(program)  # and it is used


def toy(seed, n=64):
    """Images whose brightest third tells their class, and targets that say so."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, n)
    x = rng.normal(0, 0.3, (n, *IMAGE))
    rows = np.arange(IMAGE[0])[None, :] * K // IMAGE[0]
    x += 1.5 * (rows == y[:, None])[:, :, None, None]
    return jnp.asarray(x, jnp.float32), jnp.asarray(y)


TRAINED = [  # every line above at least once, every likelihood, both kinds of batch statistics
    ("mlp", "single", "dense", "particles", "softmax"),
    ("mlp", "mc_dropout", "mean_variance", "particles", "gaussian"),
    ("mlp", "multi_head", "dense", "accumulated", "sigmoid"),
    ("mlp", "single", "sngp", "particles", "softmax"),
    ("mlp", "multi_head", "heteroscedastic", "particles", "sigmoid"),
    ("mlp", "mc_dropout", "hetsngp", "accumulated", "softmax"),
    ("mlp", "single", "heteroscedastic_xl", "particles", "softmax"),
    ("mlp", "single", "laplace", "particles", "softmax"),
    ("mlp", "multi_head", "dense", "svgd", "softmax"),
    ("mlp", "mc_dropout", "hetsngp", "wgd", "softmax"),
    ("mlp", "multi_head", "laplace", "hyper", "softmax"),
    ("mlp", "batch_ensemble", "dense", "particles", "softmax"),
    ("mlp", "mimo", "dense", "particles", "softmax"),
    ("mlp", "masksembles", "dense", "particles", "softmax"),
    ("mlp", "packed", "dense", "particles", "softmax"),
    ("mlp", "rank1", "dense", "particles", "softmax"),
    pytest.param("lenet", "mc_dropout", "dense", "accumulated", "softmax", marks=pytest.mark.slow),
    pytest.param("vit", "multi_head", "dense", "particles", "softmax", marks=pytest.mark.slow),
    pytest.param("vmoe", "e3", "dense", "particles", "softmax", marks=pytest.mark.slow),
    pytest.param("resnet", "multi_head", "mean_variance", "particles", "gaussian",
                 marks=pytest.mark.slow),
    pytest.param("wide_resnet", "mc_dropout", "dense", "accumulated", "sigmoid",
                 marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("names", [pytest.param(c.values, marks=c.marks) if hasattr(c, "values")
                                   else c for c in TRAINED], ids=" x ".join)  # fmt: skip
def test_it_learns_an_easy_toy(names):
    *parts, likelihood = names
    config = config_of(*parts)
    if likelihood != config["likelihood"]["name"]:
        config["likelihood"] = config["likelihood"] | dict(name=likelihood)
    model, inference = build.model(config), build.inference(config, num_examples=64)
    x, y = toy(0)
    state = inference.init(jax.random.key(0), x[:1])
    update, losses = jax.jit(inference.update), []
    for i in range(40):
        rows = np.random.default_rng(i).permutation(len(x))[:32]
        target = jax.nn.one_hot(y[rows], K) if likelihood == "gaussian" else y[rows]
        state, metrics = update(state, dict(x=x[rows], y=target))
        assert np.asarray(metrics["finite"]).all()
        losses.append(np.asarray(metrics["loss"]))
    assert (np.mean(losses[-5:], axis=0) < np.mean(losses[:5], axis=0)).all()  # of every particle

    x, y = toy(1, 96)
    latent = jax.jit(inference.predict)(state, x)
    P, S, M = config["inference"].get("size", 1), samples(config), members(config)
    assert latent.mean.shape == (P * S * M, 96, K)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, latent)))
    guess = latent.mean
    if model.likelihood.log_probs:
        guess = model.likelihood.log_probs(latent, jax.random.key(0))
    for member in guess:  # each by itself, and the mixture
        assert np.mean(member.argmax(-1) == y) > 0.6  # a third by chance
    mixture = predictive.mixture(guess) if model.likelihood.log_probs else guess.mean(0)
    assert np.mean(mixture.argmax(-1) == y) > 0.75
    for one, other in itertools.combinations(latent.mean, 2):
        assert not np.allclose(one, other, atol=1e-3)  # members and particles differ


def test_the_trained_few_cover_every_line():
    used = [getattr(case, "values", case) for case in TRAINED]
    for position, lines in enumerate((BACKBONES, ENSEMBLES, HEADS, INFERENCE, LIKELIHOODS)):
        assert {names[position] for names in used} == set(lines)


@pytest.mark.parametrize(
    ("package", "lines"),
    [
        (uncertainty.backbones, [spec["name"] for spec in BACKBONES.values()]),
        (uncertainty.ensembles, [spec["name"] for spec in ENSEMBLES.values()]),
        (uncertainty.heads, [head["name"] for head, _ in HEADS.values()]),
        (
            uncertainty.inference,
            [s[k]["name"] if k else s["name"] for s in INFERENCE.values() for k in ("", "direction")
             if not k or k in s],
        ),
    ],
    ids=["backbones", "ensembles", "heads", "inference"],
)  # fmt: skip
def test_every_file_of_methods_has_its_line(package, lines):
    files = {module.name for module in pkgutil.iter_modules(package.__path__)} - HELPERS
    assert files == {name.split(".")[0] for name in lines}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_a_prediction_is_a_function_of_the_state(ensemble):
    backbone = "mlp" if meant("mlp", ensemble, "dense") else "vmoe"
    inference = build.inference(config_of(backbone, ensemble, "dense", "particles"))
    x = toy(0)[0][:4]
    state = inference.init(jax.random.key(1), x[:1])
    predict = jax.jit(inference.predict)
    np.testing.assert_array_equal(predict(state, x).mean, predict(state, x).mean)


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
     "multi_head makes 2 members, but the backbone has made 4 already"),
    (dict(ensemble=dict(name="mc_dropout", size=2, rate=0.0)), "rate: 0.0; a dropout rate lies"),
    (dict(ensemble=dict(name="mc_dropout", size=2, rate=1.0)), "rate: 1.0; a dropout rate lies"),
    (dict(ensemble=dict(name="mc_dropout", size=2)), "ensemble.rate: missing"),
    (dict(ensemble=dict(name="batch_ensemble", size=2, where="conv")),
     "where: 'conv' is in the path of no layer that can make members"),
    (dict(ensemble=dict(name="batch_ensemble", size=3),
          backbone=dict(name="mlp.MLP", dropout=MADE_ALREADY)),
     "members: 4 of dropout, but the network has made 3 already"),
    (dict(ensemble=dict(name="mimo", size=2), backbone=dict(name="mlp.MLP", dropout=MADE_ALREADY)),
     "mimo makes 2 members, but the backbone has made 4 already"),
    (dict(ensemble=dict(name="packed", size=2),
          backbone=dict(name="mlp.MLP", dropout=MADE_ALREADY)),
     "packed makes 2 members, but the backbone has made 4 already"),
    (dict(ensemble=dict(name="masksembles", size=2, scale=0.5)), "scale: 0.5; at least 1"),
    (dict(ensemble=dict(name="rank1", size=2)), "ensemble.num_examples: missing"),
    (dict(ensemble=dict(name="mc_dropout", size=0, rate=0.1)), "size: 0 members"),
    (dict(head=dict(name="mean_variance.MeanVariance", outputs=K, dense=None)),
     "head.dense: no such field"),
    (dict(ensemble=dict(name="e3", size=2)), "e3 needs experts, and this MLP has none"),
    (dict(ensemble=dict(name="e3", size=3), backbone=BACKBONES["vmoe"]),
     "num_experts: 4 is not divisible by 3 members"),
    (dict(backbone=BACKBONES["vmoe"] | dict(expert_blocks="last 2")), "none of 2 blocks"),
    (dict(likelihood=dict(name="gaussian", noise_std=-1.0)), "noise_std: -1.0"),
    (dict(inference=dict(name="particles", size=0)), "size: 0 particles; at least 1"),
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
