"""Agents of the testbed: configs, and the training of many problems in one program."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from studies.problems import CLASSES, Problem, Setting, joint_kl, marginal_kl
from uncertainty import build, priors
from uncertainty.functions import functions
from uncertainty.inference import executors, samples
from uncertainty.rules import path_of
from uncertainty.types import Batch, Collections, Inference, Latent, Model, Prior, State

BATCH = 100
PAIRS = 100  # of test inputs at a time: 1,000 samples of a network with 100 units take 80 MB
POINTS = 20  # inputs N(0, I) at which functions are compared

# The standard deviation of a normal distribution that is truncated at two of its own. The authors'
# kernels have it, over sqrt(fan-in), and the affine layers of our fixed functions do not.
TRUNCATED = 0.87962566
KERNEL = dict(
    name="variance_scaling", scale=TRUNCATED**2, mode="fan_in", distribution="truncated_normal"
)


def _l2(setting: Setting) -> Any:
    return 2 * setting.temperature**0.5 / setting.ratio


def _l2_of_epinet(setting: Setting) -> float:
    return 0.4 / setting.ratio**0.7


def _steps_of_epinet(setting: Setting) -> int:
    return 10_000 if setting.ratio > 500 else 1_000


class Agent(NamedTuple):
    """A config, and what in it depends on the setting of a problem."""

    # Without `steps`; `inference.size` is P. In a function the temperature may be traced.
    config: Mapping[str, Any] | Callable[[Setting], Mapping[str, Any]]
    l2: Callable[[Setting], float] = _l2  # gradient of l2 / 2 |theta|^2, on all parameters
    prior: Callable[[Setting], float] = lambda setting: 1.0  # factor of fixed random functions
    steps: Callable[[Setting], int] = lambda setting: 1_000
    draws: int = 1  # of functions, where the last layer has a posterior
    by_temperature: bool = False  # the config needs a number, so each has a program of its own


class Given(NamedTuple):
    """What a program is called with, for one problem or, with a leading G, for several."""

    problem: Problem
    key: jax.Array
    temperature: Any
    l2: Any
    prior: Any
    own: Any = None  # examples of each particle, [P, n]; None: all see all


def agents(samples: int = 1_000, size: int = 100) -> dict[str, Agent]:
    """name -> Agent, with the settings of the authors' code, and three agents of ours.

    Theirs are "MLP", "ensemble", "dropout", "ensemble+", "hypermodel", the epinets and "SG-MCMC"
    (SGLD with momentum, which is SGHMC); defaults of the code, not the best of a sweep. An L2 of
    c |theta|^2 there is 2 c here. Differences:

      - in training each example has its own mask of dropout; there, those of a step share one;
      - members of an ensemble have the same weight in each step; there, indices are drawn;
      - kernels of an epinet's learned part are not truncated, and the hypermodel's prior is linear
        in its index, with networks of 10 hidden units, as is what it begins with: networks;
      - SGLD has a fiftieth or less of the steps and ten times the rate, in a few chains.

    Ours are "bootstrap" (an ensemble, each network on n examples drawn with replacement), "Laplace"
    of the last layer, and "SVGD" of functions at random inputs. The prior of both is the Gaussian
    whose MAP the MLP finds. None of the three was tuned.

    Args:
      samples: index samples, masks or draws of functions, at prediction.
      size: P of ensembles.
    """
    additive = dict(name="mlp.MLP", widths=(5, 5), kernel_init=KERNEL)
    epinet = dict(name="epinet", size=samples, training_size=8, index=8, widths=(15, 15),
                  inputs=True, prior_scale=0.0)  # fmt: skip
    chains = math.ceil(size / 5)
    return {
        "MLP": Agent(_config()),
        "ensemble": Agent(_config(size=size)),
        "bootstrap": Agent(_config(size=size, data=dict(particles="bootstrap"))),
        "dropout": Agent(functools.partial(
            _with_biases, dict(name="mc_dropout", size=samples, rate=0.1, shared=True),
            widths=(100, 100))),
        "Laplace": Agent(_laplace, draws=samples, by_temperature=True),
        "SVGD": Agent(functools.partial(
            _posterior, size, dict(name="adam", learning_rate=1e-3), _l2,
            direction=dict(name="svgd", space="functions", context=dict(name="other")))),
        "SG-MCMC": Agent(
            functools.partial(
                _posterior, chains, dict(name="sghmc", learning_rate=1e-3, friction=0.1),
                lambda setting: 10 * _l2(setting),
                collect=dict(name="after_burn_in", size=25, burn_in=0.5)),
            steps=lambda setting: 10_000),
        "hypermodel": Agent(
            _config(dict(name="hypermodel", size=samples, training_size=16, index=6,
                         prior_scale=TRUNCATED,
                         prior=dict(name="mlp.MLP", widths=(10,), kernel_init=KERNEL))),
            prior=lambda setting: setting.temperature**-0.5, steps=lambda setting: 2_000),
        "ensemble+": Agent(
            functools.partial(
                _with_biases, dict(name="randomised_prior", scale=TRUNCATED), size=size),
            prior=lambda setting: 3 * setting.temperature**-0.5),
        "epinet without prior": Agent(_config(epinet), _l2_of_epinet, steps=_steps_of_epinet),
        "epinet": Agent(
            _config(epinet | dict(additive=additive, additive_scale=TRUNCATED)), _l2_of_epinet,
            prior=lambda setting: 0.3 / setting.temperature, steps=_steps_of_epinet),
    }  # fmt: skip


def _config(
    ensemble: Mapping[str, Any] | str = "single",
    size: int = 1,
    widths: tuple[int, ...] = (50, 50),
    data: Mapping[str, Any] | None = None,
    **backbone: Any,
) -> dict[str, Any]:
    return dict(
        backbone=dict(name="mlp.MLP", widths=widths, kernel_init=KERNEL, **backbone),
        ensemble=ensemble,
        head=dict(name="dense.Dense", outputs=CLASSES, kernel_init=KERNEL),
        likelihood="softmax",
        data=data or {},
        optimiser=dict(name="adam", learning_rate=1e-3, l2=(("", 1.0),)),
        # One number for each problem takes the place of the factor.
        inference=dict(name="particles", size=size, executor="vmap", hyper=dict(l2=[1.0])),
    )


def _with_biases(ensemble: Mapping[str, Any], setting: Setting, **fields: Any) -> dict[str, Any]:
    """A config whose first layer, and that of priors, begins with biases that are not zero."""
    bias = dict(name="truncated_normal", stddev=setting.inputs**-0.5)
    return _config(ensemble, input_bias_init=bias, **fields)


def _posterior(
    size: int, optimiser: Mapping[str, Any], l2: Callable, setting: Setting, **inference: Any
) -> dict[str, Any]:
    """A config whose prior is that of an L2: l2 n |theta|^2 / 2 is its potential."""
    prior = dict(name=f"{__name__}:gaussian", scale=(setting.examples * l2(setting)) ** -0.5)
    whole = dict(name="particles", size=size, executor="vmap", prior=prior, **inference)
    return _config() | dict(optimiser=optimiser, inference=whole)


def gaussian(scale: Any) -> Prior:
    """`priors.gaussian` of a scale that may be traced."""
    unit = priors.gaussian()

    def potential(params: Any) -> jax.Array:
        return unit.potential(jax.tree.map(lambda w: w / scale, params))

    def sample(key: jax.Array, params: Any) -> Any:
        return jax.tree.map(lambda w: w * scale, unit.sample(key, params))

    return Prior(potential, sample)


def _laplace(setting: Setting) -> dict[str, Any]:
    precision = float(setting.examples * _l2(setting))
    head = dict(
        name="laplace.Laplace", outputs=CLASSES, prior_precision=precision, curvature="softmax"
    )
    return _config() | dict(head=head, stages=[dict(name="laplace")])


def config_of(agent: Agent, setting: Setting) -> dict[str, Any]:
    """The config with which an agent solves a problem; its factors are in `Agent`."""
    config = agent.config(setting) if callable(agent.config) else agent.config
    return {**config, "steps": agent.steps(setting)}


def given(agent: Agent, same: list[Setting], problems: Problem) -> Given:
    """What `solve` needs for problems of one shape, [G, ...]: functions of their settings alone."""
    config, n = config_of(agent, same[0]), same[0].examples
    own = None
    if config["data"].get("particles") == "bootstrap":
        P = config["inference"]["size"]
        each = [np.random.default_rng((s.inputs, n, s.seed, 2)) for s in same]
        own = np.stack([rng.integers(n, size=(P, n)) for rng in each])
    return Given(
        problems,
        jnp.stack([jax.random.key(s.seed) for s in same]),
        np.asarray([s.temperature for s in same], np.float32),
        np.asarray([agent.l2(s) for s in same], np.float32),
        np.asarray([agent.prior(s) for s in same], np.float32),
        own,
    )


def started(agent: Agent, setting: Setting, given: Given) -> State:
    """The states of all particles of G problems.

    They depend on keys, d and the numbers in `given`, so that one program is for all n / d.
    """
    x = jnp.zeros((1, setting.inputs))

    def one(given: Given) -> State:
        return initial(config_of(agent, setting), x, given)

    return jax.vmap(one)(given._replace(problem=None, own=None))


def solve(
    agent: Agent, setting: Setting, given: Given, states: State
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Trains an agent on G problems of one shape, and compares it with their processes.

    Problems are the outermost axis of one program, each with P particles; they are trained
    together, and predicted one after the other.

    Args:
      agent: the same for all.
      setting: of one of them, for shapes and, where the agent needs it, the temperature.
      given: with a leading G.
      states: as `started`.

    Returns:
      marginal and joint KL, and whether every step was finite, [G].

    Raises:
      ValueError: the agent's latents have a variance from which no functions are drawn.
    """

    def train(one: Given, state: State) -> tuple[State, jax.Array]:
        return trained(*parts(agent, setting, one), setting, one, state)

    def compare(of: tuple[Given, State]) -> tuple[jax.Array, jax.Array]:
        one, state = of
        _, model, inference = parts(agent, setting, one)
        return compared(
            lambda x: log_q(model, inference, state, x, one.key, agent.draws), one.problem
        )

    states, finite = jax.vmap(train)(given, states)
    marginal, joint = jax.lax.map(compare, (given, states))
    return marginal, joint, finite


