"""What goes with what, trained: combinations with every part in one of them beat chance."""

import itertools

import numpy as np
import pytest
import scipy.stats

from experiments import stage
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.experiment.build import setup
from experiments.prediction.predictor import Predictor
from experiments.runtime.termination import Stop
from tests.test_composition import STAGES
from tests.test_contract import BACKBONES, ENSEMBLES, HEADS, INFERENCE, SAMPLERS, config_of
from uncertainty import predictive

# Every part once; what trains or changes parameters mostly with small networks, each kind of it
# with different kinds of ensembles and heads.
TRAINED = """
mlp single mean_variance swag
mlp single sngp svgd_functions
mlp single heteroscedastic hyper
mlp multi_head laplace laplace
mlp multi_head dense sgld
mlp multi_head heteroscedastic_xl particles
mlp mimo dense sge
mlp mimo mean_variance snapshots
mlp mc_dropout hetsngp select
mlp mc_dropout sngp sghmc
mlp masksembles mean_variance svgd_probabilities
mlp masksembles heteroscedastic_xl ssge
mlp batch_ensemble mean_variance stochastic_svgd
mlp batch_ensemble sngp svgd
mlp batch_ensemble dense accumulated
mlp batch_ensemble dense svgd_repulsion
mlp rank1 dense collect
mlp multi_head dense moving_average
mlp packed dense psgld
mlp packed dense chain
mlp packed dense svgd_kernel
mlp epinet heteroscedastic particles
mlp hypermodel dense particles
conv_net randomised_prior dense together
lenet single dense prior
resnet single mean_variance batch_statistics
wide_resnet single sngp prior
vit multi_head dense average
vmoe e3 sngp kde
"""
ROWS = [tuple(row.split()) for row in TRAINED.split("\n") if row]


def test_the_trained_few_have_every_part():
    parts = (BACKBONES, ENSEMBLES, HEADS, {*INFERENCE, *STAGES})
    for of_rows, all_of_them in zip(zip(*ROWS, strict=True), parts, strict=True):
        assert set(of_rows) == set(all_of_them)


CLASSES = (0, 1, 2)
DIGITS = dict(name="digits", classes=CLASSES)


def learnable(backbone, ensemble, head, how):
    """A config of an experiment on three of the digits."""
    config = config_lib.plain(base())
    config |= config_of(backbone, ensemble, head, "particles" if how in STAGES else how)
    if head == "mean_variance":
        config["likelihood"] = dict(name="softmax", samples=8)
    if how in STAGES:
        config["stages"] = (STAGES[how],)
        config["inference"] = INFERENCE["particles"] | dict(size=1 + (how == "select"))
    size = config["inference"]["size"]
    fewer = dict(size=min(size, 2), executor="vmap")  # less to compile
    config["inference"] = config["inference"] | fewer
    config["data"] = dict(train=DIGITS, validation=DIGITS | dict(split="validation"), augment=())
    steps = 120 if how in SAMPLERS else 30  # chains take short steps
    return config | dict(steps=steps, batch_size=32, mesh=dict(data=1))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_it_beats_chance(row, tmp_path):
    experiment = setup(learnable(*row))
    state = experiment.init()
    steps = experiment.config["steps"]
    for step, batch in itertools.islice(experiment.batches(0), steps):
        state, metrics = experiment.update(state, batch)
        assert np.asarray(metrics["finite"]).all(), step
    for name, one in experiment.stages:
        state = stage.run_stage(
            experiment, name, one, state, steps, tmp_path, tmp_path / name, Stop()
        )
    said = Predictor(experiment, state)(DIGITS | dict(split="test"))

    def p_value(log_p):
        """Of as many right answers or more, if all were guesses of the commonest class."""
        right, chance = np.sum(log_p.argmax(-1) == said.y), np.bincount(said.y).max() / len(said.y)
        return scipy.stats.binomtest(int(right), len(said.y), chance, "greater").pvalue

    assert all(p_value(member) < 1e-4 for member in said.log_p)
    assert p_value(np.asarray(predictive.mixture(said.log_p))) < 1e-9
    for one, other in itertools.combinations(said.mean, 2):
        if row[3] != "select":  # which may take a particle twice
            assert not np.allclose(one, other, atol=1e-4)  # members and particles differ


@pytest.mark.slow
def test_a_backbone_in_bfloat16_learns_as_in_float32():
    """Losses differ by the rounding of the features, not by what follows the backbone."""
    losses = []
    for dtype in ("float32", "bfloat16"):
        config = learnable("vit", "single", "dense", "particles")
        config["backbone"] = config["backbone"] | dict(dtype=dtype)
        config["inference"] = config["inference"] | dict(size=1)
        experiment = setup(config)
        state, of_run = experiment.init(), []
        for _, batch in itertools.islice(experiment.batches(0), 30):
            state, metrics = experiment.update(state, batch)
            of_run.append(float(metrics["loss"][0]))
        losses.append(of_run)
    full, half = np.asarray(losses)
    assert full[-5:].mean() < full[0] / 2  # it has learned
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half[:5], full[:5], rtol=0.01)
    np.testing.assert_allclose(half, full, rtol=0.1, atol=0.02)
