"""Stored names of metrics can be split again, whatever data sets are called."""

import json
import pathlib

from hypothesis import given
from hypothesis import strategies as st

from experiments.runtime import keys

ROOT = pathlib.Path(__file__).parents[2]
NAMES = st.text(st.characters() | st.sampled_from("/%\n[$_|&<\\")) | st.sampled_from(
    ["mnist_corrupted/shot_noise", "50%", "%2F", "a[b]", "[/x]", "../x", "\0", "\ud83d", "", "é"]
)


@given(st.lists(NAMES, min_size=1))
def test_split_is_the_inverse_of_join(parts):
    key = keys.join(*parts)
    assert keys.split(key) == tuple(parts)
    assert key.count("/") == len(parts) - 1
    key.encode("utf-8")


@given(NAMES, NAMES)
def test_different_names_have_different_keys(a, b):
    assert (keys.join("ood", a, "x") == keys.join("ood", b, "x")) == (a == b)


@given(NAMES)
def test_named(name):
    assert keys.named(keys.join("ood", name, "auroc_entropy"), "ood") == (name, "auroc_entropy")
    assert keys.named(keys.join("map", name, "entropy"), "ood") is None


def test_named_reads_what_was_stored_without_being_encoded():
    key = "ood/mnist_corrupted/shot_noise/entropy"
    assert keys.named(key, "ood") == ("mnist_corrupted/shot_noise", "entropy")
    assert keys.named("routing/dropped", "routing") is None
    assert keys.named("ood", "ood") is None


def test_committed_keys_stay_what_they_are():
    found = set()
    for file in ROOT.glob("results/*/runs.jsonl"):
        found |= {
            key for line in file.read_text().splitlines() for key in json.loads(line)["metrics"]
        }
    assert len(found) > 300
    assert all(keys.join(*keys.split(key)) == key for key in found)
