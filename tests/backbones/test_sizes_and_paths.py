"""Parameter paths and published counts, traced without allocating; refused fields and inputs."""

import functools

import jax
import jax.numpy as jnp
import pytest

from uncertainty.backbones.lenet import LeNet5
from uncertainty.backbones.mlp import MLP
from uncertainty.backbones.resnet import ResNet
from uncertainty.backbones.vit import ViT
from uncertainty.backbones.wide_resnet import WideResNet

CIFAR, IMAGENET, MNIST = (32, 32, 3), (224, 224, 3), (28, 28, 1)


def trace(module, shape):
    """Shapes of the variables and of the features, for one example of `shape`."""

    def run(x):
        features, variables = module.init_with_output(jax.random.key(0), x, train=False)
        return variables, features

    return jax.eval_shape(run, jax.ShapeDtypeStruct((1, 1, *shape), jnp.float32))


def count(module, shape, classes):
    """Parameters of the backbone and of a dense head on it."""
    variables, features = trace(module, shape)
    backbone = sum(a.size for a in jax.tree.leaves(variables["params"]))
    return backbone, backbone + (features.shape[-1] + 1) * classes


def paths(variables):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): a.shape
        for path, a in jax.tree_util.tree_leaves_with_path(variables)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, shape, classes, total",
    [
        (MLP(widths=(200, 200)), MNIST, 10, 784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10),
        (MLP(widths=(100, 100, 100)), MNIST, 10, 99_710),
        (LeNet5(), MNIST, 10, 61_706),
        (LeNet5(padding="SAME"), MNIST, 10, 545_546),  # as uncertainty-baselines' script
        (ResNet(depth=20), CIFAR, 10, 272_474),  # the paper rounds to 0.27 and 0.85 M
        (ResNet(depth=56), CIFAR, 10, 855_770),
        (ResNet(depth=18), IMAGENET, 1000, 11_689_512),  # torchvision's
        (ResNet(depth=34), IMAGENET, 1000, 21_797_672),
        (ResNet(depth=50), IMAGENET, 1000, 25_557_032),
        (ResNet(depth=101), IMAGENET, 1000, 44_549_160),
        (WideResNet(), CIFAR, 10, 36_479_194),
        (ViT("Ti/16"), IMAGENET, 1000, 5_717_416),  # timm's, from AugReg's checkpoints
        (ViT("S/16"), IMAGENET, 1000, 22_050_664),
        (ViT("S/32"), IMAGENET, 1000, 22_878_952),
        (ViT("B/16"), IMAGENET, 1000, 86_567_656),
        (ViT("B/32"), IMAGENET, 1000, 88_224_232),
        (ViT("L/16"), IMAGENET, 1000, 304_326_632),
        (ViT("L/32"), IMAGENET, 1000, 306_535_400),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "init") else None,
)
def test_parameters_with_a_dense_head(module, shape, classes, total):
    assert count(module, shape, classes)[1] == total


def test_backbone_without_head():
    # One class token and one position less than with a token.
    assert count(ViT("B/16", pooling="gap"), IMAGENET, 0)[0] == 85_798_656 - 2 * 768


def test_overridden_sizes():
    """V-MoE's S/32: patches 32 * 32 * 3 * D, T positions, blocks, norm, class token."""
    module = ViT("S/32", width=512, depth=8, num_heads=8, mlp_dim=2048)
    D, F, T = 512, 2048, 49 + 1
    block = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    expected = 32 * 32 * 3 * D + D + D + T * D + 8 * block + 2 * D
    assert count(module, IMAGENET, 0)[0] == expected
    assert trace(ViT("tiny", patch_size=7), MNIST)[0]["params"]["position_embedding"].shape == (
        1,
        17,
        32,
    )


def layer(path, kernel, bias=True):
    shapes = {f"params/{path}/kernel": kernel}
    return shapes | ({f"params/{path}/bias": kernel[-1:]} if bias else {})


def norm(path, features, averages=True):
    shapes = {f"params/{path}/{name}": (features,) for name in ("scale", "bias")}
    if averages:
        shapes |= {f"batch_stats/{path}/{name}": (features,) for name in ("mean", "var")}
    return shapes


def test_paths_of_mlp():
    expected = layer("dense0", (784, 30)) | layer("dense1", (30, 20))
    assert paths(trace(MLP(widths=(30, 20)), MNIST)[0]) == expected


@pytest.mark.parametrize("padding, flat", [("VALID", 120), ("SAME", 49 * 120)])
def test_paths_of_lenet(padding, flat):
    assert paths(trace(LeNet5(padding=padding), MNIST)[0]) == (
        layer("conv0", (5, 5, 1, 6))
        | layer("conv1", (5, 5, 6, 16))
        | layer("conv2", (5, 5, 16, 120))
        | layer("dense0", (flat, 84))
    )


@pytest.mark.parametrize("normalised", [True, False])
def test_paths_of_resnet(normalised):
    def conv_norm(path, name, kernel, norm_name):
        expected = layer(f"{path}/{name}", kernel, bias=not normalised)
        return expected | (norm(f"{path}/{norm_name}", kernel[-1]) if normalised else {})

    def block(path, inputs, outputs):
        expected = conv_norm(path, "conv0", (3, 3, inputs, outputs), "norm0")
        expected |= conv_norm(path, "conv1", (3, 3, outputs, outputs), "norm1")
        if inputs != outputs:
            expected |= conv_norm(path, "shortcut", (1, 1, inputs, outputs), "shortcut_norm")
        return expected

    module = ResNet(depth=8) if normalised else ResNet(depth=8, norm=None)
    assert paths(trace(module, CIFAR)[0]) == (
        conv_norm("stem", "conv", (3, 3, 3, 16), "norm")
        | block("stage1/block0", 16, 16)
        | block("stage2/block0", 16, 32)
        | block("stage3/block0", 32, 64)
    )


