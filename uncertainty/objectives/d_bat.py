"""D-BAT: every function disagrees with those before it on unlabelled data."""

import jax
import jax.numpy as jnp

from uncertainty.types import Latent, Likelihood, Metrics, Objective, Together


def d_bat(
    weight: float = 1.0,
    joint: bool = False,
    steps_each: int = 0,
    labels_of: str = "earlier",
    stream: str | None = "unlabelled",
) -> Objective:
    """nll_m + weight mean_{j<m} A_jm for function m.

    Source: Pagliardini et al. 2023, "Agree to disagree", section 3, and their code: on unlabelled
    inputs, with c the most probable class of function j,

      A_jm = -mean_x log(p_j (1 - p_m) + p_m (1 - p_j) + 1e-7),  p = p(y = c | x)

    which is least where one of two confident functions says c and the other does not. Earlier
    functions are constants in A_jm. They also are where all functions are trained at the same time,
    unless `joint` is set: then each is led from all others. For two functions the whole loss is
    nll_1 + nll_2 + weight A in both cases.

    For the sequence of the paper, train particles (direction 'together') with `steps_each`:
    particle p is trained in steps [p, p + 1) x steps_each with an optimiser and a schedule of its
    own, and then stays. The number of steps of training is then P x steps_each. Earlier ones
    predict as in training here; in the code, as in evaluation. Functions that are drawn anew in
    each step, as those of an epinet or a hypermodel are, have no order that lasts: use
    `disagreement` for them.

    The metric `disagreement` is the mean over m >= 1 of exp(-mean_j A_jm), from 0 to 1.

    Args:
      weight: alpha, at least 0.
      joint: gradients for earlier functions too.
      steps_each: of one particle; 0 trains all at the same time.
      labels_of: 'earlier' or 'new', the function whose most probable class is c.
      stream: of the batch (`data.streams`), without labels; None for the batch itself.

    Raises:
      ValueError: a value out of range, `joint` with `steps_each`, or (when used) a likelihood that
        is not one of exclusive classes.
    """
    if not weight >= 0:
        raise ValueError(f"weight: {weight}; at least 0")
    if labels_of not in ("earlier", "new"):
        raise ValueError(f"labels_of: {labels_of!r}; 'earlier' or 'new'")
    if steps_each < 0:
        raise ValueError(f"steps_each: {steps_each}; at least 0")
    if joint and steps_each:
        raise ValueError(f"steps_each: {steps_each}, but `joint` trains all at the same time")

    def loss(
        likelihood: Likelihood, latent: Latent, key: jax.Array, step: jax.Array | int
    ) -> tuple[jax.Array, Metrics]:
        p = jnp.exp(likelihood.of_classes("d_bat")(latent, key))  # [N, B, K]
        N = len(p)
        j, m = jnp.triu_indices(N, 1)
        before, after = (p if joint else jax.lax.stop_gradient(p))[j], p[m]
        c = jnp.argmax(before if labels_of == "earlier" else after, axis=-1)[..., None]
        p_j, p_m = (jnp.take_along_axis(a, c, axis=-1)[..., 0] for a in (before, after))
        each = -jnp.log(p_j * (1 - p_m) + p_m * (1 - p_j) + 1e-7).mean(1)  # [pairs]
        of_earlier = jnp.zeros(N).at[m].add(each / m)  # mean over the m functions before m
        disagreement = jnp.mean(jnp.exp(-of_earlier[1:]))
        return weight * jnp.mean(of_earlier), dict(disagreement=disagreement)

    return Objective("d_bat", together=Together(loss, stream, steps_each))
