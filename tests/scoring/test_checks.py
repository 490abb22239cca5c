"""What is converted is said, and what cannot be is refused with its place."""

import functools
import re

import numpy as np
import pytest
from scipy import special

from experiments.scoring.checks import checked
from experiments.scoring.files import File
from experiments.scoring.parts import Options
from tests.scoring.made import K, labels, logits, probs

Y = labels()
P = probs(0, y=Y)
L = np.log(P)


def part(notes=None, options=None, name="test", metadata=(), **arrays):
    options = options or Options()
    sets = {"test": {}}
    for key, value in arrays.items():
        *of, array = key.split("__")
        of_set = sets.setdefault("/".join(of) or "test", {})
        of_set[array] = functools.partial(np.asarray, value)
    file = File("a.npz", sets, dict(metadata))
    notes = [] if notes is None else notes
    test = checked(file, "test", options, []) if name != "test" else None
    return checked(file, name, options, notes, test=test)


def changed(array, at, value):
    array = np.array(array)
    array[at] = value
    return array


@pytest.mark.parametrize(
    "arrays",
    [dict(probs=P), dict(log_p=L), dict(logits=L + 3), dict(logits=L - 2, log_p=L)],
    ids=lambda arrays: " ".join(arrays),
)
def test_the_same_numbers_by_every_name(arrays):
    notes = []
    found = part(notes, y=Y, **arrays)
    np.testing.assert_allclose(found.log_p, L, rtol=1e-12, atol=1e-12)
    assert notes[0].startswith(next(iter({*arrays} - {"logits"}), "logits"))
    assert "[3 members, 60 examples, 4 classes], float64" in notes[0] and len(notes) == 1
    one = part(y=Y, **{name: array[0] for name, array in arrays.items()})
    np.testing.assert_allclose(one.log_p, L[:1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (P.astype(np.float16), r"float16; rows sum to 1 within 0.000\d \(float16\): divided by"),
        (np.round(P, 3), r"rows sum to 1 within 0.00\d \(rounded\?\): divided by their sums"),
    ],
)
def test_rounded_probabilities_are_renormalised_and_it_is_said(stored, said):
    notes = []
    found = part(notes, y=Y, probs=stored)
    wide = stored.astype(np.float64)
    with np.errstate(divide="ignore"):
        expected = np.log(wide / wide.sum(-1, keepdims=True))
    np.testing.assert_allclose(found.log_p, expected, rtol=1e-6, atol=1e-6)
    assert len(notes) == 1
    assert re.search(said, notes[0]), notes


def test_exact_rows_are_taken_as_they_are():
    found = part(y=Y, log_p=L.astype(np.float32))
    assert found.log_p.dtype == np.float32
    np.testing.assert_array_equal(found.log_p, L.astype(np.float32))


def test_a_runs_own_file_is_taken_as_it_is():
    rounded = np.round(P, 3).astype(np.float32)
    found = part(metadata=dict(format=2), y=Y, probs=rounded)
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(found.log_p, np.log(rounded, dtype=np.float64))


def test_a_floor_is_applied_and_said():
    notes = []
    found = part(notes, Options(floor=1e-2), y=Y, probs=P)
    expected = np.maximum(P, 1e-2) / np.maximum(P, 1e-2).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(found.log_p), expected)
    assert f"{(P < 1e-2).sum()} probabilities raised to 0.01" in notes[0]


def test_independent_classes():
    u = logits(0)
    found = part(options=Options(independent=True), y=Y, logits=u)
    np.testing.assert_allclose(found.log_p, np.log(special.expit(u)))
    p = np.array([0.0, 0.3, 1.0, 0.999])[(Y[:, None] + np.arange(4)) % 4]
    notes = []
    floored = part(notes, Options(floor=1e-2, independent=True), y=Y, probs=p)
    np.testing.assert_allclose(np.exp(floored.log_p[0]), np.clip(p, 0.01, 0.99))
    assert f"{3 * len(Y)} probabilities raised to 0.01" in notes[0]
    marked = part(metadata=dict(normalised=False), y=Y, probs=special.expit(u))
    np.testing.assert_allclose(marked.log_p, np.log(special.expit(u)))


