"""Random classification problems whose process is known, and how far predictions are from it.

Source: Osband et al. 2022, "The Neural Testbed: evaluating joint predictions", and its code.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

    x: Any  # [n, d]
    y: Any  # [n]
    pairs: Any  # [T, 2, d], test inputs
    log_p: Any  # [T, 2, K], of the process at the pairs
    counts: Any  # [T, R, 2, K], how often each label was drawn at each input of a pair


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


def draw(setting: Setting, tau: int, pairs: int, draws: int) -> Problem:
    """A problem: a random network with two hidden ReLU layers, and labels drawn from it.

    Kernels are normal, truncated at two standard deviations, over sqrt(fan-in); biases of the first
    layer N(0, 1 / d), others 0; inputs N(0, I). A test draw is tau inputs, each one of a pair with
    equal chance, and a label for each.

    A problem is a function of its setting, and those that differ in temperature alone have the same
    network, inputs and random numbers.

    Args:
      setting: of the problem.
      tau: inputs of a joint prediction.
      pairs: T.
      draws: R of labels for each pair; the published number is 1.
    """
    d, n = setting.inputs, setting.examples
    rng, test = (np.random.default_rng((d, n, setting.seed, part)) for part in range(2))
    sizes = (d, WIDTH, WIDTH, CLASSES)
    kernels = [_truncated(rng, a, b) / a**0.5 for a, b in itertools.pairwise(sizes)]
    bias = rng.normal(size=WIDTH) / d**0.5

    def log_p(x: np.ndarray) -> np.ndarray:
        h = np.maximum(x @ kernels[0] + bias, 0)
        logits = np.maximum(h @ kernels[1], 0) @ kernels[2] / setting.temperature
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    def labels(rng: np.random.Generator, log_p: np.ndarray) -> np.ndarray:
        below = np.cumsum(np.exp(log_p), axis=-1)[..., :-1]
        return (rng.random(log_p.shape[:-1])[..., None] > below).sum(-1)

    x = rng.normal(size=(n, d))
    y = labels(rng, log_p(x))
    anchors = test.normal(size=(pairs, 2, d))
    of_anchors = log_p(anchors)
    which = test.integers(2, size=(pairs, draws, tau))
    drawn = labels(test, np.take_along_axis(of_anchors[:, None], which[..., None], axis=2))
    cells = np.eye(2)[which][..., :, None] * np.eye(CLASSES)[drawn][..., None, :]
    real = [a.astype(np.float32) for a in (x, anchors, of_anchors, cells.sum(2))]
    return Problem(real[0], y.astype(np.int32), *real[1:])


def _truncated(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers, those beyond two standard deviations drawn again."""
    z = rng.normal(size=shape)
    while (far := np.abs(z) > 2).any():
        z[far] = rng.normal(size=far.sum())
    return z


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