def parts(agent: Agent, setting: Setting, one: Given) -> tuple[dict[str, Any], Model, Inference]:
    """The config for one problem, whose temperature may be traced, and what it builds."""
    if not agent.by_temperature:
        setting = setting._replace(temperature=one.temperature)
    config = config_of(agent, setting)
    model = build.model(config)
    return config, model, build.inference(config, model, num_examples=setting.examples)


def initial(config: Mapping[str, Any], x: jax.Array, one: Given) -> State:
    """The state of all particles, made by mapping an inference of one over their keys."""
    P = config["inference"].get("size", 1)
    alone = {**config, "inference": {**config["inference"], "size": 1}}
    inference = build.inference(alone, num_examples=1)
    begin, _ = jax.random.split(one.key)
    keys = jax.vmap(functools.partial(jax.random.fold_in, begin))(jnp.arange(P))
    states = jax.vmap(inference.init, (0, None))(keys, x)
    step = states.step[0]
    state = jax.tree.map(lambda a: a[:, 0], states.replace(step=None)).replace(step=step)
    state = state.replace(collections=scaled(state.collections, one.prior))
    return state if state.hyper is None else state.replace(hyper={"l2": jnp.full(P, one.l2)})


def scaled(collections: Collections, factor: jax.Array) -> Collections:
    """Collections whose fixed random functions are `factor` times what they were."""

    def times(path: tuple, a: jax.Array) -> jax.Array:
        path_in = path_of(path)
        return factor * a if path_in.startswith("prior/") and "/logits/" in path_in else a

    return jax.tree_util.tree_map_with_path(times, collections)


