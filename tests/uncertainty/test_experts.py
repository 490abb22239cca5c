"""Mixtures of experts against a loop over tokens with a block-diagonal gate; E3's identities."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backbones.conftest import draw_model
from tests.uncertainty.routes import fill
from uncertainty import build
from uncertainty.backbones.vit import ViT
from uncertainty.layers.feed_forward import FeedForward
from uncertainty.layers.moe.experts import MoE
from uncertainty.layers.moe.mask import only
from uncertainty.layers.moe.routers import ExpertChoice, Soft, TopK

E, T, D, H = 4, 3, 5, 6
FFN = functools.partial(FeedForward, mlp_dim=H)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def variables(members):
    """Experts and routers that all differ, and a router that is sure of itself."""
    return dict(
        router=dict(kernel=normal(D, members, E // members, seed=1)),
        experts=dict(
            dense0=dict(kernel=normal(E, D, H, seed=2), bias=normal(E, H, seed=3)),
            dense1=dict(kernel=normal(E, H, D, seed=4), bias=normal(E, D, seed=5)),
        ),
    )


@functools.partial(jax.jit, static_argnums=0)
def _apply(moe, params, x, mask=None):
    with only(mask):
        return moe.apply({"params": params}, x, train=False, mutable=["routing", "routes"])


def apply(moe, params, x, mask=None):
    y, counts = _apply(moe, params, x, mask)
    counts = jax.tree.map(np.asarray, counts)
    return np.asarray(y), counts.get("routing", {}).get("router", {}) | counts["routes"]


def expert(params, e, x):
    p = jax.tree.map(lambda a: a[e].astype(float), params["experts"])
    a = x @ p["dense0"]["kernel"] + p["dense0"]["bias"]
    a = a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    return a @ p["dense1"]["kernel"] + p["dense1"]["bias"]


def loop(params, x, members, k, slots, group_size, batch_priority, choice=False):
    """sum_e G[m, n, e] FFN_e(x_n), with a gate G over all E experts, zero outside m's block.

    By expert choice (`choice`) each of them takes as many tokens as it has slots, the best ones.
    """
    x = np.broadcast_to(x, (max(members, len(x)), *x.shape[1:]))
    L, B = x.shape[:2]
    gates, lost = np.zeros((L, B * T, E)), 0
    tokens = x.reshape(L, B * T, D)
    S, block = group_size * T, E // members
    for m in range(L):
        own = m if members > 1 else 0
        for g in range(0, B * T, S):
            scores = np.exp(tokens[m, g : g + S] @ params["router"]["kernel"][:, own])
            scores /= scores.sum(1, keepdims=True)
            _, where = fill(scores, k, slots, batch_priority)
            if choice:
                taken = np.argsort(-scores, axis=0, kind="stable")[:slots]
                where = [[(e, 0) for e in range(block) if s in taken[:, e]] for s in range(S)]
            for s in range(S):
                for place in where[s]:
                    if place is None:
                        lost += 1
                    else:
                        gates[m, g + s, own * block + place[0]] = scores[s, place[0]]
    y = sum(gates[..., e, None] * expert(params, e, tokens) for e in range(E))
    share = (gates.reshape(L, B, T, E) > 0).mean(2)
    return y.reshape(x.shape), lost / (L * B * T * k), share


CASES = [  # members, leading axis of x, k, group_size, batch_priority, capacity_factor
    (1, 1, 2, 4, False, 0.5),
    (1, 2, 1, 2, True, 0.5),
    (2, 1, 1, 2, True, 0.5),
    (2, 2, 1, 4, False, 0.6),
    (2, 1, 2, 2, False, None),  # K = E / M without drops: the dense mixture
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dispatch"), [*((case, "sort") for case in CASES), (CASES[2], "einsum")]
)
def test_a_mixture_is_a_loop_over_tokens(case, dispatch):
    M, A, k, group_size, batch_priority, factor = case
    params, x = variables(M), normal(A, 4, T, D)
    router = functools.partial(
        TopK,
        k=k,
        group_size=group_size,
        batch_priority=batch_priority,
        capacity_factor=factor,
        multiple_of=1,
    )
    moe = MoE(E, FFN, router, M, dispatch)
    y, counts = apply(moe, params, x)
    S = group_size * T
    slots = S if factor is None else int(np.ceil(S * k * factor / (E // M)))
    expected, lost, share = loop(params, x, M, k, slots, group_size, batch_priority)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert counts["dropped"].mean() == pytest.approx(lost)
    assert (lost > 0) == (factor is not None)
    own = [share[m, :, m * E // M : (m + 1) * E // M] if M > 1 else share[m] for m in range(len(y))]
    np.testing.assert_allclose(counts["per_example"], own, rtol=1e-6)
    load = np.mean(own, axis=1).reshape(M, -1, E // M).mean(1)
    np.testing.assert_allclose(counts["load"], load, rtol=1e-5)
    assert counts["load"].sum(1).mean() == pytest.approx(k * (1 - lost), rel=1e-5)
    if factor is None:
        every = np.stack([expert(params, e, x[0]) for e in range(E)])
        every = every.reshape(M, E // M, *x.shape[1:])
        gates = np.exp(np.einsum("btd,dme->mebt", x[0], params["router"]["kernel"]))
        gates /= gates.sum(1, keepdims=True)
        np.testing.assert_allclose(
            y, np.einsum("mebt,mebtd->mbtd", gates, every), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_a_batch_that_groups_do_not_divide_has_smaller_ones_in_prediction_alone():
    x = normal(1, 6, T, D)

    def moe(group_size):
        return MoE(E, FFN, functools.partial(TopK, group_size=group_size, capacity_factor=0.5))

    y, counts = apply(moe(4), variables(1), x)
    expected, of_three = apply(moe(3), variables(1), x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(counts["per_example"], of_three["per_example"])
    assert (y != apply(moe(6), variables(1), x)[0]).any()
    with pytest.raises(ValueError, match="group_size: 4 does not divide a batch of 6"):
        jax.eval_shape(lambda: moe(4).init(dict(params=jax.random.key(0)), x, train=True))


FILLED = [  # router, its fields, members, leading axis of x
    (TopK, dict(k=2), 1, 2),
    (TopK, dict(k=2, batch_priority=True), 2, 1),
    (ExpertChoice, {}, 2, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dispatch"), [*((case, "sort") for case in FILLED), (FILLED[1], "einsum")]
)
def test_what_fills_up_a_batch_takes_no_slots(case, dispatch):
    """Each group of 3 is a loop over its real examples alone, whatever else is in it."""
    router, fields, M, A = case
    k, choice = fields.get("k", 1), router is ExpertChoice
    common = dict(group_size=3, capacity_factor=0.7, multiple_of=1)
    moe = MoE(E, FFN, functools.partial(router, **common, **fields), M, dispatch)
    params, x = variables(M), normal(A, 6, T, D)
    if M == 1:
        params["router"]["kernel"] *= 3

    @settings(max_examples=12)
    @given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 99))
    def check(mask, seed):
        mask = np.asarray(mask)
        filled = np.where(mask[:, None, None], x, normal(A, 6, T, D, seed=seed))
        y, counts = apply(moe, params, filled, mask)
        assert not y[:, ~mask].any()
        shares, missed = np.zeros((max(M, A), 6, E)), 0
        for g in (0, 3):
            rows = g + np.flatnonzero(mask[g : g + 3])
            if not len(rows):
                continue
            slots = math.ceil(len(rows) * T * k * Fraction("0.7") / (E // M))
            priority = fields.get("batch_priority", False)
            expected, lost, share = loop(
                params, x[:, rows], M, k, slots, len(rows), priority, choice
            )
            np.testing.assert_allclose(y[:, rows], expected, rtol=1e-4, atol=1e-5)
            if choice:
                lost = np.mean(np.abs(expected).max(-1) == 0)
            missed, shares[:, rows] = missed + lost * len(rows), share
        own = [
            shares[m, :, m * E // M : (m + 1) * E // M] if M > 1 else shares[m]
            for m in range(len(y))
        ]
        np.testing.assert_allclose(counts["per_example"], own, rtol=1e-6)
        real = max(mask.sum(), 1)
        load = np.sum(own, axis=1).reshape(M, -1, E // M).mean(1) / real
        np.testing.assert_allclose(counts["load"], load, rtol=1e-5, atol=1e-7)
        assert counts["dropped"].mean() == pytest.approx(missed / real, abs=1e-6)
        each = counts["router"]["dropped"].reshape(len(y), 6, T).mean((0, 2))
        assert each.sum() == pytest.approx(missed, abs=1e-5) and not each[~mask].any()

    check()


def test_an_example_shares_no_slots_with_others_in_soft_routing():
    params, x = variables(1), normal(1, 3, T, D)
    params["router"] = dict(kernel=normal(D, 1, E, 2, seed=6), scale=np.ones(1, "float32"))
    moe = MoE(E, FFN, functools.partial(Soft, slots=2))
    other = np.concatenate([x[:, :2], normal(1, 1, T, D, seed=9)], axis=1)
    expected = apply(moe, params, x)[0][:, :2]
    found = apply(moe, params, other, np.asarray([True, True, False]))[0][:, :2]
    np.testing.assert_array_equal(found, expected)


def test_soft_routing_is_a_loop_over_slots():
    params, x = variables(2), normal(1, 2, T, D)
    params["router"] = dict(kernel=normal(D, 2, 2, 3, seed=6), scale=np.float32([1.5, 0.7]))
    y, _ = apply(MoE(E, FFN, functools.partial(Soft, slots=3), 2), params, x)
    unit = x[0] / np.linalg.norm(x[0], axis=-1, keepdims=True)
    for m, b in np.ndindex(2, 2):
        phi = params["router"]["kernel"][:, m]
        phi = phi / np.linalg.norm(phi, axis=0) * params["router"]["scale"][m]
        score = np.exp(np.einsum("td,dec->tec", unit[b], phi))
        inward, outward = score / score.sum(0), score / score.sum((1, 2), keepdims=True)
        slots = np.einsum("tec,td->ecd", inward, x[0, b])
        made = np.stack([expert(params, 2 * m + e, slots[e]) for e in range(2)])
        expected = np.einsum("tec,ecd->td", outward, made)
        np.testing.assert_allclose(y[m, b], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    params, x = variables(2), normal(1, 2, T, D)
    moe = MoE(E, FFN, functools.partial(TopK, capacity_factor=0.7, multiple_of=1), 2)
    weights = normal(2, 2, T, D, seed=7)

    @jax.jit
    def loss(at):
        return jnp.sum(weights * _apply(moe, *at)[0])

    at = (params, x)
    gradients = jax.jit(jax.grad(loss))(at)
    for i, g in enumerate(jax.tree.leaves(gradients)):
        step = [np.zeros_like(a) for a in jax.tree.leaves(at)]
        step[i] = 1e-2 * normal(*g.shape, seed=i)
        step = jax.tree.unflatten(jax.tree.structure(at), step)
        ends = [loss(jax.tree.map(lambda a, s, c=c: a + c * s, at, step)) for c in (1, -1)]
        expected = float(jnp.vdot(jax.tree.leaves(step)[i], g))
        # float32 sums of 60 terms differ by 1e-5; a wrong gradient by a good part of 1e-2.
        assert (ends[0] - ends[1]) / 2 == pytest.approx(expected, rel=1e-2, abs=5e-5)


def test_noise_has_the_deviation_that_was_asked_for():
    router, x = TopK(num_experts=2, k=2, noise_std=1.5, capacity_factor=None), normal(1, 1, 2000, D)
    route = jax.jit(functools.partial(router.apply, train=True, mutable=["losses", "routing"]))
    zeros = dict(params=dict(kernel=np.zeros((D, 1, 2), "float32")))
    routes, sown = route(zeros, x, rngs=dict(noise=jax.random.key(0)))
    order = np.argsort(routes.token[0, 0], axis=1)
    gate = np.take_along_axis(np.asarray(routes.gate[0, 0]), order, axis=1)
    std = np.std(np.log(gate[0]) - np.log(gate[1])) / np.sqrt(2)
    assert std == pytest.approx(1.5 / 2, rel=0.1)
    assert set(sown["losses"]) == {"importance", "load"}


def test_gshard_looks_at_the_gates_that_route():
    """With noise, as in the published code; read off the routes of tokens that see all experts."""
    weights = dict(importance_loss=0.0, load_loss=0.0, gshard_loss=0.5)
    router = TopK(num_experts=3, k=3, capacity_factor=None, **weights)
    params, x = dict(kernel=normal(D, 1, 3, seed=1)), normal(1, 2, 5, D)
    route = jax.jit(functools.partial(router.apply, train=True, mutable=["losses"]))
    routes, sown = route({"params": params}, x, rngs=dict(noise=jax.random.key(0)))
    order = np.argsort(routes.token[0], axis=-1)
    gates = np.take_along_axis(np.asarray(routes.gate[0]), order, axis=-1)  # [G, E, S]
    share = np.stack([(gates.argmax(1) == e).mean(1) for e in range(3)], axis=1)
    expected = 9 * np.mean(share * gates.mean(2))
    assert sown["losses"]["gshard"][0] == pytest.approx(0.5 * expected, rel=1e-5)
    quiet = np.exp(np.einsum("gsd,de->ges", x[0], params["kernel"][:, 0]))
    assert np.abs(quiet / quiet.sum(1, keepdims=True) - gates).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "blocks"),
    [("every 2", {1, 3, 5}), ("last 2", {3, 5}), ("every 3", {2, 5}), ((0, 4), {0, 4})],
)
def test_experts_stand_in_the_blocks_that_were_asked_for(where, blocks):
    vit = ViT(
        "tiny",
        depth=6,
        width=4,
        mlp_dim=4,
        num_heads=1,
        expert_blocks=where,
        experts=functools.partial(MoE, num_experts=2, members=2),
    )
    images = jax.ShapeDtypeStruct((1, 2, 8, 8, 1), "float32")
    y, variables = jax.eval_shape(
        lambda x: vit.init_with_output(jax.random.key(0), x, train=False), images
    )
    params = variables["params"]
    assert y.shape == (2, 2, 4)
    layers = {f"block{i:02d}": params[f"block{i:02d}"]["feed_forward"] for i in range(6)}
    assert {int(name[-2:]) for name, layer in layers.items() if "router" in layer} == blocks


def test_blocks_that_do_not_exist_are_refused():
    for where in ("last 5", "every 9", "last 0", "some", (8,), ()):
        with pytest.raises(ValueError, match="expert_blocks"):
            ViT("tiny", depth=8, experts=MoE, expert_blocks=where)
    with pytest.raises(ValueError, match="swaps"):
        ViT("tiny", depth=8, experts=MoE, swaps={1: FeedForward})


CONFIG = dict(
    backbone=dict(
        name="vit.ViT",
        variant="tiny",
        width=16,
        mlp_dim=24,
        depth=1,
        expert_blocks="every 1",
        experts=dict(
            name="experts.MoE",
            num_experts=E,
            split_rngs=True,
            router=dict(name="routers.TopK", multiple_of=1, capacity_factor=1.0),
        ),
    ),
    head=dict(name="dense.Dense", outputs=3),
    likelihood=dict(name="softmax"),
)
X = normal(4, 8, 8, 1)
key = functools.partial(jax.random.key, impl="unsafe_rbg")  # sooner compiled


@functools.cache
def network(ensemble, size=None, num_experts=E):
    spec = dict(name=ensemble) if size is None else dict(name=ensemble, size=size)
    experts = CONFIG["backbone"]["experts"] | dict(num_experts=num_experts)
    config = CONFIG | dict(ensemble=spec, backbone=CONFIG["backbone"] | dict(experts=experts))
    model = build.model(config)
    return jax.jit(model.init), jax.jit(model.forward, static_argnames="train")


def predict(ensemble, params, **fields):
    forward = network(ensemble, **fields)[1]
    return np.asarray(forward(params, {}, X, key(1), train=False)[0].mean)


def with_experts(params, fn):
    """The parameters with `fn` of those of the experts' layer."""
    block = params["backbone"]["block00"]
    block = block | dict(feed_forward=fn(block["feed_forward"]))
    return params | dict(backbone=params["backbone"] | dict(block00=block))


