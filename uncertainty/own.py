"""Your own Flax module as a backbone or a network of this library.

A Linen module from x [B, ...] to logits [B, K], or an NNX one through `flax.nnx.bridge.ToLinen`:

    from_module(Net(), softmax())                                          one member
    from_module(Net(), softmax(), ensemble=partial(batch_ensemble, size=4))   members that share it
    from_module(Net(), softmax(), head=Laplace(10))                        another last layer

Its layers need not know of members or of `Latent`: calls of `nn.Dense`, `nn.Conv` and `nn.Dropout`
are intercepted where an ensemble replaces them, and everything else runs on batches [M B, ...].
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.ensembles.epinet import Epinet
from uncertainty.ensembles.replace import Members
from uncertainty.ensembles.single import Single, single
from uncertainty.model import from_network
from uncertainty.types import Backbone, Head, Latent, Likelihood, Model, Network

TRAINING = ("train", "training", "is_training")  # arguments that are True in training
PREDICTION = ("deterministic", "use_running_average")  # and those that are True at prediction
FOUND = ""  # of `OwnBackbone.last`: the layer is found by tracing


class Call(NamedTuple):
    """How a method of a module is called, as its signature says.

    >>> class Net(nn.Module):
    ...     def __call__(self, x, deterministic=True):
    ...         return x
    >>> print(call_of(Net()))
    Net.__call__(x, deterministic=not train)
    """

    text: str
    flags: tuple[str, ...]  # its arguments among TRAINING and PREDICTION

    def __str__(self) -> str:
        return self.text

    def arguments(self, train: bool) -> dict[str, bool]:
        """Its keyword arguments."""
        return {name: train == (name in TRAINING) for name in self.flags}


def call_of(module: nn.Module, method: str = "__call__") -> Call:
    """How a module is called with x, and whether it is in training, found by inspection.

    Args:
      module: of Linen, or `flax.nnx.bridge.ToLinen`; NNX modules without such an argument get their
        mode by `module.train()` and `module.eval()`.
      method: its name.

    Raises:
      ValueError: there is no such method, or it needs arguments other than x.
    """
    kind = getattr(module, "nnx_class", None) or type(module)
    name = kind.__name__ if method == "__call__" else f"{kind.__name__}.{method}"
    function = getattr(kind, method, None)
    if not callable(function):
        raise ValueError(f"module: {kind.__name__} has no method {method!r}")
    parameters = list(inspect.signature(function).parameters.values())[1:]  # without self
    flags = tuple(p.name for p in parameters if p.name in TRAINING + PREDICTION)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    of_x = next((p for p in parameters if p.kind != inspect.Parameter.VAR_KEYWORD), None)
    if of_x is None or of_x.name in flags:
        raise ValueError(f"module: {name} takes no x")
    missing = [
        p.name
        for p in parameters
        if p.default is inspect.Parameter.empty
        and p.kind not in several
        and p is not of_x
        and p.name not in flags
    ]
    if missing:
        raise ValueError(
            f"module: {name} needs {', '.join(missing)} besides x; only "
            f"{', '.join(TRAINING + PREDICTION)} are known. Give them defaults, or wrap the module"
        )
    words = [f"{f}={'train' if f in TRAINING else 'not train'}" for f in flags]
    return Call(f"{kind.__name__}.{method}({', '.join(['x', *words])})", flags)


class OwnBackbone(Backbone):
    """A module of your own, x [M or 1, B, ...] -> features [M or 1, B, D].

    Parameters are at the paths of the module. Where an ensemble replaces layers, each call of an
    `nn.Dense` or `nn.Conv` (of exactly these types), or of an `nn.Dropout`, is one of the layer in
    the field, at the same path. All else sees a batch [M B, ...], so it must treat its first axis
    as that of examples; batch statistics are those of all members together, as in our backbones.
    Layers before the first one that makes members run M times.

    Attributes:
      module: of Linen; called as `call_of` says.
      method: the method that is called.
      last: the path of the `nn.Dense`, such as 'Dense_1', whose input is the features and which is
        left out; '' for the one whose output is the module's; None for the module's output.
      dense, conv: layers in place of the module's.
      dropout: in place of each `nn.Dropout`, with a rate of its own; None leaves them.
      members: M at the input, in training and at prediction; ensembles set it.

    Raises:
      ValueError: see `call_of`. When traced: members at the input (`packed` makes them), an output
        that is not an array [B, D], a `last` that is not found, or a replaced layer whose first
        axis is not that of examples.
    """

    module: nn.Module
    method: str = "__call__"
    last: str | None = None
    dense: Callable[..., nn.Module] = nn.Dense
    conv: Callable[..., nn.Module] = nn.Conv
    dropout: Callable[..., nn.Module] | None = None
    members: tuple[int, int] = (1, 1)

    def __post_init__(self):
        if not isinstance(self.module, nn.Module):
            hint = ""
            if "flax.nnx" in {c.__module__[:8] for c in type(self.module).__mro__}:
                hint = "; NNX: flax.nnx.bridge.ToLinen(Net, args=(...))"
            raise ValueError(f"module: a {type(self.module).__name__}, not a Linen module{hint}")
        call_of(self.module, self.method)
        super().__post_init__()

    def setup(self):
        nn.share_scope(self, self.module)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if x.shape[0] != 1:
            raise ValueError(
                f"module: {x.shape[0]} members at the input, but a module of your own has one"
            )
        _, B, *rest = x.shape
        M = self.members[0 if train else 1]
        last = self.last
        if last == FOUND:
            last = last_layer(self.module, x[0], self.method)
        layers = _Layers(self, M, B, train, last)
        with layers.intercepted():
            a = jnp.broadcast_to(x, (M, B, *rest)).reshape(M * B, *rest)
            phi = _run(self.module, a, self.method, train)
        if last is not None:
            if layers.phi is None:
                raise ValueError(f"last: {last!r} is the path of no nn.Dense that is called")
            phi = layers.phi
        _check_output(phi, self.module, self.method, M * B)
        phi = phi.reshape(M, B, -1)
        return phi if layers.made else phi[:1]


class _Layers:
    """The layers of one call of an `OwnBackbone`, replaced as its fields say."""

    def __init__(self, backbone: OwnBackbone, M: int, B: int, train: bool, last: str | None):
        self.backbone, self.M, self.B, self.train, self.last = backbone, M, B, train, last
        self.made = M == 1  # whether members differ yet
        self.phi: jax.Array | None = None
        self._inside = False  # a layer in place of another one
        self._layers: dict[tuple[str, ...], nn.Module] = {}

    @contextmanager
    def intercepted(self) -> Iterator[None]:
        """Within this context the layers of modules are replaced."""
        b = self.backbone
        if self.last is None and (b.dense, b.conv, b.dropout) == (nn.Dense, nn.Conv, None):
            yield
            return
        with nn.intercept_methods(self._call):
            yield

    def _call(self, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module, path = context.module, context.module.path[len(self.backbone.path) :]
        if self._inside or context.method_name != "__call__":
            return call(*args, **kwargs)
        if type(module) is nn.Dense and "/".join(path) == self.last:
            self.phi = args[0]
            return jnp.zeros((*args[0].shape[:-1], module.features), args[0].dtype)
        if type(module) is nn.Dense and self.backbone.dense is not nn.Dense:
            layer = self._layer(module, self.backbone.dense, _fields(module))
        elif type(module) is nn.Conv and self.backbone.conv is not nn.Conv:
            layer = self._layer(module, self.backbone.conv, _fields(module))
        elif type(module) is nn.Dropout and self.backbone.dropout is not None:
            dropout = self._layer(module, self.backbone.dropout, {})
            layer = functools.partial(dropout, train=self.train)
        else:
            return call(*args, **kwargs)
        self._inside = True
        try:
            return self._run(layer, args[0], "/".join(path))
        finally:
            self._inside = False

    def _layer(self, module: nn.Module, make: Callable[..., nn.Module], fields: dict) -> Callable:
        """The layer at the place of `module`, with its parameters at the same path."""
        if module.path not in self._layers:
            layer = make(**fields, name="replaced")
            nn.share_scope(module, layer)
            self._layers[module.path] = layer
        return self._layers[module.path]

    def _run(self, layer: Callable, a: jax.Array, path: str) -> jax.Array:
        """layer(a) for a [M B, ...]; until members differ, for the first of them alone."""
        M = self.M
        if a.shape[0] % (M * self.B):
            raise ValueError(
                f"module: the input of {path} has shape {tuple(a.shape)}, but members need a first "
                f"axis of {M * self.B} examples, or of several rows for each"
            )
        members = a.reshape(M, a.shape[0] // M, *a.shape[1:])
        out = layer(members if self.made else members[:1])
        if len(out) not in (1, M):
            raise ValueError(f"module: {path} makes {len(out)} members, where {M} are expected")
        self.made = self.made or len(out) == M
        out = jnp.broadcast_to(out, (M, *out.shape[1:]))
        return out.reshape(-1, *out.shape[2:])


def _fields(module: nn.Module) -> dict[str, Any]:
    """The fields of a layer that differ from their defaults."""
    given = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, field.default)
        if field.name not in ("parent", "name") and value is not field.default:
            given[field.name] = value
    return given


def _run(module: nn.Module, x: jax.Array, method: str, train: bool) -> Any:
    """module.method(x), with its flags."""
    flags = call_of(module, method).arguments(train)
    if getattr(module, "nnx_class", None) is None:
        return getattr(module, method)(x, **flags)

    def of_nnx(inner: Any, x: jax.Array) -> Any:
        inner.train() if train else inner.eval()
        return getattr(inner, method)(x, **flags)

    return module(x, nnx_method=of_nnx)


def _check_output(phi: Any, module: nn.Module, method: str, examples: int) -> None:
    name = f"{type(module).__name__}.{method}"
    if isinstance(phi, Latent):
        raise ValueError(f"module: {name} returns a Latent; use `from_network`")
    if not isinstance(phi, jax.Array):
        raise ValueError(
            f"module: {name} returns a {type(phi).__name__}; one array [B, K] is needed"
        )
    if phi.ndim != 2 or phi.shape[0] != examples:
        such = "; for one output, [B, 1]" if phi.ndim == 1 else ""
        raise ValueError(
            f"module: {name} returns an array of shape {tuple(phi.shape)} for {examples} examples; "
            f"[B, K] is needed{such}"
        )


def last_layer(module: nn.Module, x: jax.Array, method: str = "__call__") -> str:
    """The path of the `nn.Dense` whose output is that of the module, found by tracing.

    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = nn.relu(nn.Dense(8)(x))
    ...         return nn.Dense(3)(x)
    >>> last_layer(Net(), jnp.zeros((1, 4)))
    'Dense_1'

    Raises:
      ValueError: it is the output of no such layer.
    """
    plain = module.clone(parent=None, name=None)
    seen: list[tuple[str, Any]] = []
    result: list[str] = []

    def watch(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        out = call(*args, **kwargs)
        if type(context.module) is nn.Dense and context.method_name == "__call__":
            seen.append(("/".join(context.module.path), out))
        return out

    def trace(x: jax.Array) -> None:
        rngs = {name: jax.random.key(0) for name in ("params", "dropout", "noise")}
        with nn.intercept_methods(watch):
            out = plain.init_with_output(rngs, x, method=lambda m, x: _run(m, x, method, False))[0]
        result.extend(path for path, one in seen if one is out)

    jax.eval_shape(trace, x)
    if not result:
        paths = ", ".join(repr(path) for path, _ in seen) or "none"
        raise ValueError(
            f"last: the output of {type(module).__name__} is not that of an nn.Dense (called: "
            f"{paths}); name the layer (last='Dense_1'), or a method that returns the features"
        )
    return result[-1]


class Logits(Head):
    """u = phi, for backbones that return latents."""

    @nn.compact
    def __call__(self, phi: jax.Array, *, train: bool) -> Latent:
        return Latent(mean=phi.astype(jnp.float32))


class OwnHead(Head):
    """A module of your own, features [B, D] -> logits [B, K], as a head."""

    module: nn.Module

    def setup(self):
        nn.share_scope(self, self.module)

    def __call__(self, phi: jax.Array, *, train: bool) -> Latent:
        M, B, D = phi.shape
        out = _run(self.module, phi.reshape(M * B, D), "__call__", train)
        _check_output(out, self.module, "__call__", M * B)
        return Latent(mean=out.astype(jnp.float32).reshape(M, B, -1))


def from_module(
    module: nn.Module,
    likelihood: Likelihood,
    *,
    head: nn.Module | None = None,
    ensemble: Callable[[Backbone, Head], Network] = single,
    last: str | None = None,
    features: str | None = None,
) -> Model:
    """The Model of a Flax module from x [B, ...] to logits [B, K] (or means [B, K], for Gaussians).

    `call_of(module)` says how it is called. Batch statistics and other collections are kept, and
    random numbers are those of the streams 'dropout' and 'noise'. Logits are not probabilities:
    `fit` refuses a module that ends in a softmax.

    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = nn.relu(nn.Dense(8)(x))
    ...         return nn.Dense(3)(x)
    >>> from uncertainty.likelihoods import softmax
    >>> model = from_module(Net(), softmax())
    >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> list(params["backbone"])
    ['Dense_0', 'Dense_1']

    With a head, the module's last layer is left out:

    >>> from uncertainty.heads.laplace import Laplace
    >>> model = from_module(Net(), softmax(), head=Laplace(3))
    >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> list(params["backbone"]), list(params["head"])
    (['Dense_0'], ['logits'])

    Args:
      module: of Linen, or `flax.nnx.bridge.ToLinen(Net, args=(...))`.
      likelihood: p(y | u).
      head: of `uncertainty.heads`, or a Flax module from features [B, D] to logits [B, K], in place
        of the module's last layer; None for the module as it is.
      ensemble: (backbone, head) -> network, such as `functools.partial(batch_ensemble, size=4)` or
        `functools.partial(mc_dropout, size=8, rate=0.1)`. `multi_head` and `mimo` need a head.
      last: with a head, the path of the layer that it takes the place of; by default it is found.
      features: with a head, the method of the module that returns the features [B, D], such as
        'features'; '__call__' if the module itself does.

    Returns:
      A Model, whose `features` are the inputs of the module's last layer.

    Raises:
      ValueError: `last` or `features` without a head, or both; see `OwnBackbone`.
    """
    if head is None and (last or features):
        raise ValueError(f"{'last' if last else 'features'}: needs a head, such as Dense(10)")
    if last and features:
        raise ValueError("last: names a layer, and features a method; give one of them")
    split = FOUND if head is not None and not features else None
    backbone = OwnBackbone(module, features or "__call__", last or split)
    if head is None:
        head = Logits()
    elif not isinstance(head, Head):
        call_of(head)
        head = OwnHead(head)
    network = ensemble(backbone, head)
    model = from_network(network, likelihood)
    if features or split is not None:
        return model
    inner = network.backbone.clone(last=FOUND)
    # Members may be made by the last layer alone, and then share their features.
    alone = isinstance(network, Single | Members | Epinet)
    of_last = single(inner, Logits()) if alone else network.clone(backbone=inner)
    return model._replace(features=from_network(of_last, likelihood).features)
