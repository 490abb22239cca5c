"""The testbed against loops, closed forms and agents that are trained one by one."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from studies import testbed
from studies.agents import agents, config_of, initial, scaled, solve
from studies.problems import Setting, draw, joint_kl, marginal_kl, settings
from uncertainty import build
from uncertainty.rules import path_of

TAU, T, R = 3, 4, 2
SETTING = Setting(inputs=2, ratio=3, temperature=0.5, seed=0)


def log_probs(rng, *shape):
    logits = rng.normal(size=(*shape, 2))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_marginal_kl_is_the_mean_over_inputs_and_labels():
    rng = np.random.default_rng(0)
    log_q, log_p = log_probs(rng, 5, T, 2), log_probs(rng, T, 2)
    total = 0.0
    for t, a, k in itertools.product(range(T), range(2), range(2)):
        p, q = math.exp(log_p[t, a, k]), np.exp(log_q[:, t, a, k]).mean()
        total += p * math.log(p / q) / (2 * T)
    assert marginal_kl(log_q, log_p) == pytest.approx(total, rel=1e-5)
    assert marginal_kl(log_p[None], log_p) == pytest.approx(0, abs=1e-6)


def test_joint_kl_is_that_of_products_over_the_draws():
    rng = np.random.default_rng(0)
    log_q, log_p = log_probs(rng, 5, T, 2), log_probs(rng, T, 2)
    which, labels = rng.integers(0, 2, (2, T, R, TAU))
    counts, total = np.zeros((T, R, 2, 2)), 0.0
    for t, r in itertools.product(range(T), range(R)):
        p, q = 1.0, np.ones(5)
        for a, y in zip(which[t, r], labels[t, r], strict=True):
            counts[t, r, a, y] += 1
            p, q = p * math.exp(log_p[t, a, y]), q * np.exp(log_q[:, t, a, y])
        total += math.log(p / q.mean()) / (T * R)
    assert joint_kl(log_q, log_p, counts) == pytest.approx(total, rel=1e-4)


def test_joint_kl_sees_what_marginal_kl_does_not():
    """Coins of unknown side: one function says 1/2, two say that all tosses agree."""
    log_p = jnp.log(jnp.full((1, 2, 2), 0.5).at[..., 0].set(1 - 1e-6).at[..., 1].set(1e-6))
    counts = jnp.zeros((1, 1, 2, 2)).at[..., 0].set(5)  # ten heads
    one = jnp.full((1, 1, 2, 2), -math.log(2))
    two = jnp.stack([log_p, log_p[..., ::-1]])
    np.testing.assert_allclose(marginal_kl(one, log_p), marginal_kl(two, log_p), rtol=1e-3)
    assert joint_kl(one, log_p, counts) == pytest.approx(10 * math.log(2), rel=1e-3)
    assert joint_kl(two, log_p, counts) == pytest.approx(math.log(2), rel=1e-3)


def test_labels_and_counts_are_drawn_from_the_process():
    setting = SETTING._replace(ratio=500)
    problem = jax.jit(lambda key: draw(key, setting, TAU, 50, 400))(jax.random.key(0))
    assert problem.x.shape == (1000, 2) and problem.counts.shape == (50, 400, 2, 2)
    np.testing.assert_array_equal(problem.counts.sum((2, 3)), TAU)
    share = np.asarray(problem.counts.sum((1, 3))) / (400 * TAU)  # of each input of a pair
    assert abs(share - 0.5).max() < 5 * 0.5 / math.sqrt(400 * TAU)
    of_labels = np.asarray(problem.counts.sum(1) / problem.counts.sum((1, 3))[..., None])
    assert abs(of_labels - np.exp(problem.log_p)).max() < 5 * 0.5 / math.sqrt(200 * TAU)


def test_a_smaller_temperature_makes_surer_labels_of_the_same_network():
    few = [SETTING, SETTING._replace(temperature=0.25), SETTING._replace(seed=1)]
    problems = testbed.made(few, TAU, T, R)
    odds = np.asarray(problems.log_p[..., 1] - problems.log_p[..., 0])
    np.testing.assert_allclose(odds[1], 2 * odds[0], rtol=1e-4)
    np.testing.assert_array_equal(problems.x[0], problems.x[1])
    assert not np.allclose(odds[2], odds[0], atol=0.1)
    # A problem is a function of its setting, not of those that are drawn with it.
    alone = testbed.made(few[2:], TAU, T, R)
    np.testing.assert_allclose(alone.log_p[0], problems.log_p[2], rtol=1e-4)
    np.testing.assert_array_equal(alone.y[0], problems.y[2])


@pytest.mark.slow
def test_problems_in_one_program_are_those_of_a_loop():
    """Each with its own L2 and scale of the prior, in place of the config's."""
    agent = agents(samples=3, size=2)["ensemble+"]
    agent = agent._replace(steps=lambda setting: 3)
    few = [SETTING, SETTING._replace(temperature=0.1, seed=1)]
    problems, keys = testbed.made(few, TAU, T, R), jnp.stack([jax.random.key(i) for i in (5, 6)])
    l2, prior = (jnp.asarray([of(s) for s in few]) for of in (agent.l2, agent.prior))
    together, finite = jax.jit(functools.partial(solve, agent, SETTING))(problems, keys, l2, prior)
    assert together.shape == (2, 2, T, 2, 2) and finite.all()

    for g, setting in enumerate(few):  # by the config alone, step by step
        config = config_of(agent, setting)
        config["ensemble"] = dict(name="randomised_prior", scale=float(agent.prior(setting)))
        config["optimiser"] = config["optimiser"] | dict(l2=(("", float(agent.l2(setting))),))
        config["inference"] = dict(name="particles", size=1)
        model = build.model(config)
        inference = build.inference(config, model)
        begin, _, draws = jax.random.split(keys[g], 3)
        update = jax.jit(inference.update)
        for p in range(2):
            state = inference.init(jax.random.fold_in(begin, p), problems.x[g][:1])
            for _ in range(3):
                state, _ = update(state, dict(x=problems.x[g], y=problems.y[g]))
            latent = inference.predict(state, problems.pairs[g].reshape(-1, 2))
            expected = model.likelihood.log_probs(latent, draws)[0].reshape(T, 2, 2)
            np.testing.assert_allclose(together[g, p], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", agents())
def test_agents_predict_functions_and_only_their_priors_are_scaled(name):
    agent = agents(samples=3, size=20)[name]
    config = config_of(agent, SETTING)
    config["inference"] = config["inference"] | dict(size=1)
    inference = build.inference(config, num_examples=6)
    x, key = jnp.ones((1, 2)), jax.random.key(0)
    state = jax.eval_shape(lambda key: initial(inference, key, x, 2), key)
    assert {a.shape[0] for a in jax.tree.leaves(state.params)} == {2}
    assert state.key.shape == (2,) and state.step.shape == ()
    ones = jax.tree.map(lambda a: np.ones(a.shape), state.collections)
    after = jax.tree_util.tree_leaves_with_path(scaled(ones, 3.0))
    of = {path_of(path).split("/")[-2]: a.max() for path, a in after}
    assert of.get("logits") == (3.0 if name in ("ensemble+", "hypermodel", "epinet") else None)
    assert set(of.values()) <= {1.0, 3.0}

    problems = jax.eval_shape(lambda: testbed.made([SETTING] * 2, TAU, T, R))
    keys, numbers = jax.random.split(key, 2), jnp.ones(2)
    made = functools.partial(solve, agent, SETTING)
    log_q, finite = jax.eval_shape(made, problems, keys, numbers, numbers)
    members = {"mlp": 1, "dropout": 3, "hypermodel": 3, "epinet": 3, "epinet without prior": 3}
    assert log_q.shape == (2, members.get(name, 20), T, 2, 2) and finite.shape == (2,)


def test_a_program_has_one_shape_and_one_config():
    every = settings([2], [1, 10], [0.1, 0.5], [0, 1])
    of = agents()
    assert [len(same) for same in testbed.groups(every, of["epinet"])] == [4, 4]
    assert [len(same) for same in testbed.groups(every, None)] == [4, 4]
    assert [len(same) for same in testbed.groups(every, of["SGLD"])] == [2, 2, 2, 2]
    scales = [config_of(of["SGLD"], s)["inference"]["prior"]["scale"] for s in every]
    assert scales[0] == scales[1] != scales[2]
    # An L2 of c is a Gaussian prior of variance 1 / (n c).
    l2 = of["ensemble"].l2(every[0])
    assert scales[0] == pytest.approx((every[0].examples * l2) ** -0.5)


def test_scores_are_ratios_to_the_mlp_whose_intervals_draw_networks():
    every = settings([2], [1, 10], [0.1, 0.5], [0, 1])
    rng = np.random.default_rng(0)
    kl = {s: rng.uniform(0.1, 1, 2) for s in every}
    lines = [
        dict(agent=name, **s._asdict(), marginal=factor * kl[s][0], joint=factor**2 * kl[s][1],
             seconds=factor)
        for name, factor in (("mlp", 1.0), ("half", 0.5))
        for s in every
    ]  # fmt: skip
    scored = testbed.scores(lines, ["mlp", "half"], [0, 1])
    for one in scored["half"]["results"]:
        assert one == pytest.approx(dict(marginal=0.5, joint=0.25, seconds=0.5))
    assert scored["half"]["intervals"]["joint"] == pytest.approx((0.25, 0.25))  # of pairs
    other = [n | dict(marginal=rng.uniform()) if n["agent"] == "half" else n for n in lines]
    low, high = testbed.scores(other, ["half"], [0, 1])["half"]["intervals"]["marginal"]
    mean = np.mean([n["marginal"] for n in other if n["agent"] == "half"])
    assert low < mean / np.mean([v[0] for v in kl.values()]) < high


def test_lines_that_are_there_are_kept_and_other_options_refused(tmp_path):
    path, options = tmp_path / "testbed" / "problems.jsonl", dict(tau=TAU, pairs=T, draws=R)
    every = settings([2], [1], [0.1, 0.5], [0, 1])
    first = testbed.run({"uniform": None}, every[:2], options, path)
    whole = testbed.run({"uniform": None}, every, options, path)
    text = path.read_text()
    assert [n["seed"] for n in first] == [0, 1] and whole[:2] == first and len(whole) == 4
    assert testbed.run({"uniform": None}, every, options, path) == whole
    assert path.read_text() == text and len(text.splitlines()) == 4
    assert testbed.run({"uniform": None}, every[3:], options, path) == whole[3:]
    with pytest.raises(ValueError, match="has lines of tau 3, not 2; --fresh begins anew"):
        testbed.run({"uniform": None}, every, options | dict(tau=2), path)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(inputs=[0]), r"inputs: \[0\]; positive numbers"),
        (dict(temperatures=[]), r"temperatures: \[\]; positive numbers"),
        (dict(ratios=[0.1]), "ratios: 0.1 of 2 inputs is no example"),
    ],
)
def test_what_cannot_be_is_refused(fields, why):
    every = dict(inputs=[2], ratios=[1], temperatures=[0.5], seeds=[0])
    with pytest.raises(ValueError, match=why):
        settings(**(every | fields))


def test_uniform_probabilities_have_the_kl_of_their_entropy():
    problems = testbed.made([SETTING], TAU, T, R)
    found = testbed.measured(None, [SETTING], problems)
    p = np.exp(np.asarray(problems.log_p[0], np.float64))
    entropy = -(p * np.log(p)).sum(-1).mean()
    assert found["marginal"][0] == pytest.approx(math.log(2) - entropy, rel=1e-4)
    assert found["joint"].shape == (1,) and (found["joint"] >= 0).all()
