"""The evaluator of a plane, against a forward pass by hand, scikit-learn and loops."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import roc_auc_score

from configs.toys import rings
from experiments.data.source import load
from experiments.evaluate import evaluate
from experiments.evaluators import build
from experiments.evaluators.uncertainty_map import uncertainties, uncertainty_map
from experiments.experiment import config as config_lib
from experiments.prediction.predictions import Predictions
from experiments.prediction.predictor import Predictor
from experiments.runtime.checkpoint import Checkpoints
from experiments.train import train
from uncertainty.build import ConfigError

MEAN, STD = 0.5, 2.0  # of a normalisation that the grid has to go through too
TEST = dict(name="rings", split="test", mean=MEAN, std=STD)
BLOB = dict(TEST, split="blob")
FIELDS = dict(
    data=dict(TEST, split="train"),
    groups={k: dict(TEST, classes=(i,)) for i, k in enumerate(("inner", "middle", "outer"))},
    ood=dict(blob=BLOB),
    reference="outer",
    limits=(-3.0, 5.0),
    points=5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two small networks: the Predictor, what it evaluates to, and p [2, B, 3] by hand."""
    workdir = tmp_path_factory.mktemp("rings") / "run"
    config = rings.get_config("runlocal")
    config.data.train = FIELDS["data"]
    config.batch_size, config.steps, config.mesh = 100, 60, dict(data=1)
    config.backbone.widths, config.inference.size = (8,), 2
    config.evaluators = dict(map=dict(name="uncertainty_map", **FIELDS))
    experiment = train(config_lib.plain(config), workdir)
    metrics, failures = evaluate(experiment, workdir, show=False)
    assert not failures
    with np.load(workdir / "evaluation" / "test" / "scores.npz") as file:
        arrays = dict(file)
    state, _ = Checkpoints(workdir, read_only=True).restore(experiment.shapes)
    hidden, last = state.params["backbone"]["dense0"], state.params["head"]["logits"]

    def logits(x):
        members = []
        for p in range(2):
            h = (x - MEAN) / STD @ np.asarray(hidden["kernel"][p]) + np.asarray(hidden["bias"][p])
            members.append(
                np.maximum(h, 0) @ np.asarray(last["kernel"][p]) + np.asarray(last["bias"][p])
            )
        return np.stack(members)

    return Predictor(experiment, state), metrics, arrays, logits


@pytest.mark.slow
def test_the_grid_is_predicted_in_its_place(run):
    _, _, arrays, logits = run
    ticks = np.linspace(-3, 5, 5)
    np.testing.assert_allclose(arrays["map/axes"], [ticks, ticks])
    assert arrays["map/p"].shape == (5, 5, 3)
    for i, x2 in enumerate(ticks):
        for j, x1 in enumerate(ticks):
            u = logits(np.array([[x1, x2]]))
            p = scipy.special.softmax(u, axis=-1).mean(0)[0]
            np.testing.assert_allclose(arrays["map/p"][i, j], p, rtol=1e-4, atol=1e-6)
            entropy = scipy.stats.entropy(p)
            np.testing.assert_allclose(arrays["map/entropy"][i, j], entropy, rtol=1e-3, atol=1e-5)
            a, b = (row - row.mean() for row in u[:, 0])
            std = np.sqrt(np.mean((a - b) ** 2 / 4))  # of two numbers: half their difference
            np.testing.assert_allclose(arrays["map/epistemic_std"][i, j], std, rtol=1e-3)


@pytest.mark.slow
def test_groups_have_means_and_are_told_from_the_reference(run):
    _, metrics, _, logits = run
    entropy = {}
    for name, spec in {**FIELDS["groups"], "blob": BLOB}.items():
        p = scipy.special.softmax(logits(load(spec).x), axis=-1).mean(0)
        entropy[name] = scipy.stats.entropy(p, axis=-1)
        np.testing.assert_allclose(metrics[f"map/{name}/entropy"], entropy[name].mean(), rtol=1e-3)
    for name in ("inner", "middle", "blob"):
        both = np.concatenate([entropy["outer"], entropy[name]])
        area = roc_auc_score(np.repeat([0, 1], 300), both)
        np.testing.assert_allclose(metrics[f"map/{name}/auroc_entropy"], area, atol=1e-3)
    assert "map/outer/auroc_entropy" not in metrics


