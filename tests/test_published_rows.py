"""The rows of uncertainty-baselines: their settings, and the published numbers beside them."""

import ast
import math
import pathlib
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.published import PUBLISHED
from experiments.experiment import config as config_lib
from experiments.tables.cells import table_of
from uncertainty import build, rules
from uncertainty.likelihoods import softmax
from uncertainty.optimisers import optimiser as optimisers
from uncertainty.types import Latent

ROOT = pathlib.Path(__file__).parent.parent
FINE_TUNED = "cifar/vmoe.py"
CIFAR, IMAGENET, VIT = "cifar/wide_resnet.py", "imagenet/resnet50.py", "imagenet/vit.py"
COSINES = dict(features=1_024, length_scale=20.0, normalise=False, prior=512.0)

ROWS = [  # file, options; what the source has: steps of an epoch, epochs, rate at that batch,
    # Keras' L2 of (backbone, norms, last kernel, V and d), named fields of head and likelihood
    (CIFAR, "", 97, 200, 0.4, (2e-4, 2e-4, 2e-4, None), {}),
    (CIFAR, "masks=30", 97, 200, 0.2, (3e-4, 3e-4, 3e-4, None), {}),
    (CIFAR, "dataset=cifar100,method=het", 97, 200, 0.4, (2e-4,) * 4,
     dict(rank=6, temperature=1.3, samples=10_000)),
    (CIFAR, "method=sngp", 195, 250, 0.16, (3e-4, 3e-4, 1e-6, None),
     dict(COSINES, mean_field=20.0)),
    (CIFAR, "dataset=cifar100,method=sngp", 195, 250, 0.08, (3e-4, 3e-4, 1e-6, None),
     dict(COSINES, mean_field=7.5)),
    (CIFAR, "dataset=cifar100,method=sngp,size=4", 195, 250, 0.08, (3e-4, 3e-4, 1e-6, None),
     dict(COSINES, mean_field=5e-4)),
    (CIFAR, "method=hetsngp", 195, 300, 0.08, (3e-4, 3e-4, 1e-6, 0.0),
     dict(features=1_024, length_scale=20.0, projection=128, prior=1.0, rank=6, temperature=0.3,
          samples=100)),
    (CIFAR, "ensemble=batch_ensemble", 390, 250, 0.1, (3e-4, 3e-4, 3e-4, None), {}),
    # a sum over three members there, a mean here
    (CIFAR, "dataset=cifar100,ensemble=mimo", 390, 250, 3 * 0.1, (1e-4, 1e-4, 1e-4, None), {}),
    (IMAGENET, "", 312, 90, 1.6, (1e-4, 0.0, 1e-4, None), {}),
    (IMAGENET, "masks=10", 312, 200, 0.8, (1e-4, 0.0, 1e-4, None), {}),
    (IMAGENET, "method=het", 312, 180, 1.6, (1e-4, 0.0, 1e-4, 1e-4),
     dict(rank=15, temperature=1.5, samples=5_000)),
    (IMAGENET, "method=sngp", 312, 90, 1.6, (1e-4, 0.0, 1e-4, None),
     dict(COSINES, mean_field=1.0)),
    (IMAGENET, "method=hetsngp", 312, 270, 1.12, (1e-4, 0.0, 1e-4, 1e-4),
     dict(COSINES, rank=15, temperature=1.25, samples=5_000)),
]  # fmt: skip


def shallow(config):
    """With the fewest blocks, which are all alike."""
    depth = 10 if config["backbone"]["name"] == "wide_resnet.WideResNet" else 18
    return config | dict(backbone=config["backbone"] | dict(depth=depth))


def config_of(file, options):
    return config_lib.plain(config_lib.load(f"{ROOT / 'configs' / file}:{options}"))


