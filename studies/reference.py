"""Draws from the true posterior of a config's network, a reference for approximations.

    python -m studies.reference --config configs/toys/particles.py:task=regression \\
        --out results/toy_regression/reference.npz

Several chains of NUTS (Hoffman & Gelman 2014, by BlackJAX) on p(D | theta) p(theta) of all training
data at once, each from its own draw of the prior and with its own step size and diagonal metric.
R-hat, effective sample size and the draws in the file are those of the network's function values on
the inputs of the config's evaluator 'posterior'. For networks of a few hundred parameters; needs
`pip install '.[reference]'`.
"""

import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.data.source import load
from experiments.evaluate import on_these_devices
from experiments.evaluators.posterior import functions
from experiments.evaluators.uncertainty_map import uncertainty_map
from experiments.experiment import config as config_lib
from experiments.experiment.build import Experiment, setup
from experiments.prediction.predictor import Predictor
from experiments.runtime import program, writers
from experiments.runtime.progress import setup_logging
from studies.nuts import diagnose, nuts
from uncertainty import build
from uncertainty.build import ConfigError
from uncertainty.types import Params, State, Target

logger = logging.getLogger(__name__)


class Posterior(NamedTuple):
    """The posterior of one network, with its parameters as a vector [n]."""

    log_density: Callable[[jax.Array], jax.Array]  # in nats, up to a constant
    sample_prior: Callable[[jax.Array], jax.Array]  # key -> [n]
    unravel: Callable[[jax.Array], Params]


def posterior(experiment: Experiment) -> Posterior:
    """log p(theta | D) = -(mean nll - 1/N log p(theta)) N / T, on all of the training data.

    With the prior and the temperatures of the config's inference, and the nll of training, averaged
    over members.

    Raises:
      ConfigError: no prior, or a network that is not a function of its parameters alone.
    """
    config, source, model = experiment.config, experiment.source, experiment.model
    spec = config["inference"]
    if spec.get("prior") is None:
        raise ConfigError("inference.prior: a posterior needs one")
    prior = build.make("priors", spec["prior"], "inference.prior")
    temperatures = (spec.get(f"{of}temperature", 1.0) for of in ("", "likelihood_"))
    target = Target(prior, len(source), *temperatures)
    batch = jax.tree.map(jnp.asarray, source.gather(np.arange(len(source))))
    key = jax.random.key(config["seed"])
    params, collections = model.init(key, experiment.example())
    _, unravel = jax.flatten_util.ravel_pytree(params)

    def energy(flat: jax.Array, key: jax.Array) -> jax.Array:
        params = unravel(flat)
        latent, _, auxiliary = model.forward(params, collections, batch["x"], key, train=True)
        nll = model.likelihood.nll(latent, batch["y"], key).mean()
        return (nll + auxiliary + target.potential(params)) / target.scale()

    def sample_prior(key: jax.Array) -> jax.Array:
        return jax.flatten_util.ravel_pytree(prior.sample(key, params))[0]

    start = sample_prior(key)
    first, second = (jax.jit(energy)(start, jax.random.key(i)) for i in range(2))
    if collections or first != second:
        raise ConfigError(
            "config: NUTS needs a network that is a function of its parameters "
            "alone, without random numbers or collections"
        )
    return Posterior(lambda flat: -energy(flat, key), sample_prior, unravel)


