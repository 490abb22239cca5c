"""Hyper-parameters of particles, against runs that have them as their own."""

import functools

import jax
import numpy as np
import pytest

from tests.uncertainty.classes import batch, kernel, linear
from tests.uncertainty.posteriors import data, linear_regression
from uncertainty import priors
from uncertainty.inference.directions import svgd
from uncertainty.inference.particles import particles
from uncertainty.objectives.label_smoothing import label_smoothing
from uncertainty.optimisers import optimiser as optimisers
from uncertainty.types import LIKELIHOOD

MODEL, BATCH = linear_regression(3, 1.0), data(8, 3)


def run(size=1, rate=0.02, scale=0.5, hyper=None, slot=slice(None), **fields):
    """Three steps of Adam; of the particles in `slot` of `size`."""
    inference = particles(
        MODEL,
        optimisers.optimiser(optimisers.adam(), rate),
        size=size,
        prior=priors.gaussian(scale),
        num_examples=4,
        hyper=hyper,
        **fields,
    )
    state = inference.init(jax.random.key(0), BATCH["x"][:1])
    update = jax.jit(inference.update)
    for _ in range(3):
        state, _ = update(state, BATCH)
    return np.asarray(state.params["layer"]["kernel"])[slot], state


@functools.cache
def with_these(rate, scale):
    return run(size=6, rate=rate, scale=scale)[0]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["vmap", "scan", "unroll"])
def test_particles_have_the_learning_rates_and_priors_that_they_are_given(executor):
    hyper = dict(learning_rate=[1.0, 3.0], prior_scale=[0.4, 1.0, 2.0])
    together, state = run(size=6, hyper=hyper, executor=executor)
    for p in range(6):
        rate, scale = 0.02 * [1, 3][p % 2], 0.5 * [0.4, 1, 2][p % 3]
        alone = with_these(rate, scale)
        np.testing.assert_allclose(together[p], alone[p], rtol=1e-5, atol=1e-6)
    assert {k: v.shape for k, v in state.hyper.items()} == dict(
        learning_rate=(6,), prior_scale=(6,)
    )


def train(size, hyper=None, rate=0.02, decay=0.0, l2=0.0, smoothing=None):
    """Two steps of a classifier, [P, D, K]."""
    values = dict(weight_decay=decay, l2=l2)
    rules = {name: [(".*", value)] for name, value in values.items() if value}
    optimiser = optimisers.optimiser(optimisers.adam(), rate, **rules)
    objective = LIKELIHOOD if smoothing is None else label_smoothing(smoothing)
    made = particles(
        linear(), optimiser, size=size, hyper=hyper, objective=objective, executor="vmap"
    )
    state, update = made.init(jax.random.key(0), batch()["x"]), jax.jit(made.update)
    for i in range(2):
        state, _ = update(state, batch(i))
    return kernel(state)


@pytest.mark.slow
def test_a_population_is_as_many_runs_with_hyper_parameters_of_their_own():
    hyper = dict(
        weight_decay=[0.0, 1.0, 5.0],
        l2=[0.5, 1.0],
        learning_rate=[1.0, 2.0, 3.0, 4.0],
        label_smoothing=[0.0, 0.1, 0.2, 0.4],
    )
    together = train(12, hyper, decay=0.3, l2=0.2, smoothing=0.9)
    for p in (0, 1, 7, 11):
        alone = train(
            12,
            rate=0.02 * (1 + p % 4),
            decay=0.3 * [0, 1, 5][p % 3],
            l2=0.2 * [0.5, 1][p % 2],
            smoothing=[0, 0.1, 0.2, 0.4][p % 4],
        )
        np.testing.assert_allclose(together[p], alone[p], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["weight_decay", "l2", "label_smoothing"])
