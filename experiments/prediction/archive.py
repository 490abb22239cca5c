"""The names in a file of predictions, which `evaluate --save-predictions` writes and `score` reads.

Arrays of the test set have plain names, `log_p` and `y`; those of other sets have the set's name
before theirs, `validation/log_p`. docs/predictions.md describes the format for its users.
"""

from typing import NamedTuple

from experiments.runtime import keys

FORMAT = 2
METADATA = "metadata.json"
TEST = "test"
VALIDATION = "validation"  # what post-hoc methods are fitted on
INSIDE = "in_distribution"  # the in-distribution set of OOD detection, if it is not the test set
SETS = "test, validation, in_distribution, ood/NAME, corruption/KIND/SEVERITY"

CLASSES = ("log_p", "probs", "logits")
MOMENTS = ("mean", "variance")
UNITS = ("y_mean", "y_std")
SCORE = "score_"  # score_NAME [B]: an OOD score of one's own
# name -> axes, meaning
ARRAYS = {
    "log_p": ("members examples classes", "log p_m(y = k | x) of each member m, in nats"),
    "probs": ("members examples classes", "p_m(y = k | x) of each member m"),
    "logits": ("members examples classes", "means of the members' latents, for the OOD scores"),
    "epistemic": ("members examples classes", "epistemic variance of the latents; the last axis "
                  "may be 1"),
    "mean": ("members examples outputs", "mean of y of each member, in the stored unit of y"),
    "variance": ("members examples outputs", "variance of y of each member, in that unit squared"),
    "y": ("examples", "the label 0, 1, ..., an index into class_names; in regression "
          "[examples, outputs], the target as it is stored"),
    "group": ("examples", "examples of one group are not independent"),
    "run": ("members", "which of the metadata's `runs` a member is of"),
    "x": ("examples features", "inputs of one or two features, for figures"),
}  # fmt: skip
ENSEMBLE = {
    "classification": "p(y | x) = mean over members of exp(log_p)",
    "regression": "p(y | x) = mean over members of N(mean, variance)",
}


class Name(NamedTuple):
    set: str  # 'test', 'ood/svhn'
    array: str  # 'log_p'


def parse(key: str) -> Name:
    """The set and the array of a name in a file: 'ood/svhn/log_p', or 'log_p' of the test set."""
    *path, array = key.split("/")
    return Name("/".join(path) or TEST, array)


def joined(of_set: str, array: str) -> str:
    """The inverse of `parse`."""
    return array if of_set == TEST else f"{of_set}/{array}"


def is_set(name: str) -> bool:
    """Whether a set may have this name."""
    kind, *parts = keys.split(name)
    if not all(parts):
        return False
    return {"ood": len(parts) >= 1, "corruption": len(parts) == 2}.get(
        kind, name in (TEST, VALIDATION, INSIDE)
    )
