"""Agents of the testbed: configs, and the training of many problems in one program."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from studies.problems import CLASSES, Problem, Setting
from uncertainty import build
from uncertainty.rules import path_of
from uncertainty.types import Collections, Inference, State

BATCH = 100


def _of_ensemble(setting: Setting) -> float:
    return setting.temperature**0.5 / setting.ratio


def _of_epinet(setting: Setting) -> float:
    return 0.2 / setting.ratio**0.7


def _steps(setting: Setting) -> int:
    return 5_000 if setting.ratio > 500 else 200 if setting.ratio < 5 else 1_000


class Agent(NamedTuple):
    """A config, and what in it depends on the setting of a problem."""

    # Without `steps`; `inference.size` is P. A function if more than the two below depends on the
    # temperature, which then has a program of its own.
    config: Mapping[str, Any] | Callable[[Setting], Mapping[str, Any]]
    l2: Callable[[Setting], float] = _of_ensemble  # gradient of l2 / 2 |theta|^2, on all parameters
    prior: Callable[[Setting], float] = lambda setting: 1.0  # factor of fixed random functions
    steps: Callable[[Setting], int] = _steps


def agents(samples: int = 1_000, size: int = 100) -> dict[str, Agent]:
    """name -> Agent, with the settings of the authors' code as far as they are known to us.

    Differences: dropout's and the hypermodel's L2 are those of the ensemble. Masks of dropout
    belong to an input: its repetitions in a joint prediction share them, but the inputs of a pair
    do not. SVGD and SGLD are ours; their prior is the Gaussian whose MAP the ensemble finds,
    N(0, 1 / (n l2)), and they have not been tuned.

    Args:
      samples: index samples, or masks, at prediction.
      size: P of ensembles.
    """
    additive = dict(name="mlp.MLP", widths=(5, 5))
    epinet = dict(name="epinet", size=samples, training_size=8, index=8, widths=(15, 15),
                  inputs=True, prior_scale=0.0)  # fmt: skip
    hypermodel = dict(name="hypermodel", size=samples, training_size=16, index=6, prior_scale=1.0)

    def of_epinet(setting: Setting) -> int:
        return 10_000 if setting.ratio > 500 else 1_000

    return {
        "mlp": Agent(_config()),
        "ensemble": Agent(_config(size=size)),
        "dropout": Agent(
            _config(dict(name="mc_dropout", size=samples, rate=0.1), widths=(100, 100))
        ),
        "ensemble+": Agent(
            _config(dict(name="randomised_prior", scale=1.0), size=size),
            prior=lambda setting: 3 / setting.temperature**0.5,
        ),
        "hypermodel": Agent(_config(hypermodel), prior=lambda setting: setting.temperature**-0.5),
        "epinet": Agent(
            _config(epinet | dict(additive=additive)),
            _of_epinet,
            prior=lambda setting: 0.3 / setting.temperature,
            steps=of_epinet,
        ),
        "epinet without prior": Agent(_config(epinet), _of_epinet, steps=of_epinet),
        "SVGD of functions": Agent(
            _posterior(size, dict(name="adam", learning_rate=1e-3),
                       direction=dict(name="svgd", space="functions"))
        ),
        "SGLD": Agent(
            _posterior(size // 10 or 1, dict(name="sgld", learning_rate=1e-3),
                       collect=dict(name="after_burn_in", size=10, burn_in=0.5)),
            steps=lambda setting: 20_000,
        ),
    }  # fmt: skip


def _posterior(
    size: int, optimiser: Mapping[str, Any], **inference: Any
) -> Callable[[Setting], dict[str, Any]]:
    """Configs whose prior is that of the ensemble's L2."""

    def config(setting: Setting) -> dict[str, Any]:
        scale = (setting.examples * _of_ensemble(setting)) ** -0.5
        prior = dict(name="gaussian", scale=float(scale))
        whole = dict(name="particles", size=size, executor="vmap", prior=prior, **inference)
        return _config() | dict(optimiser=optimiser, inference=whole)

    return config


