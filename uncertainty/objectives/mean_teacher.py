"""Mean teacher: consistency with the predictions of a moving average of the parameters."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uncertainty.keys import Use, fold
from uncertainty.types import Aux, Batch, Collections, Latent, Model, Objective, Own, Params


def mean_teacher(
    weight: float = 1.0,
    decay: float = 0.999,
    std: float = 0.15,
    ramp_steps: int = 0,
    stream: str | None = None,
) -> Objective:
    """nll(x + n) + w(t) J, with J = E |p(. | x + n', theta') - p(. | x + n, theta)|^2.

    Source: Tarvainen & Valpola 2017, "Mean teachers are better role models", section 2. The teacher
    is the average over steps theta'_t = decay theta'_{t-1} + (1 - decay) theta_t; it starts as the
    student and gets no gradient. n and n' are N(0, std^2), and the layers' noise (dropout) differs
    between the two. w(t) = weight exp(-5 (1 - t / ramp_steps)^2) up to `ramp_steps`, then `weight`.

    Differences from the reference code: |.|^2 is a sum over classes, not their mean, so a weight
    there is divided by K here; the decay does not increase in the first steps; the teacher's batch
    normalisation uses its own batch, and stores no statistics.

    The metric `consistency` is J.

    Args:
      weight: at least 0. In the paper it is 100 / K.
      decay: in [0, 1).
      std: of the noise, in units of x; 0.15 in the paper.
      ramp_steps: 0 for none.
      stream: the stream of the batch (`data.streams`) on whose inputs J is computed, without
        labels; by default the batch itself.

    Raises:
      ValueError: a number out of range, or (when used) a likelihood that is not one of classes, or
        a batch without that stream.
    """
    if not weight >= 0:
        raise ValueError(f"weight: {weight}; at least 0")
    if not 0 <= decay < 1:
        raise ValueError(f"decay: {decay}; at least 0 and below 1")
    if not std >= 0:
        raise ValueError(f"std: {std}; at least 0")
    if ramp_steps < 0:
        raise ValueError(f"ramp_steps: {ramp_steps}; at least 0")

    def ramp(step: jax.Array | int) -> jax.Array | float:
        if not ramp_steps:
            return weight
        return weight * jnp.exp(-5 * (1 - jnp.minimum(step / ramp_steps, 1.0)) ** 2)

    def loss(
        model: Model,
        params: Params,
        collections: Collections,
        batch: Batch,
        key: jax.Array,
        own: Own,
    ) -> tuple[jax.Array, Aux]:
        likelihood = model.likelihood
        if (log_probs := likelihood.log_probs) is None:
            raise ValueError(
                "objective: 'mean_teacher' compares probabilities of classes, which "
                "this likelihood does not have"
            )
        streams = sorted(name for name, entry in batch.items() if isinstance(entry, Mapping))
        if stream is not None and stream not in streams:
            raise ValueError(
                f"objective.stream: {stream!r} is no stream of the batch, which has "
                + (", ".join(map(repr, streams)) or "none")
            )
        key_forward, key_likelihood = jax.random.split(key)

        def noisy(x: jax.Array, use: Use) -> jax.Array:
            return x + std * jax.random.normal(fold(key, use), x.shape, x.dtype) if std else x

        def probabilities(latent: Latent) -> jax.Array:
            return jnp.exp(log_probs(latent, fold(key, Use.CONSISTENCY)))

        def at(params: Params, x: jax.Array, use: Use) -> Latent:
            return model.forward(params, collections, x, fold(key, use), train=True)[0]

        student, new, auxiliary = model.forward(
            params, collections, noisy(batch["x"], Use.VIEW), key_forward, train=True
        )
        nll = likelihood.nll(student, batch["y"], key_likelihood)
        x = batch["x"]
        if stream is not None:
            x = batch[stream]["x"]
            student = at(params, noisy(x, Use.STREAM_VIEW), Use.STUDENT)
        teacher = at(own.slow, noisy(x, Use.OTHER_VIEW), Use.TEACHER)
        apart = jax.lax.stop_gradient(probabilities(teacher)) - probabilities(student)
        consistency = jnp.mean(jnp.sum(apart**2, axis=-1))
        total = jnp.mean(nll) + ramp(own.step) * consistency
        return total, Aux(new, nll, dict(consistency=consistency), auxiliary)

    def follow(slow: Any, params: Params, own: Params, step: jax.Array) -> Any:
        return jax.tree.map(lambda s, w: decay * s + (1 - decay) * w, slow, params)

    return Objective("mean_teacher", loss=loss, start=lambda params, own: params, follow=follow)
