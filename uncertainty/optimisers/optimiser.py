"""The optimiser: an optax direction with clipping, decay by rules and a schedule.

The samplers of `uncertainty/optimisers/samplers.py` take the place of a direction.
"""

import math
import re
from collections.abc import Callable

import jax
import optax

from uncertainty import rules
from uncertainty.optimisers.samplers import (
    Bounded,
    Sampler,
    SamplingTransformation,
    Transformation,
    psgld,
    sghmc,
    sgld,
)

# The names in configs; `optimiser` uses them.
__all__ = ("adam", "adamw", "lars", "lion", "psgld", "rmsprop", "sgd", "sghmc", "sgld")


def sgd(momentum: float = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    """Stochastic gradient descent with heavy-ball or Nesterov momentum, not dampened.

    m <- g + momentum m; the direction is m, or g + momentum m with the new m (Nesterov).

    Args:
      momentum: weight of the former m.
      nesterov: whether to look ahead with the new m.
    """
    if not 0 <= momentum < 1 or (nesterov and not momentum):
        raise ValueError(f"momentum: {momentum!r} must be in [0, 1), and not 0 with nesterov")
    return Bounded(*(optax.trace(momentum, nesterov) if momentum else optax.identity()))


def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015). TensorFlow's default is eps=1e-7.

    Args:
      b1, b2: decay of the averages of g and of g^2.
      eps: added to the root of the second.
    """
    return _bounded_by(eps, optax.scale_by_adam(b1, b2, eps))


# AdamW (Loshchilov & Hutter 2019) is Adam with the field `weight_decay`, which is required.
adamw = adam


def lars(
    momentum: float = 0.9,
    trust_coefficient: float = 1e-3,
    eps: float = 0.0,
    nesterov: bool = False,
    exclude: str = "(^|/)(bias|scale)$",
) -> optax.GradientTransformation:
    """LARS (You et al. 2017): momentum of c |w| / (|g| + eps) g, for each array w.

    Coupled decay, which is in g and its norm, is the field `l2`; to spare biases and scales it
    needs a rule such as `[("kernel", 1e-6)]`. The learning rate follows the momentum, as in
    PyTorch's implementations of self-supervised methods; in `optax.lars` and the paper it precedes
    it, which is the same for a constant rate.

    Args:
      momentum: weight of the former direction.
      trust_coefficient: c.
      eps: added to the norm.
      nesterov: see `sgd`.
      exclude: regular expression for paths of arrays whose gradient is not scaled.

    Raises:
      ValueError: a coefficient that is not positive, a negative eps, another momentum, or not a
        regular expression.
    """
    if not trust_coefficient > 0:
        raise ValueError(f"trust_coefficient: {trust_coefficient}; a positive number")
    if not eps >= 0:
        raise ValueError(f"eps: {eps}; at least 0")
    rules.check([(exclude, None)], "exclude")

    def scaled(params: optax.Params) -> optax.Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: re.search(exclude, rules.path_of(path)) is None, params
        )

    ratio = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps)
    return optax.chain(optax.masked(ratio, scaled), sgd(momentum, nesterov))


def lion(b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023).

    Args:
      b1, b2: decay of the average of g in the direction, and of the one that is kept.
    """
    return Bounded(*optax.scale_by_lion(b1, b2))


def rmsprop(decay: float = 0.9, eps: float = 1e-8) -> optax.GradientTransformation:
    """RMSProp (Hinton 2012).

    Args:
      decay: of the average of g^2.
      eps: added to its root.
    """
    return _bounded_by(eps, optax.scale_by_rms(decay, eps))


