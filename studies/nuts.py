"""The no-U-turn sampler (Hoffman & Gelman 2014) and its convergence diagnostics, by BlackJAX."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runtime.progress import Progress


class Chains(NamedTuple):
    draws: np.ndarray  # [chains, S, n]
    acceptance: np.ndarray  # [chains], means
    divergent: np.ndarray  # [chains], shares of all draws
    leapfrogs: np.ndarray  # [chains], means per draw
    seconds: float  # without compilation


def nuts(
    log_density: Callable[[jax.Array], jax.Array],
    positions: jax.Array,
    key: jax.Array,
    warmup: int = 1_000,
    samples: int = 1_000,
    thin: int = 1,
    doublings: int = 10,
    acceptance: float = 0.8,
    chunk: int = 20,
    shared: bool = False,
) -> Chains:
    """Runs chains in parallel, each with its own step size and diagonal metric.

    Args:
      log_density: log-density of the target, at a position [n].
      positions: initial positions of the chains, [chains, n].
      key: random key.
      warmup, samples: steps of adaptation, and draws S of each chain.
      thin: steps per draw.
      doublings: at most 2^doublings leapfrog steps per trajectory.
      acceptance: target acceptance rate of the step size's adaptation.
      chunk: draws between two updates of the progress bar.
      shared: only the first chain adapts, and all use its step size and metric; sampling then
        starts at `positions`.

    Raises:
      ImportError: BlackJAX is missing.
    """
    try:
        import blackjax
    except ImportError:
        raise ImportError("BlackJAX is missing: pip install '.[reference]'") from None
    chains, adapting = len(positions), 1 if shared else len(positions)
    warming, sampling = jax.random.split(key)
    kernel = blackjax.nuts.build_kernel()

    with Progress(warmup, "adapt") as progress:
        ticks = 0

        def tick(_: Any) -> None:  # once for each chain and step
            nonlocal ticks
            ticks += 1
            progress.update(ticks // adapting)

        def watch(state: Any, info: Any, adaptation: Any) -> tuple:
            jax.debug.callback(tick, info.acceptance_rate)
            return ()

        adapt = blackjax.window_adaptation(
            blackjax.nuts,
            log_density,
            target_acceptance_rate=acceptance,
            adaptation_info_fn=watch,
            max_num_doublings=doublings,
        )

        def adapted(keys: jax.Array, positions: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            def one(key: jax.Array, position: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
                (state, parameters), _ = adapt.run(key, position, warmup)
                return state, {
                    name: parameters[name] for name in ("step_size", "inverse_mass_matrix")
                }

            states, settings = jax.vmap(one)(keys, positions[:adapting])
            if shared:
                states = jax.vmap(lambda z: blackjax.nuts.init(z, log_density))(positions)
                settings = jax.tree.map(lambda a: jnp.repeat(a, chains, axis=0), settings)
            return states, settings

        keys = jax.random.split(warming, adapting)
        compiled = jax.jit(adapted).lower(keys, positions).compile()
        began = time.perf_counter()
        states, settings = jax.block_until_ready(compiled(keys, positions))
        seconds = time.perf_counter() - began
        jax.effects_barrier()

    def step(state: Any, key: jax.Array, settings: dict[str, jax.Array]) -> tuple[Any, Any]:
        return kernel(key, state, log_density, max_num_doublings=doublings, **settings)

    @jax.jit
    def advance(states: Any, keys: jax.Array) -> tuple[Any, tuple]:
        def one(states: Any, keys: jax.Array) -> tuple[Any, tuple]:  # keys [thin]
            def inner(states: Any, key: jax.Array) -> tuple[Any, tuple]:
                states, info = jax.vmap(step)(states, jax.random.split(key, chains), settings)
                facts = info.acceptance_rate, info.is_divergent, info.num_integration_steps
                return states, facts

            states, facts = jax.lax.scan(inner, states, keys)
            return states, (states.position, *(jnp.mean(f * 1.0, axis=0) for f in facts))

        return jax.lax.scan(one, states, keys)

    parts, programs = [], {}
    with Progress(samples, "sample") as progress:
        for start in range(0, samples, chunk):
            size = min(chunk, samples - start)
            keys = jax.random.split(jax.random.fold_in(sampling, start), (size, thin))
            if size not in programs:
                programs[size] = advance.lower(states, keys).compile()
            began = time.perf_counter()
            states, results = programs[size](states, keys)
            parts.append(jax.device_get(results))
            seconds += time.perf_counter() - began
            progress.update(start + size)
    draws, *facts = (np.concatenate(arrays).swapaxes(0, 1) for arrays in zip(*parts, strict=True))
    return Chains(draws, *(fact.mean(1) for fact in facts), seconds=seconds)


def diagnose(values: np.ndarray) -> dict[str, np.ndarray]:
    """Split R-hat and bulk effective sample size of values [chains, S, B, K], each [B, K].

    Rank-normalised (Vehtari et al. 2021), by BlackJAX.
    """
    from blackjax import diagnostics

    flat = jnp.asarray(values).reshape(*values.shape[:2], -1)
    measures = dict(rhat=diagnostics.rhat, ess=diagnostics.ess_bulk)
    return {
        name: np.asarray(jax.jit(measure)(flat)).reshape(values.shape[2:])
        for name, measure in measures.items()
    }
