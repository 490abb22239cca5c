"""Counted operations against counts by hand: the products, and a little for each element."""

import types

import pytest

from experiments.evaluators.flops import flops
from experiments.experiment import config as config_lib
from experiments.experiment.base import base
from experiments.experiment.build import setup

B, T, D, H, K = 20, 16, 32, 64, 8
EMBEDDING = 2 * 4 * D * T  # patches of 2 x 2
ATTENTION = 8 * D * D * T + 4 * T * T * D
FEED_FORWARD = 4 * D * H * T
HEAD = 2 * D * K
DENSE = EMBEDDING + ATTENTION + FEED_FORWARD + HEAD


def counted(**sections):
    config = base()
    config.data.train = dict(name="digits", split="train[:100]", classes=tuple(range(K)))
    config.batch_size = config.evaluation.batch_size = B
    config.backbone = dict(name="vit.ViT", variant="tiny", patch_size=2, depth=1, pooling="gap")
    config.head.outputs = K
    config.mesh = dict(data=1)
    for name, fields in sections.items():
        config[name].update(fields)
    experiment = setup(config_lib.plain(config))
    found = dict(
        flops().run(types.SimpleNamespace(runs=[types.SimpleNamespace(experiment=experiment)]))
    )
    return [found[f"cost/{name}_flops_per_example"] for name in ("train", "predict")]


@pytest.fixture(scope="module")
def single():
    return counted()


# Norms, softmax, GELU and sums cost some tenths beside products of this width.
ELEMENTS = 1.15


@pytest.mark.slow
def test_a_vit_costs_its_products(single):
    train, predict = single
    assert DENSE < predict < ELEMENTS * DENSE
    # The backward pass has two products for each, but none for the gradient of the images.
    products = 3 * DENSE - EMBEDDING
    assert products < train < ELEMENTS * products


@pytest.mark.slow
def test_networks_that_computed_the_features_are_added():
    backbone = dict(name="resnet.ResNet", depth=8, width=4, shortcuts="zero_padding")
    shape = (8, 8, 3)
    config = base()
    config.data.train = dict(name="digits", split="train[:100]")
    config.backbone, config.mesh = dict(name="mlp.MLP", widths=()), dict(data=1)
    experiment = setup(config_lib.plain(config))
    trained = types.SimpleNamespace(experiment=experiment, state=experiment.shapes)
    predict = types.SimpleNamespace(runs=[trained])
    found = dict(flops(features=[dict(backbone=backbone, shape=shape)] * 2).run(predict))
    # Channels in and out of the stem, and of two convolutions in each stage; along a side, the
    # pixels that their 8, 4 or 2 windows see, without the padding, which XLA does not count.
    kernels = [3 * 4, 4 * 4, 4 * 4, 4 * 8, 8 * 8, 8 * 16, 16 * 16]
    pixels = [3 * 8 - 2, 3 * 8 - 2, 3 * 8 - 2, 3 * 4 - 1, 3 * 4 - 2, 3 * 2 - 1, 3 * 2 - 2]
    norms = 2 * (4 + 2 * 4 + 2 * 8 + 2 * 16)
    head = 64 * 10 + 10
    assert found["cost/total_parameters"] == 2 * (9 * sum(kernels) + norms) + head
    products = 2 * sum(n**2 * k for n, k in zip(pixels, kernels, strict=True))
    both = found["cost/total_predict_flops_per_example"] - found["cost/predict_flops_per_example"]
    assert products < both / 2 < ELEMENTS * products
    for wrong, why in (
        (dict(backbone=backbone), r"features\[0\]: .*dict\(backbone=..., shape=...\) is needed"),
        (dict(backbone=backbone, shape=(8, 0)), r"features\[0\].shape: \(8, 0\)"),
        (dict(backbone=dict(name="resnet.ResNet", deep=8), shape=shape), r"\[0\].backbone.deep"),
    ):
        with pytest.raises(ValueError, match=why):
            flops(features=[wrong])


@pytest.mark.slow
def test_experts_cost_their_slots():
    experts = dict(
        name="experts.MoE", num_experts=8, router=dict(name="routers.TopK", capacity_factor=1.5)
    )
    fields = dict(experts=experts, depth=2, expert_blocks=(1,))
    slots = 2 * 4 * (B * T * 1.5 / 4)  # of M members with 4 experts each
    assert slots == 3 * B * T
    layer = 4 * D * H * slots / B + 2 * D * 8 * T  # with the routers
    train, predict = counted(backbone=fields, ensemble=dict(name="e3", size=2))
    products = DENSE + ATTENTION + layer + HEAD  # a second block, of experts
    assert products < predict < ELEMENTS * products
    assert 3 * products - EMBEDDING < train < ELEMENTS * (3 * products - EMBEDDING)


@pytest.mark.slow
def test_loops_over_particles_and_parts_are_counted(single):
    """A loop's body is counted once by XLA: neither the executor nor `accumulate` may matter."""
    loops = dict(size=3, executor="scan", accumulate=2)
    assert counted(inference=loops) == pytest.approx([3 * n for n in single])
    svgd = dict(name="svgd", kernel=dict(name="linear"))
    interacting = loops | dict(direction=svgd, prior=dict(name="gaussian", scale=1.0))
    train, predict = counted(inference=interacting)
    assert predict == pytest.approx(3 * single[1])
    # What particles do to one another, for each of 25,000 parameters and not for each example.
    assert 3 * single[0] < train < 3.3 * single[0]


@pytest.mark.slow
def test_members_that_share_a_trunk_cost_less_than_networks(single):
    where = "block00/feed_forward"
    train, predict = counted(ensemble=dict(name="batch_ensemble", size=2, where=where))
    products = DENSE + FEED_FORWARD + HEAD
    assert products < predict < ELEMENTS * products
    assert train < 2 * single[0]