@pytest.mark.slow
def test_points_are_kept_as_they_are_stored(run):
    _, _, arrays, _ = run
    np.testing.assert_allclose(arrays["map/x"], load(dict(name="rings")).x, atol=1e-5)
    np.testing.assert_array_equal(arrays["map/y"], load(dict(name="rings")).y)
    blob = load(dict(name="rings", split="blob")).x
    np.testing.assert_allclose(arrays["map/blob/x"], blob, atol=1e-5)
    assert "map/inner/x" not in arrays


@pytest.mark.slow
def test_without_limits_the_square_is_twice_as_wide_as_the_data(run):
    predict, *_ = run
    data = FIELDS["data"]
    found = dict(uncertainty_map(data, points=3).run(predict))
    assert not [value for value in found.values() if not isinstance(value, np.ndarray)]
    x = load(dict(name="rings")).x
    low, high = x.min(0), x.max(0)
    for axis in range(2):
        ticks = found["map/axes"][axis]
        np.testing.assert_allclose(ticks[1], (low + high)[axis] / 2, atol=1e-5)
        np.testing.assert_allclose(ticks[2] - ticks[0], 2 * (high - low).max(), rtol=1e-5)


def predictions(members, epistemic=None):
    rng = np.random.default_rng(members)
    u = rng.normal(size=(members, 7, 3)).astype(np.float32)
    return Predictions(
        y=np.zeros(7, int),
        mean=u,
        log_p=scipy.special.log_softmax(u, axis=-1),
        variance=None,
        latent_variance=epistemic,
        epistemic=epistemic,
        source=None,
        seconds=0.0,
    )


def test_one_plain_network_has_an_entropy_alone():
    assert uncertainties(predictions(1)).keys() == {"entropy"}


@pytest.mark.parametrize("shape", [(2, 7, 1), (2, 7, 3)])
def test_what_heads_and_members_do_not_know_adds_up(shape):
    given = np.random.default_rng(0).uniform(size=shape)
    found = uncertainties(predictions(2, given))["epistemic_std"]
    between = uncertainties(predictions(2))["epistemic_std"]
    for b in range(7):
        np.testing.assert_allclose(found[b] ** 2, between[b] ** 2 + given[:, b].mean(), rtol=1e-5)
    alone = uncertainties(predictions(1, given[:1]))["epistemic_std"]
    np.testing.assert_allclose(alone, np.sqrt(given[0].mean(-1)), rtol=1e-6)


def test_the_noise_of_labels_is_what_is_left_of_the_variance():
    rng = np.random.default_rng(0)
    epistemic, noise = rng.uniform(size=(2, 7, 1)), rng.uniform(size=(2, 7, 3))
    p = predictions(2, epistemic)
    found = uncertainties(p._replace(latent_variance=epistemic + noise))
    np.testing.assert_allclose(found["noise_std"], np.sqrt(noise.mean((0, 2))), rtol=1e-6)
    found = uncertainties(p._replace(latent_variance=epistemic * np.ones(3)))
    assert "noise_std" not in found


def test_a_shift_common_to_the_classes_is_no_disagreement():
    p = predictions(2)
    shifted = p._replace(mean=p.mean + np.array([3.0, -4.0])[:, None, None])
    for name, value in uncertainties(p).items():
        np.testing.assert_allclose(uncertainties(shifted)[name], value, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data=dict(name="iris")), r"data: iris\[train\]: inputs of shape \(4,\); \(2,\)"),
        (dict(limits=(1.0, -1.0)), r"limits: \(1.0, -1.0\); \(low, high\) with low < high"),
        (dict(limits=(1.0,)), r"limits: \(1.0,\)"),
        (dict(points=1), "points: 1; at least 2"),
        (dict(reference="outr"), "reference: no group 'outr'.*outer"),
        (dict(ood=dict(inner=BLOB)), r"ood: \['inner'\] are names of groups too"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    fields = {**FIELDS, **changes}
    with pytest.raises(ValueError, match=message):
        uncertainty_map(**fields).check(load(fields["data"]))


def test_misspelt_specs_are_refused_before_anything_runs():
    spec = dict(name="uncertainty_map", **{**FIELDS, "groups": dict(outer=dict(name="rigns"))})
    with pytest.raises(ConfigError, match=r"evaluators.map.groups.outer.name.*rings"):
        build("map", spec, "classification")
    with pytest.raises(ConfigError, match="for classification, the training data for regression"):
        build("map", dict(name="uncertainty_map", data=TEST), "regression")
