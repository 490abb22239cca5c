"""A network and its likelihood, as pure functions of the parameters."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.layers.moe.mask import only
from uncertainty.types import (
    Backbone,
    Collections,
    Head,
    Latent,
    Likelihood,
    Model,
    Network,
    Params,
    Posterior,
    State,
)

FROZEN = "frozen"  # collection of parameters that are not trained, see `Network.frozen`
_STREAMS = ("dropout", "noise")  # every source of randomness in a forward pass


def from_network(network: nn.Module, likelihood: Likelihood) -> Model:
    """The Model of a Flax network.

    Args:
      network: maps x [B, ...] to a Latent [M, B, K], called as `network(x, train=...)`. A module
        that is not a `types.Network` declares nothing (`Model._replace` may add it). Auxiliary
        losses are sown in the collection 'losses' and summed here; a loss for each member ([M]) is
        averaged.
      likelihood: p(y | u).

    Returns:
      A Model. `forward` updates all collections in training, and otherwise only those in `mutable`,
      which it may add (`uncertainty/stages`); layers check `is_mutable_collection`. The latents are
      float32 for any dtype of the network. `features` is the output of its module `backbone`. At
      prediction both take `mask` [B], bool: examples where it is False are padding, which no other
      example's result depends on (`layers/moe/mask.py`), and whose own results are meaningless. In
      training `forward` raises ValueError for a mask. `embed` is `forward` in training with its
      features; it is None for a network that mixes examples. Parameters of the parts that a network
      names as `frozen` are in the collection of that name; training then updates no collection of
      theirs.

    Raises:
      ValueError: a Network whose parts are not a `types.Backbone` and a `types.Head`, whose parts
        have invalid fields, or whose head has a posterior for another likelihood.
    """
    frozen = network.frozen if isinstance(network, Network) else ()

    def init(key: jax.Array, x: jax.Array) -> tuple[Params, Collections]:
        collections = dict(network.init(_rngs(key, "params", *_STREAMS), x, train=False))
        collections.pop("losses", None)
        params = dict(collections.pop("params"))
        if frozen:
            collections[FROZEN] = {part: params.pop(part) for part in frozen if part in params}
        return params, collections

    def variables(params: Params, collections: Collections) -> dict[str, Any]:
        if not frozen:
            return {"params": params, **collections}
        others = {name: value for name, value in collections.items() if name != FROZEN}
        return {"params": {**params, **collections[FROZEN]}, **others}

    def updated(collections: Collections) -> list[str]:
        if not frozen:
            return [*collections, "losses"]
        own = {name: parts for name, parts in collections.items() if name != FROZEN}
        return [name for name, parts in own.items() if parts.keys() - set(frozen)]

    def forward(
        params: Params,
        collections: Collections,
        x: jax.Array,
        key: jax.Array,
        *,
        train: bool,
        mutable: Sequence[str] = (),
        mask: jax.Array | None = None,
    ) -> tuple[Latent, Collections, jax.Array]:
        if train and mask is not None:
            raise ValueError("mask: for prediction; in training every example counts")
        with only(mask):
            latent, changed = network.apply(
                variables(params, collections),
                x,
                train=train,
                rngs=_rngs(key, *_STREAMS),
                mutable=updated(collections) if train else list(mutable),
            )
        if not isinstance(latent, Latent) or latent.mean.ndim != 3:
            shape = getattr(latent, "shape", None) or latent.mean.shape
            raise ValueError(
                f"network: a Latent with mean [M, B, K] is needed, and it returns "
                f"a {type(latent).__name__} of shape {tuple(shape)}; M is 1 for one "
                "member"
            )
        return finished(latent, dict(changed), collections, train)

    def finished(
        latent: Latent, changed: Collections, collections: Collections, train: bool
    ) -> tuple[Latent, Collections, jax.Array]:
        losses = jax.tree.leaves(changed.pop("losses", {}))
        latent = jax.tree.map(lambda a: a.astype(jnp.float32), latent)
        auxiliary = sum(map(jnp.mean, losses), start=jnp.zeros(()))
        for name in changed.keys() & collections.keys() if train else ():
            of_frozen = {p: v for p, v in collections[name].items() if p in frozen}
            changed[name] = {**changed[name], **of_frozen}
        return latent, {**collections, **changed}, auxiliary

    def features(
        params: Params,
        collections: Collections,
        x: jax.Array,
        key: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        with only(mask):
            _, captured = network.apply(
                variables(params, collections),
                x,
                train=False,
                rngs=_rngs(key, *_STREAMS),
                capture_intermediates=lambda module, method: (
                    module.path == ("backbone",) and method == "__call__"
                ),
                mutable=["intermediates"],
            )
        # The last is the backbone's own, after those of modules that share its scope.
        phi = captured["intermediates"]["backbone"]["__call__"][-1]
        return phi.reshape(-1, *phi.shape[-2:]).astype(jnp.float32)  # packed: [M, 1, B, D]

    def embed(
        params: Params,
        collections: Collections,
        x: jax.Array,
        key: jax.Array,
        weight: jax.Array | float = 0.0,
    ) -> tuple[jax.Array, Latent, Collections, jax.Array]:
        inside = False

        def scaled(call: Any, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
            nonlocal inside
            module = context.module
            of_backbone = context.method_name == "__call__" and module.path == ("backbone",)
            if inside or not of_backbone:  # a module of your own shares the backbone's path
                return call(*args, **kwargs)
            inside = True
            try:
                phi = call(*args, **kwargs)
            finally:
                inside = False
            module.sow("intermediates", "__phi__", phi)
            constant = jax.lax.stop_gradient(phi)
            if isinstance(weight, int | float) and weight == 0:
                return constant
            return constant + weight * (phi - constant)

        with nn.intercept_methods(scaled):
            latent, changed = network.apply(
                variables(params, collections),
                x,
                train=True,
                rngs=_rngs(key, *_STREAMS),
                mutable=[*updated(collections), "intermediates"],
            )
        changed = dict(changed)
        phi = changed.pop("intermediates")["backbone"]["__phi__"][-1]
        phi = phi.reshape(-1, *phi.shape[-2:]).astype(jnp.float32)
        return phi, *finished(latent, changed, collections, True)

    mixes = isinstance(network, Network) and network.mixes_examples
    declared = _declared(network)
    if declared.get("posterior") and likelihood.posterior:
        _check_posterior(declared["posterior"], likelihood.posterior)
    return Model(init, forward, likelihood, features, **declared, embed=None if mixes else embed)


def count_parameters(state: State) -> int:
    """The numbers of parameters of all particles, those that are not trained included."""
    fixed = [state.collections.get(name) for name in (FROZEN, "prior")]
    return sum(leaf.size for leaf in jax.tree.leaves((state.params, fixed)))


def _declared(network: nn.Module) -> dict[str, Any]:
    if not isinstance(network, Network):
        return {}
    for field, part, kind in (
        ("backbone", network.backbone, Backbone),
        ("head", network.head, Head),
    ):
        if not isinstance(part, kind):
            raise ValueError(
                f"{field}: {type(part).__name__} does not derive from `types.{kind.__name__}`"
            )
    return dict(
        monitors=network.backbone.monitors,
        batch_dependent=network.backbone.batch_dependent,
        sharding=network.backbone.sharding,
        posterior=network.head.posterior,
        affine=network.head.affine,
        variational=network.variational,
    )


def _check_posterior(head: Posterior, likelihood: Posterior) -> None:
    """Raises ValueError for a head whose posterior is that of another likelihood."""
    field = f"head.{head.field}" if head.field else "head"
    if likelihood.curvature != "gaussian":
        if head.curvature not in ("gaussian", likelihood.curvature):  # SNGP's choice for all
            raise ValueError(
                f"{field}.curvature: {head.curvature!r}, but the likelihood is "
                f"{likelihood.curvature!r}; allowed {likelihood.curvature!r}, 'gaussian'"
            )
        return
    if head.curvature != "gaussian":
        raise ValueError(
            f"{field}.curvature: {head.curvature!r}; real-valued targets need 'gaussian'"
        )
    variance = likelihood.noise
    if not variance or abs(head.noise / variance - 1) > 1e-6:
        raise ValueError(
            f"{field}.noise: {head.noise}, but likelihood.noise_std^2 is {variance:g}; they have "
            "to be equal, and above 0"
        )


def _rngs(key: jax.Array, *streams: str) -> dict[str, jax.Array]:
    return dict(zip(streams, jax.random.split(key, len(streams)), strict=True))