def test_paths_of_a_bottleneck():
    found = paths(trace(ResNet(depth=50), IMAGENET)[0])
    prefix = "stage2/block0"
    expected = {}
    for name, kernel in {
        "conv0": (1, 1, 256, 128),
        "conv1": (3, 3, 128, 128),
        "conv2": (1, 1, 128, 512),
        "shortcut": (1, 1, 256, 512),
    }.items():
        norm_name = name.replace("conv", "norm") if name != "shortcut" else "shortcut_norm"
        expected |= layer(f"{prefix}/{name}", kernel, bias=False)
        expected |= norm(f"{prefix}/{norm_name}", kernel[-1])
    assert {p: s for p, s in found.items() if f"/{prefix}/" in p} == expected
    blocks = {p.split("/")[1] + "/" + p.split("/")[2] for p in found if "/stage" in p}
    assert blocks == {
        f"stage{i + 1}/block{j}" for i, n in enumerate((3, 4, 6, 3)) for j in range(n)
    }


def test_paths_of_wide_resnet():
    def block(path, inputs, outputs):
        expected = norm(f"{path}/norm0", inputs) | norm(f"{path}/norm1", outputs)
        expected |= layer(f"{path}/conv0", (3, 3, inputs, outputs), bias=False)
        expected |= layer(f"{path}/conv1", (3, 3, outputs, outputs), bias=False)
        return expected | layer(f"{path}/shortcut", (1, 1, inputs, outputs), bias=False)

    assert paths(trace(WideResNet(depth=10, width_multiplier=2), CIFAR)[0]) == (
        layer("stem", (3, 3, 3, 16), bias=False)
        | block("stage1/block0", 16, 32)
        | block("stage2/block0", 32, 64)
        | block("stage3/block0", 64, 128)
        | norm("norm", 128)
    )


def test_paths_of_vit():
    expected = {"params/class_token": (1, 1, 32), "params/position_embedding": (1, 50, 32)}
    expected |= layer("embedding", (4, 4, 1, 32)) | norm("norm", 32, averages=False)
    for block in ("block00", "block01"):
        for name in ("query", "key", "value", "out"):
            expected |= layer(f"{block}/attention/{name}", (32, 32))
        expected |= layer(f"{block}/feed_forward/dense0", (32, 64))
        expected |= layer(f"{block}/feed_forward/dense1", (64, 32))
        expected |= norm(f"{block}/norm0", 32, averages=False)
        expected |= norm(f"{block}/norm1", 32, averages=False)
    assert paths(trace(ViT("tiny"), MNIST)[0]) == expected


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MLP(widths=(3, 0)), r"widths: \(3, 0\); allowed at least 1"),
        (lambda: MLP(activation="rellu"), "activation: 'rellu'; allowed .*'relu'"),
        (lambda: LeNet5(padding="same"), "padding: 'same'; allowed 'VALID', 'SAME'"),
        (
            lambda: ResNet(depth=21),
            "depth: 21; allowed 8, 14, 18, 20, 32, 34, 44, 50, 56, 101, 110",
        ),
        (lambda: ResNet(width=0), "width: 0; allowed None, or at least 1"),
        (lambda: WideResNet(depth=27), "depth: 27; allowed 6 i \\+ 4: 10, 16, 22, 28"),
        (lambda: WideResNet(depth=4), "depth: 4"),
        (lambda: WideResNet(width_multiplier=0), "width_multiplier: 0; allowed at least 1"),
        (lambda: ViT("B16"), "variant: 'B16'; did you mean 'B/16'\\? allowed tiny, Ti/16"),
        (lambda: ViT("tiny", pooling="cls"), "pooling: 'cls'; allowed 'token', 'gap'"),
        (lambda: ViT("tiny", depth=0), "depth: 0; allowed at least 1"),
        (lambda: ViT("tiny", num_heads=3), "num_heads: 3 does not divide width 32"),
        (lambda: ViT("tiny", swaps={2: MLP}), "swaps: block 2; allowed 0 to 1"),
        (lambda: ViT("tiny", swaps={"last": MLP}), "swaps: block 'last'; allowed 0 to 1"),
        (lambda: ViT("tiny", swaps={-1: MLP}), "swaps: block -1; allowed 0 to 1"),
    ],
)
def test_bad_fields_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "module, shape, message",
    [
        (MLP(), (1, 5), r"x: shape \(1, 5\); allowed \[M or 1, B, F\]"),
        (LeNet5(), (1, 2, 24, 28, 1), "x: images of 24 x 28; allowed at least 25 x 25"),
        (LeNet5(), (2, 28, 28, 1), r"x: shape .* has 4 axes; allowed \[M or 1, B, H, W, C\]"),
        (ResNet(), (2, 8, 8, 3), "has 4 axes"),
        (WideResNet(), (2, 8, 8, 3), "has 4 axes"),
        (ViT("B/16"), (2, 8, 8, 3), "has 4 axes"),
        (ViT("B/16"), (1, 1, 224, 230, 3), "patch_size: 16 does not divide images of 224 x 230"),
    ],
)
def test_bad_inputs_are_refused(module, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(module.init, train=False),
            jax.random.key(0),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