@pytest.mark.slow
def test_one_member_is_v_moe_and_two_are_by_a_reshape_of_its_routers():
    params = network("single")[0](key(0), X)[0]
    ones = network("e3", size=1)[0](key(0), X)[0]
    jax.tree.map(np.testing.assert_array_equal, params, ones)
    np.testing.assert_array_equal(predict("single", params), predict("e3", params, size=1))
    pairs = network("e3", size=2)[0](key(0), X)[0]
    reshaped = jax.tree.map(lambda a, b: a.reshape(b.shape), params, pairs)
    jax.tree.map(np.testing.assert_array_equal, reshaped, pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ensemble", "changes"),
    [
        (dict(name="e3", size=2), dict(remat=True)),
        (dict(name="mimo", size=2), {}),
        (dict(name="packed", size=2), {}),
        ("single", "swaps"),
    ],
)
def test_the_mask_comes_to_the_experts_through_whatever_is_around_them(ensemble, changes):
    """Three examples have the latents and features that they have by themselves."""
    few = dict(name="routers.TopK", multiple_of=1, capacity_factor=0.5)
    experts = CONFIG["backbone"]["experts"] | dict(router=few)
    if changes == "swaps":  # what replaces a layer has to say what its experts are
        ffn = dict(name="feed_forward.FeedForward", mlp_dim=24)
        changes = dict(experts=None, swaps={0: experts | dict(feed_forward=ffn)})
    backbone = CONFIG["backbone"] | dict(experts=experts, pooling="gap") | changes
    model = build.model(CONFIG | dict(ensemble=ensemble, backbone=backbone))
    variables = draw_model(model, X)
    mask, everyone = np.arange(len(X)) > 0, np.ones(len(X), bool)

    @jax.jit
    def both(x, mask=None):
        latent = model.forward(*variables, x, key(1), train=False, mask=mask)[0].mean
        return latent, model.features(*variables, x, key(1), mask)

    for a, b, other in zip(both(X[1:]), both(X, mask), both(X, everyone), strict=True):
        np.testing.assert_allclose(b[:, 1:], a, rtol=1e-4, atol=1e-5)
        assert np.abs(other[:, 1:] - a).max() > 1e-3


