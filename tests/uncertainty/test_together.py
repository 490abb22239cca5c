"""What functions are charged for together: formulas in NumPy, over members and over particles."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.uncertainty.classes import B, D, K, batch, kernel, linear, softmax
from uncertainty import build, likelihoods
from uncertainty.inference import executors
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.svgd import svgd
from uncertainty.inference.directions.together import together
from uncertainty.inference.particles import particles
from uncertainty.objectives.d_bat import d_bat
from uncertainty.objectives.dare import dare
from uncertainty.objectives.disagreement import disagreement
from uncertainty.objectives.divdis import divdis
from uncertainty.objectives.label_smoothing import label_smoothing
from uncertainty.objectives.negative_correlation import negative_correlation
from uncertainty.optimisers.optimiser import adam, optimiser, sgd
from uncertainty.types import Latent, Model, Target

N, U = 3, 7  # functions, unlabelled inputs
RNG = np.random.default_rng(0)
BATCH = batch() | dict(more=dict(x=jnp.asarray(RNG.normal(size=(U, D)), jnp.float32)))
LOGITS = RNG.normal(0, 2, (N, U, K))
PROBS = softmax(LOGITS)


SOFTMAX, GAUSSIAN = likelihoods.softmax(), likelihoods.gaussian()


def charged(objective, logits=LOGITS, likelihood=SOFTMAX, **fields):
    """The common loss of functions with these logits, and its metrics."""
    loss = functools.partial(objective.together.loss, likelihood)
    latent = Latent(jnp.asarray(logits, jnp.float32), **fields)
    return jax.tree.map(float, jax.jit(lambda u: loss(u, None, 0))(latent))


def divdis_by_loops(p, weight, prior_weight, prior):
    information, apart = [], []
    for i, j in itertools.combinations(range(len(p)), 2):
        joint = sum(np.outer(a, b) for a, b in zip(p[i], p[j], strict=True)) / p.shape[1]
        outer = np.outer(p[i].mean(0), p[j].mean(0))
        information.append(np.sum(joint * np.log(joint / outer)))
    for one in p:
        apart.append(np.sum(one.mean(0) * np.log(one.mean(0) / prior)))
    value = weight * np.mean(information) + prior_weight * np.mean(apart)
    return value, dict(mutual_information=np.mean(information), prior_kl=np.mean(apart))


@pytest.mark.parametrize("prior", [None, (0.2, 0.5, 0.3)])
def test_divdis_is_its_formula(prior):
    made = divdis(weight=3.0, prior_weight=0.7, prior=prior)
    of = np.full(K, 1 / K) if prior is None else np.array(prior)
    value, metrics = charged(made)
    expected, numbers = divdis_by_loops(PROBS, 3.0, 0.7, of)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert metrics == pytest.approx(numbers, rel=1e-5)


def test_divdis_tells_independence_from_agreement():
    one, other = (60 * np.eye(2)[list(labels)] for labels in ((0, 0, 1, 1), (0, 1, 0, 1)))
    only = functools.partial(divdis, weight=1.0, prior_weight=0.0)
    for pair, expected in (((one, other), 0.0), ((one, one), np.log(2)), ((one, -one), np.log(2))):
        assert charged(only(), np.stack(pair))[0] == pytest.approx(expected, abs=1e-6)
    grad = jax.jit(
        jax.grad(lambda u: only().together.loss(likelihoods.softmax(), Latent(u), None, 0)[0])
    )
    assert np.isfinite(grad(1e4 * jnp.stack([one, one]))).all()  # where probabilities underflow


def d_bat_by_loops(p, weight, by="earlier"):
    total = 0.0
    for m in range(1, len(p)):
        each = []
        for j in range(m):
            for x in range(p.shape[1]):
                c = p[j if by == "earlier" else m, x].argmax()
                a, b = p[j, x, c], p[m, x, c]
                each.append(-np.log(a * (1 - b) + b * (1 - a) + 1e-7))
        total += np.mean(each)
    return weight * total / len(p)


@pytest.mark.parametrize("by", ["earlier", "new"])
def test_d_bat_is_its_formula(by):
    for joint in (False, True):
        value, metrics = charged(d_bat(weight=0.6, joint=joint, labels_of=by))
        np.testing.assert_allclose(value, d_bat_by_loops(PROBS, 0.6, by), rtol=1e-5)
        assert 0 < metrics["disagreement"] < 1
    sure = 60 * np.eye(K)[RNG.integers(0, K, U)]
    same, apart = (
        charged(d_bat(), np.stack([sure, other])) for other in (sure, np.roll(sure, 1, 1))
    )
    assert apart[0] == pytest.approx(0, abs=1e-5) and apart[1]["disagreement"] == pytest.approx(1)
    assert same[0] == pytest.approx(-np.log(1e-7) / 2, rel=1e-5)


@pytest.mark.parametrize("joint", [False, True])
def test_earlier_functions_of_d_bat_are_constants_unless_joint(joint):
    loss = d_bat(joint=joint).together.loss
    u = jnp.asarray(LOGITS, jnp.float32)
    grad = jax.jit(jax.grad(lambda u: loss(likelihoods.softmax(), Latent(u), None, 0)[0]))(u)
    for n, x in ((0, 1), (1, 2), (2, 3)):  # by differences, of the later ones with the others fixed
        step = np.zeros_like(LOGITS)
        step[n, x, 1] = 1e-5

        def moved(sign, n=n, step=step):
            p = softmax(LOGITS + sign * step)
            if joint:
                return d_bat_by_loops(p, 1.0)
            pairs = [np.stack([PROBS[j], p[n]]) for j in range(n)]
            return sum(2 * d_bat_by_loops(pair, 1.0) for pair in pairs) / max(n, 1) / N

        expected = (moved(1) - moved(-1)) / 2e-5
        np.testing.assert_allclose(grad[n, x, 1], expected, rtol=1e-3, atol=1e-6)
    assert joint or not grad[0].any()


def distances_by_loops(p, kind):
    each = []
    for i, j in itertools.combinations(range(len(p)), 2):
        a, b = p[i], p[j]
        each.append({
            "l1": lambda a, b: np.abs(a - b).sum(-1) / 2,
            "l2": lambda a, b: ((a - b) ** 2).sum(-1) / 2,
            "kl": lambda a, b: 1 - np.exp(-((a * np.log(a / b)).sum(-1)
                                            + (b * np.log(b / a)).sum(-1)) / 2),
        }[kind](a, b))  # fmt: skip
    return np.mean(each, axis=0)


@pytest.mark.parametrize("kind", ["kl", "l1", "l2", "std"])
def test_disagreement_is_its_formula(kind):
    value, metrics = charged(disagreement(kind, weight=0.4))
    apart = np.sqrt(distances_by_loops(PROBS, "l2")) if kind == "std" else None
    apart = distances_by_loops(PROBS, kind) if apart is None else apart
    np.testing.assert_allclose(metrics["disagreement"], apart.mean(), rtol=1e-5)
    np.testing.assert_allclose(value, 0.4 * (1 - apart.mean()), rtol=1e-5)
    if kind == "l2":
        np.testing.assert_allclose(apart.mean(), PROBS.var(0, ddof=1).sum(-1).mean())
    sure = 60 * np.eye(K)[RNG.integers(0, K, U)]
    for other, most in ((sure, 0.0), (np.roll(sure, 1, 1), 1.0)):
        got = charged(disagreement(kind), np.stack([sure, other]))[1]["disagreement"]
        assert got == pytest.approx(most, abs=2e-6)


def test_negative_correlation_of_weight_one_fits_the_mean():
    y, f = RNG.normal(size=(U, 2)), RNG.normal(size=(N, U, 2))
    for weight in (0.0, 0.3, 1.0):
        value, metrics = charged(negative_correlation(weight), f, GAUSSIAN)
        own = ((f - y) ** 2).sum(-1).mean() / 2
        mixed = ((f.mean(0) - y) ** 2).sum(-1).mean() / 2
        np.testing.assert_allclose(own + value, (1 - weight) * own + weight * mixed, rtol=1e-5)
        np.testing.assert_allclose(metrics["variance"], f.var(0).sum(-1).mean(), rtol=1e-5)
    loss = negative_correlation(0.3).together.loss
    grad = jax.grad(lambda u: loss(GAUSSIAN, Latent(u), None, 0)[0])(jnp.asarray(f, jnp.float32))
    np.testing.assert_allclose(N * U * grad, -0.3 * (f - f.mean(0)), rtol=1e-4, atol=1e-6)  # eq. 6


# Over members, and over particles


def heads():
    """N linear classifiers as the members of one network that shares nothing."""

    def init(key, x):
        return {"layer": {"kernel": jax.random.normal(key, (N, D, K))}}, {}

    def forward(params, collections, x, key, *, train, mutable=(), mask=None):
        u = jnp.einsum("bd,mdk->mbk", x, params["layer"]["kernel"])
        return Latent(u), collections, jnp.zeros(())

    return Model(init, forward, likelihoods.softmax())


OBJECTIVES = {
    "divdis": divdis(2.0, 0.5, stream="more"),
    "d_bat": d_bat(stream="more"),
    "joint": d_bat(joint=True, stream="more"),
    "std": disagreement("std", stream="more"),
    "negative_correlation": negative_correlation(0.4),
}


def direct(objective, model, params, direction, b=BATCH, size=N, **fields):
    made = particles(model, sgd(), size=size, executor="vmap")
    state = made.init(jax.random.key(0), BATCH["x"]).replace(params=params)
    update = direction(executors.vmap, objective=objective, **fields).update
    return jax.jit(lambda state, b: update(model, state, b, state.key))(state, b)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_particles_follow_the_loss_of_members_that_share_nothing(name):
    W = RNG.normal(size=(N, D, K)).astype(np.float32)
    objective, likelihood, b = OBJECTIVES[name], SOFTMAX, BATCH
    if name == "negative_correlation":
        likelihood, b = GAUSSIAN, BATCH | dict(y=jax.nn.one_hot(BATCH["y"], K))
    alone, members = (made._replace(likelihood=likelihood) for made in (linear(), heads()))
    apart, _, metrics = direct(objective, alone, {"layer": {"kernel": W}}, together, b)
    joined, _, of_members = direct(
        objective, members, {"layer": {"kernel": W[None]}}, independent, b, size=1
    )
    np.testing.assert_allclose(kernel(apart), N * kernel(joined)[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["nll"][:, 0], of_members["nll"][0], rtol=1e-5)
    common = of_members["loss"][0] - metrics["nll"].mean()
    np.testing.assert_allclose(metrics["loss"], metrics["nll"].mean((1, 2)) + common, rtol=1e-4)
    x = BATCH["x"] if objective.together.stream is None else BATCH["more"]["x"]
    value, numbers = charged(objective, np.einsum("bd,mdk->mbk", x, W), likelihood)
    np.testing.assert_allclose(common, value, rtol=1e-3, atol=1e-6)
    for key, number in numbers.items():
        np.testing.assert_allclose(metrics[key], np.full(N, number), rtol=1e-4)
        np.testing.assert_allclose(of_members[key], [number], rtol=1e-4)


def test_examples_of_particles_own_leave_the_stream_shared():
    W = RNG.normal(size=(N, D, K)).astype(np.float32)
    own = batch(1, N) | dict(more=BATCH["more"])
    objective, fields = OBJECTIVES["joint"], dict(own_examples=True)
    g, _, _ = direct(objective, linear(), {"layer": {"kernel": W}}, together, own, **fields)
    alone, _, _ = direct(build_likelihood(), linear(), {"layer": {"kernel": W}}, independent, own,
                         **fields)  # fmt: skip
    shared, _, _ = direct(objective, linear(), {"layer": {"kernel": W}}, together)
    plain, _, _ = direct(build_likelihood(), linear(), {"layer": {"kernel": W}}, independent)
    np.testing.assert_allclose(kernel(g) - kernel(alone), kernel(shared) - kernel(plain), atol=1e-5)
    with pytest.raises(ValueError, match=r"objective.stream: None, but each particle has its own"):
        direct(
            disagreement(stream=None), linear(), {"layer": {"kernel": W}}, together, own, **fields
        )


def build_likelihood():
    return build.make("objectives", dict(name="likelihood"), "objective")


def test_particles_in_turn_are_those_of_the_paper():
    """One after the other, by a loop of its own: with Adam, a schedule and decay of their own."""
    steps, rate = 3, lambda count: 0.1 / (1 + count)
    method = optimiser(adam(), 0.1, schedule=lambda s: 1 / (1 + s), weight_decay=[(".*", 0.1)])
    made = particles(
        linear(), method, size=2, direction=together, executor="vmap",
        objective=d_bat(weight=0.7, steps_each=steps, stream="more"),
    )  # fmt: skip
    state = made.init(jax.random.key(0), BATCH["x"])
    first, update = kernel(state), jax.jit(made.update)
    earlier = []
    x, y, more = (jnp.asarray(a) for a in (BATCH["x"], BATCH["y"], BATCH["more"]["x"]))

    def loss(W):
        nll = -jnp.mean(jax.nn.log_softmax(x @ W)[jnp.arange(B), y])
        for V in earlier:
            p, q = jax.nn.softmax(more @ V), jax.nn.softmax(more @ W)
            c = p.argmax(-1)[:, None]
            p, q = (jnp.take_along_axis(a, c, 1) for a in (p, q))
            nll += 0.7 * jnp.mean(-jnp.log(p * (1 - q) + q * (1 - p) + 1e-7))
        return nll

    by_hand = optax.adamw(rate, weight_decay=0.1)
    for p in range(2):
        W = jnp.asarray(first[p], jnp.float32)
        opt = by_hand.init(W)
        for _ in range(steps):
            before = kernel(state)
            state, metrics = update(state, BATCH)
            np.testing.assert_array_equal(kernel(state)[1 - p], before[1 - p])
            assert np.asarray(metrics["finite"]).all()
            np.testing.assert_array_equal(metrics["nll"][0], metrics["nll"][1])
            alone = -np.log(softmax(np.asarray(x) @ before[p])[np.arange(B), np.asarray(y)])
            np.testing.assert_allclose(metrics["nll"][p, 0], alone, rtol=1e-4)  # of the trained one
            move, opt = by_hand.update(jax.grad(loss)(W), opt, W)
            W = W + move
        np.testing.assert_allclose(kernel(state)[p], W, rtol=1e-4, atol=1e-6)
        earlier.append(W)
    assert [int(c) for c in jax.tree.leaves(state.opt_state) if c.dtype == jnp.int32 for c in c[:1]]
    state, _ = update(state, BATCH)  # the last particle goes on after its turn
    np.testing.assert_array_equal(kernel(state)[0], np.asarray(earlier[0], np.float64))


def test_particles_in_turn_have_schedules_of_their_own():
    rates = dict(name="sgd", learning_rate=0.5, schedule=dict(name="cosine"))
    alone = dict(steps=4, optimiser=rates)
    turns = dict(alone, steps=8, objective=dict(name="d_bat", steps_each=4))
    for step in range(8):
        assert build.schedule(turns)(step) == build.schedule(alone)(step % 4)
    moves = []
    for config in (alone, turns):
        made, w = build.optimiser(config), jnp.ones(())
        state = made.init(w)
        moves.append([])
        for _ in range(4):
            move, state = made.update(w, state, w)
            moves[-1].append(float(move))
    assert moves[0] == moves[1] and moves[0][3] > moves[0][0] / 3
    for steps, size in ((9, 2), (4, 2), (8, 1)):
        particles = dict(name="particles", size=size)
        message = f"steps: {steps}, but objective.steps_each=4 trains {size} particles in "
        with pytest.raises(build.ConfigError, match=message):
            build.inference(dict(turns, steps=steps, inference=particles))


def test_repetitions_of_a_mimo_are_no_other_functions():
    mimo = dict(name="mimo", size=2, batch_repetitions=2)
    config = dict(ensemble=mimo, inference="particles", steps=1, objective="disagreement")
    with pytest.raises(
        build.ConfigError, match=r"ensemble\.batch_repetitions: 2, but the objective"
    ):
        build.inference(config)


@pytest.mark.slow
def test_devices_do_not_change_particles():
    from experiments.runtime import execution

    made = particles(linear(), sgd(), size=4, direction=together, executor="vmap",
                     objective=d_bat(steps_each=1, stream="more"))  # fmt: skip
    state = made.init(jax.random.key(0), BATCH["x"]).replace(step=jnp.asarray(2))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]).reshape(1, 2, 1, 1), execution.AXES)
    placed = execution.place(state, execution.state_shardings(state, mesh))
    many, metrics = jax.jit(execution.over_particles(made.update, mesh))(placed, BATCH)
    one, plain = jax.jit(made.update)(state, BATCH)
    moved = np.abs(kernel(one) - kernel(state)).max((1, 2)) > 0
    assert moved.tolist() == [False, False, True, False]
    np.testing.assert_allclose(kernel(many), kernel(one), rtol=1e-5, atol=1e-6)
    for name in plain:
        np.testing.assert_allclose(metrics[name], plain[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_weights_grow_where_the_data_are_fitted():
    W = RNG.normal(size=(2, D, K)).astype(np.float32)
    W[1] *= 0.1
    x, y = np.asarray(BATCH["x"], np.float64), np.asarray(BATCH["y"])
    nll = [-np.log(softmax(x @ w)[np.arange(B), y]).mean() for w in W.astype(np.float64)]
    threshold = np.mean(nll)  # between the two
    params = {"layer": {"kernel": W}}
    g, _, metrics = direct(dare(threshold, 0.3), linear(), params, independent, size=2)
    for p, w in enumerate(W.astype(np.float64)):
        fits = float(nll[p] <= threshold)
        logs = np.mean(np.log(w**2 + 1.1920929e-07))
        np.testing.assert_allclose(metrics["loss"][p], nll[p] - 0.3 * fits * logs, rtol=1e-4)
        assert (metrics["anti_regularised"][p], metrics["nll"].shape) == (fits, (2, 1, B))
        np.testing.assert_allclose(metrics["log_square"][p], logs, rtol=1e-4)
        expected = x.T @ (softmax(x @ w) - np.eye(K)[y]) / B - 0.6 * fits / w / w.size
        np.testing.assert_allclose(kernel(g)[p], expected, rtol=2e-3, atol=1e-5)
    assert sorted(metrics["anti_regularised"]) == [0, 1]


W0 = {"layer": {"kernel": np.zeros((1, D, K), np.float32)}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: divdis(weight=-1), "weight: -1; at least 0"),
        (lambda: divdis(prior=(0.5, 0.6)), r"prior: \[0.5, 0.6\]; positive numbers"),
        (lambda: charged(divdis(prior=(0.5, 0.5))), "objective.prior: 2 probabilities for 3"),
        (lambda: d_bat(labels_of="all"), "labels_of: 'all'; 'earlier' or 'new'"),
        (lambda: d_bat(joint=True, steps_each=5), "steps_each: 5, but `joint` trains all"),
        (lambda: d_bat(steps_each=-1), "steps_each: -1; at least 0"),
        (lambda: disagreement("variance"), "kind: 'variance'; .*over functions is 'l2'"),
        (lambda: dare(0.1, -1.0), "weight: -1.0; at least 0"),
        (lambda: negative_correlation(-0.1), "weight: -0.1; at least 0"),
        *(
            (lambda o=o: charged(o, likelihood=GAUSSIAN),
             f"objective: '{o.name}' needs exclusive classes")
            for o in (divdis(), d_bat(), disagreement())
        ),
        (lambda: charged(negative_correlation()),
         "'negative_correlation' needs real-valued targets"),
        (lambda: charged(negative_correlation(), likelihood=GAUSSIAN, variance=jnp.ones((N, U, 1))),
         "'negative_correlation' needs one variance for all inputs"),
        (lambda: direct(d_bat(), linear(), W0, independent, size=1),
         "objective.stream: 'unlabelled' is no stream of the batch, which has 'more'"),
        (lambda: direct(d_bat(stream="more"), linear(), W0, independent, size=1),
         "objective: 'd_bat' compares functions, but there is one; use an ensemble"),
        (lambda: direct(d_bat(stream="more", steps_each=2), heads(),
                        {"layer": {"kernel": np.zeros((1, N, D, K), np.float32)}}, independent,
                        size=1), "'d_bat' trains functions in turn, but these are members"),
        (lambda: together(executors.vmap, objective=label_smoothing()),
         "direction: 'together' needs an objective that compares functions"),
        *(
            (lambda d=d: d(executors.vmap, accumulate=2, objective=d_bat()),
             "accumulate: 2 parts, but objective 'd_bat' compares functions on the whole batch")
            for d in (together, independent)
        ),
        (lambda: svgd(executors.vmap, Target(num_examples=9), space="functions",
                      objective=d_bat()), "'d_bat' compares functions itself, which space="),
    ],
)  # fmt: skip
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
