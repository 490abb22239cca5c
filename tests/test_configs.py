"""Every config runs under `:runlocal`, and every full-size model is traced and counted."""

import functools
import itertools
import math
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import evaluate, stage, train
from experiments.data.overlap import share
from experiments.data.own import MADE_OF_OTHERS, needs_no_file
from experiments.data.source import load
from experiments.experiment import base
from experiments.experiment import build as build_lib
from experiments.experiment import config as config_lib
from experiments.reports.study import Study
from experiments.tables.cells import table_of
from uncertainty import build

ROOT = pathlib.Path(__file__).parent.parent
SLOW = pytest.mark.slow
TABLES = sorted({p.stem for p in ROOT.glob("configs/tables/*.py")} - {"__init__"})

TRAINED = [  # file and its options, runlocal apart
    ("toys/regression.py", ""),
    ("toys/two_moons.py", "size=1"),
    ("toys/rings.py", "method=hetsngp,size=2"),
    ("toys/shortcuts.py", "data=mnist,method=divdis"),
    ("tabular/breast_cancer.py", ""),
    ("tabular/diabetes.py", ""),
    ("tabular/uci.py", "method=wgd_functions"),
    ("toys/particles.py", "task=gaussians,method=svgd_functions"),
    ("toys/particles.py", "task=regression,method=stochastic_svgd"),
    ("small_images/particles.py", "method=hyper_selected"),
    ("digits/lenet5.py", "size=2"),
    ("digits/contrastive.py", "members=multi"),
    ("digits/vit.py", "method=e3"),
    ("small_images/noisy_fashion_mnist.py", "method=sngp,masks=3"),
    ("cifar/wide_resnet.py", "dataset=cifar100,method=hetsngp"),
    ("imagenet/vit.py", "variant=L/16"),
]
# Their parts are trained in other rows and in `test_composition_trained.py`.
TRACED = [
    ("digits/mlp.py", "size=2"),
    ("tabular/breast_cancer.py", "dataset=wine,size=1"),
    ("cifar/frozen.py", "method=laplace"),
    ("cifar/epinets.py", "method=epinet"),
    ("tabular/uci.py", "method=svgd"),
    ("small_images/particles.py", "method=f_ssge"),
    ("small_images/vit.py", "method=vmoe"),
    ("small_images/lenet5.py", "dataset=mnist,size=10"),
    ("cifar/wide_resnet.py", "ensemble=batch_ensemble"),
    ("cifar/wide_resnet.py", "dataset=cifar100,ensemble=mimo"),
    ("cifar/resnet.py", "depth=56"),
    ("toys/rings.py", "method=het"),
    ("toys/shortcuts.py", "data=slabs,method=d_bat"),
    ("toys/shortcuts.py", "data=latents,method=joint"),
    ("toys/shortcuts.py", "data=dominoes,method=multi_symmetry"),
    ("small_images/multi_symmetry.py", "network=resnet8,method=pretrain"),
    ("small_images/multi_symmetry.py", "images=cifar10,network=resnet20,method=probe,base"),
    ("toys/rings.py", "method=sngp"),
    ("digits/lenet5.py", "heads=3"),
    ("digits/lenet5.py", "ensemble=batch_ensemble"),
    ("digits/lenet5.py", "ensemble=mimo"),
    ("digits/lenet5.py", "ensemble=masksembles"),
    ("digits/lenet5.py", "ensemble=packed"),
    ("digits/lenet5.py", "ensemble=rank1"),
    ("digits/lenet5.py", "masks=3"),
    ("digits/vit.py", "method=only_tiling"),
    ("digits/vit.py", "method=only_partitioning"),
    ("digits/vit.py", "method=mimo"),
    ("small_images/vit.py", "method=batch_ensemble"),
    ("small_images/vit.py", "method=mc_dropout"),
    ("small_images/lenet5.py", "padding=VALID"),
    ("cifar/wide_resnet.py", "dataset=cifar100"),
    ("cifar/wide_resnet.py", "masks=30"),
    ("cifar/wide_resnet.py", "method=sngp,masks=10"),
    ("cifar/vmoe.py", ""),
    ("cifar/vmoe.py", "model=vmoe-S/32"),
    ("imagenet/resnet50.py", "method=het"),
    ("cifar/vmoe.py", "model=vmoe-B/16,dataset=cifar10"),
    ("cifar/vit.py", "ensemble=batch_ensemble,dataset=cifar100"),
    ("imagenet/resnet50.py", "masks=10"),
    ("imagenet/resnet50.py", "method=sngp,size=4"),
    ("imagenet/vmoe.py", "members=2"),
    ("imagenet/vit.py", "variant=B/16,method=hetsngp"),
]