def test_a_mask_in_training_or_of_another_batch_is_refused():
    model = build.model(CONFIG | dict(ensemble="single"))
    params, collections = jax.eval_shape(model.init, jax.random.key(0), X)

    def forward(mask, train=False):
        def run(params, collections):
            return model.forward(
                params, collections, X, jax.random.key(0), train=train, mask=np.ones(mask, bool)
            )

        return jax.eval_shape(run, params, collections)

    with pytest.raises(ValueError, match="mask: for prediction"):
        forward(len(X), train=True)
    with pytest.raises(ValueError, match=r"mask: shape \(3,\) for 4 examples"):
        forward(3)


@pytest.mark.slow
def test_members_follow_their_blocks():
    params = network("e3", size=2)[0](key(0), X)[0]
    u = predict("e3", params, size=2)
    assert u.shape == (2, len(X), 3)
    assert np.abs(u[0] - u[1]).max() > 1e-3

    def swap(layer):
        experts = jax.tree.map(lambda a: jnp.roll(a, E // 2, axis=0), layer["experts"])
        return dict(experts=experts, router=dict(kernel=layer["router"]["kernel"][:, ::-1]))

    swapped = predict("e3", with_experts(params, swap), size=2)
    np.testing.assert_allclose(swapped, u[::-1], rtol=1e-5, atol=1e-6)

    def twice(layer):
        experts = jax.tree.map(lambda a: jnp.concatenate([a[: E // 2]] * 2), layer["experts"])
        kernel = layer["router"]["kernel"][:, :1]
        return dict(experts=experts, router=dict(kernel=jnp.tile(kernel, (1, 2, 1))))

    def half(layer):
        experts = jax.tree.map(lambda a: a[: E // 2], layer["experts"])
        return dict(experts=experts, router=dict(kernel=layer["router"]["kernel"][:, :1]))

    equal = predict("e3", with_experts(params, twice), size=2)
    np.testing.assert_allclose(equal[0], equal[1], rtol=1e-6, atol=1e-6)
    alone = predict("single", with_experts(params, half), num_experts=E // 2)
    np.testing.assert_allclose(alone[0], equal[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone[0], u[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_only_tiling_is_v_moe_with_each_of_the_routers():
    params, x = variables(2), normal(1, 4, T, D)
    params["router"] = dict(kernel=normal(D, 2, E, seed=1))
    router = functools.partial(TopK, k=2, capacity_factor=0.7, multiple_of=1)
    moe = MoE(E, FFN, router, 2, partition=False)
    tiled, counts = apply(moe, params, x)
    assert counts["load"].shape == (2, E)
    for m in range(2):
        own = params | dict(router=dict(kernel=params["router"]["kernel"][:, m : m + 1]))
        slots = int(np.ceil(4 * T * 2 * 0.7 / E))
        expected, _, _ = loop(own, x, 1, 2, slots, 4, False)
        np.testing.assert_allclose(tiled[m], expected[0], rtol=1e-4, atol=1e-5)
    again, _ = jax.eval_shape(functools.partial(_apply, moe), params, tiled)
    assert again.shape == (2, 4, T, D)  # and so does a layer that finds members


def test_only_partitioning_adds_up_the_blocks():
    params, x = variables(2), normal(1, 4, T, D)
    router = functools.partial(TopK, capacity_factor=0.7, multiple_of=1)
    y, _ = apply(MoE(E, FFN, router, 2, tile=False), params, x)
    slots = int(np.ceil(4 * T * 0.7 / (E // 2)))
    expected, _, _ = loop(params, x, 2, 1, slots, 4, False)
    np.testing.assert_allclose(y, expected.sum(0, keepdims=True), rtol=1e-4, atol=1e-5)


def test_halves_that_are_nothing_are_refused():
    with pytest.raises(ValueError, match="partition, tile"):
        MoE(E, FFN, members=2, partition=False, tile=False)
    with pytest.raises(ValueError, match="an earlier part makes 2"):
        apply(MoE(E, FFN, members=2, tile=False), variables(2), normal(2, 4, T, D))
