"""What members use, by evaluators and figures: against NumPy's forward pass and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.data.source import load
from experiments.evaluate import evaluate
from experiments.evaluators import build
from experiments.evaluators.cues import effective, shares
from experiments.evaluators.disambiguation import differences, of_best
from experiments.evaluators.simplicity import above_chance, auc
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.reports.figures import figures
from experiments.reports.runs import load_run
from experiments.runtime.checkpoint import Checkpoints
from experiments.train import train
from uncertainty.build import ConfigError

DATA = dict(name="linear_and_slabs", linear=1, slabs=(5,), size=600, test_size=500)
OTHERS = dict(
    simple_randomised=dict(DATA, split="simple_randomised"),
    complex_randomised=dict(DATA, split="complex_randomised"),
)
POOL = dict(DATA, split="unlabelled", agreement=0.7)
CUES = dict(linear=OTHERS["complex_randomised"], slab=OTHERS["simple_randomised"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two linear classifiers, which can use the linear coordinate alone."""
    workdir, test = tmp_path_factory.mktemp("slabs") / "run", dict(DATA, split="test")
    config = base()
    config.data.train = DATA
    config.backbone = dict(name="mlp.MLP", widths=())
    config.head.outputs = 2
    config.inference.size = 2
    config.optimiser = dict(name="sgd", learning_rate=1.0)
    config.batch_size, config.steps, config.mesh = 100, 60, dict(data=1)
    config.evaluators = dict(
        simplicity=dict(name="simplicity", data=test, **OTHERS),
        cues=dict(name="cues", sets=CUES, diagonal=test),
        disambiguation=dict(name="disambiguation", data=test, pool=POOL, labels=(3, 200)),
    )
    experiment = train(config_lib.plain(config), workdir)
    metrics, failures = evaluate(experiment, workdir, show=False)
    assert not failures
    state, _ = Checkpoints(workdir, read_only=True).restore(experiment.shapes)
    layer = state.params["head"]["logits"]
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    predict = lambda x: np.einsum("bd,pdk->pbk", x, kernel) + bias[:, None]  # noqa: E731
    return workdir, metrics, predict


@pytest.mark.slow
def test_accuracies_and_areas_with_features_of_other_examples(run):
    workdir, metrics, predict = run
    of = {}
    for name in ("standard", *OTHERS):
        source = load(OTHERS.get(name, dict(DATA, split="test")))
        p = np.exp(predict(source.x))
        p, y = p / p.sum(-1, keepdims=True), source.y
        members = (p.argmax(-1) == y).mean(1)
        of[name] = dict(
            accuracy=(p.mean(0).argmax(-1) == y).mean(),
            auc=roc_auc_score(y, p.mean(0)[:, 1]),
            member_accuracy=members.mean(),
            member_auc=np.mean([roc_auc_score(y, one[:, 1]) for one in p]),
            best_member=members.max(),
        )
        for key, value in of[name].items():
            np.testing.assert_allclose(metrics[f"simplicity/{name}/{key}"], value, atol=1e-5)
        np.testing.assert_allclose(load_run(workdir).scores[f"simplicity/{name}/members"], members)
    assert of["standard"]["accuracy"] > 0.99 and of["complex_randomised"]["auc"] > 0.99
    assert abs(of["simple_randomised"]["auc"] - 0.5) < 0.06
    assert (metrics["simplicity/complex_share"], metrics["simplicity/simple_share"]) == (0, 1)
    for name, spec in CUES.items():
        named = next(key for key, other in OTHERS.items() if other == spec)
        assert metrics[f"cues/{name}/accuracy"] == metrics[f"simplicity/{named}/accuracy"]
    assert (metrics["cues/linear/share"], metrics["cues/slab/share"]) == (1, 0)
    assert metrics["cues/none/share"] == 0 and metrics["cues/used"] == 1
    assert metrics["cues/diagonal/accuracy"] == metrics["simplicity/standard/accuracy"]