FAST = (  # inputs and outputs of the layers of WideResNet-28-10
    (3 + 16) + (16 + 160) + (160 + 320) + (320 + 640)  # the stem, three projections
    + (16 + 160) + (160 + 320) + (320 + 640)  # three first convolutions
    + 7 * (160 + 160) + 7 * (320 + 320) + 7 * (640 + 640) + (640 + 10)  # all others, the head
)  # fmt: skip


def transformer(patch, D, depth, mlp, sparse, tokens, experts=8):
    """Parameters of a ViT without its head, with experts in `sparse` blocks."""
    dense = D * mlp + mlp + mlp * D + D
    blocks = depth * (4 * (D * D + D) + 4 * D) + (depth - sparse) * dense
    return (patch**2 * 3 + 1) * D + D + tokens * D + blocks + sparse * experts * (dense + D) + 2 * D


FULL = [  # file, options, parameters of one network
    ("digits/mlp.py", "", 64 * 128 + 128 + 128 * 128 + 128 + 128 * 8 + 8),
    ("small_images/lenet5.py", "size=10", 545_546),
    ("small_images/lenet5.py", "padding=VALID", 61_706),
    ("small_images/particles.py", "method=svgd", 784 * 100 + 2 * 100 * 100 + 100 * 10 + 310),
    ("cifar/wide_resnet.py", "size=4", 36_479_194),
    ("cifar/wide_resnet.py", "dataset=cifar100,masks=30", 36_479_194 + 90 * 641),
    # Without its dense head: 36,472,784; published 37M, 36.5M.
    ("cifar/wide_resnet.py", "dataset=cifar100,method=het", 36_472_784 + 641 * 100 * (2 + 6)),
    ("cifar/wide_resnet.py", "method=sngp,size=4", 36_472_784 + 1024 * 10),
    ("cifar/wide_resnet.py", "method=hetsngp", 36_472_784 + 1024 * 10 + 641 * 10 * (1 + 6)),
    # He et al.'s counts with option A, and its projections with their norms.
    ("cifar/resnet.py", "depth=20", 269_722 + 2_752),
    ("cifar/resnet.py", "depth=56", 853_018 + 2_752),
    ("imagenet/resnet50.py", "masks=10", 25_557_032),
    # Without its dense head: 23,508,032; published 58.4M for HET.
    ("imagenet/resnet50.py", "method=het,size=4", 23_508_032 + 2049 * 1000 * (2 + 15)),
    ("imagenet/resnet50.py", "method=sngp,size=4", 23_508_032 + 1024 * 1000),
    ("imagenet/resnet50.py", "method=hetsngp", 23_508_032 + 1024 * 1000 + 2049 * 1000 * (1 + 15)),
    # The counts of models with a class token and its position, less these two.
    ("imagenet/vit.py", "variant=Ti/16", 5_717_416 - 2 * 192),
    ("imagenet/vit.py", "", 22_050_664 - 2 * 384),
    ("imagenet/vit.py", "variant=B/16", 86_567_656 - 2 * 768),
    ("imagenet/vit.py", "variant=L/16,size=2", 304_326_632 - 2 * 1024),
    ("cifar/vit.py", "", transformer(32, 768, 12, 3072, 0, 145) + 769 * 10),
    # With both; its dense head gives way to the GP's weights, d, v, and 50 shared factors.
    # E3 has as many as V-MoE; eight experts in two of eight blocks.
    ("cifar/vmoe.py", "", transformer(32, 512, 8, 2048, 2, 17) + 513 * (512 + 100)),
    ("cifar/vmoe.py", "model=vmoe-S/32", transformer(32, 512, 8, 2048, 2, 17) + 513 * (512 + 100)),
    ("cifar/vmoe.py", "model=vmoe-B/16,dataset=cifar10",
     transformer(16, 768, 12, 3072, 6, 65) + 769 * 10),
    ("imagenet/vmoe.py", "", transformer(32, 512, 8, 2048, 2, 50) + 513 * (512 + 1000)),
    # Kernels are shared, convolutions have no bias: two vectors a layer, and four last biases.
    ("cifar/wide_resnet.py", "ensemble=batch_ensemble", 36_479_194 + 4 * FAST + 3 * 10),
    ("cifar/wide_resnet.py", "ensemble=mimo", 36_479_194 + 2 * 9 * 3 * 16 + 2 * 641 * 10),
    ("imagenet/vit.py", "variant=B/16,method=hetsngp",
     86_567_656 - 769 * 1000 + 1024 * 1000 + 2 * 769 * 1000 + 1000 * 50),
]  # fmt: skip


def config_of(file, options, *more):
    argument = ",".join(filter(None, [*more, options]))
    return config_lib.load(str(ROOT / "configs" / file) + (f":{argument}" if argument else ""))


def files():
    found = {str(path.relative_to(ROOT / "configs")) for path in ROOT.glob("configs/*/*.py")}
    return {f for f in found if not f.startswith("tables/") and not f.endswith("__init__.py")}