@pytest.mark.slow
@pytest.mark.parametrize(("file", "options", "epoch", "epochs", "rate", "l2", "fields"), ROWS)
def test_settings_are_those_of_the_source(file, options, epoch, epochs, rate, l2, fields):
    config = config_of(file, options)
    assert config["steps"] == epoch * epochs
    assert config["optimiser"]["learning_rate"] == pytest.approx(rate)
    gaussian_process = "sngp" in options

    head = config["head"]
    gp = head.get("mean", head)
    known = head | gp | config["likelihood"] | dict(prior=gp.get("amplitude", 1.0) ** 2)
    assert {name: known[name] for name in fields} == pytest.approx(fields)
    bound = dict(name="spectral_norm.Conv", bound=6.0)
    assert config["backbone"].get("conv") == (bound if gaussian_process else None)
    assert list(config["stages"]) == ([dict(name="laplace")] if gaussian_process else [])

    taken = decay(config)
    backbone, norms, last, noise = l2
    for pattern, value in {
        ("backbone", "/kernel"): backbone,
        ("backbone", "norm"): norms,
        ("head", "logits/kernel"): last,
        ("head", "diagonal/"): noise,
        ("head", "factors/"): noise,
    }.items():
        found = {v for path, v in taken.items() if all(part in path for part in pattern)}
        assert sorted(found) == pytest.approx([] if value is None else [2 * value]), pattern


def decay(config):
    """What the L2 of a config takes from each parameter that is 1, at rate 1: path -> number."""
    model = build.model(shallow(config))
    size = config["data"]["train"].get("size", 32)
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), x)
    ones = jax.tree.map(lambda _: np.ones((), np.float32), params)
    optimiser = optimisers.optimiser(optimisers.sgd(), 1.0, l2=config["optimiser"]["l2"])
    zeros = jax.tree.map(np.zeros_like, ones)
    updates, _ = optimiser.update(zeros, optimiser.init(ones), ones)
    return {k: -float(v) for k, v in flax.traverse_util.flatten_dict(updates, sep="/").items()}


def test_batch_ensemble_takes_fast_weights_of_its_source():
    config = config_of(CIFAR, "ensemble=batch_ensemble")
    assert config["ensemble"]["size"] == 4
    assert config["ensemble"]["fast_weights"] == dict(name="batch_ensemble.gaussian", stddev=0.5)
    taken = decay(config)
    assert {v for path, v in taken.items() if "fast_" in path} == {0.0}
    multipliers = config["optimiser"]["multipliers"]
    factors = flax.traverse_util.flatten_dict(
        rules.match(
            multipliers, flax.traverse_util.unflatten_dict(taken, sep="/"), field="", default=1.0
        ),
        sep="/",
    )
    for path, factor in factors.items():  # as it is there: neither kernels nor norms
        assert factor == (1.0 if "kernel" in path or "norm" in path else 0.5), path
    schedule, epoch = build.schedule(config), 390
    for at, rate in ((2, 0.1), (99, 0.1), (101, 0.02), (201, 0.004), (226, 0.0008)):
        assert float(schedule(at * epoch)) == pytest.approx(rate)


def test_mimo_steps_are_those_of_a_sum_over_members():
    config = config_of(CIFAR, "ensemble=mimo")
    assert config["ensemble"] == dict(name="mimo", size=3, batch_repetitions=4)
    assert config["batch_size"] == 128