def _bounded_by(
    eps: float, direction: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Marks m / (sqrt(v) + eps) as bounded: with |m| below 2^64, as its square is finite."""
    return Bounded(*direction) if eps >= 1e-12 else direction


def optimiser(
    direction: optax.GradientTransformation | Sampler,
    learning_rate: float,
    schedule: optax.Schedule = lambda step: 1.0,
    *,
    clip: float | None = None,
    weight_decay: rules.Rules = (),
    l2: rules.Rules = (),
    multipliers: rules.Rules = (),
) -> Transformation | SamplingTransformation:
    """params <- params - learning_rate schedule(t) c (direction(g + l2 params) + decay params).

    Made for one particle; `inference` maps it over P, so clipping never couples particles.

    Args:
      direction: one of the functions above, any optax transformation without a learning rate, or a
        sampler. Of the fields below, a sampler allows only `l2` (a Gaussian prior of variance 1 /
        (N l2), with N / t for N if the likelihood has the temperature t): the others would change
        its distribution.
      learning_rate: the peak rate.
      schedule: step -> multiple of the peak rate.
      clip: the largest global norm of the gradient, applied first.
      weight_decay: rules from parameter paths to decoupled decay (Loshchilov & Hutter 2019),
        multiplied by the learning rate and not part of the direction. Without a rule there is no
        decay.
      l2: rules to coupled decay: the gradient of l2 / 2 |params|^2 is added after clipping, before
        the direction. A Keras regulariser `l2(c)` is 2 c here.
      multipliers: rules to c, a factor on the learning rate (decay included); 0 freezes.

    Its `update` may take `factors`, dict(weight_decay=, l2=) of scalars that multiply all rules of
    that field, so that particles may differ in them (`inference/hyper.py`).

    Particles with a posterior, from `inference.prior` or their interaction, allow neither
    `weight_decay` nor `l2`: use the prior (`inference/particles.py`).

    Raises:
      ValueError: a rate out of range, or a field that a sampler does not allow; at `init`, a rule
        that matches no parameter.
    """
    if not learning_rate >= 0:
        raise ValueError(f"learning_rate: {learning_rate!r} must not be negative")
    if not math.isfinite(learning_rate):
        raise ValueError(f"learning_rate: {learning_rate!r} must be finite")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: {clip!r} must be positive, or None")
    for field, entries in dict(weight_decay=weight_decay, l2=l2, multipliers=multipliers).items():
        rules.check(entries, field)
        for pattern, number in entries:
            if not 0 <= number < math.inf:
                raise ValueError(f"{field}: {number!r} for {pattern!r}; finite, at least 0")

    decays = tuple(
        field for field, entries in (("weight_decay", weight_decay), ("l2", l2)) if entries
    )
    if isinstance(direction, Sampler):
        for field, other in dict(
            clip=clip, weight_decay=weight_decay, multipliers=multipliers
        ).items():
            if other:
                raise ValueError(
                    f"{field}: {other!r}; it would change the sampler's posterior; set the "
                    "weights' scale by inference.prior"
                )
        bounded = direction.bounded and _moderate(learning_rate, l2)
        sampler = direction.make(lambda step: learning_rate * schedule(step))
        joined = optax.chain(*_by_rule(l2, "l2", 0.0, lambda g, p, c: g + c * p), sampler)
        return SamplingTransformation(joined.init, joined.update, direction.plain, decays, bounded)
    joined = optax.chain(
        *([optax.clip_by_global_norm(clip)] if clip is not None else []),
        *_by_rule(l2, "l2", 0.0, lambda g, p, c: g + c * p),
        direction,
        *_by_rule(weight_decay, "weight_decay", 0.0, lambda g, p, c: g + c * p),
        optax.scale_by_schedule(lambda step: -learning_rate * schedule(step)),
        *_by_rule(multipliers, "multipliers", 1.0, lambda g, p, c: c * g),
    )
    rate = learning_rate * max([1.0, *(c for _, c in multipliers)])
    bounded = isinstance(direction, Bounded) and _moderate(rate, l2, weight_decay)
    return Transformation(joined.init, joined.update, decays, bounded)


def _moderate(rate: float, l2: rules.Rules, weight_decay: rules.Rules = ()) -> bool:
    """Whether rate (direction + decay params) is below 2^128 for directions below 2^100.

    Parameters are below 2^128 too, so with `l2` the direction is not that of a gradient below 2^64.
    """
    decay = max((c for _, c in weight_decay), default=0.0)
    return not l2 and decay <= 1 and rate <= (1 if decay else 1e6)


def _by_rule(
    entries: rules.Rules, field: str, default: float, apply: Callable[..., jax.Array]
) -> list[optax.GradientTransformation]:
    """[apply(update, param, coefficient) for every leaf], or [] where there are no rules."""
    if not entries:
        return []

    def coefficients(params):
        return rules.match(entries, params, field=field, default=default)

    def init(params):
        coefficients(params)  # refuses a rule that matches nothing
        return optax.EmptyState()

    def update(updates, state, params=None, *, factors=None, **extra):
        c = coefficients(params)
        if field in (factors or {}):
            c = jax.tree.map(lambda c: factors[field] * c, c)
        return jax.tree.map(apply, updates, params, c), state

    return [optax.GradientTransformationExtraArgs(init, update)]
