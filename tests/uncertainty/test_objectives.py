"""Objectives against formulas in NumPy and loops over particles; what they keep in the State."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime.checkpoint import Checkpoints
from tests.uncertainty.classes import B, K, batch, kernel, linear, one, softmax
from uncertainty import likelihoods
from uncertainty.backbones.mlp import MLP
from uncertainty.ensembles.single import single
from uncertainty.heads.dense import Dense
from uncertainty.inference import executors
from uncertainty.inference.directions.independent import independent
from uncertainty.inference.directions.svgd import svgd
from uncertainty.inference.directions.wgd import wgd
from uncertainty.inference.kernels.rbf import rbf
from uncertainty.inference.particles import particles
from uncertainty.keys import Use, fold
from uncertainty.model import from_network
from uncertainty.objectives.label_smoothing import label_smoothing
from uncertainty.objectives.mean_teacher import mean_teacher
from uncertainty.optimisers.optimiser import optimiser, sgd
from uncertainty.optimisers.samplers import sgld
from uncertainty.priors import gaussian
from uncertainty.types import Aux, Latent, Objective, Own, Target

P = 3
BATCH = batch()
TARGETS = BATCH | dict(y=jnp.zeros((len(BATCH["x"]), 3)))
TARGET = Target(gaussian(0.8), num_examples=40, temperature=0.7)


def start(objective, model=None, size=P, method=None, **fields):
    made = particles(
        model or linear(),
        method or optimiser(sgd(), 0.1),
        size=size,
        objective=objective,
        executor="vmap",
        **fields,
    )
    return made, made.init(jax.random.key(0), BATCH["x"])


def direct(state, objective, model=None, direction=independent, b=BATCH, target=None, **fields):
    made = direction(executors.vmap, target, objective=objective, **fields)
    update = jax.jit(lambda state, b: made.update(model or linear(), state, b, state.key))
    return update(state, b)


# Label smoothing


def test_label_smoothing_is_its_formula_and_its_gradient():
    rate = 0.3
    _, state = start(label_smoothing(rate))
    g, _, metrics = direct(state, label_smoothing(rate))
    x, y = np.asarray(BATCH["x"], np.float64), np.asarray(BATCH["y"])
    for p, W in enumerate(kernel(state)):
        prob = softmax(x @ W)
        nll = -np.log(prob[np.arange(B), y])
        each = (1 - rate) * nll + rate * np.mean(-np.log(prob), axis=1)
        np.testing.assert_allclose(metrics["loss"][p], each.mean(), rtol=1e-5)
        np.testing.assert_allclose(
            metrics["nll"][p, 0], nll, rtol=1e-5
        )  # of the labels as they are
        smooth = (1 - rate) * np.eye(K)[y] + rate / K
        np.testing.assert_allclose(kernel(g)[p], x.T @ (prob - smooth) / B, rtol=1e-4, atol=1e-6)


def test_label_smoothing_integrates_the_latents_by_the_draws_of_the_nll():
    rng = np.random.default_rng(1)
    latent = Latent(*(jnp.asarray(rng.uniform(1, 2, (2, B, K)), jnp.float32) for _ in range(2)))
    likelihood, key = likelihoods.softmax(samples=16), jax.random.key(0)
    smooth = label_smoothing(0.3).latents
    got = jax.jit(lambda u: smooth(likelihood, u, BATCH, key, Own()))(latent)
    soft = 0.7 * jax.nn.one_hot(BATCH["y"], K) + 0.1  # the same as the cross-entropy of these
    expected = jax.jit(lambda u: likelihood.nll(u, soft, key))(latent)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: label_smoothing(1.0), "rate: 1.0; at least 0 and below 1"),
        (lambda: label_smoothing(-0.1), "rate: -0.1"),
        (lambda: mean_teacher(weight=-1.0), "weight: -1.0"),
        (lambda: mean_teacher(decay=1.0), "decay: 1.0"),
        (lambda: mean_teacher(std=-0.1), "std: -0.1"),
        (lambda: mean_teacher(ramp_steps=-1), "ramp_steps: -1"),
        (
            lambda: trace(label_smoothing(), likelihoods.gaussian(), TARGETS),
            "'label_smoothing' needs exclusive classes",
        ),
        (lambda: trace(label_smoothing(), likelihoods.sigmoid()), "exclusive classes"),
        (lambda: trace(mean_teacher(), likelihoods.gaussian()), "'mean_teacher' compares"),
        (lambda: trace(mean_teacher(stream="other")), "objective.stream: 'other' is no stream of"),
        (lambda: trace(Objective(), b=dict(x=BATCH["x"])), "'likelihood' needs labels"),
        (lambda: trace(Objective("new", loss=clashing)), "'new' has a metric 'nll'"),
        (lambda: trace(Objective("new", loss=clashing, latents=clashing)), "would be ignored"),
        (lambda: trace(Objective("new", start=lambda params, own: params)), "copies need both"),
        (
            lambda: start(tempered(), num_examples=9, method=optimiser(sgld(), 0.1)),
            "'tempered' has its own parameters, which have no posterior",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_says_why(make, why):
    with pytest.raises(ValueError, match=why):
        make()


def trace(objective, likelihood=None, b=BATCH):
    model = linear(likelihood)
    made, state = start(objective, model)
    jax.eval_shape(made.update, state, b)


def clashing(model, params, collections, batch, key, own):
    return jnp.zeros(()), Aux(collections, None, dict(nll=jnp.zeros(())))


# Mean teacher

STREAM = dict(x=batch(5)["x"][:4])


@pytest.mark.slow
@pytest.mark.parametrize("stream", [None, "more"])
def test_mean_teacher_is_its_loss_in_a_loop_over_particles(stream):
    objective = mean_teacher(weight=2.0, std=0.3, ramp_steps=10, stream=stream)
    b, model = BATCH | dict(more=STREAM), linear()
    _, state = start(objective, model)
    state = state.replace(step=jnp.int32(4), slow=jax.tree.map(lambda a: 0.5 * a, state.slow))
    g, _, metrics = direct(state, objective, model, b=b)

    @jax.jit
    def by_hand(W, teacher, key):
        def noisy(x, use):
            return x + 0.3 * jax.random.normal(fold(key, use), x.shape)

        def loss(W):
            log_p = jax.nn.log_softmax(noisy(BATCH["x"], Use.VIEW) @ W)
            student, x = log_p, BATCH["x"]
            if stream:
                x = STREAM["x"]
                student = jax.nn.log_softmax(noisy(x, Use.STREAM_VIEW) @ W)
            u = noisy(x, Use.OTHER_VIEW) @ teacher
            J = jnp.mean(jnp.sum((jnp.exp(student) - jax.nn.softmax(u)) ** 2, axis=1))
            total = -log_p[jnp.arange(B), BATCH["y"]].mean() + 2 * jnp.exp(-5 * 0.6**2) * J
            return total, J

        return jax.value_and_grad(loss, has_aux=True)(W)

    for p in range(P):
        weights = (one(tree, p)["layer"]["kernel"] for tree in (state.params, state.slow))
        (value, J), slope = by_hand(*weights, state.key[p])
        np.testing.assert_allclose(metrics["loss"][p], value, rtol=1e-5)
        np.testing.assert_allclose(metrics["consistency"][p], J, rtol=1e-5)
        np.testing.assert_allclose(kernel(g)[p], slope, rtol=1e-4, atol=1e-6)


def test_the_students_and_the_teachers_noise_differ():
    objective = mean_teacher(weight=1.0, std=0.0)  # by the network's own noise alone
    model = linear(noise=1.0)
    _, state = start(objective, model)
    assert (direct(state, objective, model)[2]["consistency"] > 1e-2).all()
    assert (direct(state, objective, linear())[2]["consistency"] == 0).all()


@functools.cache
def taught():
    made, state = start(mean_teacher(decay=0.8))
    return made, state, jax.jit(made.update)


def test_the_teacher_is_the_moving_average_of_the_student_but_not_over_faults():
    _, state, update = taught()
    teacher = kernel(state)
    np.testing.assert_array_equal(kernel(state.slow), teacher)
    for step in range(4):
        b = batch(step)
        if step == 2:  # particle 1 overflows in this step, and in no other
            bad = state.params["layer"]["kernel"].at[1].set(jnp.inf)
            faulty = state.replace(params=dict(layer=dict(kernel=bad)))
            after, metrics = update(faulty, b)
            np.testing.assert_array_equal(metrics["finite"], [True, False, True])
            np.testing.assert_array_equal(kernel(after.slow)[1], kernel(state.slow)[1])
            assert (kernel(after.slow)[[0, 2]] != kernel(state.slow)[[0, 2]]).any()
        state, metrics = update(state, b)
        teacher = 0.8 * teacher + 0.2 * kernel(state)
        np.testing.assert_allclose(kernel(state.slow), teacher, rtol=1e-5)
    assert np.abs(teacher - kernel(state)).max() > 1e-3


def test_a_checkpoint_holds_the_teacher(tmp_path):
    _, state, update = taught()
    state, _ = update(state, BATCH)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    restored, _ = checkpoints.restore(jax.eval_shape(lambda: state))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored.slow, state.slow)
    (a, _), (b, _) = update(restored, batch(1)), update(state, batch(1))
    np.testing.assert_array_equal(kernel(a), kernel(b))
    np.testing.assert_array_equal(kernel(a.slow), kernel(b.slow))


def test_other_parameters_put_into_a_state_have_a_teacher_that_begins_there():
    made, state, _ = taught()
    other = jax.tree.map(lambda a: a + 1, state.params)
    np.testing.assert_array_equal(
        kernel(made.restart(state.replace(params=other)).slow), kernel(other)
    )


# Parameters of an objective's own


def tempered():
    """The likelihood of u / s, with a scale s = exp(log_scale) that is trained."""

    def init(key, model, params, collections, x):
        return dict(log_scale=0.1 * jax.random.normal(key, ()))

    def latents(likelihood, latent, batch, key, own):
        scaled = latent.replace(mean=latent.mean / jnp.exp(own.params["log_scale"]))
        return likelihood.nll(scaled, batch["y"], key)

    return Objective("tempered", latents=latents, init=init)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [independent, svgd])
def test_parameters_of_its_own_follow_their_gradient_and_the_network_knows_none(direction):
    made, state = start(tempered(), direction=direction, prior=gaussian(0.8), num_examples=40)
    assert set(state.params) == {"layer", "objective"}
    before = state.params["objective"]["log_scale"]
    assert len(np.unique(before)) == P  # drawn by each particle's own key
    x, y = np.asarray(BATCH["x"], np.float64), np.asarray(BATCH["y"])
    after, metrics = jax.jit(made.update)(state, BATCH)
    for p, W in enumerate(kernel(state)):
        s = np.exp(float(before[p]))
        u = x @ W / s
        prob = softmax(u)
        nll = -np.log(prob[np.arange(B), y]).mean()  # the prior is that of the network alone
        np.testing.assert_allclose(metrics["loss"][p], nll + (W**2).sum() / 0.8**2 / 80, rtol=1e-5)
        slope = -((prob - np.eye(K)[y]) * u).sum(1).mean()  # d u / d log s = -u
        moved = float(before[p] - after.params["objective"]["log_scale"][p])
        np.testing.assert_allclose(moved, 0.1 * slope, rtol=1e-3, atol=1e-6)
    jax.eval_shape(made.predict, after, BATCH["x"])  # whose network checks what it is given


@pytest.mark.slow
def test_flax_networks_read_none_of_them_wherever_they_are_run():
    """Stages and evaluators hand all of a particle's parameters on."""
    network = single(MLP(widths=(3,), activation="tanh"), Dense(outputs=K))
    model = from_network(network, likelihoods.softmax())
    made, state = start(tempered(), model)
    assert set(state.params) == {"backbone", "head", "objective"}
    latent = jax.jit(made.predict)(state, BATCH["x"])
    forward = jax.jit(lambda p, key: model.forward(p, {}, BATCH["x"], key, train=False)[0])
    for p in range(P):
        u = forward(one(state.params, p), state.key[p])
        np.testing.assert_allclose(u.mean[0], latent.mean[p], rtol=1e-5, atol=1e-6)


