"""Random classification problems whose process is known, and how far predictions are from it.

Source: Osband et al. 2022, "The Neural Testbed: evaluating joint predictions", and its code.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

WIDTH = 50  # of both hidden layers of the process
CLASSES = 2


class Setting(NamedTuple):
    """What a problem is drawn from."""

    inputs: int  # d
    ratio: float  # n / d
    temperature: float  # rho, which divides the logits
    seed: int

    @property
    def examples(self) -> int:
        """n, of training."""
        return round(self.ratio * self.inputs)


class Problem(NamedTuple):
    """A training set and pairs of test inputs, of one problem or, with a leading G, of several."""

    x: jax.Array  # [n, d]
    y: jax.Array  # [n]
    pairs: jax.Array  # [T, 2, d], test inputs
    log_p: jax.Array  # [T, 2, K], of the process at the pairs
    counts: jax.Array  # [T, R, 2, K], how often each label was drawn at each input of a pair


def settings(
    inputs: Sequence[int],
    ratios: Sequence[float],
    temperatures: Sequence[float],
    seeds: Sequence[int],
) -> list[Setting]:
    """All combinations, those of equal shape next to each other.

    Raises:
      ValueError: a number that is not positive, or fewer than one example.
    """
    for name, values in dict(inputs=inputs, ratios=ratios, temperatures=temperatures).items():
        if not values or not min(values) > 0:
            raise ValueError(f"{name}: {list(values)}; positive numbers")
    every = [Setting(*one) for one in itertools.product(inputs, ratios, temperatures, seeds)]
    if few := [s for s in every if s.examples < 1]:
        raise ValueError(f"ratios: {few[0].ratio} of {few[0].inputs} inputs is no example")
    return every


def draw(key: jax.Array, setting: Setting, tau: int, pairs: int, draws: int) -> Problem:
    """A problem: a random network with two hidden ReLU layers, and labels drawn from it.

    Kernels are normal, truncated at two standard deviations, over sqrt(fan-in); biases of the first
    layer N(0, 1 / d), others 0; inputs N(0, I). A test draw is tau inputs, each one of a pair with
    equal chance, and a label for each.

    Args:
      key: of the problem.
      setting: its temperature may be traced; d and n / d are shapes.
      tau: inputs of a joint prediction.
      pairs: T.
      draws: R of labels for each pair; the published number is 1.
    """
    keys = iter(jax.random.split(key, 9))
    d, n = setting.inputs, setting.examples

    def layer(inputs: int, outputs: int) -> jax.Array:
        shape = (inputs, outputs)
        return jax.random.truncated_normal(next(keys), -2.0, 2.0, shape) / inputs**0.5

    kernels = [layer(d, WIDTH), layer(WIDTH, WIDTH), layer(WIDTH, CLASSES)]
    bias = jax.random.normal(next(keys), (WIDTH,)) / d**0.5

    def log_p(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(x @ kernels[0] + bias)
        logits = jax.nn.relu(h @ kernels[1]) @ kernels[2]
        return jax.nn.log_softmax(logits / setting.temperature)

    x = jax.random.normal(next(keys), (n, d))
    y = jax.random.categorical(next(keys), log_p(x))
    anchors = jax.random.normal(next(keys), (pairs, 2, d))
    of_anchors = log_p(anchors)
    which = jax.random.randint(next(keys), (pairs, draws, tau), 0, 2)
    chosen = jnp.take_along_axis(of_anchors[:, None], which[..., None], axis=2)
    labels = jax.random.categorical(next(keys), chosen)
    cells = jax.nn.one_hot(which, 2)[..., :, None] * jax.nn.one_hot(labels, CLASSES)[..., None, :]
    return Problem(x, y, anchors, of_anchors, cells.sum(2))


def marginal_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """E_x [KL(p(. | x) || mean_s q_s(. | x))], exact over labels.

    Args:
      log_q: [S, T, 2, K], of members.
      log_p: [T, 2, K], of the process.
    """
    mixture = jax.nn.logsumexp(log_q, axis=0) - jnp.log(len(log_q))
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - mixture), axis=-1))


def joint_kl(log_q: jax.Array, log_p: jax.Array, counts: jax.Array) -> jax.Array:
    """E [log p(y_1:tau | x_1:tau) - log mean_s prod_t q_s(y_t | x_t)], not divided by tau.

    An estimate over draws, which may be negative.

    Args:
      log_q, log_p: as for `marginal_kl`.
      counts: [T, R, 2, K], of the draws.
    """
    members = jnp.einsum("stak,trak->str", log_q, counts)
    mixture = jax.nn.logsumexp(members, axis=0) - jnp.log(len(log_q))
    return jnp.mean(jnp.einsum("tak,trak->tr", log_p, counts) - mixture)
