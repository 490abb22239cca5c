"""Assignment of tokens to experts, as pure functions of a router's scores, for one group.

A group is routed jointly: S tokens, E experts with C slots each. Top-k routing (Riquelme et al.
2021, "Scaling vision with sparse mixture of experts"), expert choice (Zhou et al. 2022,
"Mixture-of-experts with expert choice routing") and soft routing (Puigcerver et al. 2024, "From
sparse to soft mixtures of experts"), and the losses that balance experts.
"""

import math
from fractions import Fraction

import flax.struct
import jax
import jax.numpy as jnp

from uncertainty import cpu
from uncertainty.cpu import order, rows

ROUNDING = ("ceil", "round")


class Routes(flax.struct.PyTreeNode):
    """Routes with at most one token per slot. Any axes, such as members and groups, may lead."""

    token: jax.Array  # [..., E, C]: which of the S tokens; S for an empty slot
    gate: jax.Array  # [..., E, C]: the weight of the expert's output; 0 for an empty slot
    # [..., S, K]: the slots e C + c of each token, E C for a dropped choice; None if a token may be
    # in any number of slots.
    slot: jax.Array | None = None


class Mixture(flax.struct.PyTreeNode):
    """Routes with weighted sums of tokens in slots."""

    inward: jax.Array  # [..., S, E, C]: slot (e, c) holds sum_s inward[s, e, c] x_s
    outward: jax.Array  # [..., S, E, C]: token s becomes sum_{e,c} outward[s, e, c] y_{e,c}


