"""The testbed against loops, closed forms and agents that are trained one by one."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from studies import testbed
from studies.agents import (
    BATCH,
    PAIRS,
    agents,
    compared,
    config_of,
    gaussian,
    given,
    log_q,
    parts,
    scaled,
    shuffled,
    solve,
    started,
    trained,
)
from studies.problems import Problem, Setting, draw, joint_kl, marginal_kl, settings
from uncertainty import build, priors
from uncertainty.rules import path_of

TAU, T, R = 3, 4, 2
SETTING = Setting(inputs=2, ratio=3, temperature=0.5, seed=0)
OPTIONS = dict(tau=TAU, pairs=T, draws=R, samples=3, size=2)


def log_probs(rng, *shape):
    logits = rng.normal(size=(*shape, 2))
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


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
    counts, total = np.zeros((T, R, 2, 2), np.float32), 0.0
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


def test_pairs_are_compared_in_parts():
    rng, n = np.random.default_rng(0), 2 * PAIRS
    log_q = log_probs(rng, 3, n, 2)
    counts = rng.integers(0, 3, (n, R, 2, 2)).astype(np.float32)
    pairs = np.arange(2.0 * n).reshape(n, 2, 1).astype(np.float32)  # inputs are their positions
    problem = Problem(None, None, pairs, log_probs(rng, n, 2), counts)

    def predict(x):
        assert len(x) == 2 * PAIRS  # inputs of half of the pairs
        return jnp.asarray(log_q.reshape(3, -1, 2))[:, x[:, 0].astype(int)]

    marginal, joint = compared(predict, problem)
    assert marginal == pytest.approx(float(marginal_kl(log_q, problem.log_p)), rel=1e-4)
    assert joint == pytest.approx(float(joint_kl(log_q, problem.log_p, counts)), rel=1e-4)


def test_labels_and_counts_are_drawn_from_the_process():
    setting = SETTING._replace(ratio=500)
    problem = draw(setting, TAU, 50, 400)
    assert problem.x.shape == (1000, 2) and problem.counts.shape == (50, 400, 2, 2)
    assert problem.x.dtype == np.float32 and problem.y.dtype == np.int32
    np.testing.assert_array_equal(problem.counts.sum((2, 3)), TAU)
    share = problem.counts.sum((1, 3)) / (400 * TAU)  # of each input of a pair
    assert abs(share - 0.5).max() < 5 * 0.5 / math.sqrt(400 * TAU)
    of_labels = problem.counts.sum(1) / problem.counts.sum((1, 3))[..., None]
    assert abs(of_labels - np.exp(problem.log_p)).max() < 5 * 0.5 / math.sqrt(200 * TAU)


def test_a_process_is_a_relu_network_of_truncated_normal_weights():
    """The mean square of its log odds over networks, against the moments of its layers."""
    few = [draw(Setting(10, 1, 1.0, seed), 1, 20, 1).log_p for seed in range(1000)]
    odds = np.stack([p[..., 1] - p[..., 0] for p in few])
    c = 0.7737  # variance of a normal distribution that is truncated at two of its deviations
    # At |x|^2 = d: each h has variance c + 1 / d, half of its square is left by a ReLU.
    expected = 2 * c * (c / 2) * (c + 0.1) / 2
    assert np.mean(odds**2) == pytest.approx(expected, rel=0.15)


def test_a_smaller_temperature_makes_surer_labels_of_the_same_network():
    few = [SETTING, SETTING._replace(temperature=0.25), SETTING._replace(seed=1)]
    problems = testbed.made(few, TAU, T, R)
    odds = problems.log_p[..., 1] - problems.log_p[..., 0]
    np.testing.assert_allclose(odds[1], 2 * odds[0], rtol=1e-4)
    np.testing.assert_array_equal(problems.x[0], problems.x[1])
    assert not np.allclose(odds[2], odds[0], atol=0.1)
    # A problem is a function of its setting, not of those that are drawn with it, and its training
    # set is one for any number of pairs.
    alone = testbed.made(few[2:], TAU, T, R + 1)
    np.testing.assert_array_equal(alone.log_p[0], problems.log_p[2])
    np.testing.assert_array_equal(alone.y[0], problems.y[2])


@pytest.mark.slow
def test_problems_in_one_program_are_those_of_a_loop():
    """Each with its own L2 and scale of the prior, in place of the config's."""
    agent = agents(samples=3, size=2)["ensemble+"]
    agent = agent._replace(steps=lambda setting: 3)
    few = [SETTING, SETTING._replace(temperature=0.1, seed=1)]
    problems = testbed.made(few, TAU, T, R)
    of = given(agent, few, problems)
    marginal, joint, finite = testbed.program(agent)(few, problems)
    assert marginal.shape == joint.shape == (2,) and finite.all()

    for g, setting in enumerate(few):  # by the config alone, step by step
        config = config_of(agent, setting)
        scale = config["ensemble"]["scale"] * float(agent.prior(setting))
        config["ensemble"] = dict(name="randomised_prior", scale=scale)
        config["optimiser"] = config["optimiser"] | dict(l2=(("", float(agent.l2(setting))),))
        config["inference"] = dict(name="particles", size=1)
        model = build.model(config)
        inference = build.inference(config, model)
        begin, _ = jax.random.split(of.key[g])
        update, members = jax.jit(inference.update), []
        for p in range(2):
            state = inference.init(jax.random.fold_in(begin, p), problems.x[g][:1])
            for _ in range(3):
                state, _ = update(state, dict(x=problems.x[g], y=problems.y[g]))
            latent = inference.predict(state, problems.pairs[g].reshape(-1, 2))
            members.append(jax.nn.log_softmax(latent.mean[0]).reshape(T, 2, 2))
        log_q, log_p = jnp.stack(members), problems.log_p[g]
        assert marginal[g] == pytest.approx(float(marginal_kl(log_q, log_p)), rel=1e-3)
        expected = float(joint_kl(log_q, log_p, problems.counts[g]))
        assert joint[g] == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", agents())