@pytest.mark.parametrize(
    ("options", "steps", "rate", "experts", "slots"),
    [
        ("model=e3-S/32", 2_000, 0.005, (5, 7), 1.5 * 128 * 17 / 4),
        ("model=vmoe-B/16,dataset=cifar10", 1_000, 0.0015, tuple(range(1, 12, 2)),
         196),  # 1.5 * 8 * 65 * 2 / 8 = 195, and up to a multiple of 4
    ],
)  # fmt: skip
def test_fine_tuning_is_that_of_its_source(options, steps, rate, experts, slots):
    config = config_of(FINE_TUNED, options)
    assert (config["steps"], config["batch_size"]) == (steps, 1_024)
    schedule = build.schedule(config)
    assert float(schedule(steps // 10)) == pytest.approx(rate)
    assert float(schedule(steps)) == pytest.approx(1e-5)
    taken, names = config["optimiser"], {"weight_decay", "l2", "multipliers", "nesterov"}
    assert (taken["momentum"], taken["clip"]) == (0.9, 10.0) and not names & set(taken)
    network = build.network(config)
    assert network.backbone._with_experts() == experts
    members = config["ensemble"].get("size", 1)
    group = network.backbone.experts.keywords["router"](num_experts=8 // members)
    tokens = group.group_size * ((128 // network.backbone.size.patch_size) ** 2 + 1)
    for train in (True, False):
        assert group.capacity(tokens, group.k, train) == slots
    assert group.noise_std == 1.0 and not group.batch_priority


@pytest.mark.parametrize(("dataset", "rate"), [("cifar10", 0.003), ("cifar100", 0.01)])
def test_vit_is_fine_tuned_as_in_its_source(dataset, rate):
    config = config_of("cifar/vit.py", f"dataset={dataset}")
    assert (config["steps"], config["batch_size"]) == (10_000, 512)
    schedule = build.schedule(config)
    assert float(schedule(500)) == pytest.approx(rate)
    assert float(schedule(10_000)) == pytest.approx(0.0, abs=1e-9)
    taken, names = config["optimiser"], {"weight_decay", "l2", "multipliers", "nesterov"}
    assert (taken["momentum"], taken["clip"]) == (0.9, 1.0) and not names & set(taken)
    assert [config["data"][k]["split"] for k in ("train", "validation")] == [
        "train[:98%]",
        "train[98%:]",
    ]
    assert build.network(config).backbone.size.patch_size == 32
    assert config["head"]["kernel_init"] == dict(name="zeros_init")


def test_v_moe_from_scratch_is_that_of_its_source():
    config = config_of("imagenet/vmoe.py", "")
    assert config["steps"] * config["batch_size"] == pytest.approx(300 * 1_268_355, rel=1e-4)
    schedule = build.schedule(config)
    assert float(schedule(10_000)) == pytest.approx(3e-3)
    assert float(schedule(config["steps"])) == pytest.approx(1e-5)
    router = config["backbone"]["experts"]["router"]
    assert (router["k"], router["capacity_factor"], router["eval_capacity_factor"]) == (2, 1.05, 4)


@pytest.mark.parametrize("file", [FINE_TUNED, "imagenet/vmoe.py", "cifar/vit.py"])
def test_docstrings_of_fine_tuning_give_the_published_accuracies(file):
    text = ast.get_docstring(ast.parse((ROOT / "configs" / file).read_text(encoding="utf-8")))
    tables = ("imagenet",) if "imagenet" in file else ("cifar10", "cifar100")
    names = ("ViT-B/32",) if file == "cifar/vit.py" else ("S/32", "B/16")
    rows = [
        row
        for t in tables
        for label, row in PUBLISHED[t].items()
        if any(name in label for name in names)
    ]
    assert rows
    for row in rows:
        assert f"{row['classification/accuracy'][0]} %" in text


def test_vit_takes_heads_and_schedule_of_its_source():
    config = config_of(VIT, "variant=B/16,method=hetsngp")
    assert config["steps"] * config["batch_size"] == pytest.approx(90 * 1_268_355, rel=1e-5)
    head, gp = config["head"], config["head"]["mean"]
    assert (head["rank"], head["efficient"]) == (50, True)
    assert (gp["features"], gp["momentum"], gp["orthogonal"]) == (1_024, 0.999, False)
    assert gp["amplitude"] ** 2 == pytest.approx(512)
    assert config["likelihood"] == dict(name="softmax", temperature=1.5, samples=1_000)
    assert "conv" not in config["backbone"] and "dense" not in config["backbone"]
    schedule = build.schedule(config)
    assert float(schedule(10_000)) == pytest.approx(1e-3)
    assert float(schedule(config["steps"])) == pytest.approx(1e-5)
    assert config["optimiser"]["weight_decay"] == ((".*", 0.03),)


def test_kernels_are_those_of_the_source():
    """1,024 cosines as they are, with weights of standard deviation 0.05."""
    config = config_of(CIFAR, "method=sngp")
    fields = config["head"]
    distance = 7.0
    ours = fields["amplitude"] ** 2 * math.exp(-((distance / fields["length_scale"]) ** 2) / 2)
    rng = np.random.default_rng(0)
    W, b = 0.05 * rng.standard_normal((200_000, 1)), rng.uniform(0, 2 * np.pi, 200_000)
    there = 1_024 * np.mean(np.cos(b) * np.cos(W[:, 0] * distance + b))
    assert ours == pytest.approx(there, abs=5 * 1_024 * 0.36 / math.sqrt(len(W)))


def test_an_ensemble_of_sngps_on_imagenet_is_of_posterior_modes():
    """The mean field of its config changes nothing, even at the prior's variance."""
    likelihood = dict(config_of(IMAGENET, "method=sngp,size=4")["likelihood"])
    assert likelihood.pop("name") == "softmax"
    mean = 10 * jax.random.normal(jax.random.key(0), (1, 5, 7))
    certain, latent = Latent(mean), Latent(mean, variance=jnp.full((1, 5, 1), 512.0))
    key = jax.random.key(1)
    log_probs = softmax(**likelihood).log_probs
    np.testing.assert_allclose(log_probs(latent, key), log_probs(certain, key), atol=1e-4)


def test_dropout_of_sngp_drops_whole_filters_and_in_training_alone():
    model = build.model(shallow(config_of(CIFAR, "method=sngp")))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    params, collections = jax.eval_shape(model.init, key, x)

    def masks(train):
        def forward(params, collections, x, key):
            return model.forward(params, collections, x, key, train=train)

        return list(drawn(jax.make_jaxpr(forward)(params, collections, x, key).jaxpr))

    assert not masks(train=False)
    shapes = masks(train=True)
    # Around the stem's convolution, three times in each of 3 blocks, after three projections.
    assert len(shapes) == 1 + 3 * 3 + 3
    assert all(shape[:4] == (1, 2, 1, 1) for shape in shapes)


def drawn(jaxpr):
    """The shapes of all random numbers in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "random_bits":
            yield equation.outvars[0].aval.shape
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from drawn(inner)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet"])
def test_every_published_row_stands_beside_ours(name):
    rows = {row["label"]: row.get("published", {}) for row in table_of(name)["rows"]}
    assert {label: row for label, row in rows.items() if row} == PUBLISHED[name]
    singles = {"Deterministic", "Heteroscedastic", "SNGP", "HetSNGP", "Ensemble (4)"}
    ensembles = {f"{label} ensemble (4)" for label in ("Heteroscedastic", "SNGP", "HetSNGP")}
    assert rows.keys() >= singles | ensembles
    assert not rows["HetSNGP"] and not rows["HetSNGP ensemble (4)"]


@pytest.mark.parametrize(
    ("file", "tables"), [(CIFAR, ["cifar10", "cifar100"]), (IMAGENET, ["imagenet"])]
)
def test_docstrings_give_the_published_numbers(file, tables):
    """Two copies of what was read in the source agree: a slip of a digit shows."""
    text = ast.get_docstring(ast.parse((ROOT / "configs" / file).read_text(encoding="utf-8")))
    written = re.findall(r"(\.\d+) / ([\d.]+) % / (\.\d+)", text)
    keys = ("classification/nll", "classification/accuracy", "calibration/ece")
    rows = [row for t in tables for row in PUBLISHED[t].values() if keys[0] in row]
    kept = [[row[key][0] for key in keys] for row in rows]
    assert sorted(kept) == sorted([float(v) for v in values] for values in written)