@pytest.mark.parametrize("y", [np.arange(60) + 40, np.array(["cat"] * 60), np.full(60, np.nan)])
def test_labels_of_ood_sets_may_be_of_other_classes(y):
    outside = part(name="ood/far", probs=P, y=Y, ood__far__probs=P, ood__far__y=y)
    if y.dtype.kind == "i":  # they tell the examples of two files apart
        np.testing.assert_array_equal(outside.y, y)
    else:
        assert outside.y is None


def test_labels_in_other_forms():
    notes = []
    assert part(notes, probs=P, y=np.eye(K)[Y]).y.tolist() == Y.tolist()
    assert "one-hot" in notes[1]
    for y in (Y.astype(np.float64), Y[:, None], Y.astype(np.uint8)):
        assert part(probs=P, y=y).y.tolist() == Y.tolist()


def test_other_logits_serve_the_scores_alone_and_it_is_said():
    notes = []
    other = logits(5)
    found = part(notes, probs=P, logits=other, y=Y)
    np.testing.assert_allclose(found.log_p, L)
    np.testing.assert_array_equal(found.logits, other)
    assert "softmax(logits) differs from probs by up to" in notes[1]


REFUSED = {
    "none": (dict(y=Y), "no predictions; log_p, probs, logits, mean or variance is expected"),
    "near": (dict(prob=P, y=Y), "Found 'prob': did you mean 'probs'"),
    "both": (dict(probs=P, log_p=L, y=Y), "log_p and probs are both given; one is expected"),
    "tasks": (dict(probs=P, mean=Y, y=Y), "probs is of classes and mean of regression"),
    "no y": (dict(probs=P), "`y` is missing: the labels"),
    "logits as probs": (dict(probs=L, y=Y), r"probs: -\d.* negative; if these are logits, name"),
    "large": (dict(probs=8 * P, y=Y), "is above 1; if these are logits, name them logits"),
    "sums": (dict(probs=P / 2, y=Y), "probabilities sum to 0.5 at member .*; 1 is expected"),
    "probs as log_p": (dict(log_p=P, y=Y), "is not a log-probability; rows sum to 1: name them pr"),
    "logits as log_p": (dict(log_p=L + 5, y=Y), "log-probability; if these are logits"),
    "scores as log_p": (dict(log_p=L - 1, y=Y), "log_p: probabilities sum to 0.367879"),
    "probs as logits": (dict(logits=P, y=Y), "as probabilities do; if they are, name them probs"),
    "nan": (dict(probs=changed(P, (1, 2, 3), np.nan), y=Y), "nan at member 1, example 2, class 3"),
    "inf": (dict(logits=changed(L, (1, 2, 3), np.inf), y=Y), "inf at member 1, example 2, class 3"),
    "text": (dict(probs=P.astype(str), y=Y), "probs: numbers are expected; got <U"),
    "one-dimensional": (dict(probs=P[0, :, 0], y=Y), r"of two classes give both columns, 1 - p"),
    "one class": (dict(probs=P[..., :1], y=Y), "has one class; at least 2"),
    "[B, M, K]": (
        dict(probs=np.moveaxis(P, 0, 1), y=Y),
        r"\[60, 3, 4\] has 3 examples, but y has 60; the members' axis is the first",
    ),
    "length": (dict(probs=P, y=Y[:50]), "has 60 examples, but y has 50$"),
    "from 1": (dict(probs=P, y=Y + 1), "y: 4 at example .*; 0 to 3 are expected; labels from 1"),
    "-1": (dict(probs=P, y=changed(Y, 5, -1)), "y: -1 at example 5; .* unlabelled examples out"),
    "fraction": (dict(probs=P, y=changed(1.0 * Y, 5, 0.5)), "y: 0.5 at example 5 is not a label"),
    "soft": (dict(probs=P, y=P[0]), "not one-hot; labels .* are expected .not label distributions"),
    "names": (dict(probs=P, y=np.array(["cat"] * 60)), "'cat'.* is not a number; labels are 0 to"),
    "group": (dict(probs=P, y=Y, group=Y[:5]), r"group: \[5\]; \[60\] is expected"),
    "latents": (dict(probs=P, y=Y, logits=P[:2]), r"logits: \[2, 60, 4\]; \[3, 60, 4\]"),
    "score": (dict(probs=P, y=Y, score_a=P), r"score_a: \[3, 60, 4\]; \[60\] numbers"),
    "std": (dict(mean=Y, std=Y, y=Y), "needed; there is std; the variance is std"),
    "variance": (dict(mean=1.0 * Y, variance=0.0 * Y, y=Y), "variance: 0 at member 0, example 0"),
    "targets": (dict(mean=P, variance=P, y=Y), r"mean: \[3, 60, 4\]; with y \[60, 1\]"),
    "unit": (dict(mean=Y, variance=Y + 1, y=Y, y_std=[2.0]), "y_mean and y_std: one alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arrays_are_refused(name):
    arrays, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        part(**arrays)
    assert str(error.value).startswith("a.npz: ")


OTHERS = {
    "classes": (dict(probs=P[..., :3] / P[..., :3].sum(-1, keepdims=True)), "3 classes, but the t"),
    "members": (dict(probs=P[0]), "1 member, but the test set has 3, so their scores"),
    "order": (
        dict(probs=np.moveaxis(P[:, :9], 0, 1)),
        "9 members, .*members' axis is the first",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_sets_have_to_match_the_test_set(name):
    arrays, message = OTHERS[name]
    arrays = {f"ood__far__{key}": value for key, value in arrays.items()}
    with pytest.raises(ValueError, match=message) as error:
        part(name="ood/far", probs=P, y=Y, **arrays)
    assert str(error.value).startswith("a.npz: ood/far: ")


@pytest.mark.parametrize("outputs", [1, 2])
def test_targets_and_members(outputs):
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(3, 60, outputs)), rng.gamma(2, size=(3, 60, outputs))
    y = rng.normal(size=(60, outputs))
    whole = part(mean=mean, variance=variance, y=y)
    np.testing.assert_array_equal(whole.mean, mean)
    assert part(mean=mean[0], variance=variance[0], y=y).mean.shape == (1, 60, outputs)
    if outputs == 1:
        flat = part(mean=mean[..., 0], variance=variance[..., 0], y=y[:, 0])
        np.testing.assert_array_equal(flat.variance, variance)
    unit = dict(y_mean=np.full(outputs, 5.0), y_std=np.full(outputs, 2.0))
    stored = part(mean=(mean - 5) / 2, variance=variance / 4, y=(y - 5) / 2, **unit)
    np.testing.assert_allclose(stored.mean, mean)
    np.testing.assert_allclose(stored.variance, variance)
    np.testing.assert_allclose(stored.y, y)


def test_labels_from_1_without_the_last_class_are_refused():
    """Their values are valid ones: only the predictions show it."""
    y = np.arange(30) % 3
    p = np.full((1, 30, 4), 0.1)
    p[0, np.arange(30), y] = 0.7
    assert part(probs=p, y=y).y.tolist() == y.tolist()
    with pytest.raises(
        ValueError, match=r"no label is 0, and 100% of the labels less 1 .* 0% of the"
    ):
        part(probs=p, y=y + 1)
    shifted = np.roll(p, 1, axis=-1)  # a model that says the same: class 0 has no example
    assert part(probs=shifted, y=y + 1).y.tolist() == (y + 1).tolist()
