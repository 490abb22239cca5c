"""The TPU compiler takes the update and the prediction of every family, and of sharded programs.

A TPU is not needed, only libtpu: `make test-tpu`. The programs are compiled in one process after
the other: a failed check of the compiler ends the process, which is the failure of that program
alone.
"""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.experiment import config as config_lib
from experiments.planning import slices
from tests.test_composition_trained import ROWS, learnable

ROOT = pathlib.Path(__file__).parent.parent
TOPOLOGY = "v5e:2x2"
pytestmark = pytest.mark.tpu


def of_family(row):
    return learnable(*row) | dict(mesh=dict(data=4))


def of_file(file, fields=(), **sections):
    return config_lib.plain(config_lib.load(f"configs/digits/{file}", dict(fields))) | sections


SVGD = {
    "inference.direction": dict(name="svgd"),
    "inference.prior": dict(name="gaussian", scale=1.0),
    "optimiser.weight_decay": (),
}
GROUPS = {"backbone.experts.router.group_size": 16}  # of images: four groups
SHARDED = {
    "data": of_file("mlp.py", mesh=dict(data=4)),
    "particle": of_file("mlp.py:size=4", mesh=dict(particle=4)),
    "svgd": of_file("mlp.py:size=4", SVGD, mesh=dict(particle=2, data=2)),
    "expert": of_file("vit.py:method=vmoe", GROUPS, mesh=dict(expert=4)),
    "fsdp": of_file("mlp.py", mesh=dict(data=4), sharding=[[".*", "data"]]),
}


def requests():
    """name -> request, for all that is compiled."""
    families = {"-".join(row): of_family(row) for row in ROWS}
    configs = {
        (name, program): config
        for name, config in (families | SHARDED).items()
        for program in ("train", "predict")
    }
    for name, config in families.items():
        for i, spec in enumerate(config["stages"]):
            configs[name, f"stage {i} {spec['name']}"] = config
    return {
        case: dict(config=config, topology=TOPOLOGY, program=case[1], data=None)
        for case, config in configs.items()
    }


REQUESTS = requests()


def compile_all(asked):
    """name -> what the compiler says; a process that ends is followed by another."""
    environment, left, results = slices.environment(slices.parse(TOPOLOGY)), dict(asked), {}
    while left:
        lines = [json.dumps(config_lib.plain(request)) for request in left.values()]
        done = subprocess.run(
            [sys.executable, "-m", "tests.compiling"], input="\n".join(lines), cwd=ROOT,
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        results |= dict(zip(left, answers, strict=False))
        remaining = list(left)[len(answers) :]
        if remaining:
            results[remaining[0]] = dict(failed="aborted", reason=done.stderr[-2000:])
        left = {name: left[name] for name in remaining[1:]}
    return results


@pytest.fixture(scope="module")
def compiled():
    return compile_all(REQUESTS)


@pytest.mark.parametrize("case", REQUESTS, ids="-".join)
def test_it_compiles(case, compiled):
    result = compiled[case]
    assert not result.get("failed"), result["reason"]
    assert 0 < result["memory"]["peak"] < 2**30


def moved(case, compiled):
    """(kind, axes) -> how many there are."""
    found = compiled[case]["collectives"]
    return {(each["kind"], *each["axes"]): each["count"] for each in found}


def test_collectives_on_a_tpu_are_those_of_the_design(compiled):
    assert moved(("particle", "train"), compiled) == {}
    assert moved(("data", "train"), compiled) == {("all-reduce", "data"): 1}
    assert moved(("svgd", "train"), compiled) == {
        ("all-reduce", "data"): 1,
        ("all-reduce", "particle"): 1,  # of inner products
        ("all-to-all", "particle"): 3,  # weights and gradients there, directions back
    }
    # Tokens go to their experts and back, and so do their gradients.
    train, predict = (moved(("expert", name), compiled) for name in ("train", "predict"))
    assert train == {("all-reduce", "expert"): 1, ("all-to-all", "expert"): 4}
    assert predict == {("all-to-all", "expert"): 2}
    for name in ("data", "particle", "svgd"):
        assert moved((name, "predict"), compiled) == {}


# What all examples of a batch decide together, which is small beside activations.
OF_ALL_EXAMPLES = {
    "mimo": "inputs, which each member sees in an order of its own",
    "svgd_repulsion": "predictions, which particles compare",
    "svgd_kernel": "predictions, which particles compare",
    "e3": "assignments to experts, of one group on four chips",
}


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_activations_stay_where_their_examples_are(row, compiled):
    moves = moved(("-".join(row), "train"), compiled)
    gathers = {move for move in moves if move[0] != "all-reduce"}
    assert gathers <= {("all-gather", "data")}
    assert bool(gathers) == any(part in OF_ALL_EXAMPLES for part in row)


def test_parameters_and_optimiser_state_are_sharded_over_data(compiled):
    whole, parts = (compiled[name, "train"]["memory"] for name in ("data", "fsdp"))
    assert parts["parameters"] < 0.3 * whole["parameters"]
    assert parts["optimiser"] < 0.3 * whole["optimiser"]