@pytest.mark.slow
def test_few_labels_choose_a_member(run):
    _, metrics, predict = run
    pool, test = load(POOL), load(dict(DATA, split="test"))
    p = np.exp(predict(pool.x))
    p /= p.sum(-1, keepdims=True)
    tested = (predict(test.x).argmax(-1) == test.y).mean(1)
    for n in (3, 200):
        asked = np.argsort(-np.abs(p[0] - p[1]).sum(-1))[:n]
        right = (p.argmax(-1) == pool.y)[:, asked].sum(1)
        expected = tested[right == right.max()].mean()
        np.testing.assert_allclose(metrics[f"disambiguation/{n}/accuracy"], expected)
        assert tested.min() <= metrics[f"disambiguation/{n}/random_accuracy"] <= tested.max()
    apart = np.mean(np.not_equal(*p.argmax(-1)))
    np.testing.assert_allclose(metrics["disambiguation/disagreement"], apart, atol=1e-9)
    assert metrics["disambiguation/best_member"] == tested.max()


def test_differences_of_pairs_and_ties_of_members():
    p = np.random.default_rng(0).dirichlet(np.ones(3), (5, 4))  # [M, B, K]
    pairs = [np.abs(p[i] - p[j]).sum(-1) for j in range(5) for i in range(j)]
    np.testing.assert_allclose(differences(p), np.mean(pairs, axis=0))
    right = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])
    assert of_best(right, np.array([0.9, 0.5, 0.1])) == pytest.approx(0.7)


@pytest.mark.slow
def test_figures_of_what_members_use(run):
    made = {entry.name: entry.figure for entry in figures({"two": [load_run(run[0])]})}
    points = made["simplicity"].axes[0].lines
    np.testing.assert_allclose(points[0].get_xdata(), 100 * run[1]["simplicity/standard/accuracy"])
    assert len(points) == 6  # three sets, each with the members
    bars = [patch.get_width() for patch in made["cues"].axes[1].patches]
    assert bars == [100, 0, 0]


def test_the_area_under_the_curve_of_several_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    p = rng.dirichlet(np.ones(4), 200).round(1)  # with ties; no example is of class 3
    each = [roc_auc_score(y == k, p[:, k]) for k in range(3)]
    np.testing.assert_allclose(auc(p, y), np.mean(each))
    with pytest.raises(ValueError, match="all 5 examples are of one class"):
        auc(p[:5], np.ones(5, int))


def test_who_uses_what():
    accuracy = np.array([[0.9, 0.5, 0.8, 0.4], [0.3, 0.5, 0.9, 0.5], [0.5, 0.4, 0.2, 0.5]])
    least = np.array([0.45, 0.45, 0.55])
    # the third is at chance in the fourth member, though as good as the second
    np.testing.assert_allclose(shares(accuracy, least), np.array([1.5, 2.5, 0, 0]) / 4)
    np.testing.assert_allclose(shares(accuracy[:, :1] - 0.6, least), [0, 0, 0, 1])
    assert [effective(np.array(s)) for s in ((0.2, 0, 0.2), (0, 0.3, 0), (0, 0, 0))] == [2, 1, 0]
    assert above_chance(2, 900) == pytest.approx(0.5 + 3 * 0.5 / 30)


def test_what_is_refused():
    for change, message in (
        (dict(pool=DATA), "pool: is the test set"),
        (dict(labels=()), r"labels: \[\], draws: 20"),
        (dict(labels=(0,)), r"labels: \[0\], draws: 20"),
    ):
        with pytest.raises(ConfigError, match=f"evaluators.e.{message}"):
            build("e", dict(name="disambiguation", data=DATA, pool=POOL) | change)
    with pytest.raises(ConfigError, match=r"evaluators.e.sets: \['none', 'slab'\]; two or more"):
        build("e", dict(name="cues", sets=dict(none=DATA, slab=DATA)))
    with pytest.raises(ConfigError, match=r"evaluators.e.sets.slab: 5 is not a dict of fields"):
        build("e", dict(name="cues", sets=dict(linear=DATA, slab=5)))