def _config(
    ensemble: Mapping[str, Any] | str = "single",
    size: int = 1,
    widths: tuple[int, ...] = (50, 50),
) -> dict[str, Any]:
    return dict(
        backbone=dict(name="mlp.MLP", widths=widths),
        ensemble=ensemble,
        head=dict(name="dense.Dense", outputs=CLASSES),
        likelihood="softmax",
        optimiser=dict(name="adam", learning_rate=1e-3, l2=(("", 1.0),)),
        # One number for each problem takes the place of the factor.
        inference=dict(name="particles", size=size, executor="vmap", hyper=dict(l2=[1.0])),
    )


def config_of(agent: Agent, setting: Setting) -> dict[str, Any]:
    """The config with which an agent solves a problem."""
    config = agent.config(setting) if callable(agent.config) else agent.config
    return {**config, "steps": agent.steps(setting)}


def solve(
    agent: Agent, setting: Setting, problems: Problem, keys: jax.Array, l2: jax.Array, prior: Any
) -> tuple[jax.Array, jax.Array]:
    """Trains an agent on G problems of one shape, and predicts at their pairs of inputs.

    Problems are the outermost axis of one program, each with P particles.

    Args:
      agent: the same for all.
      setting: of one of them, for shapes and the config.
      problems: with a leading G.
      keys: [G].
      l2, prior: [G], of `agent`.

    Returns:
      log_q [G, S, T, 2, K], and whether every step was finite [G].

    Raises:
      ValueError: the agent's latents have a variance: they are no functions.
    """
    config = config_of(agent, setting)
    model = build.model(config)
    inference = build.inference(config, model, num_examples=setting.examples)
    alone = {**config, "inference": {**config["inference"], "size": 1}}
    one_particle = build.inference(alone, model, num_examples=setting.examples)
    P = config["inference"].get("size", 1)

    def one(key: jax.Array, problem: Problem, l2: jax.Array, prior: jax.Array) -> tuple:
        begin, order, draws = jax.random.split(key, 3)
        state = initial(one_particle, begin, problem.x[:1], P)
        state = state.replace(collections=scaled(state.collections, prior))
        if state.hyper is not None:
            state = state.replace(hyper={"l2": jnp.full(P, l2)})
        state, finite = trained(inference, state, problem, order, config["steps"])
        latent = inference.predict(state, problem.pairs.reshape(-1, setting.inputs))
        if latent.variance is not None or latent.factors is not None:
            raise ValueError("agent: its latents have a variance, so members are not functions")
        log_q = model.likelihood.log_probs(latent, draws)  # type: ignore[misc]
        return log_q.reshape(len(log_q), *problem.log_p.shape), finite

    return jax.vmap(one)(keys, problems, l2, prior)


def initial(inference: Inference, key: jax.Array, x: jax.Array, size: int) -> State:
    """The state of `size` particles, from an inference of one."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(size))
    states = jax.vmap(inference.init, (0, None))(keys, x)
    step = states.step[0]
    return jax.tree.map(lambda a: a[:, 0], states.replace(step=None)).replace(step=step)


def scaled(collections: Collections, factor: jax.Array) -> Collections:
    """Collections whose fixed random functions are `factor` times what they were."""

    def times(path: tuple, a: jax.Array) -> jax.Array:
        path_in = path_of(path)
        return factor * a if path_in.startswith("prior/") and "/logits/" in path_in else a

    return jax.tree_util.tree_map_with_path(times, collections)


def trained(
    inference: Inference, state: State, problem: Problem, key: jax.Array, steps: int
) -> tuple[State, jax.Array]:
    """The state after `steps` updates, and whether all of them were finite.

    Batches are of up to BATCH examples, in a new order in every epoch.
    """
    n = len(problem.x)
    size = min(n, BATCH)

    def step(state: State, _: None) -> tuple[State, jax.Array]:
        epoch, place = jnp.divmod(state.step, n // size)
        order = jax.random.permutation(jax.random.fold_in(key, epoch), n)
        at = jax.lax.dynamic_slice_in_dim(order, place * size, size)
        state, metrics = inference.update(state, dict(x=problem.x[at], y=problem.y[at]))
        return state, jnp.all(metrics["finite"])

    state, finite = jax.lax.scan(step, state, length=steps)
    return state, jnp.all(finite)
