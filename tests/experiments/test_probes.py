"""Probes of frozen features: by scikit-learn and NumPy on features that are computed by hand."""

import dataclasses

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from experiments.data.description import read_description
from experiments.data.source import load
from experiments.evaluators import build
from experiments.evaluators.knn_probe import knn_probe
from experiments.evaluators.symmetry_probe import moved, sample, symmetry_probe
from experiments.experiment.build import setup
from experiments.prediction.predictor import Predictor
from experiments.runtime.checkpoint import Checkpoints
from experiments.runtime.workdir import read_config
from uncertainty import symmetries
from uncertainty.build import ConfigError
from uncertainty.metrics.few_shot import probe

TRAIN, TEST = dict(name="digits", split="train"), dict(name="digits", split="test")


@pytest.fixture(scope="module")
def predictor(digits):
    experiment = setup(read_config(digits), read_description(digits))
    return Predictor(experiment, Checkpoints(digits, read_only=True).restore(experiment.shapes)[0])


def layers(predictor, p, x):
    """Features and most probable classes of the MLP p for normalised images x."""
    params = predictor.runs[0].state.params
    h = np.asarray(x, np.float64).reshape(len(x), -1)
    for name in ("dense0", "dense1"):
        layer = {k: np.asarray(v[p]) for k, v in params["backbone"][name].items()}
        h = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
    last = {k: np.asarray(v[p]) for k, v in params["head"]["logits"].items()}
    return h, (h @ last["kernel"] + last["bias"]).argmax(1)


def examples(spec):
    source = load(spec)
    return source.gather(np.arange(len(source)))


@pytest.mark.slow
def test_nearest_neighbours_are_those_of_scikit_learn(predictor):
    got = dict(knn_probe(TRAIN, TEST, k=15, temperature=0.2).run(predictor))
    train, test = examples(TRAIN), examples(TEST)
    of = [(layers(predictor, p, train["x"])[0], layers(predictor, p, test["x"])[0]) for p in (0, 1)]
    unit = [[phi / np.linalg.norm(phi, axis=1, keepdims=True) for phi in one] for one in of]
    of.append(tuple(np.concatenate([one[i] for one in unit], axis=1) for i in (0, 1)))
    vote = KNeighborsClassifier(15, metric="cosine", weights=lambda d: np.exp(-d / 0.2))
    expected = [vote.fit(x, train["y"]).score(inputs, test["y"]) for x, inputs in of]
    np.testing.assert_allclose(got["knn/members"], expected[:2], atol=5e-3)  # ties by rounding
    assert got["knn/accuracy"] == pytest.approx(expected[2], abs=5e-3)
    assert got["knn/member_accuracy"] == pytest.approx(np.mean(got["knn/members"]))


@pytest.mark.slow
def test_a_probe_of_turns_on_features_by_hand(predictor):
    spec = symmetry_probe(TRAIN, TEST, examples=150, held_out=0.4, seed=1, kinds=("a", "b"))
    got = dict(spec.run(predictor))
    train, test = (examples(s)["x"] for s in (TRAIN, TEST))
    train, test = (x[np.random.default_rng(1).permutation(len(x))[:150]] for x in (train, test))
    turned = [[np.rot90(x, k, (1, 2)) for k in range(4)] for x in (train, test)]
    accuracy, cosines, agree = [], [], []
    for p in (0, 1):
        phi, phi_test = ([layers(predictor, p, x) for x in images] for images in turned)
        fit, held = (np.concatenate([f[i] for f, _ in phi]) for i in (slice(60, None), slice(60)))
        tested = np.concatenate([f for f, _ in phi_test])
        y, y_held, y_test = (np.repeat(np.arange(4), n) for n in (90, 60, 150))
        of_held, of_test = probe(fit, y, 4, [held, tested])
        right = (of_held == y_held).mean(1)
        best = np.flatnonzero(right >= right.max() - 1e-9)[-1]
        accuracy.append((of_test[best] == y_test).mean())
        centred = tested - tested.mean(0)
        centred = (centred / np.linalg.norm(centred, axis=1, keepdims=True)).reshape(4, 150, -1)
        cosines.append(np.mean([np.sum(centred[k] * centred[0], -1).mean() for k in (1, 2, 3)]))
        classes = [c for _, c in phi_test]
        agree.append(np.mean([classes[k] == classes[0] for k in (1, 2, 3)]))
    prefix = "symmetry/rotations/"
    np.testing.assert_allclose(got[prefix + "members"], accuracy, atol=0.02)  # ties by rounding
    assert got[prefix + "probe_accuracy"] == pytest.approx(np.mean(accuracy), abs=0.02)
    assert got[prefix + "probe_accuracy"] > 0.5  # chance is 0.25
    assert got[prefix + "cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert got[prefix + "agreement"] == pytest.approx(np.mean(agree), abs=5e-3)
    for p, kind in enumerate("ab"):
        assert got[f"{prefix}{kind}/probe_accuracy"] == got[prefix + "members"][p]
        assert got[f"{prefix}{kind}/cosine"] == pytest.approx(cosines[p], abs=1e-4)
    assert set(got) - {prefix + "members"} == spec.yields


def test_moved_examples_keep_their_own_changes_and_are_normalised_after_them():
    source = dataclasses.replace(
        load(TEST), mean=np.full((8, 8, 1), 0.25, np.float32),
        std=np.full((8, 8, 1), 2, np.float32),
        transform=lambda x, indices: x * (indices[:, None, None, None] % 3 == 0),
    )  # fmt: skip
    few = sample(source, 7, seed=3)
    chosen = np.random.default_rng(3).permutation(len(source))[:7]
    raw = load(TEST).raw(chosen)["x"] * (chosen[:, None, None, None] % 3 == 0)
    assert not few.labelled and len(few) == 7
    turned = moved(few, symmetries.rotations(), 1)
    got = turned.gather(np.array([4, 0]))["x"]
    np.testing.assert_allclose(got, (np.rot90(raw, 1, (1, 2))[[4, 0]] - 0.25) / 2, atol=1e-6)
    inverted = moved(few, symmetries.inversion(), 1)
    np.testing.assert_allclose(inverted.gather(np.arange(7))["x"], (1 - raw - 0.25) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (dict(name="knn_probe", k=0), "k: 0; at least 1"),
        (dict(name="knn_probe", temperature=0.0), "temperature: 0.0"),
        (dict(name="symmetry_probe", symmetry="rotation"), "did you mean 'rotations'"),
        (dict(name="symmetry_probe", symmetry=dict(name="scale", factors=[2.0])), "factors: "),
        (dict(name="symmetry_probe", symmetry="fractions:Fraction"), "returns a Fraction"),
        (dict(name="symmetry_probe", examples=1), "examples: 1"),
        (dict(name="symmetry_probe", held_out=1.0), "held_out: 1.0"),
    ],
)
def test_what_cannot_be_says_why(spec, why):
    with pytest.raises(ConfigError, match=why):
        build("e", dict(train=TRAIN, data=TEST) | spec)


def test_images_that_cannot_be_moved_are_refused():
    source = load(TEST)
    inverted = build("e", dict(name="symmetry_probe", train=TRAIN, data=TEST, symmetry="inversion"))
    inverted.check(source)
    with pytest.raises(ValueError, match="'inversion' needs images of a declared range"):
        inverted.check(dataclasses.replace(source, range="unbounded"))
    table = load(dict(name="breast_cancer", split="test"))
    with pytest.raises(ValueError, match="has no images"):
        inverted.check(table)