def test_each_hyper_parameter_is_that_of_a_run(name):
    fields = dict(weight_decay=("decay", 0.3), l2=("l2", 0.2), label_smoothing=("smoothing", 1.0))
    field, scale = fields[name]
    together = train(2, {name: [0.5, 0.75]}, **{field: min(scale, 0.9)})
    for p, value in enumerate((0.5, 0.75)):
        alone = train(2, **{field: scale * value})
        np.testing.assert_allclose(together[p], alone[p], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("hyper", "why"),
    [
        (
            dict(weight_decay=[1.0]),
            "hyper.weight_decay: needs rules to scale; set optimiser.weight_decay",
        ),
        (dict(l2=[1.0]), "hyper.l2: needs rules to scale; set optimiser.l2"),
        (
            dict(label_smoothing=[0.1]),
            "hyper.label_smoothing: needs objective.name='label_smo",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_nothing_reads_is_refused(hyper, why):
    with pytest.raises(ValueError, match=why):
        train(2, hyper)


@pytest.mark.parametrize(
    ("hyper", "why"),
    [
        (dict(weight_decay=[-1.0]), "hyper.weight_decay: .* a list of numbers from 0, or dict"),
        (dict(weight_decay=dict(low=0.0, high=1.0)), "hyper.weight_decay: .*positive numbers"),
        (dict(label_smoothing=[0.1, 1.0]), "label_smoothing: .* numbers from 0 and below 1"),
        (dict(label_smoothing=dict(low=0.1, high=2.0)), "hyper.label_smoothing: "),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(hyper, why):
    with pytest.raises(ValueError, match=why):
        train(2, hyper, decay=0.1, smoothing=0.1)


def test_drawn_values_belong_to_the_particle_and_fill_their_range():
    hyper = dict(prior_scale=dict(low=0.1, high=10.0), learning_rate=dict(low=0.5, high=0.6))
    few, many = (run(size=n, hyper=hyper)[1].hyper for n in (3, 40))
    for name, (low, high) in dict(prior_scale=(0.1, 10.0), learning_rate=(0.5, 0.6)).items():
        values = np.asarray(many[name])
        np.testing.assert_array_equal(few[name], values[:3])
        assert low <= values.min() and values.max() <= high
        # uniform in the logarithm: the mean of 40 is within four standard errors
        share = (np.log(values) - np.log(low)) / (np.log(high) - np.log(low))
        assert abs(share.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 40)
    assert np.corrcoef(many["prior_scale"], many["learning_rate"])[0, 1] < 0.5


@pytest.mark.parametrize(
    ("hyper", "why"),
    [
        (dict(dropout=[0.1]), "hyper.dropout: not one of learning_rate, prior_scale"),
        (dict(prior_scale=[0.1, -1.0]), "hyper.prior_scale: .*positive numbers"),
        (dict(prior_scale=dict(low=2.0, high=1.0)), "hyper.prior_scale: "),
        (dict(prior_scale=dict(low=2.0)), "hyper.prior_scale: "),
        (dict(prior_scale=[]), "hyper.prior_scale: "),
        (dict(prior_scale=0.5), "hyper.prior_scale: 0.5; a list"),
        (dict(learning_rate=["a"]), "hyper.learning_rate: .*a list"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(hyper, why):
    with pytest.raises(ValueError, match=why):
        run(hyper=hyper)


def test_there_is_a_prior_to_scale():
    with pytest.raises(ValueError, match=r"hyper\.prior_scale: needs a prior"):
        particles(
            MODEL, optimisers.optimiser(optimisers.adam(), 0.1), hyper=dict(prior_scale=[1.0])
        )


def test_particles_that_interact_have_one_posterior():
    with pytest.raises(ValueError, match="hyper: particles that interact"):
        run(size=2, hyper=dict(prior_scale=[1.0]), direction=svgd.svgd)


def test_particles_that_share_random_numbers_differ_by_their_hyper_parameters_alone():
    """Particle p of six is particle p mod 2 of a run of two with its learning rate."""
    rates = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    together, _ = run(size=6, hyper=dict(learning_rate=rates), distinct=2, executor="vmap")
    for p, factor in enumerate(rates):
        alone, _ = run(size=2, rate=0.02 * factor, executor="vmap")
        np.testing.assert_allclose(together[p], alone[p % 2], rtol=1e-5, atol=1e-7)
    for fields, message in (
        (dict(distinct=0, hyper=dict(learning_rate=rates)), "distinct: 0"),
        (dict(distinct=2), "need lists of hyper-parameters"),
        (dict(distinct=2, hyper=dict(learning_rate=dict(low=1.0, high=2.0))), "need lists"),
    ):
        with pytest.raises(ValueError, match=message):
            run(size=6, **fields)