def capacity(
    tokens: int,
    choices: float,
    num_experts: int,
    factor: float,
    rounding: str = "ceil",
    multiple_of: int = 4,
) -> int:
    """C = rounding(S K factor / E), rounded up to a multiple; from 1 to S.

    The published code rounds up, and up again to a multiple of 4, which is much more than the
    factor for small groups; the paper's formula is 'round' with a multiple of 1.

    The product is exact in decimal: 400 tokens on 2 experts with a factor of 1.1 need 220 slots. In
    floating point, as in the published code, that is 220 + 3e-14, which rounds up to 224.

    Args:
      tokens: S, of a group.
      choices: K, of each token.
      num_experts: E.
      factor: the capacity factor; 1 suffices if all experts are chosen equally often.
      rounding: 'ceil' or 'round' (half to even).
      multiple_of: 1 for none.

    Raises:
      ValueError: a factor that is not positive and finite, a multiple below 1, or an unknown
        rounding.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"capacity_factor: {factor}; a positive number")
    if rounding not in ROUNDING:
        raise ValueError(f"rounding: {rounding!r}; allowed 'ceil', 'round'")
    if multiple_of < 1:
        raise ValueError(f"multiple_of: {multiple_of}; at least 1")
    exact = tokens * Fraction(str(choices)) * Fraction(str(factor)) / num_experts
    slots = math.ceil(exact) if rounding == "ceil" else round(exact)
    return min(max(-(-slots // multiple_of) * multiple_of, 1), tokens)


def top_k(
    gates: jax.Array,
    k: int,
    slots: int,
    batch_priority: bool = False,
    real: jax.Array | None = None,
    room: jax.Array | None = None,
) -> Routes:
    """Each token goes to the k experts of its largest gates, as long as they have slots.

    All first choices come before all second ones; within a choice, tokens come in their order or,
    with `batch_priority`, in descending order of their largest gate. Ties go to the lower expert
    and to the earlier token. Choices without a slot are dropped.

    Time and memory are those of sorting S k numbers.

    Args:
      gates: [S, E], softmax over experts; weights are not normalised again after the choice.
      k: choices of each token.
      slots: C.
      batch_priority: batch-priority routing.
      real: [S] bool, the tokens to route, the others being padding; None for all.
      room: [], given with `real`: how many of its C slots an expert may fill.
    """
    S, E = gates.shape
    best, expert = _largest(jax.lax.stop_gradient(gates), k)  # [S, K]
    if real is not None:
        expert = jnp.where(real[:, None], expert, E)  # an expert that has no slots
    priority = jnp.argsort(-best[:, 0], stable=True) if batch_priority else None
    # Choices i = 0 .. K S - 1 by priority: choice i is that of token priority[i % S].
    chosen = (expert if priority is None else expert[priority]).T.reshape(-1)
    by_expert = _argsort(chosen, E)
    start = _starts(chosen, by_expert, E)
    at = start[:-1, None] + jnp.arange(slots)  # [E, C]
    filled = at < start[1:, None]
    if room is not None:
        filled &= jnp.arange(slots) < room
    token = by_expert[jnp.minimum(at, k * S - 1)] % S
    token = token if priority is None else priority[token]
    rank = _inverse(by_expert) - _look_up(start, chosen)
    placed = rank < slots if room is None else (rank < room) & (chosen < E)
    slot = jnp.where(placed, chosen * slots + rank, E * slots)
    # The TPU compiler aborts on the inverse of a permutation that it knows to be the identity.
    slot = slot.reshape(k, S).T if priority is None else slot.reshape(k, S)[:, _inverse(priority)].T
    token = jnp.where(filled, token, S)
    return Routes(token=token, gate=_gates(gates, token, expert, slot), slot=slot)


def _gates(gates: jax.Array, token: jax.Array, expert: jax.Array, slot: jax.Array) -> jax.Array:
    """The gates [E, C] of slots, 0 for an empty one, of gates [S, E]."""
    if cpu.enabled():
        return jnp.take_along_axis(gates.T, token, axis=1, mode="fill", fill_value=0)
    return _without_scatter(gates, token, expert, slot)


@jax.custom_vjp
def _without_scatter(gates: jax.Array, token: jax.Array, *_: jax.Array) -> jax.Array:
    """As above; the gradient reads the slots [S, K] of each token, not the tokens of slots."""
    return jnp.take_along_axis(gates.T, token, axis=1, mode="fill", fill_value=0)


def _gates_forward(gates: jax.Array, *routes: jax.Array) -> tuple[jax.Array, tuple]:
    return _without_scatter(gates, *routes), routes[1:]


def _gates_backward(kept: tuple, g: jax.Array) -> tuple:
    expert, slot = (a.T for a in kept)  # K is last of no array: it is much less than a tile
    each = jnp.take(g.reshape(-1), slot, mode="fill", fill_value=0)  # [K, S]
    chosen = expert[..., None] == jnp.arange(len(g))
    return jnp.sum(jnp.where(chosen, each[..., None], 0), axis=0), None, None, None


_without_scatter.defvjp(_gates_forward, _gates_backward)


def expert_choice(
    gates: jax.Array, slots: int, real: jax.Array | None = None, room: jax.Array | None = None
) -> Routes:
    """Each expert takes the tokens with its C largest gates; ties go to the earlier token.

    Args:
      gates: [S, E], softmax over experts.
      slots: C, at most S.
      real, room: as in `top_k`; room is at most the number of real tokens.
    """
    if real is None or room is None:
        gate, token = jax.lax.top_k(gates.T, slots)
        return Routes(token=token, gate=gate)
    gate, token = jax.lax.top_k(jnp.where(real[:, None], gates, -1.0).T, slots)
    filled = jnp.arange(slots) < room
    return Routes(token=jnp.where(filled, token, len(gates)), gate=jnp.where(filled, gate, 0.0))


def soft(logits: jax.Array) -> Mixture:
    """Slots hold means of tokens, tokens become means over slots; [S, E, C] scores."""
    S, E, C = logits.shape
    outward = jax.nn.softmax(logits.reshape(S, E * C), axis=1).reshape(S, E, C)
    return Mixture(inward=jax.nn.softmax(logits, axis=0), outward=outward)


def importance_loss(gates: jax.Array) -> jax.Array:
    """(std / mean)^2 over experts of sum_s gates[s, e]; gates [S, E] without noise."""
    return _variation(gates.sum(0))


def load_loss(logits: jax.Array, noisy: jax.Array, k: int, noise_std: float) -> jax.Array:
    """(std / mean)^2 over experts of the expected share of tokens that choose expert e.

    A token's threshold is its k-th largest noisy logit; p_e = 1 - Phi((threshold - logit_e) / std)
    is the probability that new noise on e alone would reach it.

    Args:
      logits: [S, E], without noise.
      noisy: [S, E], with it.
      k: choices of each token.
      noise_std: of the noise; positive.
    """
    kth = _largest(jax.lax.stop_gradient(noisy), k)[1][:, -1:]
    threshold = _pick(noisy, kth)
    p = jax.scipy.stats.norm.cdf((logits - threshold) / noise_std)
    return _variation(p.mean(0))


def gshard_loss(gates: jax.Array) -> jax.Array:
    """E^2 mean_e(share_e mean_s gates[s, e]), share_e of tokens with expert e first; gates [S, E].

    Lepikhin et al. (2021), "GShard".
    """
    E = gates.shape[1]
    share = jax.nn.one_hot(gates.argmax(1), E).mean(0)
    return E**2 * jnp.mean(share * gates.mean(0))


def lost(routes: Routes, tokens: int, real: jax.Array | None = None) -> jax.Array:
    """The share of a token's choices without a slot [S]; for expert choice, 1 if none took it.

    Args:
      routes: of a group.
      tokens: S.
      real: as in `top_k`; the share of other tokens is 0.
    """
    if routes.slot is not None:
        share = jnp.mean(routes.slot == routes.token.size, axis=-1)
    else:
        routed = jnp.zeros(tokens, bool).at[routes.token.reshape(-1)].set(True, mode="drop")
        share = 1.0 - routed
    return share if real is None else jnp.where(real, share, 0.0)


def per_example(routes: Routes | Mixture, examples: int, tokens: int) -> jax.Array:
    """The share of each example's tokens that each expert processes [examples, E].

    For mixtures, an expert's mean weight in the outputs.

    Args:
      routes: of a group.
      examples: in the group.
      tokens: of each example.
    """
    if isinstance(routes, Mixture):
        share = routes.outward.sum(2).reshape(examples, tokens, -1)
        return share.mean(1)
    E = routes.token.shape[0]
    example = routes.token // tokens  # an empty slot has an index beyond the end
    counts = jnp.zeros((examples, E)).at[example, jnp.arange(E)[:, None]].add(1.0, mode="drop")
    return counts / tokens


def load(routes: Routes, tokens: int) -> jax.Array:
    """The share of the S tokens that each expert processes [E]."""
    return jnp.sum(routes.token < tokens, axis=1) / tokens


def softmax(x: jax.Array) -> jax.Array:
    """Softmax over the last axis."""
    return rows.softmax(x) if cpu.enabled() else jax.nn.softmax(x)


def _largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest values in the rows of x [S, E], descending, and their indices, [S, k] each."""
    return order.top_k(x, k) if cpu.enabled() else jax.lax.top_k(x, k)