def trained(
    config: Mapping[str, Any],
    model: Model,
    inference: Inference,
    setting: Setting,
    one: Given,
    state: State,
) -> tuple[State, jax.Array]:
    """The state after training and stages, and whether all steps were finite."""
    x, y, n = one.problem.x, one.problem.y, setting.examples
    _, points = jax.random.split(one.key)

    def batch(state: State, at: jax.Array | None) -> Batch:
        """Examples at positions `at`, or all."""
        rows = one.own
        if at is not None:
            rows = at if rows is None else rows[:, at]
        chosen = dict(x=x, y=y) if rows is None else dict(x=x[rows], y=y[rows])
        if "context" not in (config["inference"].get("direction") or {}):
            return chosen
        key = jax.random.fold_in(points, state.step)
        return chosen | dict(context=dict(x=jax.random.normal(key, (POINTS, x.shape[1]))))

    def step(carry: tuple[State, jax.Array], at: jax.Array | None) -> tuple[tuple, None]:
        state, finite = carry
        state, metrics = inference.update(state, batch(state, at))
        return (state, finite & jnp.all(metrics["finite"])), None

    order = shuffled(n, config["steps"])
    (state, finite), _ = jax.lax.scan(
        step, (state, jnp.asarray(True)), order, length=config["steps"]
    )
    over = executors.mapping("vmap")
    for _, stage in build.stages(config, model, over, dict(train=n, validation=0)):
        carry = stage.begin(state.replace(opt_state=()), x[:1])
        state, carry, _ = stage.update(state.replace(opt_state=()), carry, dict(x=x, y=y))
        state = stage.finish(state, carry, x[:1])
    return state.replace(opt_state=()), finite


