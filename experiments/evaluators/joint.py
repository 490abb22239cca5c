"""Joint predictions: the likelihood of several labels together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluators import Data, Evaluator, reads
from experiments.evaluators.classification import require_normalised
from experiments.evaluators.halves import in_halves, warn_at_bound
from experiments.runtime import keys
from uncertainty import posthoc
from uncertainty.functions import functions
from uncertainty.keys import Use, fold
from uncertainty.metrics import joint as joint_lib
from uncertainty.posthoc.temperature import temperature
from uncertainty.types import Latent

if TYPE_CHECKING:
    from experiments.prediction.predictor import Predictor
    from experiments.prediction.trained import Trained

AT_T = ("dyadic_nll", "dyadic_gain", "nll")


def joint(
    data: Data, tau: int = 10, draws: int = 100, seed: int = 0, halves: bool = False
) -> Evaluator:
    """`joint/dyadic_nll` and `joint/nll` of tau inputs, in nats, and both divided by tau.

    Also `joint/dyadic_gain`, by how much the dyadic value is below tau times the NLL: 0 if the
    members agree or there is one. Examples are shuffled first, as many sets are sorted.

    Members that are points are functions as they are. Of heads with a posterior over the last layer
    functions are drawn, each the same at all inputs; noise (heteroscedastic heads) is averaged at
    each input by itself. Masks of MC dropout are an example's own, unless `ensemble.shared` is set,
    so those members are no functions, and their values are those of independent labels up to the
    noise of few masks.

    Members that are too confident all alike have a bad joint likelihood for that alone. With
    `halves`, `joint/halves/` has dyadic_nll, dyadic_gain and nll of members at one temperature,
    `joint/halves/temperature`: the one with the best NLL of their mixture on one half of the data,
    for the other half, and the other way round (`evaluators/halves.py` has the same halves).
    One at a bound of its range is logged.

    Args:
      data: the test source's spec.
      tau: inputs of one joint prediction.
      draws: of functions for each member, where they are drawn.
      seed: of the order of the examples, and of the halves.
      halves: whether to give the values at a temperature too.

    Raises:
      ValueError: tau or draws below 1; when run, `halves` where functions are drawn, or independent
        classes (the likelihood 'sigmoid').
    """
    for name, value in dict(tau=tau, draws=draws).items():
        if value < 1:
            raise ValueError(f"{name}: {value!r}; a whole number from 1")

    def run(predict: "Predictor") -> Iterator[tuple[str, Any]]:
        require_normalised(predict, "joint predictions")
        p = predict(data)
        order = np.random.default_rng(seed).permutation(len(p.y))
        log_p, y = p.log_p, p.y
        if p.epistemic is not None:
            if halves:
                raise ValueError(
                    "halves: True, but functions are drawn from a head's posterior, of which the "
                    "probabilities of the labels alone are known"
                )
            noisy = bool(np.any(p.latent_variance > p.epistemic * (1 + 1e-5)))
            parts = [of_functions(one, p.source, draws, noisy) for one in predict.runs]
            of_labels = np.concatenate(parts)  # [functions, B]
            other = np.log1p(-np.minimum(np.exp(of_labels), 1 - 1e-12))
            log_p, y = np.stack([of_labels, other], -1), np.zeros(len(y), np.int32)
        values = measured(log_p[:, order], y[order], tau)
        for name, value in values.items():
            yield f"joint/{name}", value
        for name in ("dyadic_nll", "nll"):
            yield f"joint/{name}_per_input", values[name] / tau
        yield "joint/functions", float(len(log_p))
        for name, value in (at_temperature(log_p, y, tau, seed) if halves else {}).items():
            yield keys.join("joint", "halves", name), value

    names = (*AT_T, "dyadic_nll_per_input", "nll_per_input", "functions")
    yields = {f"joint/{name}" for name in names}
    if halves:
        yields |= {keys.join("joint", "halves", name) for name in (*AT_T, "temperature")}
    return Evaluator(run, "classification", yields, reads("data", data))


def measured(log_p: np.ndarray, y: np.ndarray, tau: int) -> dict[str, float]:
    """The values of members' predictions log_p [M, B, K] for labels y [B], in this order."""
    dyadic, pairs = joint_lib.dyadic_nll(log_p, y, tau), 2 * (len(y) // 2)
    marginal = joint_lib.joint_nll(log_p[:, :pairs], y[:pairs], 1)
    gain = tau * marginal - dyadic if len(log_p) > 1 else 0.0  # without rounding
    return dict(dyadic_nll=dyadic, dyadic_gain=gain, nll=joint_lib.joint_nll(log_p, y, tau))


def at_temperature(log_p: np.ndarray, y: np.ndarray, tau: int, seed: int) -> dict[str, float]:
    """Means over both halves of `measured` and of the temperature that the other half gave."""
    each, at_bound = [], []
    for held, other in in_halves(len(y), seed):
        fitted = posthoc.of_ensemble(temperature, log_p[:, held], y[held], "joint")
        values = measured(fitted(log_p[:, other]), y[other], tau)
        found = fitted.calibrators[0]
        each.append(values | dict(temperature=float(found.temperature)))
        at_bound.append(found.at_bound)
    warn_at_bound("joint", at_bound)
    return {name: float(np.mean([values[name] for values in each])) for name in each[0]}


def of_functions(trained: "Trained", source: Any, draws: int, noisy: bool) -> np.ndarray:
    """log p(y | x, f) of functions f drawn from the posteriors of all members, [functions, B].

    Without noise u is a point given f, so that nothing is left to average.
    """
    model = trained.experiment.model

    def fn(particle: Any, batch: Any) -> jax.Array:
        params, collections, key = particle
        x, mask = batch["x"], batch.get("mask")
        means, rest = functions(model, params, collections, x, key, draws, mask)

        def one(arguments: tuple) -> jax.Array:
            mean, key = arguments
            latent = rest.replace(mean=mean) if noisy else Latent(mean=mean)
            log_p = model.likelihood.log_probs(latent, key)
            at = jnp.broadcast_to(batch["y"][:, None], (*log_p.shape[:-1], 1))
            return jnp.take_along_axis(log_p, at, axis=-1)[..., 0]

        of_draws = jax.random.split(fold(key, Use.NOISE), draws)
        return jax.lax.map(one, (means, of_draws))  # [S, M, B]

    parts = trained.map(fn, source, particles=True, axis=3, entries=("x", "y"))
    out = np.concatenate([np.asarray(part.out, np.float64) for part in parts], axis=3)
    return out.reshape(-1, out.shape[-1])