def test_agents_predict_functions_and_only_their_priors_are_scaled(name):
    agent = agents(samples=3, size=5)[name]
    few = [SETTING, SETTING._replace(seed=1)]
    of = given(agent, few, testbed.made(few, TAU, T, R))
    config = config_of(agent, SETTING)
    P = config["inference"]["size"]
    assert {"ensemble": 5, "bootstrap": 5, "ensemble+": 5, "SVGD": 5}.get(name, 1) == P
    states = jax.eval_shape(functools.partial(started, agent, SETTING), of)
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), states)
    assert {a.shape[0] for a in jax.tree.leaves(state.params)} == {P}
    assert state.key.shape == (P,) and state.step.shape == ()
    ones = jax.tree.map(lambda a: np.ones(a.shape), state.collections)
    after = jax.tree_util.tree_leaves_with_path(scaled(ones, 3.0))
    scales = {path_of(path).split("/")[-2]: a.max() for path, a in after}
    with_prior = name in ("ensemble+", "hypermodel", "epinet")
    assert scales.get("logits") == (3.0 if with_prior else None)
    assert set(scales.values()) <= {1.0, 3.0}
    found = jax.eval_shape(functools.partial(solve, agent, SETTING), of, states)
    assert [a.shape for a in found] == [(2,)] * 3


@pytest.mark.slow
def test_what_a_posterior_predicts_is_one_function_at_all_inputs():
    """Of Laplace: at its mean and far draws, and in parts."""
    agent = agents(samples=4)["Laplace"]._replace(steps=lambda setting: 2, draws=4)
    few = [SETTING]
    of = given(agent, few, testbed.made(few, TAU, T, R))

    @jax.jit
    def predicted(of):
        one, state = jax.tree.map(lambda a: a[0], (of, started(agent, SETTING, of)))
        config, model, inference = parts(agent, SETTING, one)
        state, _ = trained(config, model, inference, SETTING, one, state)
        x = one.problem.pairs.reshape(-1, 2)
        whole, first = (log_q(model, inference, state, a, one.key, 4) for a in (x, x[:3]))
        return whole, first, inference.predict(state, x).variance

    whole, first, variance = predicted(of)
    assert whole.shape == (4, 2 * T, 2) and (variance > 0).all()
    np.testing.assert_allclose(whole[:, :3], first, rtol=1e-4, atol=1e-5)
    assert len(np.unique(np.asarray(whole[:, 0, 0]).round(6))) == 4


