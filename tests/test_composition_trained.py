"""What goes with what, trained: a covering set of combinations beats chance."""

import itertools

import numpy as np
import pytest
import scipy.stats

from configs.base import base
from experiments import config as config_lib
from experiments import execution, stage
from experiments.predict import Predictor
from experiments.setup import setup
from tests.test_composition import INTERACTING, SAMPLES, STAGES, why_not
from tests.test_contract import INFERENCE, SAMPLERS, config_of
from uncertainty import predictive

# What parts have in common. Every part is trained once, and every pair of kinds of parts that meet:
# backbones meet ensembles, these and heads meet whatever trains them. The rows are a greedy choice.
KINDS = [
    dict(mlp="", lenet="images", resnet="images", wide_resnet="images",
         vit="tokens", vmoe="tokens"),
    dict(single="", multi_head="heads", mimo="heads", mc_dropout="masks", masksembles="masks",
         batch_ensemble="fast", rank1="fast", packed="packed", e3="e3"),
    dict(dense="", mean_variance="variance", sngp="gp", laplace="gp", heteroscedastic="noise",
         hetsngp="noise", heteroscedastic_xl="projection"),
    dict.fromkeys(INFERENCE, "") | dict.fromkeys(INTERACTING, "interacting")
    | dict.fromkeys(SAMPLERS, "chain") | dict.fromkeys(["collect", *SAMPLES - {"chain"}], "samples")
    | dict.fromkeys(["laplace", "average", "select", "batch_statistics"], "after"),
]  # fmt: skip
TRAINED = """
mlp single mean_variance prior
mlp single laplace laplace
mlp single heteroscedastic swag
mlp single dense psgld
mlp single heteroscedastic_xl svgd_kernel
mlp multi_head hetsngp select
mlp mimo laplace sgld
mlp mimo mean_variance snapshots
mlp mimo heteroscedastic svgd_functions
mlp mimo sngp svgd_repulsion
mlp mc_dropout heteroscedastic prior
mlp mc_dropout mean_variance average
mlp mc_dropout heteroscedastic_xl sgld
mlp masksembles sngp collect
mlp masksembles laplace sge
mlp batch_ensemble heteroscedastic stochastic_svgd
mlp batch_ensemble mean_variance kde
mlp rank1 dense snapshots
mlp rank1 heteroscedastic_xl select
mlp packed mean_variance sghmc
mlp packed dense svgd_probabilities
mlp packed sngp ssge
mlp packed heteroscedastic hyper
mlp packed heteroscedastic_xl snapshots
lenet single sngp prior
lenet mc_dropout dense prior
lenet rank1 heteroscedastic accumulated
resnet packed dense batch_statistics
wide_resnet mimo dense particles
vit single dense prior
vit mimo heteroscedastic_xl prior
vit masksembles dense prior
vit batch_ensemble laplace prior
vit packed mean_variance prior
vmoe e3 sngp prior
vmoe e3 mean_variance svgd
vmoe e3 heteroscedastic swag
vmoe e3 dense select
vmoe e3 heteroscedastic_xl sghmc
"""
ROWS = [tuple(row.split()) for row in TRAINED.split("\n") if row]


def refused(backbone, ensemble, head, how):
    over = dict(stage=how) if how in STAGES else dict(inference=how)
    return why_not(backbone=backbone, ensemble=ensemble, head=head, **over)


def test_the_trained_few_cover_every_part_and_every_pair_of_kinds():
    for i, kinds in enumerate(KINDS):
        assert {row[i] for row in ROWS} == set(kinds)
    possible = [r for r in itertools.product(*KINDS) if not refused(*r)]
    for i, j in ((0, 1), (1, 2), (1, 3), (2, 3)):
        pairs = [
            {(KINDS[i][row[i]], KINDS[j][row[j]]) for row in rows} for rows in (ROWS, possible)
        ]
        assert pairs[0] == pairs[1]


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
    config["data"] = dict(train=DIGITS, validation=DIGITS | dict(split="validation"), augment=())
    return config | dict(steps=30, batch_size=32, mesh=dict(data=1))


@pytest.mark.parametrize(
    "row",
    [pytest.param(r, marks=[pytest.mark.slow] * (r[0] != "mlp"), id="-".join(r)) for r in ROWS],
)
def test_it_beats_chance(row, tmp_path):
    experiment = setup(learnable(*row))
    state, update = experiment.init(), None
    for step, batch in itertools.islice(experiment.batches(0), 30):
        update = update or execution.compile_update(experiment, state, batch)
        state, metrics = update(state, batch)
        assert np.asarray(metrics["finite"]).all(), step
    for name, one in experiment.stages:
        state = stage.run_stage(experiment, one, state, name, 30, tmp_path)
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
