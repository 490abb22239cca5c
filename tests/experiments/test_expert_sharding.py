"""Experts on several devices: the training of one device, with tokens moved by all-to-all."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.runtime import execution
from experiments.runtime.checkpoint import Checkpoints
from uncertainty.build import ConfigError

STEPS = 3


def config_of(mesh, group_size=1, **changes):
    config = base()
    config.batch_size = config.evaluation.batch_size = 16
    config.backbone = dict(
        name="vit.ViT",
        variant="tiny",
        depth=1,
        width=8,
        num_heads=2,
        mlp_dim=8,
        pooling="gap",
        expert_blocks=(0,),
        experts=dict(
            name="experts.MoE",
            num_experts=8,
            split_rngs=True,
            router=dict(name="routers.TopK", k=2, group_size=group_size, multiple_of=1),
        ),
    )
    config.ensemble = dict(name="e3", size=2)
    config.inference.update(size=2, executor="vmap")
    # Not Adam, whose division makes rounding errors of vanishing gradients large.
    config.optimiser = dict(name="sgd", momentum=0.9, learning_rate=0.1)
    config.mesh = mesh
    with config.unlocked():
        config.update(changes)
    return config


def train(config, steps=STEPS):
    """Experiment, state, metrics of the last step, and the compiled program."""
    experiment = setup(config)
    put = execution.put_batch(experiment.mesh)
    state = experiment.init()
    data = experiment.batches(0)
    batch = put(next(data)[1])
    update = experiment.update.lower(state, batch).compile()
    for _ in range(steps):
        state, metrics = update(state, batch)
        batch = put(next(data)[1])
    return experiment, state, metrics, update.as_text()


X = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")


@functools.cache
def on_one_device():
    """What `train` returns, and a prediction."""
    experiment, state, *others = train(config_of(dict(data=1)))
    return experiment, state, *others, jax.jit(experiment.inference.predict)(state, X)


def close(a, b):
    # Sums over the batch are taken in another order: float32 rounding, grown over the steps.
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(data=2, expert=4), dict(particle=2, expert=4)])
def test_devices_do_not_change_the_training_of_experts(mesh, tmp_path):
    one, expected, expected_metrics, program, predicted = on_one_device()
    assert " all-to-all(" not in program
    assert (
        0.01
        < np.mean(
            expected.collections["routing"]["backbone"]["block00"]["feed_forward"]["router"][
                "dropped"
            ]
        )
        < 0.9
    )
    experiment, state, metrics, program = train(config_of(mesh))
    assert program.count(" all-to-all(") >= 4  # there and back, and their gradients likewise
    close(state.params, expected.params)
    close(state.collections, expected.collections)
    close(metrics, expected_metrics)

    def own(params):
        return params["backbone"]["block00"]["feed_forward"]["experts"]["dense0"]["kernel"]

    kernel = own(state.params)
    particles, experts = mesh.get("particle", 1), mesh["expert"]
    assert kernel.sharding.spec == PartitionSpec("particle", "expert")
    assert kernel.addressable_shards[0].data.shape == (2 // particles, 8 // experts, 8, 8)
    momentum = [a for a in jax.tree.leaves(state.opt_state) if a.shape == kernel.shape]
    assert momentum and momentum[0].sharding.spec == kernel.sharding.spec

    predict = jax.jit(execution.on_mesh(experiment.inference.predict, experiment.mesh))
    placed = execution.put_batch(experiment.mesh)({"x": X})["x"]
    program = predict.lower(state, placed).compile()
    assert program.as_text().count(" all-to-all(") >= 2
    close(program(state, placed), predicted)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(STEPS, state)
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path, read_only=True).restore(one.shapes)
    for a, b in zip(jax.tree.leaves(restored.params), jax.tree.leaves(state.params), strict=True):
        assert len(a.sharding.device_set) == 1
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_without_experts_the_devices_share_the_batch():
    config = base()
    config.batch_size = config.evaluation.batch_size = 16
    config.backbone = dict(name="mlp.MLP", widths=(8,))
    config.optimiser = dict(name="sgd", learning_rate=0.1)
    results = []
    for mesh in (dict(data=1), dict(data=2, expert=4)):
        config.mesh = mesh
        results.append(train(config))
    close(results[1][1].params, results[0][1].params)
    batch = execution.put_batch(results[1][0].mesh)({"x": np.zeros((16, 3))})
    assert batch["x"].addressable_shards[0].data.shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (dict(expert=8), dict(group_size=4), "group_size: makes 4 groups, which the 8 devices"),
        (
            dict(data=2, expert=4),
            dict(batch_size=12),
            "batch_size: 12 .* 8 devices of mesh axes 'data' x 'expert'; nearest: 8 or 16",
        ),
        (
            dict(expert=8),
            dict(inference=dict(name="particles", accumulate=4)),
            "batch_size / inference.accumulate: 4 ",
        ),
        (
            dict(expert=5, data=1),
            dict(batch_size=15),
            "num_experts: 8, which the 5 devices",
        ),
        (
            dict(data=2, model=3),
            dict(sharding=(("router/kernel", ("model",)),)),
            "sharding: of .*router/kernel",
        ),
    ],
)
def test_experts_that_devices_cannot_share_are_refused(mesh, changes, message):
    changes = dict(changes)
    group_size = changes.pop("group_size", 1)
    config = config_of(mesh, group_size=group_size)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        setup(config)
