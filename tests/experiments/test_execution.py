"""1 and 8 devices give the same training; meshes and rules that cannot be are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from experiments.data.loader import batches
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.runtime import execution
from uncertainty.build import ConfigError


def small(mesh, size=4, **changes):
    config = base()
    config.batch_size = 16
    config.evaluation.batch_size = 16
    config.backbone = dict(name="mlp.MLP", widths=(16,))
    config.inference.size = size
    # Not Adam, whose division makes rounding errors of vanishing gradients large.
    config.optimiser = dict(name="sgd", momentum=0.9, learning_rate=0.1, clip=1.0)
    config.mesh = mesh
    with config.unlocked():
        for key, value in changes.items():
            config[key] = value
    return config


def train(config, steps=4):
    """Experiment, state, metrics of the last step, and the collectives of the compiled program."""
    experiment = setup(config)
    data = batches(experiment.source, seed=0, batch_size=config.batch_size)
    put = execution.put_batch(experiment.mesh)
    state = experiment.init()
    update = None
    for step, batch in data:
        batch = put(batch)
        update = update or experiment.update.lower(state, batch).compile()
        state, metrics = update(state, batch)
        if step + 1 == steps:
            return experiment, state, metrics, collectives(update.as_text())


def collectives(text):
    names = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return [name for name in names if f" {name}(" in text or f" {name}-start(" in text]


X = np.ones((16, 8, 8, 1), np.float32)


@functools.cache
def on_one_device():
    """State, metrics of the last step, and the mean that is predicted."""
    experiment, state, metrics, _ = train(small(dict(data=1)))
    return state, metrics, jax.jit(experiment.inference.predict)(state, X).mean


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "mesh"),
    [
        ("vmap", dict(data=8)),
        ("vmap", dict(particle=4, data=1)),
        *((executor, dict(particle=2)) for executor in ("vmap", "unroll", "scan")),  # two on each
    ],
)
def test_devices_do_not_change_training(executor, mesh):
    config = small(mesh)
    config.inference.executor = executor
    experiment, state, metrics, moved = train(config)
    expected, expected_metrics, mean = on_one_device()
    # Independent particles do not communicate; parts of a batch add up.
    assert moved == (["all-reduce"] if experiment.mesh.shape["data"] > 1 else [])
    # Sums over the batch are taken in another order: float32 rounding, grown over four steps.
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["nll"], expected_metrics["nll"], rtol=1e-4, atol=1e-6)
    leaf = jax.tree.leaves(state.params)[0]
    assert leaf.sharding.spec[0] == "particle"
    assert len(leaf.sharding.device_set) == experiment.mesh.size

    x = execution.put_batch(experiment.mesh)({"x": X})["x"]
    predict = jax.jit(execution.on_mesh(experiment.inference.predict, experiment.mesh))
    np.testing.assert_allclose(predict(state, x).mean, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_statistics_are_those_of_the_global_batch():
    """Of batch norm, and the moving average of a posterior's precision."""
    net = dict(name="resnet.ResNet", depth=8, width=2)
    head = dict(name="sngp.Sngp", outputs=10, features=8, momentum=0.9, num_examples=100)
    one, eight = (
        train(small(mesh, size=1, backbone=net, head=head), steps=1)[1].collections
        for mesh in (dict(data=1), dict(data=8))
    )
    assert {"batch_stats", "precision"} < set(one)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_parameters_follow_the_rules():
    rules = ((".*dense0/kernel", (None, "model")), (".*dense0/bias", ("model",)))
    _, state, *_ = train(small(dict(model=4, data=2), sharding=rules))
    kernel = state.params["backbone"]["dense0"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("particle", None, "model")
    momentum = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
    assert momentum and momentum[0].sharding.spec == kernel.sharding.spec
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(on_one_device()[0].params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


INTERACTING = {
    "layers": dict(name="svgd", per_layer=True, kernel=dict(name="linear")),
    "functions": dict(name="svgd", space="functions", values="probabilities"),
    "kde": dict(name="wgd", estimator="kde", space="functions"),
    "points": dict(
        name="svgd", space="functions", context=dict(name="perturbed"), function_prior=5
    ),
    "stochastic": dict(name="svgd"),
}


@pytest.mark.slow
@pytest.mark.parametrize("direction", INTERACTING)
def test_devices_do_not_change_particles_that_interact(direction):
    inference = dict(
        name="particles",
        size=4,
        direction=INTERACTING[direction],
        prior=dict(name="gaussian", scale=1.0),
        executor="vmap",
    )
    changes = dict(inference=inference)
    if direction != "layers":  # less to compile
        changes["backbone"] = dict(name="mlp.MLP", widths=())
    if direction == "stochastic":
        changes["optimiser"] = dict(name="sgld", learning_rate=0.1)
        inference["collect"] = dict(name="after_burn_in", size=2, burn_in=0.0)
    one, many = (
        train(small(mesh, **changes))[1:3] for mesh in (dict(data=1), dict(particle=4, data=2))
    )
    kept = [(state.params, state.samples) for state, _ in (one, many)]
    for a, b in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5)  # sums in another order
    np.testing.assert_allclose(many[1]["loss"], one[1]["loss"], rtol=1e-4)


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (dict(datta=2), {}, "did you mean 'data'"),
        (dict(data=16), {}, "16 devices, but there are 8"),
        (dict(data=0), {}, "mesh.data: 0"),
        (dict(data=8), dict(batch_size=12), "batch_size: 12 .* nearest: 8 or 16"),
        (dict(particle=8), {}, "inference.size: 4 .* 8 devices of mesh axis 'particle'"),
        (dict(data=1), dict(sharding=((".*kernle", ("model",)),)), "kernle.* matches no parameter"),
        (dict(data=8), dict(sharding=((".*", "dta"),)), "sharding.0.: 'dta' is no mesh axis"),
        (dict(data=8), dict(sharding=((".*", "particle"),)), "'particle' already shards"),
        (dict(data=8), dict(sharding=((".*kernel", ("data", "data")),)), "cannot shard two dim"),
        (dict(data=8), dict(sharding=((".*kernel", (None, ("data",))),)), "a list of one name"),
        (dict(data=8), dict(sharding=((".*", 3),)), "sharding.0.: 3; the name of a mesh axis"),
    ],
)
def test_impossible_placements_are_refused(mesh, changes, message):
    with pytest.raises(ConfigError, match=message):
        setup(small(mesh, **changes))


