"""The few-shot evaluator against scikit-learn on features by hand."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from experiments.data.description import read_description
from experiments.data.source import load
from experiments.evaluators.few_shot import few_shot
from experiments.experiment.build import setup
from experiments.prediction.predictor import Predictor
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_config

SETS = dict(
    new=dict(train=dict(name="digits", split="train"), test=dict(name="digits", split="test")),
    few=dict(
        train=dict(name="digits", split="train", classes=(3, 8)),
        test=dict(name="digits", split="validation", classes=(3, 8)),
    ),
)
SHOTS, DRAWS = (1, 5), 2


@pytest.fixture(scope="module")
def predictor(digits):
    experiment = setup(read_config(digits), read_description(digits))
    return Predictor(experiment, Checkpoints(digits, read_only=True).restore(experiment.shapes)[0])


@pytest.fixture(scope="module")
def by_hand(predictor):
    """spec -> phi [B, 2 D] of the two MLPs, one beside the other, and labels."""

    def features(spec):
        source = load(spec)
        members = []
        for p in range(2):
            h = source.gather(np.arange(len(source)))["x"].reshape(len(source), -1)
            for name in ("dense0", "dense1"):
                layer = {
                    k: np.asarray(v[p])
                    for k, v in predictor.runs[0].state.params["backbone"][name].items()
                }
                h = np.maximum(h @ layer["kernel"].reshape(h.shape[1], -1) + layer["bias"], 0)
            members.append(h)
        return np.concatenate(members, axis=1), source.y

    return features


@pytest.mark.slow
def test_features_of_particles_stand_side_by_side(predictor, by_hand):
    phi, y = predictor.features(SETS["new"]["test"])
    expected, labels = by_hand(SETS["new"]["test"])
    assert phi.shape == (400, 2 * 128)
    np.testing.assert_allclose(phi, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(y, labels)


@pytest.mark.slow
def test_features_of_members_stand_side_by_side_too(digits):
    config = read_config(digits) | dict(
        ensemble=dict(name="batch_ensemble", size=3), backbone=dict(name="mlp.MLP", widths=(5,))
    )
    experiment = setup(config, read_description(digits))
    state = experiment.init()
    phi, _ = Predictor(experiment, state).features(SETS["new"]["test"])
    source = load(SETS["new"]["test"])
    x = source.gather(np.arange(len(source)))["x"].reshape(len(source), -1)
    layer = {k: np.asarray(v) for k, v in state.params["backbone"]["dense0"].items()}
    expected = [
        np.maximum((x * r) @ layer["kernel"][p] * s + b, 0)
        for p in range(2)
        for r, s, b in zip(
            *(layer[k][p] for k in ("fast_input", "fast_output", "bias")), strict=True
        )
    ]
    np.testing.assert_allclose(phi, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)
    assert phi.shape == (400, 2 * 3 * 5)


def accuracies(x, y, tests, l2):
    """Of scikit-learn's ridge on whitened features and a constant 100, for each of `tests`."""
    scale = StandardScaler().fit(x)
    scale.scale_ = np.sqrt(scale.var_) + 1e-5
    ridge = Ridge(alpha=l2, fit_intercept=False)

    def columns(a):
        return np.c_[scale.transform(a), np.full(len(a), 100.0)]

    ridge.fit(columns(x.astype(float)), 2.0 * np.eye(y.max() + 1)[y] - 1)
    return [np.mean(ridge.predict(columns(a)).argmax(1) == b) for a, b in tests]


@pytest.mark.slow
@pytest.mark.parametrize("choose", ["held_out", "test"])
def test_errors_are_those_of_ridge_with_the_chosen_strength(predictor, by_hand, choose):
    found = dict(few_shot(SETS, SHOTS, DRAWS, choose, held_out=50, seed=3).run(predictor))
    errors = []
    for n in SHOTS:
        tried = np.zeros((30, len(SETS), DRAWS, 2))  # accuracies: held-out, test
        for s, spec in enumerate(SETS.values()):
            (x, y), test = by_hand(spec["train"]), by_hand(spec["test"])
            for draw in range(DRAWS):
                rng = np.random.default_rng([3, draw])
                order = [
                    rng.permutation(np.where(y == k)[0])[: max(SHOTS)] for k in range(y.max() + 1)
                ]
                apart = rng.permutation([i for i in range(len(y)) if i not in np.ravel(order)])[:50]
                seen = np.concatenate([o[:n] for o in order])
                for i in range(30):
                    tests = [(x[apart], y[apart]), test]
                    tried[i, s, draw] = accuracies(x[seen], y[seen], tests, 2.0 ** (i - 10))
        i = int(found[f"few_shot/{n}_shot_log2_l2"]) + 10
        ranked = tried[..., ["held_out", "test"].index(choose)].reshape(30, -1)
        ranks = [(ranked < r).sum(0) + (ranked == r).sum(0) / 2 for r in ranked]
        # Features in float32 may turn single examples of near ties.
        assert np.mean(ranks[i]) >= np.max(np.mean(ranks, axis=1)) - 1
        for s, name in enumerate(SETS):
            error = 1 - tried[i, s, :, 1].mean()
            assert found[f"few_shot/{name}/{n}_shot_error"] == pytest.approx(error, abs=5e-3)
            errors.append(found[f"few_shot/{name}/{n}_shot_error"])
        assert found[f"few_shot/{n}_shot_error"] == pytest.approx(np.mean(errors[-2:]))
    assert found["few_shot/error"] == pytest.approx(np.mean(errors))
    assert found["few_shot/new/5_shot_error"] < 0.3  # chance is 0.9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(choose="tset"), "did you mean 'test'|test"),
        (dict(sets=dict(a=dict(train={}))), "train=..., test=..."),
        (dict(shots=(0, 1)), "shots: 0"),
        (dict(shots=(1, 500)), "few: shots: 500, but class"),
    ],
)
def test_what_cannot_be_is_refused(predictor, fields, message):
    with pytest.raises(ValueError, match=message):
        list(few_shot(**(dict(sets=dict(few=SETS["few"])) | fields)).run(predictor))
