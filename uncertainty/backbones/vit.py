"""Vision transformer."""

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from uncertainty.backbones.inputs import check_images
from uncertainty.layers.attention import Attention
from uncertainty.layers.feed_forward import FeedForward
from uncertainty.layers.moe import monitor
from uncertainty.layers.moe.experts import SHARDING, MoE
from uncertainty.layers.norm import LayerNorm
from uncertainty.rules import Rules
from uncertainty.types import Backbone, Monitor


class _Size(NamedTuple):
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int


_SIZES = {
    "tiny": _Size(4, 32, 2, 2, 64),
    "Ti/16": _Size(16, 192, 12, 3, 768),
    "S/16": _Size(16, 384, 12, 6, 1536),
    "S/32": _Size(32, 384, 12, 6, 1536),
    "B/16": _Size(16, 768, 12, 12, 3072),
    "B/32": _Size(32, 768, 12, 12, 3072),
    "L/16": _Size(16, 1024, 24, 16, 4096),
    "L/32": _Size(32, 1024, 24, 16, 4096),
}


class ViT(Backbone):
    """Images x [M or 1, B, H, W, C] -> features [M or 1, B, D] (Dosovitskiy et al. 2021).

    Patches become tokens by one strided convolution; learned positions are added; pre-norm blocks
    `block00`, `block01`, ... of attention and feed-forward follow, then a norm, then the class
    token or the mean over tokens. GELU is the tanh approximation.

    Differences from the paper: no hidden layer between features and head unless `representation` is
    set (as in AugReg, Steiner et al. 2022), no dropout of attention weights.

    Attributes:
      variant: 'Ti/16', 'S/16', 'S/32', 'B/16', 'B/32', 'L/16', 'L/32', or 'tiny' (patch 4, width
        32, 2 blocks, 2 heads, MLP of 64). Sizes are AugReg's; V-MoE's S/32 is another: width 512,
        depth 8, num_heads 8, mlp_dim 2048.
      patch_size, width, depth, num_heads, mlp_dim: override the variant's.
      pooling: 'token' for the class token, 'gap' for the mean over tokens (without a class token).
      representation: features of a last hidden layer with tanh, `pre_logits`, or None for none.
      swaps: {block: factory of the layer that replaces its feed-forward}; the factory is called
        with `name`, the layer with (x [M or 1, B, T, D], train=...).
      experts: factory of a mixture of experts (`layers/moe/experts.py`) that replaces feed-forward
        layers, or None; it is called with `feed_forward`, the factory of an expert, and `name`.
      expert_blocks: which blocks have experts: 'every 2' (1, 3, 5, ...; likewise 'every n'),
        'last n' (the last n of 1, 3, 5, ...), or their numbers.
      dense: factory of query, key, value, out and of the feed-forward's layers, all Xavier uniform.
      conv: factory of the patch embedding.
      norm: factory of the norms.
      dropout: factory, or None; after positions, attention, GELU and feed-forward.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype: of computation and of the features; parameters are float32.

    Raises:
      ValueError: an unknown variant or pooling, a size below 1, heads that do not divide the width,
        an unknown block in `swaps` or `expert_blocks`, a block in both, or patches that do not
        divide the image.
    """

    variant: str
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    pooling: str = "token"
    representation: int | None = None
    swaps: Mapping[int, Callable[..., nn.Module]] = FrozenDict()
    experts: Callable[..., Any] | None = None
    expert_blocks: str | Sequence[int] = "every 2"
    dense: Callable[..., nn.Module] = nn.Dense
    conv: Callable[..., nn.Module] = nn.Conv
    norm: Callable[..., nn.Module] = LayerNorm
    dropout: Callable[..., nn.Module] | None = None
    remat: bool = False
    dtype: Any = "float32"

    def __post_init__(self):
        if self.variant not in _SIZES:
            close = difflib.get_close_matches(str(self.variant), _SIZES, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"variant: {self.variant!r}; {hint}allowed {', '.join(_SIZES)}")
        if self.pooling not in ("token", "gap"):
            raise ValueError(f"pooling: {self.pooling!r}; allowed 'token', 'gap'")
        size = self.size
        for field, value in dict(size._asdict(), representation=self.representation).items():
            if value is not None and value < 1:
                raise ValueError(f"{field}: {value}; allowed at least 1")
        if size.width % size.num_heads:
            raise ValueError(f"num_heads: {size.num_heads} does not divide width {size.width}")
        for i in self.swaps:
            if not str(i).isdigit() or int(i) >= size.depth:
                raise ValueError(f"swaps: block {i!r}; allowed 0 to {size.depth - 1}")
        # JSON turns the keys into strings, and Flax requires modules to be hashable.
        self.swaps = FrozenDict({int(i): factory for i, factory in self.swaps.items()})
        if self.experts is not None and set(self.swaps) & set(self._with_experts()):
            raise ValueError(
                f"swaps: {dict(self.swaps)}; blocks {self._with_experts()} have experts"
            )
        super().__post_init__()

    @property
    def size(self) -> _Size:
        """The variant's sizes with the fields that override them."""
        overrides = {field: getattr(self, field) for field in _Size._fields}
        return _SIZES[self.variant]._replace(
            **{k: v for k, v in overrides.items() if v is not None}
        )

    @nn.nowrap
    def _with_experts(self) -> tuple[int, ...]:
        """The indices of blocks with experts."""
        depth, where = self.size.depth, self.expert_blocks
        allowed = f"allowed 'every n', 'last n', or numbers of 0 to {depth - 1}"
        if not isinstance(where, str):
            if not where or not all(i in range(depth) for i in where):
                raise ValueError(f"expert_blocks: {where!r}; {allowed}")
            return tuple(sorted(where))
        match = re.fullmatch(r"(every|last) (\d+)", where)
        if match is None:
            raise ValueError(f"expert_blocks: {where!r}; {allowed}")
        n = int(match[2])
        if match[1] == "every":
            blocks = tuple(range(n - 1, depth, n)) if n else ()
        else:
            blocks = tuple(range(1, depth, 2))
            blocks = blocks[-n:] if 0 < n <= len(blocks) else ()
        if not blocks:
            raise ValueError(f"expert_blocks: {where!r} are none of {depth} blocks; {allowed}")
        return blocks

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields that set the numbers of features, with their values for None."""
        hidden = {} if self.representation is None else dict(representation=self.representation)
        return dict(width=self.size.width, mlp_dim=self.size.mlp_dim, **hidden)

    @property
    def width_unit(self) -> int:
        """The divisor of the field `width`."""
        return self.size.num_heads

    @nn.nowrap
    def _mixtures(self) -> list[MoE]:
        """The network's mixtures of experts, unbound, for their declarations."""
        factories = [*self.swaps.values(), *([self.experts] if self.experts is not None else [])]
        layers = (factory(parent=None) for factory in factories)
        return [layer for layer in layers if isinstance(layer, MoE)]

    @property
    def batch_dependent(self) -> bool:
        """Whether tokens of several examples share the slots of experts."""
        return any(layer.shares_slots for layer in self._mixtures())

    @property
    def sharding(self) -> Rules:
        """Sharding of the experts' parameters over the devices of the axis 'expert'."""
        return SHARDING if self._mixtures() else ()

    @property
    def monitors(self) -> tuple[Monitor, ...]:
        """The monitor of the routers' counts."""
        return (monitor.ROUTING,) if self.batch_dependent else ()

    @nn.nowrap
    def patches(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The layout of `position_embedding` [1, T, D] for images of a shape (H, W, ...).

        Returns:
          Class tokens (0 or 1), which come first, and rows and columns of patches.
        """
        (H, W), patch = shape[:2], self.size.patch_size
        if H % patch or W % patch:
            raise ValueError(f"patch_size: {patch} does not divide images of {H} x {W}")
        return int(self.pooling == "token"), H // patch, W // patch

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Paths of layers whose input is x, or a flattened image."""
        return ("embedding",)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_images(x)
        patch, D, depth, num_heads, mlp_dim = self.size
        self.patches(x.shape[2:])
        x = self.conv(
            features=D,
            kernel_size=(patch, patch),
            strides=(patch, patch),
            padding="VALID",
            use_bias=True,
            kernel_init=nn.initializers.lecun_normal(),
            dtype=self.dtype,
            name="embedding",
        )(x.astype(self.dtype))
        x = x.reshape(*x.shape[:2], -1, D)  # [M or 1, B, T, D]
        if self.pooling == "token":
            token = self.param("class_token", nn.initializers.zeros, (1, 1, D))
            token = jnp.broadcast_to(token.astype(x.dtype), (*x.shape[:2], 1, D))
            x = jnp.concatenate([token, x], axis=2)
        positions = nn.initializers.normal(0.02)
        x += self.param("position_embedding", positions, (1, x.shape[2], D)).astype(x.dtype)
        if self.dropout is not None:
            x = self.dropout(name="dropout")(x, train=train)
        feed_forward = functools.partial(
            FeedForward, mlp_dim=mlp_dim, dense=self.dense, dropout=self.dropout, dtype=self.dtype
        )
        layers = dict(self.swaps)
        if self.experts is not None:
            experts = functools.partial(self.experts, feed_forward=feed_forward)
            layers |= dict.fromkeys(self._with_experts(), experts)
        block = nn.remat(_Block, static_argnums=(2,)) if self.remat else _Block
        for i in range(depth):
            x = block(
                feed_forward=layers.get(i, feed_forward),
                num_heads=num_heads,
                dense=self.dense,
                norm=self.norm,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block{i:02d}",
            )(x, train)
        x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        x = x[:, :, 0] if self.pooling == "token" else jnp.mean(x, axis=2)
        if self.representation is None:
            return x
        x = self.dense(
            features=self.representation,
            use_bias=True,
            kernel_init=nn.initializers.lecun_normal(),
            dtype=self.dtype,
            name="pre_logits",
        )(x)
        return jnp.tanh(x)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    feed_forward: Callable[..., nn.Module]
    num_heads: int
    dense: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module] | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:  # [M or 1, B, T, D]
        y = self.norm(name="norm0", dtype=self.dtype)(x, train=train)
        y = Attention(self.num_heads, self.dense, self.dtype, name="attention")(y)
        if self.dropout is not None:
            y = self.dropout(name="dropout")(y, train=train)
        x = x + y
        y = self.norm(name="norm1", dtype=self.dtype)(x, train=train)
        return x + self.feed_forward(name="feed_forward")(y, train=train)