def test_an_l2_is_a_gaussian_prior_whose_scale_may_be_traced():
    """An L2 of c, the gradient of c |theta|^2 / 2 per example, is a variance of 1 / (n c)."""
    agent = agents()["SVGD"]
    scale = config_of(agent, SETTING)["inference"]["prior"]["scale"]
    assert scale == pytest.approx((SETTING.examples * agent.l2(SETTING)) ** -0.5)
    assert agent.l2(SETTING) == pytest.approx(2 * 0.5**0.5 * 2 / 6)  # twice sqrt(rho) d / n
    w = dict(a=jnp.arange(3.0), b=jnp.ones(2))
    plain = priors.gaussian(2.0)
    traced = jax.jit(lambda scale: gaussian(scale).potential(w))(2.0)
    assert traced == pytest.approx(float(plain.potential(w)))
    key = jax.random.key(0)
    np.testing.assert_allclose(gaussian(2.0).sample(key, w)["a"], plain.sample(key, w)["a"])


def test_batches_are_permutations_and_particles_see_examples_of_their_own():
    assert shuffled(BATCH, 7) is None
    order = shuffled(3 * BATCH + 50, 7)
    assert order.shape == (7, BATCH)
    for epoch in (order[:3], order[3:6]):
        assert len(np.unique(epoch)) == 3 * BATCH
    assert not np.array_equal(order[:3], order[3:6])
    few = [SETTING, SETTING._replace(seed=1), SETTING._replace(temperature=0.1)]
    problems = testbed.made(few, TAU, T, R)
    own = given(agents(size=4)["bootstrap"], few, problems).own
    assert own.shape == (3, 4, 6) and own.min() >= 0 and own.max() < 6
    np.testing.assert_array_equal(own[0], own[2])  # the same network
    assert not np.array_equal(own[0], own[1]) and not np.array_equal(own[0, 0], own[0, 1])
    assert given(agents()["ensemble"], few, problems).own is None


def test_a_program_has_one_shape_and_where_needed_one_temperature():
    every = settings([2], [1, 10], [0.1, 0.5], [0, 1])
    of = agents()
    assert [len(same) for same in testbed.groups(every, of["epinet"])] == [4, 4]
    assert [len(same) for same in testbed.groups(every, None)] == [4, 4]
    assert [len(same) for same in testbed.groups(every, of["Laplace"])] == [2, 2, 2, 2]
    many = settings([2], [1], [0.1, 0.5], range(10))
    assert [len(same) for same in testbed.groups(many, None)] == [15, 5]
    assert list(itertools.chain(*testbed.groups(many, None))) == many


def test_scores_are_ratios_to_the_mlp_whose_intervals_draw_networks():
    every = settings([2], [1, 10], [0.1, 0.5], [0, 1])
    rng = np.random.default_rng(0)
    kl = {s: rng.uniform(0.1, 1, 2) for s in every}
    lines = [
        dict(agent=name, **s._asdict(), marginal=factor * kl[s][0], joint=factor**2 * kl[s][1])
        for name, factor in (("MLP", 1.0), ("half", 0.5))
        for s in every
    ]
    scored = testbed.scores(lines, ["MLP", "half"], [0, 1])
    expected = {f"{key}{part}": of for key, of in (("marginal", 0.5), ("joint", 0.25))
                for part in ("", "/1", "/10")}  # fmt: skip
    for one in scored["half"]["results"]:
        assert one == pytest.approx(expected)
    assert scored["half"]["intervals"]["joint"] == pytest.approx((0.25, 0.25))  # of pairs
    other = [n | dict(marginal=rng.uniform()) if n["agent"] == "half" else n for n in lines]
    scored = testbed.scores(other, ["half"], [0, 1])["half"]
    low, high = scored["intervals"]["marginal"]
    mean = np.mean([n["marginal"] for n in other if n["agent"] == "half"])
    ratio = mean / np.mean([v[0] for v in kl.values()])
    assert np.mean([one["marginal"] for one in scored["results"]]) == pytest.approx(ratio)
    assert low < ratio < high