def test_no_config_is_left_out():
    assert {file for file, _ in TRAINED + TRACED} == files()


# Each file once, and all rows whose models are not traced at full size below.
AT_FULL_SIZE = {(file, options) for file, options, _ in FULL}
SET_UP = list({file: (file, options) for file, options in reversed(TRACED)}.values())
SET_UP += [row for row in TRACED if row not in AT_FULL_SIZE and row not in SET_UP]


@SLOW
@pytest.mark.parametrize(("file", "options"), SET_UP)
def test_runlocal_is_set_up(file, options):
    """All that can be wrong before the first step: data, shapes, stages, and a traced update."""
    config = config_of(file, options, "runlocal")
    config.mesh = dict(data=1)
    config.inference.executor = "vmap"  # traced once, not once for each particle
    experiment = build_lib.setup(config_lib.plain(config))
    assert len(experiment.stages) == len(config.stages)


@SLOW
@pytest.mark.parametrize(("file", "options"), TRAINED)
def test_runlocal_trains_and_evaluates(file, options, tmp_path):
    config = config_of(file, options, "runlocal")
    config.steps = 2
    config.evaluation.every = min(config.evaluation.every, 1)
    config.checkpoint.every = 1000
    if "flops" in config.evaluators:  # which compiles all again; see `test_flops.py`
        del config.evaluators.flops
    config.mesh = dict(data=1)  # of the 8 devices here; the numbers are the same on any
    experiment = train.train(config_lib.plain(config), tmp_path)
    stage.run(experiment, tmp_path)
    metrics, failures = evaluate.evaluate(experiment, tmp_path, show=False)
    assert not failures
    assert metrics["cost/step"] == 2
    groups = {"classification": "classification/nll", "regression": "regression/nll"}
    wanted = {groups[experiment.source.task]} | {
        f"{e.name}/" for e in config.evaluators.values() if e.name in ("corruption", "ood")
    }
    if "select" in {one["name"] for one in config.stages}:  # one network twice has a spread of 0
        metrics = {k: v for k, v in metrics.items() if "ratio_probability_std" not in k}
    for prefix in wanted:
        found = [value for key, value in metrics.items() if key.startswith(prefix)]
        assert found and np.isfinite(found).all(), prefix


@pytest.mark.parametrize(
    ("file", "options"),
    # features have no stand-in
    [row for row in TRAINED + TRACED if row[0] not in ("cifar/frozen.py", "cifar/epinets.py")],
)
def test_runlocal_needs_no_file(file, options):
    """Only embedded sets are left, with the shape, type and classes that the real ones have."""
    full, small = (config_of(file, options, *more) for more in ((), ("runlocal",)))
    pairs = list(zip(specs(full), specs(small), strict=True))
    assert pairs
    for real, spec in pairs:
        if spec["name"] in MADE_OF_OTHERS:
            parts = [part for part in spec.values() if isinstance(part, Mapping)]
            assert {part["name"] for part in parts} == {"stand_in"}
            continue
        assert needs_no_file(spec["name"])
        if needs_no_file(real["name"]):
            assert real == spec
            continue
        source = load(spec)
        assert source.x.dtype == np.uint8
        assert spec["split"] == real["split"].partition("[")[0]
        for field in ("mean", "std"):
            assert spec.get(field) == real.get(field)
        assert source.outputs == full.head.outputs
        assert source.shape == shape_of(dict(data=dict(train=real)))


SHAPES = {  # of the real sets
    **dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), (28, 28, 1)),
    **dict.fromkeys(("cifar10", "cifar100", "svhn_cropped"), (32, 32, 3)),
    **dict.fromkeys(("imagenet2012", "places365_small"), (None, None, 3)),
}


def specs(config):
    """Every data spec of a config, in order."""

    def walk(section):
        for value in section.values():
            if isinstance(value, ConfigDict):
                yield from [config_lib.plain(value)] if "name" in value else walk(value)

    return list(itertools.chain(walk(config.data), *map(walk, config.evaluators.values())))


@SLOW
@pytest.mark.parametrize(("file", "options", "parameters"), FULL)
def test_full_size_models_have_their_published_numbers_of_parameters(file, options, parameters):
    config, _, state, _ = traced(file, options)
    P = config["inference"]["size"]
    assert state.key.shape == (P,)
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(state.params)) == P * parameters
    assert {a.dtype.name for a in jax.tree.leaves(state.params)} == {"float32"}