def test_parameters_of_its_own_leave_the_kernel_between_particles_alone():
    _, state = start(Objective())
    own = dict(log_scale=jnp.zeros(P))
    fields = dict(direction=svgd, target=TARGET, kernel=lambda: rbf(2.0))
    g = direct(state, Objective(), **fields)[0]
    joined = state.replace(params=state.params | dict(objective=own))
    h = direct(joined, tempered(), **fields)[0]
    np.testing.assert_allclose(kernel(h), kernel(g), rtol=1e-5, atol=1e-7)


# The likelihood at other inputs


def fast_gradient(size=0.3):
    """x + size sign(dnll/dx) of each particle, in a second pass (Goodfellow et al. 2015, eq. 1)."""

    def inputs(model, params, collections, batch, key, own):
        def nll(x):
            latent = model.forward(params, collections, x, key, train=True)[0]
            return model.likelihood.nll(latent, batch["y"], key).sum()

        return batch | dict(x=batch["x"] + size * jnp.sign(jax.grad(nll)(batch["x"])))

    return Objective("fast_gradient", inputs=inputs)


def moved_by_hand(state, size=0.3):
    x, y = np.asarray(BATCH["x"], np.float64), np.asarray(BATCH["y"])
    return np.stack(
        [x + size * np.sign((softmax(x @ W) - np.eye(K)[y]) @ W.T) for W in kernel(state)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("direction", "fields"),
    [(independent, {}), (svgd, dict(kernel=lambda: rbf(2.0))), (wgd, {})],
    ids=["independent", "svgd", "wgd"],
)
def test_other_inputs_are_examples_of_each_particles_own(direction, fields):
    _, state = start(Objective())
    fields = dict(direction=direction, target=TARGET, **fields)
    g, _, metrics = direct(state, fast_gradient(), **fields)
    own = dict(x=jnp.asarray(moved_by_hand(state), jnp.float32), y=jnp.stack([BATCH["y"]] * P))
    h, _, expected = direct(state, Objective(), b=own, own_examples=True, **fields)
    np.testing.assert_allclose(kernel(g), kernel(h), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["nll"], expected["nll"], rtol=1e-4)


def test_functions_are_compared_on_the_batch_and_driven_where_the_objective_looks():
    """phi_i = sum_j k(f_j, f_i) J_i(x'_i)^T dnll/du_j(x'_j), and the repulsion at x."""
    _, state = start(Objective())
    target = TARGET._replace(prior=None)
    g = direct(
        state,
        fast_gradient(),
        direction=svgd,
        target=target,
        space="functions",
        kernel=lambda: rbf(2.0),
    )[0]
    x, y, moved = np.asarray(BATCH["x"], np.float64), np.asarray(BATCH["y"]), moved_by_hand(state)
    W = kernel(state)
    f = np.einsum("bd,pdk->pbk", x, W).reshape(P, -1)
    gram = np.exp(-((f[:, None] - f[None]) ** 2).sum(-1) / 4) / P
    du = (softmax(np.einsum("pbd,pdk->pbk", moved, W)) - np.eye(K)[y]) / B
    for i in range(P):
        drive = moved[i].T @ np.einsum("j,jbk->bk", gram[i], du)
        repel = sum(gram[i, j] * (f[i] - f[j]) / 2 for j in range(P)).reshape(B, K)
        expected = drive - 0.7 / 40 * x.T @ repel
        np.testing.assert_allclose(kernel(g)[i], expected, rtol=1e-4, atol=1e-6)


def test_another_loss_of_the_latents_drives_functions():
    """With a delta kernel function space is an ensemble, whatever the loss of the latents."""
    _, state = start(Objective())
    objective = label_smoothing(0.4)
    g = direct(
        state, objective, direction=wgd, target=TARGET, space="functions", kernel=lambda: rbf(1e-6)
    )
    h = direct(state, objective, target=TARGET)
    np.testing.assert_allclose(kernel(g[0]), kernel(h[0]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(g[2]["loss"], h[2]["loss"], rtol=1e-5)


@pytest.mark.parametrize("objective", [mean_teacher(), tempered()], ids=lambda o: o.name)
@pytest.mark.parametrize("space", ["functions", "functional_kernel", "functional_repulsion"])
def test_function_space_refuses_what_it_cannot_follow(objective, space):
    with pytest.raises(ValueError, match=f"objective: '{objective.name}' .* space='{space}'"):
        svgd(executors.vmap, TARGET, objective=objective, space=space)


def test_an_objective_without_labels_reports_no_nll():
    def loss(model, params, collections, batch, key, own):
        u = model.forward(params, collections, batch["x"], key, train=True)[0].mean
        return jnp.mean(u**2), Aux(collections, metrics=dict(size=jnp.abs(u).max()))

    made, state = start(Objective("small", loss=loss), accumulate=2)
    after, metrics = jax.jit(made.update)(state, dict(x=BATCH["x"]))
    assert set(metrics) == {"loss", "size", "gradient_norm", "finite"}
    assert metrics["size"].shape == (P,) and metrics["finite"].all()
    x = np.asarray(BATCH["x"], np.float64)
    expected = [W - 0.1 * 2 * x.T @ (x @ W) / (B * K) for W in kernel(state)]
    np.testing.assert_allclose(kernel(after), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_parts_of_a_batch_are_the_whole_for_every_objective():
    for objective in (label_smoothing(0.3), fast_gradient(), mean_teacher(std=0.0)):
        _, state = start(objective)
        whole = direct(state, objective)
        parts = direct(state, objective, accumulate=3)
        np.testing.assert_allclose(kernel(parts[0]), kernel(whole[0]), rtol=1e-4, atol=1e-6)
        for name, value in whole[2].items():
            np.testing.assert_allclose(parts[2][name], value, rtol=1e-4, atol=1e-6)


def test_parts_that_do_not_divide_a_stream_are_refused():
    with pytest.raises(ValueError, match="3 parts do not divide a more of 4"):
        direct(start(Objective())[1], Objective(), b=BATCH | dict(more=STREAM), accumulate=3)
