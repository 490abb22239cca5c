"""The moving average of parameters against its recurrence in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_contract import INFERENCE, config_of, images, paths
from uncertainty import build
from uncertainty.inference import thinning

X, Y = images(8), jnp.arange(8) % 3
DECAY = INFERENCE["moving_average"]["collect"]["decay"]


def kernels(tree):
    return np.asarray(paths(tree)["backbone/dense0/kernel"], np.float64)


def test_predictions_are_those_of_the_average_and_a_fault_leaves_it():
    config = config_of("mlp", "single", "dense", "moving_average")
    inference = build.inference(config)
    state = inference.init(jax.random.key(0), X[:1])
    update, average = jax.jit(inference.update), None
    for t in range(1, 7):
        bad = t == 4
        before = state
        if bad:  # of the second particle alone
            state = state.replace(params=jax.tree.map(lambda a: a.at[1].set(jnp.nan), state.params))
        state, metrics = update(state, dict(x=X, y=Y))
        if bad:
            np.testing.assert_array_equal(metrics["finite"], [True, False])
            state = state.replace(
                params=jax.tree.map(lambda a, b: a.at[1].set(b[1]), state.params, before.params)
            )
        now, d = kernels(state.params), min(DECAY, (1 + t) / (10 + t))
        follows = now if average is None else d * average + (1 - d) * now
        average = np.stack([follows[0], average[1] if bad else follows[1]])
        np.testing.assert_allclose(
            kernels(state.samples.params)[:, 0], average, rtol=1e-5, atol=1e-7
        )
    assert min(DECAY, 7 / 16) < DECAY  # the warm-up counts here
    alone = state.replace(
        samples=None, params=jax.tree.map(lambda a: a[:, 0], state.samples.params)
    )
    np.testing.assert_allclose(
        inference.predict(state, X).mean, inference.predict(alone, X).mean, rtol=1e-5, atol=1e-6
    )
    assert not np.allclose(
        inference.predict(state, X).mean, inference.predict(state.replace(samples=None), X).mean
    )


def test_before_the_first_step_predictions_are_those_of_the_parameters():
    config = config_of("mlp", "single", "dense", "moving_average")
    inference = build.inference(config)
    state = inference.init(jax.random.key(0), X[:1])
    plain = inference.predict(state.replace(samples=None), X).mean
    np.testing.assert_array_equal(inference.predict(state, X).mean, plain)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay: .*; at least 0 and below 1"):
        thinning.moving_average(10, decay)