def shuffled(n: int, steps: int) -> np.ndarray | None:
    """Positions of batches, [steps, BATCH], in a new order in every epoch; None: all in one batch.

    The order is the same for all problems, whose examples have none.
    """
    if n <= BATCH:
        return None
    each = n // BATCH
    epochs = [
        np.random.default_rng((n, epoch)).permutation(n)[: each * BATCH].reshape(each, BATCH)
        for epoch in range(-(-steps // each))
    ]
    return np.concatenate(epochs)[:steps].astype(np.int32)


def log_q(
    model: Model, inference: Inference, state: State, x: jax.Array, key: jax.Array, draws: int
) -> jax.Array:
    """log p(y | x, f) of the members' functions f, [S, B, K]; equal keys are equal functions."""
    if model.posterior is None:
        latent = inference.predict(state, x)
    else:

        def one(particle: tuple, x: jax.Array) -> jax.Array:
            params, collections, key = particle
            return functions(model, params, collections, x, key, draws)[0]

        mean = executors.vmap(one)(samples.predicting(state), x)  # [P, S, M, B, K]
        latent = Latent(mean=mean.reshape(-1, *mean.shape[-2:]))
    if latent.variance is not None or latent.factors is not None:
        raise ValueError("agent: its latents have a variance, so members are not functions")
    return model.likelihood.log_probs(latent, key)  # type: ignore[misc]


def compared(predict: Callable[[jax.Array], jax.Array], problem: Problem) -> tuple:
    """Marginal and joint KL of x [B, d] -> log q [S, B, K] to the process of a problem.

    Pairs are predicted in equal parts of at most PAIRS.
    """
    T = len(problem.pairs)
    count = next(k for k in itertools.count(-(-T // PAIRS)) if T % k == 0)

    def part(of: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        pairs, log_p, counts = of
        members = predict(pairs.reshape(-1, pairs.shape[-1]))
        members = members.reshape(len(members), *log_p.shape)
        return marginal_kl(members, log_p), joint_kl(members, log_p, counts)

    split = [jnp.reshape(a, (count, T // count, *a.shape[1:]))
             for a in (problem.pairs, problem.log_p, problem.counts)]  # fmt: skip
    marginal, joint = jax.lax.map(part, tuple(split))
    return jnp.mean(marginal), jnp.mean(joint)
