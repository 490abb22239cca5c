"""Epinet: members are index samples of a small network beside the base (Osband et al. 2023).

u(x, z) = mu(x) + s_L(phi, z) + s_P(phi, z) + a sum_d z_d p_d(x),    z ~ N(0, I)

s(phi, z) = G(phi, z) z, with G [K, Z] the output of a multilayer perceptron of (z, phi).
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from uncertainty.ensembles.multi_head import check_alone
from uncertainty.layers.fixed import Fixed, RandomFunction
from uncertainty.types import Backbone, Head, Latent, Network


class Epinet(Network):
    """x [B, ...] -> Latent [size, B, K], or [training_size, B, K] in training; see `epinet`."""

    size: int
    training_size: int
    index: int
    widths: Sequence[int]
    inputs: bool
    prior_scale: float
    additive: Callable[..., Backbone] | None
    additive_scale: float
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Latent:
        base = train and not self.frozen
        phi = self.backbone(x[None], train=base)
        check_alone(phi, self.training_size if train else self.size, "epinet")
        latent = self.head(phi, train=base)
        M, K = self.training_size if train else self.size, latent.mean.shape[-1]
        z = jax.random.normal(self.make_rng("noise"), (M, self.index))
        h = phi[0].astype(jnp.float32)
        if self.inputs:
            h = jnp.concatenate([x.reshape(len(x), -1).astype(jnp.float32), h], axis=-1)
        # Attacks at prediction see all of the gradient with respect to x.
        h = jax.lax.stop_gradient(h) if train else h
        make = functools.partial(IndexedMLP, outputs=K, widths=tuple(self.widths))
        u = latent.mean + make(name="epinet")(h, z)
        if self.prior_scale:
            u = u + self.prior_scale * Fixed(make, name="matched")(h, z)
        if self.additive is not None and self.additive_scale:
            functions = functools.partial(RandomFunction, self.additive, K)
            p = Fixed(functions, copies=self.index, name="additive")(x)
            u = u + self.additive_scale * jnp.einsum("mz,zbk->mbk", z, p)
        others = jax.tree.map(lambda a: jnp.broadcast_to(a, (M, *a.shape[1:])), latent)
        return others.replace(mean=u)


class IndexedMLP(nn.Module):
    """G(phi, z) z for every z: phi [B, D], z [M, Z] -> [M, B, K].

    G is a ReLU network of (z, phi) with K Z outputs. The part of its first layer that sees phi is
    computed once for all M, and z is multiplied into the last kernel, not into its outputs: a
    member costs B (H' + K) products of the last width each, and not B K Z.

    Attributes:
      outputs: K.
      widths: of the hidden layers, at least one.
      kernel_init: of all kernels; the fan-in of the first is Z + D.
    """

    outputs: int
    widths: Sequence[int]
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, phi: jax.Array, z: jax.Array) -> jax.Array:
        (D, Z), (first, *rest) = (phi.shape[-1], z.shape[-1]), self.widths

        def affine(name: str, inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
            return _Affine(inputs, outputs, self.kernel_init, name=name)()

        kernel, bias = affine("dense0", Z + D, first)
        h = nn.relu((phi @ kernel[Z:])[None] + (z @ kernel[:Z])[:, None] + bias)  # [M, B, H]
        for i, width in enumerate(rest, 1):
            kernel, bias = affine(f"dense{i}", h.shape[-1], width)
            h = nn.relu(h @ kernel + bias)
        kernel, bias = affine("logits", h.shape[-1], self.outputs * Z)
        kernel = kernel.reshape(-1, self.outputs, Z)
        bias = bias.reshape(self.outputs, Z)
        along = jnp.einsum("hkz,mz->mhk", kernel, z)
        return jnp.einsum("mbh,mhk->mbk", h, along) + (z @ bias.T)[:, None]


class _Affine(nn.Module):
    """A kernel [D, H] and a bias [H]."""

    inputs: int
    outputs: int
    kernel_init: Callable

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (self.inputs, self.outputs))
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.outputs,))


def epinet(
    backbone: Backbone,
    head: Head,
    size: int,
    training_size: int = 8,
    index: int = 8,
    widths: Sequence[int] = (50,),
    inputs: bool = False,
    prior_scale: float = 1.0,
    additive: Callable[..., Backbone] | None = None,
    additive_scale: float = 1.0,
    frozen: bool = False,
) -> Network:
    """`size` index samples of a network that is `backbone`, `head` and an epinet.

    The base is computed once, and the epinet for each of M indices z. Training uses the mean of
    the losses of `training_size` indices, drawn anew at each step. At prediction indices are drawn
    from the particle's key: a member is one function, the same for every batch, so predictions are
    joint ones (`metrics/joint.py`). The epinet gets the features as constants, so the base learns
    from mu alone; a head's variance is that of each member.

    The parts s_P and p_d have random parameters that are never trained, in the collection 'prior':
    where there are no data, members differ as they do before training.

    Published settings (authors' code): frozen ResNets on CIFAR-10 have `index=20`, `widths=(50,)`,
    `prior_scale=4` and no additive prior, on ImageNet `index=30`, `prior_scale=1` and an additive
    prior; the Neural Testbed has `index=8`, `widths=(15, 15)`, `inputs=True`, `prior_scale=0` and
    an additive prior of MLPs (5, 5) with a scale of 0.3 / temperature, trained with the base.

    Differences from the authors' code: kernels are drawn with variance 1 / fan-in, not 0.77 of it
    (a truncated normal that is not corrected); at prediction the gradient with respect to x passes
    through the features.

    Args:
      backbone: without members.
      size, training_size: M at prediction and in training.
      index: Z, the dimensions of z.
      widths: of the epinet's hidden layers.
      inputs: whether the epinet also sees x, flattened, beside the features.
      prior_scale: factor of s_P, which is built like s_L; 0 for none.
      additive: factory of the backbones of p_1, ..., p_Z, each with an affine layer, such as
        `dict(name="mlp.MLP", widths=(5, 5))`, or `dict(name="conv_net.ConvNet")` for images; None
        for no additive prior.
      additive_scale: a; 0 for none.
      frozen: whether backbone and head keep the parameters that they begin with (`pretrained`, see
        docs/pretrained.md) and predict in training too. Their parameters are then in the
        collection 'frozen', where no optimiser, prior or kernel sees them.

    Raises:
      ValueError: a number below 1, a negative or infinite scale, no widths; when traced, a
        backbone that makes members.
    """
    for field, value in dict(size=size, training_size=training_size, index=index).items():
        if value < 1:
            raise ValueError(f"{field}: {value}; at least 1")
    if not widths or min(widths) < 1:
        raise ValueError(
            f"widths: {tuple(widths)}; one hidden layer or more, of at least 1 feature"
        )
    for field, scale in dict(prior_scale=prior_scale, additive_scale=additive_scale).items():
        if not 0 <= scale < math.inf:
            raise ValueError(f"{field}: {scale}; finite, at least 0")
    parts = ("backbone", "head") if frozen else ()
    return Epinet(
        backbone,
        head,
        size,
        training_size,
        index,
        tuple(widths),
        inputs,
        prior_scale,
        additive,
        additive_scale,
        parts,
    )