def test_lines_that_are_there_are_kept_and_other_settings_refused(tmp_path):
    path, chosen = tmp_path / "testbed" / "problems.jsonl", {"uniform": None}
    every = settings([2], [1], [0.1, 0.5], [0, 1])
    first = testbed.run(chosen, every[:2], OPTIONS, path)
    assert testbed.complete(chosen, every, OPTIONS, path) == {}
    whole = testbed.run(chosen, every, OPTIONS, path)
    text = path.read_text()
    assert [n["seed"] for n in first] == [0, 1] and whole[:2] == first and len(whole) == 4
    assert testbed.run(chosen, every, OPTIONS, path) == whole
    assert path.read_text() == text and len(text.splitlines()) == 4
    assert testbed.run(chosen, every[3:], OPTIONS, path) == whole[3:]
    assert testbed.complete(chosen, every, OPTIONS, path) == {"uniform": whole}
    with pytest.raises(ValueError, match="has lines of 'uniform' with other settings"):
        testbed.run(chosen, every, OPTIONS | dict(tau=2), path)
    assert testbed.complete(chosen, every, OPTIONS | dict(tau=2), path) == {}


def test_settings_of_agents_are_part_of_their_lines():
    of = {n: testbed.digest(a, SETTING, OPTIONS) for n, a in agents(size=20).items()}
    assert len(set(of.values())) == len(of)  # and all are JSON
    more = agents(size=30)
    changed = {n for n in of if testbed.digest(more[n], SETTING, OPTIONS) != of[n]}
    assert changed == {"ensemble", "bootstrap", "ensemble+", "SVGD", "SG-MCMC"}


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
    log_q = np.full((1, T, 2, 2), -math.log(2), np.float32)
    expected = marginal_kl(log_q, problems.log_p[0])
    assert found["marginal"][0] == pytest.approx(float(expected), rel=1e-4)
    expected = joint_kl(log_q, problems.log_p[0], problems.counts[0])
    assert found["joint"][0] == pytest.approx(max(float(expected), 0), rel=1e-4)


@pytest.mark.slow
def test_the_program_writes_a_table_and_a_figure_and_resumes(tmp_path, capsys):
    argv = ["--inputs", "2", "--ratios", "1", "--temperatures", "0.1,0.5", "--seeds", "0,1",
            "--pairs", "4", "--draws", "2", "--samples", "3", "--size", "2",
            "--results", str(tmp_path), "--agents", "MLP|uniform"]  # fmt: skip
    assert testbed.main(argv) == 0
    lines = (tmp_path / "testbed" / "problems.jsonl").read_text()
    table = json.loads((tmp_path / "testbed" / "table.json").read_text())
    assert [row["label"] for row in table["rows"]] == ["uniform", "MLP"]
    ones = {"marginal": 1.0, "joint": 1.0, "marginal/1": 1.0, "joint/1": 1.0}
    assert table["rows"][1]["results"] == [ones] * 2
    assert table["command"] == (
        "python -m studies.testbed --inputs 2 --ratios 1 --temperatures 0.1,0.5 --seeds 0,1 "
        "--pairs 4 --draws 2 --samples 3 --size 2"
    )
    assert (tmp_path / "testbed" / "scores.png").stat().st_size > 1000
    assert testbed.main(argv) == 0
    assert (tmp_path / "testbed" / "problems.jsonl").read_text() == lines
    with pytest.raises(SystemExit):
        testbed.main([*argv, "--pairs", "5"])
    assert "has lines of 'MLP' with other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        testbed.main([*argv, "--agents", "nobody"])
    assert "'nobody' matches none of ['uniform', 'MLP'," in capsys.readouterr().err


def test_the_published_sweep_is_a_flag():
    args, parser = testbed.parsed(["--published", "--seeds", "0"])
    assert (args.inputs, args.ratios, args.size) == ([2, 10, 100], [1, 10, 100, 1000], 100)
    assert testbed.command_of(args, parser) == "python -m studies.testbed --published --seeds 0"
