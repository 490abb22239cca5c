"""What goes with what: parts are traced in all their pairs, or refused and say why."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from tests.test_contract import (
    BACKBONES,
    ENSEMBLES,
    HEADS,
    INFERENCE,
    OBJECTIVES,
    SAMPLERS,
    B,
    K,
    batch_of,
    config_of,
    images,
    paths,
    shapes,
)
from uncertainty import build
from uncertainty.inference import executors

INTERACTING = {
    n for n in INFERENCE if INFERENCE[n]["direction"]["name"] not in ("independent", "together")
}
POSTERIOR = {n for n in INFERENCE if "prior" in INFERENCE[n]}
SPACE = {n: INFERENCE[n]["direction"].get("space", "weights") for n in INFERENCE}
FUNCTIONS = {n for n in INFERENCE if SPACE[n] != "weights"}
OWN_LOSS = {  # objectives that are no loss of the latents
    name for name, spec in OBJECTIVES.items() if build.make("objectives", spec, "").loss is not None
}
COMPARING = {  # objectives that functions have together
    name for name, spec in OBJECTIVES.items() if build.make("objectives", spec, "").together
}
GP = {"sngp", "hetsngp", "laplace"}  # heads that the stage laplace has something to do for
NOISY = {"mean_variance", "heteroscedastic", "heteroscedastic_xl", "hetsngp"}  # variance learned
WITH_NORM = {"resnet", "wide_resnet"}
P = 5  # unlike every other size; one for all, as what is mapped over it is cached
STAGES = {
    "laplace": dict(name="laplace"),
    "swag": dict(name="swag", steps=4, every=2, samples=2,
                 optimiser=dict(name="sgd", learning_rate=0.01)),
    "average": dict(name="swag", steps=4, every=2, samples=0,
                    optimiser=dict(name="sgd", learning_rate=0.01)),
    "snapshots": dict(name="snapshots", steps=4, size=2,
                      optimiser=dict(name="adam", learning_rate=1e-3)),
    "chain": dict(name="snapshots", steps=4, size=2,
                  optimiser=dict(name="sgld", learning_rate=0.01)),
    "batch_statistics": dict(name="batch_statistics"),
    "select": dict(name="select", size=3),
}  # fmt: skip
SAMPLES = {"swag", "snapshots", "chain"}
COLLECTING = {"collect", "moving_average"}

# Which combinations are refused, by axis, and why: a regular expression for the message.
REFUSED = [
    (dict(ensemble={"e3"}, backbone=set(BACKBONES) - {"vmoe"}),
     r"ensemble: backbone: e3 needs experts, but this \w+ has none"),
    (dict(ensemble={"masksembles"}, backbone={"vmoe"}),
     r"ensemble: backbone\.experts\.dropout: missing; masks belong to examples"),
    (dict(ensemble={"hypermodel"}, backbone={"resnet", "wide_resnet", "vmoe"}),
     r"ensemble: the parameters of a hypermodel are a function of its index, but \w+ of backbone"),
    (dict(ensemble={"hypermodel"}, head=GP),
     r"ensemble: head: the posterior of \w+ belongs to one set of parameters"),
    (dict(ensemble={"rank1"}, inference=POSTERIOR),
     r"inference\.prior: defines a posterior over parameters, but ensemble 'rank1'"),
    (dict(objective=OWN_LOSS, inference=FUNCTIONS),
     r"objective: '\w+' is not a loss of the latents, which space='\w+' needs"),
    (dict(objective={"label_smoothing"}, head={"mean_variance"}),
     r"objective: 'label_smoothing' needs exclusive classes"),
    (dict(objective={"mean_teacher"}, head={"mean_variance"}),
     r"objective: 'mean_teacher' compares probabilities of classes"),
    (dict(objective=COMPARING - {"negative_correlation"}, head={"mean_variance"}),
     r"objective: '\w+' needs exclusive classes"),
    (dict(inference={"together"}, head={"mean_variance"}),
     r"objective: 'disagreement' needs exclusive classes"),
    (dict(objective={"negative_correlation"}, head=NOISY),
     r"objective: 'negative_correlation' needs one variance for all inputs"),
    (dict(objective=COMPARING, inference=FUNCTIONS),
     r"objective: '\w+' compares functions itself, which space='\w+' does not allow"),
    (dict(objective=COMPARING, inference={"accumulated"}),
     r"accumulate: 2 parts, but objective '\w+' compares functions on the whole batch"),
    (dict(objective=COMPARING, inference=set(INFERENCE) - {"together"},
          ensemble={"single", "mc_dropout", "masksembles", "randomised_prior"}),
     r"objective: '\w+' compares functions, but there is one"),
    (dict(objective={"contrastive"}, ensemble={"mimo"}),
     r"objective: 'contrastive' needs features of single examples"),
    (dict(objective={"contrastive"}, inference={"accumulated", "sghmc"}),
     r"accumulate: 2 parts, but objective 'contrastive' compares all examples"),
    (dict(objective={"contrastive"}, inference=set(SAMPLERS)),
     r"objective: 'contrastive' has its own parameters, which have no posterior"),
    (dict(objective=set(OBJECTIVES) - COMPARING, inference={"together"}),
     r"direction: 'together' needs an objective that compares functions"),
    (dict(own={True}, inference={"together"}),
     r"objective\.stream: None, but each particle has its own examples"),
    (dict(own={True}, context={False}, inference=FUNCTIONS),
     r"direction\.context: functions are compared on the batch, but each particle has its own"),
    (dict(own={True}, context={True}, inference={n for n in FUNCTIONS if SPACE[n] == "functions"
                                                  and INFERENCE[n]["direction"]["name"] == "svgd"}),
     r"space: 'functions' averages dnll/du over particles, but each has its own examples"),
    (dict(head={"mean_variance"}, inference={"svgd_probabilities"}),
     r"values: 'probabilities' need a likelihood of classes; use 'logits'"),
    (dict(stage={"laplace"}, head=set(HEADS) - GP),
     r"laplace: the model has no posterior to fit; heads with one are sngp\.Sngp"),
    (dict(stage={"laplace"}, inference=COLLECTING),
     r"laplace: fits the last parameters, but predictions use samples; unset inference\.collect"),
    (dict(stage=SAMPLES | {"average"}, inference=COLLECTING),
     r"there are samples already, from inference\.collect or an earlier"),
    (dict(stage={"batch_statistics"}, backbone=set(BACKBONES) - WITH_NORM),
     r"batch_statistics: the model has no batch normalisation"),
    (dict(stage={"chain"}, ensemble={"rank1"}),
     r"stages\[0\]\.optimiser: defines a posterior over parameters"),
    (dict(stage=SAMPLES, then={"laplace"}),
     r"laplace: fits the last parameters, but predictions use samples; .* that makes samples"),
    (dict(stage=SAMPLES, then=SAMPLES | {"average"}), r"there are samples already"),
    (dict(stage={"laplace"}, then=SAMPLES | {"average", "batch_statistics"}),
     r"there is a posterior already, from the stage laplace, .* run laplace after"),
    (dict(decay={"weight_decay", "l2"}),
     r"optimiser\.(weight_decay|l2): changes the posterior that (prior|direction) defines"),
    (dict(decay={"weight_decay"}, sampler={"sgld", "psgld", "sghmc"}),
     r"weight_decay: .* it would change the sampler's posterior"),
    (dict(direction=INTERACTING, hyper={True}),
     r"hyper: particles that interact or sample share one posterior"),
    (dict(direction=INTERACTING - {"svgd"} | {"together"}, sampler={"sgld", "psgld", "sghmc"}),
     r"direction: this one has no diffusion for a sampler"),
    (dict(direction={"svgd"}, sampler={"psgld", "sghmc"}),
     r"direction: for particles that interact, 'sgld' is the only"),
    (dict(sampler={"sgld", "psgld", "sghmc"}, hyper={True}),
     r"hyper: particles that interact or sample share one posterior"),
]  # fmt: skip


def why_not(**chosen):
    """The reasons that are given for these choices: any one of them may be."""
    reasons = [
        why for axes, why in REFUSED if all(chosen.get(axis) in of for axis, of in axes.items())
    ]
    return "|".join(f"(?:{why})" for why in reasons)


def meant(make, *args, **chosen):
    """What `make(*args)` returns; None where it is refused, for the reason that the table gives."""
    why = why_not(**chosen)
    if not why:
        return make(*args)
    with pytest.raises(ValueError, match=why):
        make(*args)
    return None


LEARNED = {
    "kernel",
    "bias",
    "scale",
    "position_embedding",
    "class_token",
    "shared_factors",
    "temperature",
    "fast_input",
    "fast_output",
    "fast_input_scale",
    "fast_output_scale",
}


@functools.cache
def model_of(backbone, ensemble, head):
    """The model, jitted: what is traced once is not traced again for every inference."""
    model = build.model(config_of(backbone, ensemble, head, "particles"))
    return model._replace(
        init=jax.jit(model.init),
        forward=jax.jit(model.forward, static_argnames=("train", "mutable")),
    )


def heads_of(backbone, ensemble):
    """All of them on one backbone; on others one, each head with each of these in some ensemble.

    A head sees features [M or 1, B, D], and not what made them.
    """
    if backbone == "mlp" or ensemble == "e3":
        return list(HEADS)
    i = list(BACKBONES).index(backbone) + [e for e in ENSEMBLES if e != "e3"].index(ensemble)
    return [list(HEADS)[i % len(HEADS)]]


def test_pairs_of_parts_are_all_there():
    made = {
        (b, e, h)
        for b in BACKBONES
        for e in ENSEMBLES
        for h in heads_of(b, e)
        if not why_not(backbone=b, ensemble=e)
    }
    assert {(e, h) for _, e, h in made} == set(itertools.product(ENSEMBLES, HEADS))
    assert {(b, h) for b, _, h in made} == set(itertools.product(BACKBONES, HEADS))


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_network(backbone, ensemble):
    for head in heads_of(backbone, ensemble):
        batch, key = batch_of(head), jax.random.key(0)

        # Elsewhere a prediction differs from a training step in members alone, if they are masks.
        masks = ensemble in ("mc_dropout", "masksembles")
        modes = (True, False) if backbone == "mlp" or ensemble == "e3" or masks else (True,)

        def both(x, names=(backbone, ensemble, head), key=key, modes=modes):
            model = model_of(*names)
            variables = model.init(key, x[:1])
            return variables, [model.forward(*variables, x, key, train=train) for train in modes]

        made = meant(
            lambda f=both, x=batch["x"]: jax.eval_shape(f, x),
            backbone=backbone,
            ensemble=ensemble,
            head=head,
        )
        if made is None:
            continue
        (params, collections), passes = made
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}, head
        parts = {"backbone", "head"} | ({"epinet"} if ensemble == "epinet" else set())
        assert {path.split("/")[0] for path in paths(params)} == parts, head
        assert {path.split("/")[-1] for path in paths(params)} <= LEARNED, head
        assert not {"params", "losses"} & set(collections), head
        likelihood = model_of(backbone, ensemble, head).likelihood
        for train, (u, changed, auxiliary) in zip(modes, passes, strict=True):
            M = 1 if train and masks else ENSEMBLES[ensemble].get("size", 1)
            assert u.mean.shape == (M, B, K), head
            assert {leaf.dtype.name for leaf in jax.tree.leaves((u, auxiliary))} == {"float32"}
            assert all(p is None or p.shape[:2] == (M, B) for p in (u.variance, u.factors)), head
            assert auxiliary.shape == (), head
            assert shapes(changed) == shapes(collections), head
            nll = jax.eval_shape(likelihood.nll, u, batch["y"], key)
            assert (nll.shape, nll.dtype) == ((M, B), jnp.float32), head
            if likelihood.log_probs:
                said = [jax.eval_shape(likelihood.log_probs, u, key)]
            else:
                said = jax.eval_shape(likelihood.moments, u)
            assert {a.shape for a in said} == {(M, B, K)}, head


# Inference sees parameters and latents alone, and some of it parameters alone (optimisers, priors
# and kernels of weights), whatever the network. The rest with networks of each kind: members, those
# of prediction alone, losses of the network's own, experts, state that moves with the batches, a
# variance, covariances in classes and in features. The others are each like one of these, and are
# trained in few ways, and backbones in one of them.
BLIND = {"prior", "kde", "sge", "sgld", "psgld", "sghmc", "stochastic_svgd", "hyper"}
SEEING = [name for name in INFERENCE if name not in BLIND]
KINDS = {("mlp", e, "dense") for e in ("single", "multi_head", "mc_dropout", "rank1")}
KINDS |= {("vmoe", "e3", "dense")}
KINDS |= {("mlp", "single", h) for h in ("mean_variance", "hetsngp", "heteroscedastic_xl")}
NETWORKS = {("mlp" if e != "e3" else "vmoe", e, "dense") for e in ENSEMBLES}
NETWORKS |= {("mlp", "single", head) for head in HEADS}
NETWORKS |= {("mlp", "mimo", "heteroscedastic_xl"), ("mlp", "packed", "hetsngp")}
FEW = ("accumulated", "svgd_functions")


def inferences():
    """Each network, with the names of what trains it."""
    for network in sorted(NETWORKS):
        every = network[1] == "rank1" or network == ("mlp", "single", "dense")
        yield network, INFERENCE if every else SEEING if network in KINDS else FEW
    ways = itertools.cycle(FEW)
    yield from (((b, "multi_head", "sngp"), [next(ways)]) for b in BACKBONES if b != "mlp")
    yield ("vmoe", "e3", "hetsngp"), ["svgd_functions"]


def updated(config, network, batch):
    """An inference, its state before and after an update, and the metrics, as shapes."""
    # Traced once for all particles; test_particles shows that executors agree.
    config["inference"] = config["inference"] | dict(executor="vmap", size=P)
    model = model_of(*network)
    if config["likelihood"] != HEADS[network[2]][1]:
        model = model._replace(likelihood=build.make("likelihoods", config["likelihood"], ""))
    inference = build.inference(config, model, num_examples=64)
    state = jax.eval_shape(inference.init, jax.random.key(0), images(1))
    return inference, state, *jax.eval_shape(inference.update, state, batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "names"), [pytest.param(*row, id=" x ".join(row[0])) for row in inferences()]
)
def test_every_inference(network, names):
    _, ensemble, head = network
    one = jax.eval_shape(model_of(*network).init, jax.random.key(0), images(1))
    for name in names:
        config, batch = config_of(*network, name), batch_of(head)
        made = meant(updated, config, network, batch, ensemble=ensemble, head=head, inference=name)
        if made is None:
            continue
        inference, state, after, metrics = made
        latent = jax.eval_shape(inference.predict, state, batch["x"])
        M, S = config["ensemble"].get("size", 1), 2 if name == "collect" else 1
        assert state.key.shape == (P,) and state.step.shape == (), name
        assert all(a.shape[0] == P for a in jax.tree.leaves(state.replace(step=None))), name
        for a, b in zip((state.params, state.collections), one, strict=True):
            assert jax.tree.map(lambda a: (a.shape[1:], a.dtype), a) == shapes(b), name
        assert shapes(after) == shapes(state), name
        assert metrics["loss"].shape == metrics["finite"].shape == (P,), name
        assert metrics["nll"].shape[::2] == (P, B), name
        assert latent.mean.shape == (P * S * M, B, K), name


@pytest.mark.slow
@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"likelihood"}))  # of all others
def test_every_objective(objective):
    """With every way to train, and with every ensemble and head."""
    real = objective == "negative_correlation"  # is for real-valued targets
    fields = dict(objective=OBJECTIVES[objective])
    if real:
        fields["likelihood"] = dict(name="gaussian")
    rows = [(("mlp", "multi_head", "dense" if real else "heteroscedastic"), n) for n in SEEING]
    rows += [(network, "particles") for network in sorted(NETWORKS)]
    for network, name in rows:
        config = config_of(*network, name, **fields)
        batch = batch_of("mean_variance" if real else network[2])
        made = meant(
            updated,
            config,
            network,
            batch,
            objective=objective,
            ensemble=network[1],
            head=network[2],
            inference=name,
        )
        if made is None:
            continue
        _, state, after, metrics = made
        assert shapes(after) == shapes(state), (network, name)
        assert metrics["nll"].shape[::2] == (P, B), (network, name)
        others = set(metrics) - {"loss", "nll", "gradient_norm", "finite"}
        assert all(metrics[name].shape == (P,) for name in others), (network, name)
        assert (state.slow is None) or shapes(state.slow) == shapes(state.params)


@pytest.mark.slow
@pytest.mark.parametrize("name", INFERENCE)
def test_every_inference_with_examples_of_each_particles_own(name):
    for context in (False, True) if name in FUNCTIONS else (False,):
        network = ("mlp", "single", "dense")
        config = config_of(*network, name, data=dict(particles="shuffled"))
        direction = dict(config["inference"]["direction"])
        direction.pop("context", None)
        if context:
            direction["context"] = dict(name="other")
        config["inference"] = config["inference"] | dict(direction=direction)
        batch = batch_of("dense")
        own = jax.tree.map(lambda a: jnp.stack([a] * P), batch) | dict(context=batch)
        made = meant(updated, config, network, own, own=True, context=context, inference=name)
        if made is not None:
            _, state, after, metrics = made
            assert shapes(after) == shapes(state) and metrics["nll"].shape == (P, 1, B)


DIRECTIONS = ["particles", "together", *sorted(INTERACTING - set(SAMPLERS))]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_direction_with_every_optimiser(direction):
    for sampler, hyper in itertools.product([None, "sgld", "psgld", "sghmc"], [False, True]):
        config = config_of("mlp", "single", "dense", direction)
        config["inference"] = dict(config["inference"], prior=dict(name="gaussian"))
        if sampler:
            config["optimiser"] = SAMPLERS[sampler]
        if hyper:
            config["inference"]["hyper"] = dict(learning_rate=(0.5, 1.0))
        meant(
            lambda c=config: build.inference(c, model_of("mlp", "single", "dense"), 64),
            direction=direction,
            sampler=sampler,
            hyper=hyper,
        )


@pytest.mark.parametrize("decay", ["weight_decay", "l2"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_posterior_has_decay_beside_it(direction, decay):
    for sampler in (None, "sgld", "psgld", "sghmc"):
        config = config_of("mlp", "single", "dense", direction)
        config["inference"] = dict(config["inference"], prior=dict(name="gaussian"))
        rules = {decay: ((".*kernel", 0.1),)}
        config["optimiser"] = (SAMPLERS[sampler] if sampler else config["optimiser"]) | rules
        made = lambda c=config: build.inference(c, model_of("mlp", "single", "dense"), 64)  # noqa: E731
        meant(made, direction=direction, sampler=sampler, decay=decay)
        config["inference"].pop("prior")  # then SVGD's and WGD's are flat, and others' are none
        if "function_prior" in config["inference"]["direction"]:
            continue  # which is drawn from the prior
        if direction != "particles" and (direction != "together" or sampler):
            meant(made, direction=direction, sampler=sampler, decay=decay)
        elif not (sampler and decay == "weight_decay"):
            made()


@functools.cache
def begun(network, inference):
    """A model, its inference, and the shapes of its initial state."""
    made = build.inference(config_of(*network, inference), model_of(*network), num_examples=64)
    return made, jax.eval_shape(made.init, jax.random.key(0), images(1))


@functools.cache
def after(network, inference, *names):
    """The shapes of the state after each of these stages, and of its predictions."""
    x = jnp.zeros((B, 8, 8, 1))
    made, state = begun(network, inference)
    stages = build.stages(
        config_of(*network, inference, stages=[STAGES[name] for name in names]),
        model_of(*network),
        executors.mapping("vmap"),
        dict(train=64, validation=B),
    )
    if names[:-1]:
        state, _ = after(network, inference, *names[:-1])
    _, one = stages[-1]
    carry = jax.eval_shape(one.begin, state, x)
    kept = jax.eval_shape(one.update, state, carry, dict(x=x, y=jnp.zeros(B, int)))
    check_contract(one, state, carry, *kept)
    state = jax.eval_shape(one.finish, state, carry, x)
    return state, jax.eval_shape(made.predict, state, x)


def check_contract(stage, state, carry, new_state, new_carry, metrics):
    """What a stage promises the loop: it may stop, save and resume after any batch."""
    assert (stage.steps > 0) != (stage.passes > 0)
    assert jax.tree.map(jnp.shape, (new_state, new_carry)) == jax.tree.map(
        jnp.shape, (state, carry)
    )
    P = len(state.key)
    assert all(a.ndim == 0 or a.shape[0] % P == 0 for a in jax.tree.leaves(carry))
    trains = {"loss", "finite", "gradient_norm", "nll"} <= metrics.keys()
    assert trains == (stage.steps > 0) == (stage.learning_rate is not None)


def of_stages():
    """Stages that see members with every ensemble and head, those that train with one of them."""
    for ensemble in ENSEMBLES:
        for name in ("laplace", "select", "chain"):
            yield "vmoe" if ensemble == "e3" else "mlp", ensemble, "laplace", name
    yield from (("mlp", "single", head, "laplace") for head in HEADS if head != "mean_variance")
    yield from (("mlp", "single", "dense", name) for name in STAGES)
    yield from (("vmoe", "e3", head, "laplace") for head in ("sngp", "hetsngp"))
    yield from (
        ("resnet", ensemble, "sngp", "batch_statistics") for ensemble in ("single", "packed")
    )


@pytest.mark.slow
@pytest.mark.parametrize("names", of_stages(), ids=" x ".join)
def test_every_stage(names):
    backbone, ensemble, head, name = names
    made = meant(
        lambda: after(names[:3], "particles", name),
        backbone=backbone,
        ensemble=ensemble,
        head=head,
        stage=name,
    )
    if made is None:
        return
    _, latent = made
    P, S = 3 if name == "select" else 2, 2 if name in SAMPLES else 1
    members = P * S * ENSEMBLES[ensemble].get("size", 1)
    assert latent.mean.shape == (members, B, K)
    if name == "laplace":
        assert latent.epistemic.shape[:2] == (members, B)


@pytest.mark.slow
@pytest.mark.parametrize("first", STAGES)
def test_every_stage_after_every_other_and_after_samples(first):
    def network(*names):
        return "resnet" if "batch_statistics" in names else "mlp", "single", "sngp"

    for second in STAGES:
        meant(
            lambda n=(first, second): after(network(*n), "particles", *n), stage=first, then=second
        )
    meant(lambda: after(network(first), "collect", first), stage=first, inference="collect")