def test_particles_with_examples_of_their_own():
    """Arrays at the top of a batch lead with P, those of nested dicts are shared."""
    mesh = execution.make_mesh(dict(particle=4, data=2))
    rng = np.random.default_rng(0)
    x, points = rng.normal(size=(4, 8, 3)), rng.normal(size=(6, 3))
    batch = dict(x=x.astype(np.float32), context=dict(x=points.astype(np.float32)))
    placed = execution.put_batch(mesh, own_examples=True)(batch)
    assert placed["x"].sharding.spec == PartitionSpec("particle", ("data", "expert"))
    assert placed["context"]["x"].sharding.spec == PartitionSpec(("data", "expert"))

    def fn(state, batch):
        here = jnp.einsum("pbd,pd->pb", batch["x"], state["w"])
        return dict(y=here.sum(1) + (batch["context"]["x"] ** 2).sum(), step=state["step"] + 1)

    state = dict(w=jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), step=jnp.zeros((), int))
    out = jax.jit(execution.on_mesh(fn, mesh, own_examples=True))(state, placed)
    expected = np.einsum("pbd,pd->p", x, np.asarray(state["w"])) + (points**2).sum()
    np.testing.assert_allclose(out["y"], expected, rtol=1e-5)
    assert out["step"] == 1 and out["y"].sharding.spec[0] == "particle"
    one = execution.put_batch(execution.make_mesh(dict(data=1)), own_examples=True)(batch)
    np.testing.assert_allclose(fn(state, one)["y"], expected, rtol=1e-5)


def test_loop_is_refused_on_sharded_particles():
    config = small(dict(particle=4))
    config.inference.executor = "loop"
    with pytest.raises(ConfigError, match=r"mesh\.particle"):
        train(config)