@SLOW
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("cifar/wide_resnet.py", "method=hetsngp"),
        ("cifar/vmoe.py", ""),
        ("imagenet/resnet50.py", "method=het,size=4"),
    ],
)
def test_full_size_steps_fit_together(file, options):
    config, inference, state, batch = traced(file, options)
    P, B = config["inference"]["size"], config["batch_size"]
    after, metrics = jax.eval_shape(inference.update, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    drawn = config["ensemble"]["name"] == "mc_dropout"  # members at prediction alone
    M = 1 if drawn else config["ensemble"].get("size", 1)
    assert metrics["nll"].shape == (P, M, B)
    latent = jax.eval_shape(inference.predict, state, batch["x"])
    assert latent.mean.dtype == jnp.float32
    assert latent.mean.shape == (
        P * config["ensemble"].get("size", 1),
        B,
        config["head"]["outputs"],
    )


@functools.cache
def traced(file, options):
    """The config, its inference, and the shapes of its state and batches; nothing is allocated."""
    config = config_lib.plain(config_of(file, options))
    config_lib.check(config)
    config["inference"]["executor"] = "vmap"  # traced once, not once for each particle
    inference = build.inference(config, num_examples=1)
    B = config["batch_size"]
    x = jax.ShapeDtypeStruct((B, *shape_of(config)), jnp.float32)
    state = jax.eval_shape(inference.init, jax.random.key(0), x)
    return config, inference, state, dict(x=x, y=jax.ShapeDtypeStruct((B,), jnp.int32))


def shape_of(config):
    spec = config["data"]["train"]
    if spec["name"] not in SHAPES:
        return load(spec).shape
    height, width, channels = SHAPES[spec["name"]]
    return spec.get("size", height), spec.get("size", width), channels


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_rows_that_can_run(name):
    table = table_of(name)
    study = Study(
        title=table["title"],
        columns=table["columns"],
        rows=[
            dict(label=row["label"], published=row.get("published", {})) for row in table["rows"]
        ],
    )
    assert len(table["seeds"]) > 1 and len(study.rows) > 1
    for row in table["rows"]:
        file, _, options = row["config"].partition(":")
        config = config_lib.plain(config_lib.load(f"{ROOT / file}:{options}"))
        config_lib.check(config)
        for column in study.columns:  # what a column shows is evaluated
            group, *rest = column.key.split("/")
            kinds = {e["name"]: e for e in config["evaluators"].values()}
            if group == "corruption":
                assert {"corruption", "corrupted"} & kinds.keys()
            if group == "ood" and kinds["ood"]["data"]["name"] != rest[0]:
                assert rest[0] in kinds["ood"]["sets"]
    assert len({row["config"] for row in table["rows"]}) == len(table["rows"])


def test_shrink_keeps_one_set_one_and_different_sets_different():
    config = config_lib.plain(config_of("cifar/wide_resnet.py", "", "runlocal"))
    evaluators = config["evaluators"]
    assert (
        evaluators["test"]["data"] == evaluators["ood"]["data"] == evaluators["corruption"]["data"]
    )
    ood = evaluators["ood"]
    test, other = (load(spec) for spec in (ood["data"], ood["sets"]["svhn"]))
    assert not np.array_equal(test.x, other.x)
    assert not np.array_equal(test.x, load(config["data"]["train"]).x)


def test_shrink_keeps_validation_data_apart_from_those_of_training():
    """Where both are slices of one split, which the stand-in is too small for."""
    for file, options in (
        ("small_images/particles.py", "method=hyper_selected"),
        ("small_images/noisy_fashion_mnist.py", ""),
        ("imagenet/vit.py", ""),
    ):
        config = config_lib.plain(config_of(file, options, "runlocal"))
        train = load(config["data"]["train"])
        validation = load(config["data"]["validation"], like=train)
        test = load(config["evaluators"]["test"]["data"], like=train)
        assert share(validation, train) == share(validation, test) == 0, file


def test_shrink_asks_for_the_shape_of_what_it_replaces():
    config = base.base()
    config.data.train = dict(name="cifar10", split="train[:90%]")
    with pytest.raises(ValueError, match="'cifar10' needs a stand-in's shape and num_classes"):
        base.shrink(config)


def test_options_take_the_type_of_their_default():
    defaults = dict(size=1, rate=1.0, name="y", flag=True, depth=(20, 32))
    options = base.parse_arg("runlocal,size=3,rate=2,name=x,depth=32", **defaults)
    assert options.to_dict() == dict(runlocal=True, size=3, rate=2.0, name="x", flag=True, depth=32)
    assert base.parse_arg(None, **defaults).depth == 20
    assert base.parse_arg("flag=false", **defaults).flag is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise=3", "'sise': not one of data, runlocal, size"),
        ("size=x", "'size=x': int is needed"),
        ("runlocal=maybe", "true or false"),
        ("data=cifar11", "'data=cifar11': not one of cifar10, cifar100"),
    ],
)
def test_wrong_options_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        base.parse_arg(text, size=1, data=("cifar10", "cifar100"))