def reference(
    experiment: Experiment,
    key: jax.Array,
    chains: int = 16,
    samples: int = 400,
    keep: int = 200,
    second: int = 100,
    **options: Any,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The content of the file, from the posterior of an experiment.

    Args:
      experiment: its config has an evaluator 'posterior', on whose data functions are compared.
      key: random key.
      chains: number of chains, each from its own draw of the prior.
      samples: draws of each chain.
      keep, second: numbers of draws in the file, from the even chains and from the odd ones, evenly
        spaced.
      options: of `nuts`.

    Returns:
      Arrays: x [B, ...], draws [keep, B, K] and second [second, B, K], rhat and ess [B, K], and the
      entropy map [G, G] if the config has an evaluator 'uncertainty_map'. And diagnostics.

    Raises:
      ConfigError: no evaluator 'posterior', no prior, or `keep` or `second` exceeds the draws.
    """
    specs = {spec["name"]: spec for spec in experiment.config["evaluators"].values()}
    if "posterior" not in specs:
        raise ConfigError("evaluators: none is a 'posterior', on whose data functions are compared")
    for field, number, half in (("keep", keep, (chains + 1) // 2), ("second", second, chains // 2)):
        if not 0 < number <= half * samples:
            raise ConfigError(f"{field}: {number} draws; must be from 1 to {half * samples}")
    source = load(specs["posterior"]["data"])
    target = posterior(experiment)
    starting, running = jax.random.split(key)
    positions = jax.vmap(target.sample_prior)(jax.random.split(starting, chains))
    sampled = nuts(target.log_density, positions, running, samples=samples, **options)
    selected = []
    for first, n in enumerate((keep, second)):
        half = sampled.draws[first::2].reshape(-1, sampled.draws.shape[-1])
        selected.append(half[np.linspace(0, len(half) - 1, n).round().astype(int)])

    def predictor(draws: np.ndarray) -> Predictor:
        params = jax.vmap(target.unravel)(jnp.asarray(draws))
        keys = jax.random.split(key, len(draws))
        state = State(jnp.zeros((), jnp.int32), keys, params, {}, opt_state=None)
        return Predictor(experiment, state)

    values = functions(predictor(sampled.draws.reshape(-1, sampled.draws.shape[-1]))(source))
    diagnostics = diagnose(values.reshape(chains, samples, *values.shape[1:]))
    arrays = dict(x=source.raw(np.arange(len(source)))["x"], **diagnostics)
    for name, draws in zip(("draws", "second"), selected, strict=True):
        arrays[name] = functions(predictor(draws)(source))
    if "uncertainty_map" in specs:
        fields = {k: v for k, v in specs["uncertainty_map"].items() if k != "name"}
        uncertainty = dict(uncertainty_map(**fields).run(predictor(selected[0])))
        arrays["map"] = uncertainty["map/entropy"]
    facts = dict(
        acceptance=sampled.acceptance.round(3).tolist(),
        divergent=sampled.divergent.round(4).tolist(),
        leapfrogs=sampled.leapfrogs.round(1).tolist(),
        rhat_median=float(np.median(diagnostics["rhat"])),
        rhat_max=float(diagnostics["rhat"].max()),
        ess_median=float(np.median(diagnostics["ess"])),
        ess_min=float(diagnostics["ess"].min()),
    )
    return arrays, facts


def main(argv: list[str]) -> None:
    config = config_lib.load(CONFIG.value, config_lib.assignments(argv[1:], "--config."))
    setup_logging()
    experiment = setup(on_these_devices(config_lib.plain(config)))
    options = {name: flag.value for name, flag in OPTIONS.items()}
    arrays, facts = reference(experiment, jax.random.key(SEED.value), **options)
    settings = dict(
        command=f"python -m studies.reference --config {CONFIG.value} --out {OUT.value}",
        seed=SEED.value,
        **options,
        **facts,
        config={
            k: experiment.config[k]
            for k in ("data", "backbone", "ensemble", "head", "likelihood", "inference")
        },
        hardware=writers.hardware(),
    )
    path = pathlib.Path(OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"x": np.float32}  # three decimals of the others, to make the file small
    small = {name: a.round(3).astype(kinds.get(name, np.float16)) for name, a in arrays.items()}
    np.savez_compressed(path, settings=json.dumps(settings), **small)
    for name, value in facts.items():
        logger.info("%s: %s", name, value)
    logger.info("%s: %.0f KB", path, path.stat().st_size / 1e3)


if __name__ == "__main__":
    CONFIG = flags.DEFINE_string("config", None, "As in experiments.train.")
    OUT = flags.DEFINE_string("out", None, "Output file, FILE.npz.")
    SEED = flags.DEFINE_integer("seed", 0, "Seed of the chains.")
    OPTIONS = {
        name: flags.DEFINE_integer(name, default, text)
        for name, default, text in (
            ("chains", 16, "Chains, run in parallel."),
            ("warmup", 600, "Steps of adaptation."),
            ("samples", 400, "Draws of each chain."),
            ("thin", 1, "Steps per draw."),
            ("doublings", 8, "At most 2^doublings leapfrog steps per trajectory."),
            ("keep", 200, "Draws in the file, from the even chains."),
            ("second", 100, "Further draws in the file, from the odd chains."),
        )
    }
    flags.mark_flags_as_required(["config", "out"])
    program.run(main)