def _argsort(x: jax.Array, end: int) -> jax.Array:
    """The stable order of integers x [N] from 0 to `end`."""
    return order.argsort(x, end) if cpu.enabled() else jnp.argsort(x, stable=True)


def _starts(chosen: jax.Array, by_expert: jax.Array, end: int) -> jax.Array:
    """How many of the integers [N] are less than 0, ..., end; `by_expert` is their order."""
    if cpu.enabled():
        return jnp.searchsorted(chosen[by_expert], jnp.arange(end + 1))
    return jnp.sum(chosen < jnp.arange(end + 1)[:, None], axis=1)


# A sum over few values, most of which are 0, is shorter than a gather, but not on CPU.


def _look_up(table: jax.Array, index: jax.Array) -> jax.Array:
    """table[index], of a short table."""
    return table[index] if cpu.enabled() else _pick(table[None], index[:, None])[:, 0]


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[n, index[n, 0]] of each row of x [N or 1, E], as [N, 1]."""
    if cpu.enabled():
        return jnp.take_along_axis(x, index, axis=1)
    return jnp.sum(jnp.where(index == jnp.arange(x.shape[1]), x, 0), axis=1, keepdims=True)


def _variation(x: jax.Array) -> jax.Array:
    return x.var() / x.mean() ** 2


def _inverse(permutation: jax.Array) -> jax.Array:
    index = jnp.arange(permutation.size)
    return jnp.zeros_like(permutation).at[permutation].set(index, unique_indices=True)
