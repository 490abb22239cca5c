"""Rules over parameter paths, against a loop over them."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncertainty import rules

TREE = {
    "backbone": {"conv0": {"kernel": 0, "bias": 1}, "dense0": {"kernel": 2}},
    "head": {"logits": {"kernel": 3, "bias": 4}},
}
PATHS = [
    "backbone/conv0/bias",
    "backbone/conv0/kernel",
    "backbone/dense0/kernel",
    "head/logits/bias",
    "head/logits/kernel",
]

names = st.sampled_from(["a", "b", "kernel", "bias", "conv0", "conv1"])
trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))
patterns = st.sampled_from(["a", "b$", "kernel", "^conv", "conv[01]/", "a/.*b", ".*", "x", "s|k"])


def test_paths_are_names_joined_by_slashes_in_the_order_of_the_leaves():
    assert rules.paths(TREE) == PATHS
    assert rules.paths({"a": [1, (2, 3)]}) == ["a/0", "a/1/0", "a/1/1"]


def test_the_first_match_wins_and_the_rest_takes_the_default():
    found = rules.match([("bias", 0.0), ("head", 1.0), ("conv", 2.0)], TREE, field="f", default=9.0)
    values = dict(zip(PATHS, jax.tree.leaves(found), strict=True))
    assert values == {
        "backbone/conv0/bias": 0.0,
        "backbone/conv0/kernel": 2.0,
        "backbone/dense0/kernel": 9.0,
        "head/logits/bias": 0.0,
        "head/logits/kernel": 1.0,
    }
    assert jax.tree.structure(found) == jax.tree.structure(TREE)


@given(tree=trees, chosen=st.lists(patterns, max_size=4))
def test_matching_is_a_loop_over_paths_and_rules(tree, chosen):
    given_rules = [(pattern, i) for i, pattern in enumerate(chosen)]
    expected = []
    for path in rules.paths(tree):
        value = -1
        for pattern, i in reversed(given_rules):
            if re.search(pattern, path):
                value = i
        expected.append(value)
    unused = [p for p in chosen if not any(re.search(p, path) for path in rules.paths(tree))]
    if unused:
        with pytest.raises(ValueError, match=f"{re.escape(repr(unused[0]))} matches no parameter"):
            rules.match(given_rules, tree, field="f", default=-1)
    else:
        found = rules.match(given_rules, tree, field="f", default=-1)
        assert jax.tree.leaves(found) == expected
        if -1 in expected:
            with pytest.raises(ValueError, match="no rule matches"):
                rules.match(given_rules, tree, field="f")
        else:
            assert jax.tree.leaves(rules.match(given_rules, tree, field="f")) == expected


def test_a_rule_that_matches_nothing_is_named_with_the_paths_there_are():
    with pytest.raises(ValueError, match=r"decay\[1\]: 'kernal' matches no .*head/logits/kernel"):
        rules.match([("bias", 0), ("kernal", 1)], TREE, field="decay", default=0)


def test_a_shadowed_rule_is_no_error():
    assert jax.tree.leaves(rules.match([(".*", 1), ("head", 2)], TREE, field="f")) == [1] * 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([".*"], "not a pair"),
        (("kernel", 0.1), "'kernel' is not a pair"),  # the outer list was forgotten
        ([0.1], "not a pair"),
        ([("a", 1, 2)], "not a pair"),
        ([(1, "a")], "not a pair"),
        ([("(", 1)], "not a regular expression"),
    ],
)
def test_malformed_rules_are_refused_with_the_field(bad, message):
    with pytest.raises(ValueError, match=f"weight_decay: .*{message}"):
        rules.check(bad, "weight_decay")


def test_values_may_be_anything_such_as_mesh_axes():
    found = rules.match([("head", ("model", None))], TREE, field="f", default=())
    assert found["head"]["logits"]["kernel"] == ("model", None)
    assert found["backbone"]["conv0"]["bias"] == ()


def test_arrays_are_leaves():
    tree = {"w": np.zeros((2, 3)), "b": np.zeros(2)}
    assert rules.match([("w", 1)], tree, field="f", default=0) == {"w": 1, "b": 0}
