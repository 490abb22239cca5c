"""Rules that make parameters of checkpoints, against networks and loops in plain NumPy."""

import functools
import itertools
import math
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uncertainty import build
from uncertainty.restore import plan as pretrained
from uncertainty.restore.plan import OPS, plan
from uncertainty.rules import path_of

RNG = np.random.default_rng(0)
B, H, W, P, D, F, N, K = 3, 12, 12, 4, 8, 24, 2, 5  # images, patch, width, MLP, heads, classes
E = 4


def random(*shape):
    return RNG.normal(0, 0.5, shape).astype(np.float32)


def augreg(depth=2, tokens=10):
    """A checkpoint as vision_transformer writes it."""
    found = {
        "embedding/kernel": random(P, P, 3, D),
        "embedding/bias": random(D),
        "cls": random(1, 1, D),
        "Transformer/posembed_input/pos_embedding": random(1, tokens, D),
        "Transformer/encoder_norm/scale": random(D),
        "Transformer/encoder_norm/bias": random(D),
        "head/kernel": random(D, K),
        "head/bias": random(K),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}/"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            found |= {block + norm + "/scale": random(D), block + norm + "/bias": random(D)}
        attention = block + "MultiHeadDotProductAttention_1/"
        for name in ("query", "key", "value"):
            found[attention + name + "/kernel"] = random(D, N, D // N)
            found[attention + name + "/bias"] = random(N, D // N)
        found |= {attention + "out/kernel": random(N, D // N, D), attention + "out/bias": random(D)}
        for j, (a, b) in enumerate(((D, F), (F, D))):
            found[f"{block}MlpBlock_3/Dense_{j}/kernel"] = random(a, b)
            found[f"{block}MlpBlock_3/Dense_{j}/bias"] = random(b)
    return found


def big_vision(old, scanned=False):
    """The same arrays in the names of newer big_vision: state of a training, positions apart."""
    new = {"opt/0/count": np.zeros(()), "chrono": np.zeros(())}
    names = {
        "LayerNorm_2": "LayerNorm_1",
        "MlpBlock_3": "MlpBlock_0",
        "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
        "Transformer/posembed_input/": "",
    }
    layers = {}
    for name, array in old.items():
        for a, b in names.items():
            name = name.replace(a, b)
        number = re.search(r"encoderblock_(\d+)/", name)
        if scanned and number:
            stacked = name.replace(number[0], "encoderblock/")
            layers.setdefault(stacked, {})[int(number[1])] = array
        else:
            new["params/" + name] = array
    for name, arrays in layers.items():
        new["params/" + name] = np.stack([arrays[i] for i in range(len(arrays))])
    return new


def released(old, experts, members=0):
    """The same arrays in the names of V-MoE, with mixtures of experts in the blocks `experts`."""
    new = {}
    for name, array in old.items():
        for a, b in {
            "Transformer/": "Encoder/",
            "MultiHeadDotProductAttention_1": "SelfAttention",
            "LayerNorm_2": "LayerNorm_1",
            "MlpBlock_3": "Mlp",
        }.items():
            name = name.replace(a, b)
        i = re.search(r"encoderblock_(\d+)/Mlp/", name)
        if i and int(i[1]) in experts:
            name, array = name.replace("Mlp", "Moe/Mlp"), random(E, *array.shape)
        new[name] = array
    shape = (D, members, E // members) if members else (D, E)
    new |= {f"Encoder/encoderblock_{i}/Moe/Router/dense/kernel": random(*shape) for i in experts}
    return new


def forward(c, x, experts=()):
    """Logits [B, K] of a ViT in AugReg's names, one image and one head at a time."""

    def norm(x, name):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * c[name + "/scale"] + c[name + "/bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    logits = []
    for image in x:
        tokens = [c["cls"][0, 0]]
        for i in range(0, H, P):
            for j in range(0, W, P):
                patch = image[i : i + P, j : j + P]
                tokens.append(np.tensordot(patch, c["embedding/kernel"], 3) + c["embedding/bias"])
        t = np.stack(tokens) + c["Transformer/posembed_input/pos_embedding"][0]
        for b in range(2):
            block = f"Transformer/encoderblock_{b}/"
            y, a = norm(t, block + "LayerNorm_0"), block + "MultiHeadDotProductAttention_1/"
            for h in range(N):
                q, k, v = (
                    y @ c[f"{a}{n}/kernel"][:, h] + c[f"{a}{n}/bias"][h]
                    for n in ("query", "key", "value")
                )
                w = np.exp(q @ k.T / np.sqrt(D // N))
                t = t + (w / w.sum(1, keepdims=True)) @ v @ c[a + "out/kernel"][h]
            t = t + c[a + "out/bias"]
            y, m = norm(t, block + "LayerNorm_2"), block + "MlpBlock_3/Dense_"
            y = gelu(y @ c[m + "0/kernel"] + c[m + "0/bias"])
            t = t + y @ c[m + "1/kernel"] + c[m + "1/bias"]
        logits.append(norm(t, "Transformer/encoder_norm")[0] @ c["head/kernel"] + c["head/bias"])
    return np.stack(logits)


def model_of(ensemble="single", depth=2, **backbone):
    sizes = dict(patch_size=P, width=D, depth=depth, num_heads=N, mlp_dim=F)
    return build.model(
        dict(
            backbone=dict(name="vit.ViT", variant="tiny", **sizes, **backbone),
            ensemble=ensemble,
            head=dict(name="dense.Dense", outputs=K),
            likelihood="softmax",
        )
    )


def targets(model, size=H):
    x = jnp.zeros((1, size, size, 3))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), x)
    return {path_of(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(params)}


def converted(source, model, layout="vit", size=H, **options):
    target = targets(model, size)
    options = dict(patches=(1, size // P, size // P)) | options
    moves = plan({k: v.shape for k, v in source.items()}, target, layout, **options)
    return {path: move(source[move.source], target[path]) for path, move in moves.items()}


def logits_of(model, flat, x):
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    forward = jax.jit(lambda p, x: model.forward(p, {}, x, jax.random.key(1), train=False)[0].mean)
    return np.asarray(forward(params, x))


def images():
    return np.random.default_rng(1).normal(0, 1, (B, H, W, 3)).astype(np.float32)


def test_a_vit_of_augreg_says_what_it_says_in_numpy():
    source, x, model = augreg(), images(), model_of()
    expected = forward(source, x)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(
        logits_of(model, converted(source, model), x)[0], expected, atol=1e-4
    )


@pytest.mark.parametrize("scanned", [False, True])
def test_big_vision_is_augreg_in_other_names(scanned):
    """More than ten blocks, so that the order of names is not that of numbers."""
    source, model = augreg(depth=11), model_of(depth=11)
    expected = converted(source, model)
    found = converted(big_vision(source, scanned), model)
    assert found.keys() == expected.keys() == targets(model).keys()
    for path in found:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def test_positions_of_patches_alone_leave_the_class_token_where_it_is():
    source, x, model = augreg(), images(), model_of()
    first, rest = np.split(source["Transformer/posembed_input/pos_embedding"], [1], axis=1)
    newer = big_vision({**source, "cls": source["cls"] + first})
    newer["params/pos_embedding"] = rest
    found = logits_of(model, converted(newer, model), x)
    np.testing.assert_allclose(found[0], forward(source, x), atol=1e-4)


MOE = dict(experts=dict(name="experts.MoE", num_experts=E), expert_blocks=(1,))


@pytest.mark.parametrize(("members", "stored"), [(1, 0), (2, 2), (2, 0), (1, 2)])
def test_a_released_v_moe_becomes_v_moe_and_e3(members, stored):
    source = released(augreg(), (1,), stored)
    model = model_of(dict(name="e3", size=members), **MOE)
    found = converted(source, model, "vmoe")
    assert found.keys() == targets(model).keys()
    block = "backbone/block01/feed_forward/"
    router = source["Encoder/encoderblock_1/Moe/Router/dense/kernel"]
    for e in range(E):  # experts keep their order, and the members have E / M of them each
        m, own = divmod(e, E // members)
        there = router[:, e] if not stored else router[:, e // (E // stored), e % (E // stored)]
        np.testing.assert_array_equal(found[block + "router/kernel"][:, m, own], there)
    for layer in ("Dense_0", "Dense_1"):
        there = source[f"Encoder/encoderblock_1/Moe/Mlp/{layer}/kernel"]
        name = block + f"experts/{layer.lower().replace('_', '')}/kernel"
        np.testing.assert_array_equal(found[name], there)


def test_one_mlp_becomes_all_experts():
    """Experts that are equal to the MLP, of which each token gets one with its gate."""
    source, model = augreg(), model_of(**MOE)
    pattern = r"Transformer/encoderblock_1/MlpBlock_3/Dense_(\d)/(kernel|bias)"
    rule = (pattern, "backbone/block01/feed_forward/experts/dense{1}/{2}", "tile")
    found = converted(source, model, rules=[rule], keep=["router/kernel"])
    for path in targets(model):
        if "experts" in path:
            i, name = path[-8 if path.endswith("l") else -6], path.rpartition("/")[2]
            dense = source[f"Transformer/encoderblock_1/MlpBlock_3/Dense_{i}/{name}"]
            for expert in found[path]:
                np.testing.assert_array_equal(expert, dense)


def test_batch_ensemble_shares_the_kernels_of_a_network():
    """With fast weights of one every member is the deterministic network."""
    x, plain = images(), model_of()
    flat = converted(augreg(), plain)
    model = model_of(dict(name="batch_ensemble", size=3))
    found = converted(flat, model, "own", keep=["/fast_"])
    ones = {path: np.ones(s) for path, s in targets(model).items() if "/fast_" in path}
    logits = logits_of(model, {**found, **ones}, x)
    assert logits.shape == (3, B, K)
    for member in logits:
        np.testing.assert_allclose(member, logits_of(plain, flat, x)[0], atol=1e-4)


def test_a_v_moe_of_ours_becomes_an_e3():
    source = converted(released(augreg(), (1,)), model_of(**MOE), "vmoe")
    found = converted(source, model_of(dict(name="e3", size=2), **MOE), "own")
    path = "backbone/block01/feed_forward/router/kernel"
    np.testing.assert_array_equal(found[path][:, 1, 0], source[path][:, 0, 2])
    assert all(np.array_equal(found[k], source[k]) for k in source if k != path)


def test_frozen_parameters_are_restored_as_others():
    """Positions are resized, biases tiled and routers reshaped; other collections keep theirs."""
    shapes = {
        "backbone/position_embedding": (1, 10, D),
        "backbone/block00/feed_forward/router/kernel": (D, 1, E),
        "backbone/block00/feed_forward/dense0/bias": (F,),
        "backbone/block00/feed_forward/dense0/kernel": (D, F),
    }
    target = {
        "backbone/position_embedding": (1, 5, D),
        "backbone/block00/feed_forward/router/kernel": (D, 2, E // 2),
        "backbone/block00/feed_forward/dense0/bias": (2, F),
        "backbone/block00/feed_forward/dense0/kernel": (D, F),
    }
    rest = {"head/logits/kernel": (D, K), "masks/backbone/mask": (4, D)}
    trained, frozen = (
        plan(
            {prefix + path: shape for path, shape in shapes.items()} | rest,
            target | rest,
            "own",
            patches=(1, 2, 2),
        )
        for prefix in ("", "frozen/")
    )
    assert trained.keys() == frozen.keys() == target.keys() | rest.keys()
    for path, move in trained.items():
        x = random(*(shapes | rest)[path])
        assert frozen[path].source == "frozen/" * (path in shapes) + path
        np.testing.assert_array_equal(
            frozen[path](x, (target | rest)[path]), move(x, (target | rest)[path])
        )


GRIDS = [(3, 3), (5, 5), (2, 4), (4, 2), (1, 8), (1, 1), (7, 3)]


def resized(x, old, new):
    """[rows, columns, D] at the places of a new grid with the same corners, one row at a time."""
    (h, w), (H, W), D = old, new, x.shape[-1]
    at = [np.arange(N) * (n - 1) / max(N - 1, 1) for n, N in zip(old, new, strict=True)]
    rows = np.zeros((h, W, D))
    for i, d in np.ndindex(h, D):
        rows[i, :, d] = np.interp(at[1], np.arange(w), x[i, :, d])
    made = np.zeros((H, W, D))
    for j, d in np.ndindex(W, D):
        made[:, j, d] = np.interp(at[0], np.arange(h), rows[:, j, d])
    return made


@pytest.mark.parametrize("old", GRIDS)
@pytest.mark.parametrize("token", [0, 1])
def test_positions_are_bilinear_between_corners(old, token):
    x = random(1, token + math.prod(old), D)
    for new, wanted in itertools.product(GRIDS, (0, 1)):
        target = (1, wanted + math.prod(new), D)
        found = OPS["positions"](x, target, (wanted, *new), old)
        expected = resized(x[0, token:].reshape(*old, D), old, new)
        np.testing.assert_allclose(found[0, wanted:].reshape(*new, D), expected, atol=1e-5)
        if wanted:
            np.testing.assert_array_equal(found[0, 0], x[0, 0] if token else np.zeros(D))


def test_the_last_corner_is_no_zero():
    """Sides whose last place is beyond the grid by rounding."""
    for old, new in ((8, 26), (16, 30), (32, 16)):
        found = OPS["positions"](
            np.ones((1, old, 2), np.float32), (1, new, 2), (0, 1, new), (1, old)
        )
        np.testing.assert_array_equal(found, np.ones((1, new, 2)))


@pytest.mark.parametrize(
    "patches", [(0, 3, 3), (1, 3, 3), (0, 2, 4), (1, 2, 4), (1, 2, 8), (0, 1, 5)]
)
def test_grids_are_squares_unless_they_are_told(patches):
    """Refused are numbers of no square, and those of the model's own grid, if that is none."""
    target = (1, patches[0] + patches[1] * patches[2], D)
    for T in range(1, 27):
        x = random(1, T, D)
        squares = [n for t in (0, 1) for n in range(1, 6) if t + n * n == T]
        own = patches[1] != patches[2] and T - patches[1] * patches[2] in (0, 1)
        if len(squares) == 1 and not own:
            np.testing.assert_array_equal(
                OPS["positions"](x, target, patches),
                OPS["positions"](x, target, patches, squares * 2),
            )
        else:
            with pytest.raises(ValueError, match=rf"{T} positions do not determine .*set `grid`"):
                OPS["positions"](x, target, patches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "10 positions do not determine .* set `grid`"),
        (dict(grid=(3, 4)), "grid: 3 x 4 patches, with or without a class token, do not have 10"),
        (dict(patches=None), "the model does not define the grid"),
        (dict(patches=(0, 3, 3)), "10 positions do not match 0 class tokens and 3 x 3"),
    ],
)
def test_positions_that_cannot_be_placed_are_refused(options, message):
    """9 patches of 1 x 9 here, and a class token: 3 x 3 there, for all that the numbers tell."""
    source, target = {k: v.shape for k, v in augreg().items()}, targets(model_of())
    with pytest.raises(ValueError, match=f"position_embedding .*, but {message}"):
        plan(source, target, "vit", **{"patches": (1, 1, 9), **options})
    plan(source, target, "vit", patches=(1, 1, 9), grid=(3, 3))
    plan(source, target, "vit", patches=(1, 1, 9), keep=["position_embedding"])


def test_positions_grow_with_the_image():
    model = model_of()
    found = converted(augreg(), model, size=20)["backbone/position_embedding"]
    assert found.shape == (1, 26, D)


def test_positions_without_class_token():
    x = random(1, 10, D)
    np.testing.assert_array_equal(OPS["positions"](x, (1, 9, D), (0, 3, 3)), x[:, 1:])
    found = OPS["positions"](x[:, 1:], (1, 10, D), (1, 3, 3))
    np.testing.assert_array_equal(found, np.concatenate([np.zeros((1, 1, D)), x[:, 1:]], axis=1))


def test_strict_in_both_directions():
    """Whatever is left out, added or of another shape is named."""
    source, target = {k: v.shape for k, v in augreg().items()}, targets(model_of())
    plan = functools.partial(pretrained.plan, patches=(1, 3, 3))
    moves = plan(source, target, "vit")
    for path in source:
        where = next(t for t, move in moves.items() if move.source == path)
        less = {k: s for k, s in source.items() if k != path}
        with pytest.raises(ValueError, match=re.escape(where) + r" \[.*nothing in the checkpoint"):
            plan(less, target, "vit")
        assert where not in plan(less, target, "vit", keep=[re.escape(where)])
        other = {**source, path: (*source[path], 1)}
        with pytest.raises(ValueError, match=re.escape(path) + r" \["):
            plan(other, target, "vit")
        less = {k: s for k, s in target.items() if k != where}
        with pytest.raises(ValueError, match=re.escape(where) + ", which is not a parameter"):
            plan(source, less, "vit")
        plan(source, less, "vit", rules=[(re.escape(path), None)])
    with pytest.raises(ValueError, match=r"head/kernle .* no rule matches it"):
        plan({**source, "head/kernle": (1,)}, target, "vit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layout="vitt"), "layout: 'vitt'; did you mean 'vit'"),
        (dict(rules=["cls"]), r"rules\[0\]: 'cls' is not \(pattern, path or None, \*ops\)"),
        (dict(rules=[("cls", 3)]), "is not"),
        (dict(rules=[("(", None)]), "is not a regular expression"),
        (dict(rules=[("cls", "a", "transpos")]), "no op 'transpos' here; did you mean 'transpose'"),
        (dict(rules=[("cls", "a", "tile", "split")]), "no op 'split' here"),
        (dict(rules=[("cls", "a{1}")]), r"rules: 'a\{1\}' cannot be formatted for 'cls'"),
        (dict(rules=[("cls", "head/logit/bias")]), "did you mean 'head/logits/bias'"),
        (dict(rules=[("cls", "head/logits/bias")]), "and so does"),
        (dict(rules=[("cls", "backbone/class_token", ("merge", 4))]), "class_token .*, but"),
        (dict(rules=[("cls", "backbone/class_token", ("merge", 0))]), r"it becomes \[1, 8\]"),
        (dict(rules=[("clss", None)]), r"rules\[0\]: 'clss' matches nothing"),
        (dict(keep=["hed/"]), "keep: 'hed/' matches no parameter's path"),
        (dict(keep="head/"), "keep: 'head/' is not a list"),
    ],
)
def test_bad_rules_are_named(options, message):
    source, target = {k: v.shape for k, v in augreg().items()}, targets(model_of())
    with pytest.raises(ValueError, match=message):
        plan(source, target, **{"layout": "vit", "patches": (1, 3, 3), **options})


def test_pooling_by_attention_is_told_apart():
    source = {"MAPHead_0/probe": (1, 1, D), **{k: v.shape for k, v in augreg().items()}}
    with pytest.raises(ValueError, match=r"no pooling by attention \(MAP head\)"):
        plan(source, targets(model_of()), "vit")


@pytest.mark.slow
def test_fast_weights_learn_at_a_rate_of_their_own():
    """One step of SGD with and without the rule: half as far for fast weights alone."""
    config = dict(
        backbone=dict(name="mlp.MLP", widths=(4,)),
        ensemble=dict(name="batch_ensemble", size=2),
        head=dict(name="dense.Dense", outputs=3),
        likelihood="softmax",
        inference=dict(name="particles", executor="vmap"),
        steps=1,
    )
    x = random(6, 5)
    batch = dict(x=x, y=np.arange(6) % 3)
    moved = {}
    for name, rules in dict(alike=(), half=(("fast_", 0.5),)).items():
        sgd = dict(name="sgd", learning_rate=0.1, momentum=0.9, multipliers=rules)
        inference = build.inference({**config, "optimiser": sgd})
        state = inference.init(jax.random.key(0), x)
        after, _ = jax.jit(inference.update)(state, batch)
        moved[name] = jax.tree.map(lambda a, b: np.asarray(a - b), after.params, state.params)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(moved["alike"]),
        jax.tree.leaves(moved["half"]),
        strict=True,
    )
    for (key, alike), half in pairs:
        factor = 0.5 if "fast_" in path_of(key) else 1.0
        assert np.abs(alike).max() > 1e-4
        np.testing.assert_allclose(half, factor * alike, rtol=1e-3, atol=1e-7)
