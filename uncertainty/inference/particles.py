"""P sets of parameters, moved by a direction: P = 1 is training, P = 10 a deep ensemble."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from uncertainty import cpu
from uncertainty.inference import executors, loss, samples, sharded
from uncertainty.inference import hyper as hypers
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.thinning import MovingAverage
from uncertainty.keys import Use, fold
from uncertainty.optimisers.samplers import SamplingTransformation, Transformation, normal
from uncertainty.types import (
    LIKELIHOOD,
    Batch,
    Direction,
    Inference,
    Latent,
    Metrics,
    Model,
    Objective,
    Params,
    Prior,
    State,
    Target,
)


def particles(
    model: Model,
    optimiser: optax.GradientTransformation | Transformation | SamplingTransformation,
    size: int = 1,
    direction: Callable[..., Direction] = independent,
    executor: str = "auto",
    accumulate: int = 1,
    prior: Prior | None = None,
    temperature: float = 1.0,
    likelihood_temperature: float = 1.0,
    collect: Sequence[int] | MovingAverage = (),
    hyper: Mapping[str, Any] | None = None,
    distinct: int | None = None,
    num_examples: int | None = None,
    objective: Objective = LIKELIHOOD,
    own_examples: bool = False,
) -> Inference:
    """theta_p <- optimiser(theta_p, direction_p), p = 1..P.

    A particle depends on (seed, p), not on P: the first 5 of 10 are those of a run with 5. The
    optimiser is mapped over P, so clipping and adaptive scales never couple particles.

    If a particle's loss, gradient or update is not finite, the step leaves that particle unchanged
    and reports `finite=False` for it; the caller decides what to do.

    Args:
      model: network and likelihood.
      optimiser: for one particle, without P; with a sampler the particles are Markov chains.
      size: P.
      direction: factory of the direction, called with an executor and `accumulate`; `independent`
        by default.
      executor: one of `executors.NAMES`.
      accumulate: number of parts of each batch.
      prior: p(theta), see `uncertainty/priors.py`; None for a flat one.
      temperature: T, of the posterior (p(D | theta)^(1 / t) p(theta))^(1 / T), for samplers and for
        directions that approximate a posterior; 1 is Bayes, below 1 is a 'cold' posterior.
      likelihood_temperature: t.
      collect: what is kept of a particle's parameters for prediction, see `inference/thinning.py`:
        steps after which a sample is kept, over which predictions average, or a moving average.
      hyper: hyper-parameters that differ between particles, see `inference/hyper.py`: name ->
        values dealt to the particles in turn, or dict(low=, high=) to sample log-uniformly.
      distinct: how many particles have random numbers of their own; particle p begins with the
        parameters of particle p mod `distinct` and draws what it draws, so that particles differ by
        their listed hyper-parameters alone (common random numbers). None: all of them.
      num_examples: N, the size of the training set; experiments fill it in.
      objective: to minimise, see `uncertainty/objectives`; the likelihood by default. Its own
        parameters are in `State.params` as `objective`, its slow copies in `State.slow`.
      own_examples: whether each particle has its own examples. The batch's arrays are then [P, B,
        ...] instead of [B, ...]; its streams (nested dicts) are still shared.

    Returns:
      An Inference. Its metrics lead with P: `loss`, `gradient_norm` and `finite` [P], `nll` [P, M,
      B] of each particle's examples if there are labels, and those of the objective.

    Raises:
      ValueError: size, accumulate or distinct below 1, `distinct` without `hyper`, with one that is
        sampled or with `own_examples`, an unknown executor, a temperature below 0 (or 0, of
        the likelihood), a prior or a sampler without `num_examples`, a sampler with a direction
        that has no diffusion, `hyper` with particles that interact or sample, or that nothing
        reads, a sampler with an objective that has parameters of its own, or an optimiser that
        decays parameters which have a prior or interact.
    """
    if size < 1:
        raise ValueError(f"size: {size} particles; at least 1")
    if accumulate < 1:
        raise ValueError(f"accumulate: {accumulate} parts; at least 1")
    if not temperature >= 0:
        raise ValueError(f"temperature: {temperature}; at least 0")
    if not likelihood_temperature > 0:
        raise ValueError(f"likelihood_temperature: {likelihood_temperature}; a positive number")
    sampler = optimiser if isinstance(optimiser, SamplingTransformation) else None
    sampling = sampler is not None
    if (prior is not None or sampling) and num_examples is None:
        raise ValueError("num_examples: missing; a posterior needs the size of the data set")
    loss.check(objective)
    if objective.whole and accumulate > 1:
        raise ValueError(
            f"accumulate: {accumulate} parts, but objective {objective.name!r} compares all "
            "examples of a batch"
        )
    over = executors.mapping(executor)
    target = Target(prior, num_examples, temperature, likelihood_temperature)
    direct = direction(
        over=over,
        target=target,
        accumulate=accumulate,
        objective=objective,
        own_examples=own_examples,
    )
    separable = direct.separable
    ours = isinstance(optimiser, Transformation | SamplingTransformation)
    decays = optimiser.decays if ours else ()
    if decays and (prior is not None or direct.posterior):
        stated = "prior" if prior is not None else "direction"
        raise ValueError(
            f"optimiser.{decays[0]}: changes the posterior that {stated} defines; set "
            "it to (), and set the weights' scale by inference.prior alone"
        )
    diffusion = direct.diffusion
    # A diffusion, and factors of the particles, may be of any size.
    bounded = ours and optimiser.bounded and (separable or not sampling)
    bounded = bounded and not {"learning_rate", *hypers.DECAYS} & set(hyper or ())
    if sampling and diffusion is None:
        raise ValueError(
            "direction: this one has no diffusion for a sampler; use 'independent', or 'sgld' with "
            "'svgd' in weight space"
        )
    if sampler is not None and not (separable or sampler.plain):
        raise ValueError("direction: for particles that interact, 'sgld' is the only sampler")
    if sampling and objective.init is not None:
        raise ValueError(
            f"objective: {objective.name!r} has its own parameters, which have no posterior for a "
            "sampler"
        )
    if hyper and (sampling or direct.posterior):
        raise ValueError("hyper: particles that interact or sample share one posterior")
    scales = ("prior_scale",) if prior is not None else ()
    hypers.check(hyper or {}, ("learning_rate", *scales, *decays, *objective.reads))
    _check_distinct(distinct, hyper or {}, own_examples)
    factors = [name for name in hypers.DECAYS if name in (hyper or {})]  # of the optimiser
    init_one = jax.jit(model.init)

    def init(key: jax.Array, x: jax.Array) -> State:
        # One compiled init, called P times: faster to compile than init mapped over P.
        own = min(size, distinct or size)
        keys = [jax.random.fold_in(key, p) for p in range(own)]
        initial = [init_one(k, x) for k in keys]
        deal = [p % own for p in range(size)]
        return start([keys[p] for p in deal], [initial[p] for p in deal], x)

    @jax.jit  # one small program instead of one for each shape
    def start(keys: list[jax.Array], initial: list[tuple], x: jax.Array) -> State:
        params, collections = jax.tree.map(lambda *leaves: jnp.stack(leaves), *initial)
        if objective.init is not None:
            own = [
                objective.init(fold(key, Use.OWN), model, *one, x)
                for key, one in zip(keys, initial, strict=True)
            ]
            own = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
            params = loss.join(objective, params, own)
        state = State(
            step=jnp.zeros((), jnp.int32),
            key=jnp.stack(keys),
            params=params,
            collections=collections,
            opt_state=None,
            hyper=hypers.draw(hyper, keys) if hyper else None,
        )
        state = restart(state)
        slots = 1 if isinstance(collect, MovingAverage) else len(collect)
        return samples.reserve(state, slots) if slots else state

    def restart(state: State) -> State:
        state = state.replace(opt_state=jax.vmap(optimiser.init)(state.params))
        if objective.start is None:
            return state
        slow = jax.vmap(objective.start)(*parts(state.params))
        return state.replace(slow=jax.tree.map(jnp.copy, slow))  # not the parameters' buffers

    def parts(params: Params) -> tuple[Params, Params]:
        return loss.network(objective, params), loss.own(objective, params)

    def update(state: State, batch: Batch) -> tuple[State, Metrics]:
        keys = fold(state.key, state.step)
        gradients, collections, metrics = direct.update(model, state, batch, keys)
        extra: dict[str, Any] = {}  # for the optimiser, of each particle
        own = state.hyper or {}
        if sampling and diffusion is not None:
            noise = diffusion(state.params, normal(fold(keys, Use.NOISE), state.params))
            extra["noise"] = jax.tree.map(lambda xi: target.scale() ** 0.5 * xi, noise)
        if factors:
            extra["factors"] = {name: own[name] for name in factors}

        def moves() -> tuple[Params, Any]:
            """What is added to the parameters, and the new state of the optimiser."""
            updates, opt_state = jax.vmap(
                lambda g, s, p, extra: optimiser.update(g, s, p, **extra)
            )(gradients, state.opt_state, state.params, extra)
            if "learning_rate" in own:
                updates = jax.tree.map(samples.times(own["learning_rate"]), updates)
            return updates, opt_state

        made = moves()

        def moved() -> tuple:
            # Where little of `made` is used otherwise, it is made here alone.
            updates, opt_state = moves() if bounded else made
            params, slow = jax.vmap(optax.apply_updates)(state.params, updates), state.slow
            if objective.follow is not None:
                slow = jax.vmap(objective.follow, (0, 0, 0, None))(slow, *parts(params), state.step)
            return params, collections, opt_state, slow

        metrics["gradient_norm"] = jax.vmap(optax.global_norm)(gradients)
        watched = made[0]
        if bounded:  # a schedule that is not finite shows in the smallest array too
            some = [a for a in jax.tree.leaves(watched) if a.size]
            watched = min(some, key=lambda a: a.size, default=metrics["loss"])
        metrics["finite"] = (
            jnp.isfinite(metrics["loss"])
            & jnp.isfinite(metrics["gradient_norm"])
            & jnp.isfinite(jax.vmap(optax.global_norm)(watched))
        )
        before = (state.params, state.collections, state.opt_state, state.slow)
        trained = metrics["finite"]
        if direct.active is not None:
            trained &= sharded.own(direct.active(state.step, len(trained) * sharded.devices()))
        params, collections, opt_state, slow = guarded(trained, moved, before)
        new = state.replace(
            step=state.step + 1,
            params=params,
            collections=collections,
            opt_state=opt_state,
            slow=slow,
        )
        if isinstance(collect, MovingAverage):
            new = samples.average(new, collect.decay, metrics["finite"])
        elif collect:
            new = samples.take(new, collect)
        return new, metrics

    def predict(state: State, x: jax.Array, mask: jax.Array | None = None) -> Latent:
        def one(particle, batch):
            params, collections, key = particle
            x, mask = batch
            params = loss.network(objective, params)
            return model.forward(params, collections, x, key, train=False, mask=mask)[0]

        latent = over(one)(samples.predicting(state), (x, mask))  # [P S, M, B, K]
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), latent)

    return Inference(
        init, update, predict, separable, own_examples, restart, direct.posterior, model.likelihood
    )


def _check_distinct(distinct: int | None, hyper: Mapping[str, Any], own_examples: bool) -> None:
    if distinct is None:
        return
    if distinct < 1:
        raise ValueError(f"distinct: {distinct} particles; at least 1")
    if not hyper or any(isinstance(values, Mapping) for values in hyper.values()):
        raise ValueError(
            f"distinct: {distinct}; particles with the same random numbers need lists of "
            "hyper-parameters to differ in"
        )
    if own_examples:
        raise ValueError(f"distinct: {distinct}; particles that share them see the same examples")


def guarded(finite: jax.Array, moved: Callable[[], Any], before: Any) -> Any:
    """The arrays [P, ...] of `moved()`, of particles that are not finite [P] those `before`."""

    def chosen() -> Any:
        choose = jax.vmap(jnp.where)
        return jax.tree.map(lambda new, old: choose(finite, new, old), moved(), before)

    if not cpu.enabled():
        return chosen()
    # On CPU selects take as long as the step of the optimiser.
    otherwise = (lambda: before) if len(finite) == 1 else chosen
    return jax.lax.cond(jnp.all(finite), moved, otherwise)
